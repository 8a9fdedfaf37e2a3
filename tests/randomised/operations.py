"""What the sessions of the load do: each operation is a few statements, chosen by a session's own random numbers.

There are two sorts of tables.  The small ones, t0 and so on, are made, rewritten, moved and dropped all the time, and
their files are mostly copied whole.  The steady ones, steady0 and so on, are larger, and each change is to a few of
their blocks: those are what an incremental backup must pick out.

An operation may fail at any statement, because another session has dropped or locked what it works on: the session
then goes on with another one.  Names come from small pools, so that sessions get in each other's way.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from pgwal_cli.throwaway_server import give_to_server

TABLES = 8
MADE_TABLES = 6
STEADY_TABLES = 3
STEADY_ROWS = 8000
EXTRA_DATABASES = 3
BRIEF_TABLESPACES = 2

COLUMNS = "id int, h int, tags int[], at point, place text, doc text"
ROW = """i AS id, i % 50 AS h, ARRAY[i % 7, i % 11, i % 100] AS tags, point(i % 40, i % 90) AS at,
    md5(i::text) AS place, repeat(md5(i::text), {width}) AS doc"""

INDEXES = {
    "btree": "btree (id)",
    "btree_text": "btree (place, h)",
    "expression": "btree ((h + 1)) WHERE id % 3 = 0",
    "hash": "hash (h)",
    "gin": "gin (tags) WITH (fastupdate = on)",
    "gist": "gist (at)",
    "spgist": "spgist (place)",
    "quadtree": "spgist (at)",
    "brin": "brin (id) WITH (pages_per_range = 2, autosummarize = off)",
}


@dataclass
class Session:
    """A connection, and what an operation on it may use; ``tablespaces`` are those that things can be moved to."""

    connection: psycopg.Connection[TupleRow]
    chance: random.Random
    major: int
    number: int
    tablespaces: list[str]
    conninfo: str
    has_visibility: bool
    copying_files: threading.Lock
    """Held by whoever copies the files of a database, or wants none to be copied."""
    place: Path | None = None
    """Where new tablespaces lie; None is for those inside of the data directory."""

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    @contextmanager
    def transaction(self, end: str = "COMMIT") -> Iterator[None]:
        """Run the block in a transaction that ends with the given statement."""
        self.run("BEGIN")
        try:
            yield
            self.run(end)
        except psycopg.Error:
            if not self.connection.closed:
                self.run("ROLLBACK")
            raise

    @contextmanager
    def other_database(self, name: str) -> Iterator[Session]:
        with psycopg.connect(self.conninfo, dbname=name, autocommit=True) as connection:
            yield replace(self, connection=connection, has_visibility=False)

    # -- choices

    def table(self) -> str:
        return f"t{self.chance.randrange(TABLES)}"

    def any_table(self) -> str:
        return self.table() if self.chance.random() < 0.3 else f"steady{self.chance.randrange(STEADY_TABLES)}"

    def rows(self, *, most: int = 400, width: int | None = None) -> str:
        """Return a query of new rows."""
        first, count = self.chance.randrange(STEADY_ROWS), self.chance.randint(1, most)
        width = self.chance.choice([1, 2, 5, 20]) if width is None else width
        return f"SELECT {ROW.format(width=width)} FROM generate_series({first}, {first + count}) AS i"

    def some(self, table: str) -> str:
        """Return a condition that is true of some rows, which lie close together in a steady table."""
        if table.startswith("steady"):
            first = self.chance.randrange(STEADY_ROWS)
            return f"id BETWEEN {first} AND {first + self.chance.choice([0, 3, 40])}"
        divisor = self.chance.choice([2, 3, 5, 17, 97])
        return f"id % {divisor} = {self.chance.randrange(divisor)}"

    def tail(self, table: str) -> str:
        """Return a condition that is true of the rows at the end of the file."""
        first = self.chance.choice([80, 150, 180, 200] if table.startswith("steady") else [0, 1, 3, 10, 30])
        return f"ctid >= '({first},0)'"

    def tablespace(self) -> str:
        return self.chance.choice(["pg_default", *self.tablespaces])


def make_table(session: Session, name: str, kind: str = "") -> None:
    """Make a table of the shape that all operations expect, with some of the indexes."""
    fillfactor = session.chance.choice([100, 100, 60])
    session.run(
        f"CREATE {kind} TABLE {name} ({COLUMNS}) WITH (fillfactor = {fillfactor}) TABLESPACE {session.tablespace()}",
    )
    if session.chance.random() < 0.3:
        session.run(f"ALTER TABLE {name} ALTER doc SET STORAGE {session.chance.choice(['EXTERNAL', 'MAIN'])}")
    session.run(f"INSERT INTO {name} {session.rows()}")
    for index in session.chance.sample(sorted(INDEXES), session.chance.randint(0, 4)):
        session.run(f"CREATE INDEX ON {name} USING {INDEXES[index]}")


def make_steady_table(session: Session, number: int) -> None:
    """Make a larger table; together they have all kinds of indexes."""
    name = f"steady{number}"
    rows = f"SELECT {ROW.format(width=3)} FROM generate_series(1, {STEADY_ROWS}) AS i"
    session.run(f"CREATE TABLE {name} ({COLUMNS})", f"INSERT INTO {name} {rows}")
    for kind in ("btree", *sorted(INDEXES)[number::STEADY_TABLES]):
        session.run(f"CREATE INDEX ON {name} USING {INDEXES[kind]}")


# ---- rows


def insert(session: Session) -> None:
    session.run(f"INSERT INTO {session.any_table()} {session.rows(most=100)}")


def insert_long(session: Session) -> None:
    session.run(f"INSERT INTO {session.any_table()} {session.rows(most=10, width=600)}")


def insert_incompressible(session: Session) -> None:
    long = "(SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 300) AS j)"
    row = f"{session.chance.randrange(STEADY_ROWS)} + i, 1, NULL, NULL, 'toast', {long}"
    session.run(f"INSERT INTO {session.any_table()} SELECT {row} FROM generate_series(1, 5) AS i")


def update(session: Session) -> None:
    changes = ["h = h + 1", "doc = 'hot'", "tags = tags || h", "at = at + point(1, 1)", "doc = doc || place"]
    table = session.any_table()
    session.run(f"UPDATE {table} SET {session.chance.choice(changes)} WHERE {session.some(table)}")


def delete(session: Session) -> None:
    table = session.any_table()
    session.run(f"DELETE FROM {table} WHERE {session.some(table)}")


def shrink(session: Session) -> None:
    """Have vacuum cut a file, and often have it grow again."""
    table = session.any_table()
    session.run(f"DELETE FROM {table} WHERE {session.tail(table)}", f"VACUUM {table}")
    if session.chance.random() < 0.6:
        copy_rows(session, table, session.chance.choice([50, 1000, 4000]))


def copy(session: Session) -> None:
    copy_rows(session, session.any_table(), session.chance.choice([10, 100, 1000]))


def copy_rows(session: Session, table: str, count: int, options: str = "") -> None:
    width = session.chance.choice([10, 100])
    with session.connection.cursor() as cursor, cursor.copy(f"COPY {table} (id, doc) FROM STDIN {options}") as rows:
        rows.write("".join(f"{number}\t{'c' * width}\n" for number in range(count)))


def copy_freeze(session: Session) -> None:
    table = session.table()
    with session.transaction():
        session.run(f"TRUNCATE {table}")
        copy_rows(session, table, session.chance.choice([10, 800]), "(FREEZE)")


def lock_rows(session: Session) -> None:
    kind = session.chance.choice(["UPDATE", "SHARE", "KEY SHARE", "NO KEY UPDATE"])
    table = session.any_table()
    with session.transaction(session.chance.choice(["COMMIT", "ROLLBACK"])):
        session.run(f"SELECT 1 FROM {table} WHERE {session.some(table)} FOR {kind}", "SAVEPOINT one")
        session.run(f"UPDATE {table} SET doc = 'locked' WHERE {session.some(table)}")


def read(session: Session) -> None:
    """Set hint bits, and prune."""
    session.run(f"SELECT count(doc) FROM {session.any_table()}")


def savepoints(session: Session) -> None:
    table, made = session.any_table(), f"brief{session.number}"
    with session.transaction(session.chance.choice(["COMMIT", "ROLLBACK"])):
        session.run("SAVEPOINT one", f"INSERT INTO {table} {session.rows()}")
        make_table(session, made)
        session.run("SAVEPOINT two", f"DELETE FROM {table} WHERE {session.some(table)}")
        if session.chance.random() < 0.3:
            session.run(f"TRUNCATE {table}")
        session.run(f"ROLLBACK TO {session.chance.choice(['one', 'two'])}", f"INSERT INTO {table} {session.rows()}")
        session.run(f"DROP TABLE IF EXISTS {made}")


# ---- relations


def create_table(session: Session) -> None:
    make_table(session, session.table(), session.chance.choice(["", "", "UNLOGGED"]))


def create_table_as(session: Session) -> None:
    session.run(f"CREATE TABLE {session.table()} TABLESPACE {session.tablespace()} AS SELECT * FROM {session.table()}")


def drop_table(session: Session) -> None:
    """Drop a table; often another one takes its place at once."""
    table = session.table()
    if session.chance.random() < 0.5:
        with session.transaction(session.chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])):
            session.run(f"DROP TABLE {table}")
            make_table(session, table)
    else:
        session.run(f"DROP TABLE {table}")


def truncate(session: Session) -> None:
    table = session.table()
    with session.transaction(session.chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])):
        session.run(f"TRUNCATE {table}")
        if session.chance.random() < 0.6:
            session.run(f"INSERT INTO {table} {session.rows(most=1500)}")
        if session.chance.random() < 0.2:
            session.run(f"TRUNCATE {table}", f"INSERT INTO {table} {session.rows()}")


def vacuum(session: Session) -> None:
    options = ["FREEZE", "ANALYZE", "TRUNCATE off", "INDEX_CLEANUP off", "INDEX_CLEANUP on", "DISABLE_PAGE_SKIPPING"]
    session.run(f"VACUUM ({session.chance.choice(options)}) {session.any_table()}")


def rewrite(session: Session) -> None:
    table = session.table()
    session.run(
        session.chance.choice(
            [
                f"ALTER TABLE {table} ALTER h TYPE bigint",
                f"ALTER TABLE {table} ALTER h TYPE int",
                f"CLUSTER {table} USING {table}_id_idx",
                f"VACUUM FULL {table}",
                f"ALTER TABLE {table} ADD made timestamptz DEFAULT clock_timestamp(), DROP made",
            ]
        )
    )


def change_columns(session: Session) -> None:
    table = session.table()
    session.run(f"ALTER TABLE {table} ADD extra int DEFAULT {session.number}", f"UPDATE {table} SET extra = id")
    session.run(f"ALTER TABLE {table} DROP extra")


def reindex(session: Session) -> None:
    table, concurrently = session.table(), session.chance.choice(["", "", "CONCURRENTLY"])
    session.run(
        session.chance.choice([f"REINDEX TABLE {concurrently} {table}", f"REINDEX INDEX {concurrently} {table}_id_idx"])
    )


def create_index(session: Session) -> None:
    index, concurrently = session.chance.choice(sorted(INDEXES)), session.chance.choice(["", "", "CONCURRENTLY"])
    table = session.table()
    session.run(
        f"DROP INDEX IF EXISTS {table}_{index}",
        f"CREATE INDEX {concurrently} {table}_{index} ON {table} USING {INDEXES[index]}",
    )


def maintain_index(session: Session) -> None:
    table = session.table()
    session.run(
        session.chance.choice(
            [
                f"SELECT brin_summarize_new_values('{table}_brin')",
                f"SELECT brin_desummarize_range('{table}_brin', 0)",
                f"SELECT gin_clean_pending_list('{table}_gin')",
                f"ALTER INDEX {table}_gin SET (fastupdate = off)",
                f"DROP INDEX {table}_{session.chance.choice(sorted(INDEXES))}",
            ]
        )
    )


def move(session: Session) -> None:
    table = session.table()
    kind, name = session.chance.choice([("TABLE", table), ("TABLE", table), ("INDEX", f"{table}_id_idx")])
    session.run(f"ALTER {kind} {name} SET TABLESPACE {session.tablespace()}")
    if session.chance.random() < 0.5:
        session.run(f"UPDATE {table} SET doc = 'moved' WHERE {session.some(table)}")


def change_persistence(session: Session) -> None:
    table = session.table()
    session.run(f"ALTER TABLE {table} SET {session.chance.choice(['LOGGED', 'LOGGED', 'UNLOGGED'])}")
    session.run(f"INSERT INTO {table} {session.rows()}")


def temporary(session: Session) -> None:
    name = f"mine{session.chance.randrange(3)}"
    session.run(f"DROP TABLE IF EXISTS {name}")
    session.run(f"CREATE TEMPORARY TABLE {name} AS {session.rows()}", f"CREATE INDEX ON {name} (doc)")


def sequence(session: Session) -> None:
    name = f"counter{session.chance.randrange(3)}"
    session.run(
        session.chance.choice(
            [
                f"CREATE SEQUENCE IF NOT EXISTS {name}",
                f"SELECT count(nextval('{name}')) FROM generate_series(1, 70)",
                f"SELECT setval('{name}', {session.chance.randrange(1, 10000)})",
                f"ALTER SEQUENCE {name} RESTART WITH {session.chance.randrange(1, 10000)}",
                f"DROP SEQUENCE {name}",
            ]
        )
    )


def large_object(session: Session) -> None:
    number, size = 1_000_000 + session.chance.randrange(5), session.chance.randint(1, 5000)
    session.run(
        session.chance.choice(
            [
                f"SELECT lo_from_bytea({number}, repeat('large', {size})::bytea)",
                f"SELECT lo_put({number}, {size}, repeat('put', {size})::bytea)",
                f"SELECT lo_unlink({number})",
                "VACUUM pg_largeobject",
            ]
        )
    )


def materialized_view(session: Session) -> None:
    name = f"view{session.number}"
    session.run(
        session.chance.choice(
            [
                f"CREATE MATERIALIZED VIEW {name} AS SELECT id, doc FROM {session.table()}",
                f"REFRESH MATERIALIZED VIEW {name}",
                f"REFRESH MATERIALIZED VIEW {name} WITH NO DATA",
                f"DROP MATERIALIZED VIEW {name}",
            ]
        )
    )


def partition(session: Session) -> None:
    parent, part = "parted", session.chance.randrange(4)
    bounds = f"FOR VALUES WITH (MODULUS 4, REMAINDER {part})"
    session.run(f"CREATE TABLE IF NOT EXISTS {parent} ({COLUMNS}) PARTITION BY HASH (id)")
    session.run(f"CREATE TABLE IF NOT EXISTS {parent}{part} PARTITION OF {parent} {bounds}")
    session.run(
        session.chance.choice(
            [
                f"CREATE INDEX IF NOT EXISTS parted_id ON {parent} (id)",
                f"INSERT INTO {parent} {session.rows()}",
                f"UPDATE {parent} SET id = id + 1 WHERE {session.some(parent)}",
                f"ALTER TABLE {parent} DETACH PARTITION {parent}{part}",
                f"DROP TABLE {parent}{part}",
                f"TRUNCATE {parent}",
            ]
        )
    )


# ---- transactions


def prepare(session: Session) -> None:
    """Leave a transaction prepared; ``settle`` ends it, now or much later."""
    table, made = session.any_table(), f"prepared{session.chance.randrange(4)}"
    with session.transaction(f"PREPARE TRANSACTION 'g{session.number}_{session.chance.randrange(1000)}'"):
        make_table(session, made)
        session.run(
            session.chance.choice(
                [
                    f"INSERT INTO {table} {session.rows()}",
                    f"DELETE FROM {table} WHERE {session.some(table)}",
                    f"DROP TABLE {session.table()}",
                    f"TRUNCATE {session.table()}",
                ]
            )
        )
    if session.chance.random() < 0.5:
        settle(session)


def settle(session: Session) -> None:
    query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"
    for (gid,) in session.connection.execute(query).fetchall():
        session.run(f"{session.chance.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{gid}'")
    session.run("DROP TABLE IF EXISTS prepared0, prepared1, prepared2, prepared3")


# ---- databases and the cluster


def database(session: Session) -> None:
    name = f"extra{session.chance.randrange(EXTRA_DATABASES)}"
    template, tablespace = session.chance.choice(["shape", "shape", "template0"]), session.tablespace()
    create = f"CREATE DATABASE {name} TEMPLATE {template} TABLESPACE {tablespace}"
    move = f"ALTER DATABASE {name} SET TABLESPACE {tablespace}"
    kind = session.chance.choice(["create", "create", "create logged", "move", "drop"])
    if kind == "drop":
        session.run(f"DROP DATABASE {name}")
    elif kind == "create logged" and session.major >= 15:
        session.run(f"{create} STRATEGY wal_log")
    elif session.copying_files.acquire(blocking=False):
        # Not while a backup is taken: what else is done to the template, or was done to the old directory, during the
        # backup, gets into the copy when it is replayed (a caveat of PostgreSQL's documentation of base backups).
        try:
            strategy = " STRATEGY file_copy" if session.major >= 15 else ""
            session.run(move if kind == "move" else create + strategy)
        finally:
            session.copying_files.release()


def tablespace(session: Session) -> None:
    """Create a tablespace and put something there, or empty one and drop it."""
    if session.place is None and session.major < 15:
        return
    name = f"brief_space{session.chance.randrange(BRIEF_TABLESPACES)}"
    if session.connection.execute("SELECT FROM pg_tablespace WHERE spcname = %s", [name]).rowcount == 0:
        make_tablespace(session.connection, session.place, name)
        session.run(f"ALTER TABLE {session.table()} SET TABLESPACE {name}")
    else:
        for kind in ("TABLE", "INDEX", "MATERIALIZED VIEW"):
            session.run(f"ALTER {kind} ALL IN TABLESPACE {name} SET TABLESPACE {session.tablespace()} NOWAIT")
        session.run(f"DROP TABLESPACE {name}")


def make_tablespace(connection: psycopg.Connection[TupleRow], place: Path | None, name: str) -> str:
    """Create a tablespace in a directory that none had before, below ``place`` or in the data directory."""
    location = ""
    if place is not None:
        # Directories stay when a tablespace is dropped: a server that replays its creation needs them.
        directory = Path(tempfile.mkdtemp(dir=place))
        give_to_server(directory)
        location = str(directory)
    connection.execute(f"CREATE TABLESPACE {name} LOCATION '{location}'".encode())
    return name


def use_database(session: Session) -> None:
    name = session.chance.choice(["shape", *(f"extra{number}" for number in range(EXTRA_DATABASES))])
    with session.other_database(name) as inside:
        operation = session.chance.choice([insert, update, delete, shrink, truncate, drop_table, create_table, vacuum])
        operation(inside)


def catalogs(session: Session) -> None:
    catalog = session.chance.choice(["pg_class", "pg_attribute", "pg_type", "pg_database", "pg_index", "pg_depend"])
    session.run(session.chance.choice([f"VACUUM FULL {catalog}", f"REINDEX TABLE {catalog}", f"VACUUM {catalog}"]))


def wal(session: Session) -> None:
    size = session.chance.choice([10, 10_000, 1_200_000])
    session.run(
        session.chance.choice(
            [
                "CHECKPOINT",
                "CHECKPOINT",
                "SELECT pg_switch_wal()",
                f"SELECT pg_logical_emit_message({session.chance.choice(['true', 'false'])}, 'm', repeat('m', {size}))",
            ]
        )
    )


def visibility_map(session: Session) -> None:
    if session.has_visibility:
        session.run(f"SELECT pg_truncate_visibility_map('{session.table()}')")


WEIGHTS: dict[Callable[[Session], None], int] = {
    insert: 20,
    insert_long: 2,
    insert_incompressible: 3,
    update: 30,
    delete: 15,
    shrink: 10,
    copy: 5,
    copy_freeze: 4,
    lock_rows: 8,
    read: 4,
    savepoints: 6,
    create_table: 4,
    create_table_as: 2,
    drop_table: 4,
    truncate: 6,
    vacuum: 10,
    rewrite: 4,
    change_columns: 2,
    reindex: 4,
    create_index: 8,
    maintain_index: 5,
    move: 5,
    change_persistence: 5,
    temporary: 3,
    sequence: 6,
    large_object: 5,
    materialized_view: 4,
    partition: 6,
    prepare: 4,
    settle: 5,
    database: 5,
    tablespace: 5,
    use_database: 8,
    catalogs: 2,
    wal: 3,
    visibility_map: 2,
}
"""How often each operation is chosen."""
