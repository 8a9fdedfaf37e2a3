"""Sessions that change a server all the time, can be paused between two transactions, and survive its crashes."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from randomised.operations import MADE_TABLES, STEADY_TABLES, WEIGHTS, Session, make_steady_table, make_table

from pgwal_cli.throwaway_server import ThrowawayServer

PAUSE_TIMEOUT_S = 90.0
RECONNECT_S = 0.05
LONGEST_REST_S = 0.15
# A lock of another session's, or of a prepared transaction, is not worth waiting for.
SETTINGS = "SET lock_timeout = '200ms'; SET statement_timeout = '20s'; SET deadlock_timeout = '100ms'"


def prepare(server: ThrowawayServer, chance: random.Random, tablespaces: list[str], has_visibility: bool) -> None:
    """Make what the sessions change: tables, and a database to copy."""
    with server.connect() as connection:
        if has_visibility:
            connection.execute("CREATE EXTENSION pg_visibility")
        connection.execute("CREATE DATABASE shape")
    for database, count, steady_count in (("postgres", MADE_TABLES, STEADY_TABLES), ("shape", 3, 1)):
        with server.connect(dbname=database) as connection:
            major = server.installation.major
            conninfo, copying_files = server.conninfo, threading.Lock()
            session = Session(connection, chance, major, 0, tablespaces, conninfo, has_visibility, copying_files)
            for number in range(count):
                make_table(session, f"t{number}")
            for number in range(steady_count):
                make_steady_table(session, number)
            connection.execute("VACUUM")


class Load:
    """Runs while the context lasts; what ends a session other than the server is raised by ``pause`` and at the end."""

    def __init__(
        self,
        server: ThrowawayServer,
        seed: str,
        session_count: int,
        tablespaces: list[str],
        place: Path | None,
        has_visibility: bool,
    ) -> None:
        self.server = server
        """Where the sessions connect to; can be changed while they are paused."""
        self.copying_files = threading.Lock()
        """While it is held from outside, no session copies the files of a database."""
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._tablespaces = tablespaces
        self._place = place
        self._has_visibility = has_visibility
        self._changed = threading.Condition()
        self._is_paused = False
        self._parked_count = 0
        self._is_ended = False
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(f"{seed}/session {number}")))
            for number in range(session_count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_ended, self._is_paused = True, False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if error is None:
            self._raise_errors()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep all sessions between two transactions; nothing but the server's own processes changes anything."""
        with self._changed:
            self._is_paused = True
            parked = self._changed.wait_for(
                lambda: bool(self._errors) or self._parked_count == len(self._threads), PAUSE_TIMEOUT_S
            )
            self._raise_errors()
            assert parked, "the load does not come to rest"
        try:
            yield
        finally:
            with self._changed:
                self._is_paused = False
                self._changed.notify_all()

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _park(self) -> bool:
        """Wait while the load is paused; return whether it goes on."""
        with self._changed:
            if self._is_paused:
                self._parked_count += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._is_paused)
                self._parked_count -= 1
            return not self._is_ended

    def _run(self, number: int, chance: random.Random) -> None:
        try:
            while self._park():
                # The server crashes now and then, and is another one after a promotion.
                with suppress(psycopg.OperationalError):
                    self._use_connection(number, chance)
                time.sleep(RECONNECT_S)
        except BaseException as error:  # raised again where the load is paused or ends
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()

    def _use_connection(self, number: int, chance: random.Random) -> None:
        server = self.server
        with server.connect() as connection:
            connection.execute(SETTINGS)
            major = server.installation.major
            tablespaces, conninfo = self._tablespaces, server.conninfo
            session = Session(
                connection,
                chance,
                major,
                number,
                tablespaces,
                conninfo,
                self._has_visibility,
                self.copying_files,
                self._place,
            )
            operations: list[Callable[[Session], None]] = list(WEIGHTS)
            weights = list(WEIGHTS.values())
            while self._park() and server is self.server:
                (operation,) = chance.choices(operations, weights)
                self._try(operation, session)
                # Backups need some of the machine as well.
                time.sleep(chance.uniform(0, LONGEST_REST_S))
                if connection.closed:
                    return

    def _try(self, operation: Callable[[Session], None], session: Session) -> None:
        name = operation.__name__
        try:
            operation(session)
        except psycopg.Error as error:
            self.failed[f"{name}: {type(error).__name__}"] += 1
        else:
            self.done[name] += 1
