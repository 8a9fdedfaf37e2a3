"""The tables of the demo, the writes that change them, and the checksums that compare them."""

from __future__ import annotations

import random
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from pgwal_cli.throwaway_server import ThrowawayServer

_ROWS_PER_MB = 6000
"""Of an account, its index entry included."""

_SCHEMA = """
    CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, filler text NOT NULL) WITH (fillfactor = 90);
    CREATE TABLE entry (id bigserial PRIMARY KEY, account_id bigint NOT NULL, delta bigint NOT NULL, made timestamptz);
    CREATE INDEX entry_account ON entry (account_id);
    CREATE TABLE document (id bigserial PRIMARY KEY, body text NOT NULL);
    CREATE INDEX document_words ON document USING gin (to_tsvector('simple', body));
    CREATE TABLE queue (id bigserial, payload text);
"""


def create_tables(server: ThrowawayServer, size_mb: int) -> None:
    """Create the tables and fill them to about ``size_mb`` MB."""
    with server.connect() as connection:
        connection.execute(_SCHEMA)
        connection.execute(
            "INSERT INTO account SELECT i, 0, repeat('x', 100) FROM generate_series(1, %s::int) AS i",
            (size_mb * _ROWS_PER_MB,),
        )
        connection.execute("VACUUM ANALYZE")


def table_checksums(server: ThrowawayServer) -> dict[str, tuple[int, str]]:
    """Return the rows of every table and a checksum over their text, in whatever order they lie."""
    found: dict[str, tuple[int, str]] = {}
    with server.connect() as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()
        for (name,) in names:
            query = sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {} AS t")
            row = connection.execute(query.format(sql.Identifier(name))).fetchone()
            assert row is not None
            found[name] = (int(row[0]), str(row[1]))
    return found


class WriteLoad:
    """Writes of many kinds, all the time, in a thread, until the context is left."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.transaction_count = 0
        self._server = server
        self._random = random.Random(0)
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="write-load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def run_for(self, seconds: float) -> None:
        """Let the load run on for a while; raises what has ended it."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and self._error is None:
            time.sleep(0.05)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self._server.connect() as connection:
                (self._accounts,) = connection.execute("SELECT max(id) FROM account").fetchone() or (1,)
                while not self._stopping.is_set():
                    self._transaction(connection)
                    self.transaction_count += 1
        except psycopg.Error as error:
            self._error = error

    def _transaction(self, connection: psycopg.Connection) -> None:
        """Mostly transfers, and now and then what makes, rewrites, shortens or drops files."""
        number = self.transaction_count
        with connection.transaction():
            self._transfer(connection)
        if number % 50 == 0:
            connection.execute("INSERT INTO document (body) SELECT string_agg(md5(random()::text), ' ')"
                               " FROM generate_series(1, 200)")  # fmt: skip
            connection.execute("INSERT INTO queue (payload) SELECT repeat('q', 200) FROM generate_series(1, 500)")
        if number % 400 == 100:
            connection.execute(f"CREATE TABLE made_{number} AS SELECT * FROM account WHERE id % 100 = {number % 100}")
        if number % 400 == 200:
            connection.execute("TRUNCATE queue")
        if number % 800 == 300:
            connection.execute("DELETE FROM entry WHERE id > (SELECT max(id) / 2 FROM entry)")
            connection.execute("VACUUM entry")
        if number % 1200 == 500:
            connection.execute("REINDEX INDEX entry_account")
            connection.execute(f"DROP TABLE made_{number - 400}")

    def _transfer(self, connection: psycopg.Connection) -> None:
        account_id = self._random.randint(1, self._accounts)
        delta = self._random.randint(-1000, 1000)
        connection.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (delta, account_id))
        connection.execute(
            "INSERT INTO entry (account_id, delta, made) VALUES (%s, %s, clock_timestamp())", (account_id, delta)
        )
