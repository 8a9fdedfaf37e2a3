"""A process dies at any operation of a whole backup of a real server: what was there is untouched, and the next
backup succeeds and clears away what is left.

A backup has some four hundred operations, of which most store one more file or write one more piece of WAL.  Of each
run of such alike ones it dies at the first and at another one; PGWAL_LARGE_TESTS=1 has it die at every one.
Operations are counted first; its own receiver is another thread, so that number n is not always the same one.

In memory, folders are not renamed: a backup counts when its entry is stored.  In an object store WAL goes through a
spool, and leases are left by who dies; there each backup takes its time, so it dies at a few operations only, and on a
real server with PGWAL_LARGE_TESTS=1 alone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from random import Random

import pytest
from fix_servers import ServerFactory, Templates
from repository.places import IN_STORES
from repository.places import PLACES as ALL_PLACES
from support.fate import Died, Fate
from support.faulty_store import FaultyPlace

from pgwal.engine import delivering, receiving
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import PgwalError
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.layout import BACKUP_DIRECTORY, BACKUP_ENTRY_NAME
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.store import as_renaming, names_in
from pgwal_cli.throwaway_server import ServerInstallation, ThrowawayServer

pytestmark = [
    pytest.mark.postgres(18),
    pytest.mark.timeout(3600),
    # The other threads of a process die with it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

IS_EXHAUSTIVE = "PGWAL_LARGE_TESTS" in os.environ
PLACES = ALL_PLACES if IS_EXHAUSTIVE else {name: ALL_PLACES[name] for name in ("local", "memory", "cloud_memory")}
WHERE = [(place, kind) for place in PLACES for kind in ("full", "incremental")]
if not IS_EXHAUSTIVE:
    WHERE = [("local", "full"), ("memory", "incremental"), ("cloud_memory", "full")]
SEED = 18
FEW = 5
VERIFIED_EVERY = 5


@pytest.fixture(scope="module")
def server(
    installation: ServerInstallation, server_templates: Templates, session_scratch: Path
) -> Iterator[ThrowawayServer]:
    """A server that hands WAL over at once and has one database, so that template1 is gone as well."""
    with ServerFactory(installation, server_templates, session_scratch / "dying") as factory:
        settings = {"wal_keep_size": "200MB", "wal_writer_delay": "5ms", "autovacuum": False}
        server = factory(initdb_args=("--wal-segsize=1",), settings=settings)
        with server.connect() as session:
            session.execute("UPDATE pg_database SET datistemplate = false")
            session.execute("DROP DATABASE template0")
            session.execute("DROP DATABASE template1")
            session.execute("CREATE TABLE t AS SELECT i, repeat('x', 500) AS filler FROM generate_series(1, 400) i")
        yield server


class Taking:
    """Backups of one server into one place, all full or all incremental ones on the same full one."""

    def __init__(self, server: ThrowawayServer, place: Place, since: str | None) -> None:
        self.place = place
        self._server = server
        self._since = since

    def take(self, fate: Fate | None = None) -> str:
        """Take a backup of a server that has changed, and return its id."""
        with self._server.connect() as session:
            session.execute("UPDATE t SET i = i + 1 WHERE i % 50 = 0")
        place = self.place if fate is None else FaultyPlace(self.place, fate)
        source = ConnectionParameters(self._server.conninfo), self._server.data_directory
        return take_backup(BackupRequest(place, *source, since=self._since, fast=True)).entry.backup_id

    def die(self, number: int) -> tuple[Fate, str | None]:
        """Die at an operation; return what was done, and the id where the backup was through before that."""
        fate = Fate(dies_at=number)
        try:
            return fate, self.take(fate)
        except (Died, PgwalError):
            # Where a thread of the process dies, others may see first what comes of it.
            if not fate.is_dying:
                raise
        return fate, None

    def drop(self, backup_ids: set[str]) -> None:
        """Remove backups, so that each death meets the same ones."""
        repository = Repository.open(self.place)
        with repository.lock_backups():
            for backup_id in backup_ids:
                repository.catalogue.retire(backup_id)
            repository.catalogue.clear_unfinished()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a backup not wait for its own receiver for longer than it must."""
    monkeypatch.setattr(delivering, "BACKUP_STATUS_INTERVAL_S", 0.0)
    monkeypatch.setattr(receiving, "LONGEST_REMOTE_POLL_S", 0.1)


def deaths(operations: list[str], place: str) -> list[int]:
    """Return the numbers of the operations at which to die."""
    if IS_EXHAUSTIVE:
        return list(range(len(operations)))
    if place in IN_STORES:
        return sorted(Random(SEED).sample(range(len(operations)), FEW))
    random = Random(SEED)
    chosen = set[int]()
    for _, group in groupby(range(len(operations)), lambda number: _kind(operations[number])):
        first, *others = group
        chosen |= {first, *random.sample(others, min(1, len(others)))}
    return sorted(chosen)


def _kind(operation: str) -> str:
    """Return what is done, and where: what of a backup is stored in any of its directories is alike."""
    kind, _, name = operation.partition(" ")
    folder, slash, _ = name.partition("/data/")
    return f"{kind} {folder if slash else name.rpartition('/')[0]}"


def digests(place: Place, backup_ids: set[str]) -> dict[str, str]:
    store = place.store
    names = [name for backup_id in backup_ids for name, _ in store.list(f"{BACKUP_DIRECTORY}/{backup_id}/")]
    return {name: hashlib.sha256(store.get(name)).hexdigest() for name in names}


def folders(place: Place) -> set[str]:
    """Return the names in which something of backups is, and not only what keeps the place of one that was given up."""
    if as_renaming(place.store) is not None:
        return set(names_in(place.store, BACKUP_DIRECTORY))
    return {name.split("/")[1] for name, size_bytes in place.store.list(f"{BACKUP_DIRECTORY}/") if size_bytes}


@pytest.mark.parametrize(("place", "kind"), WHERE)
def test_a_backup_dies_at_every_operation(server: ThrowawayServer, tmp_path: Path, place: str, kind: str) -> None:
    target = PLACES[place](tmp_path)
    first = Taking(server, target, None).take()
    earlier = {first, Taking(server, target, first).take()}
    unchanged = digests(target, earlier)
    taking = Taking(server, target, first if kind == "incremental" else None)
    whole = Fate()
    taking.drop({taking.take(whole)})
    numbers = deaths(whole.operations, place)
    for count, number in enumerate(numbers):
        fate, done = taking.die(number)
        repository = Repository.open(target)
        ids = set(repository.catalogue.ids())
        assert earlier <= ids
        new = ids - earlier
        assert done is None or new == {done}
        assert all(is_published(fate, backup_id) for backup_id in new), (number, fate.operations[number])
        assert digests(target, earlier) == unchanged
        if new or count % VERIFIED_EVERY == 0:
            assert verify(VerifyRequest(target)).problems == [], fate.operations[number]
        new.add(taking.take())
        assert set(repository.catalogue.ids()) == earlier | new
        assert folders(target) == earlier | new
        if count % VERIFIED_EVERY == 0:
            assert verify(VerifyRequest(target)).problems == [], fate.operations[number]
        taking.drop(new)
    assert len(numbers) > 20 or place in IN_STORES


@pytest.mark.parametrize("kind", PLACES)
def test_the_first_backup_dies_while_the_repository_is_made(server: ThrowawayServer, tmp_path: Path, kind: str) -> None:
    # Each segment of WAL in a store has been synced before.
    received = "put wal/" if kind in IN_STORES else "sync"
    step = 4 if kind in IN_STORES and not IS_EXHAUSTIVE else 1
    for number in itertools.count(step=step):
        directory = tmp_path / str(number)
        directory.mkdir()
        taking = Taking(server, PLACES[kind](directory), None)
        fate, _ = taking.die(number)
        backup_id = taking.take()
        assert folders(taking.place) == {backup_id}
        assert verify(VerifyRequest(taking.place)).problems == []
        # It receives WAL, as each backup does; that is another thread, so that others may come in between.
        if any(operation.startswith(received) for operation in fate.operations[: number + 1]):
            break
    assert number > (2 if kind in IN_STORES else 10)


def is_published(fate: Fate, backup_id: str) -> bool:
    """Tell whether a process got as far as to say that a backup counts, before it died."""
    folder = f"{BACKUP_DIRECTORY}/{backup_id}"
    published = (f"rename {folder}.unfinished", f"put {folder}/{BACKUP_ENTRY_NAME}")
    return any(operation in fate.operations[: fate.dies_at] for operation in published)
