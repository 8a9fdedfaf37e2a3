"""A process dies at any operation of a backup, an expire or a stream: nothing that counts is lost or torn.

So it does in a store that renames folders, and in one that does not.  Of a backup this is the part without the server:
test_dying_backup has the whole.  What a power cut makes of a directory is for tests/receiver and
tests/keeping.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import WalBuilder
from keeping.stored_repository import (
    FIRST,
    FULL,
    MAJOR,
    MB,
    SECOND,
    build_repository,
    control_file,
    entry_of,
)
from keeping.stored_repository import label as backup_label
from receiver.model_server import BEGIN, ModelSender, ModelServer, Traffic, change, commit
from repository.places import PLACES
from support.fate import Died, Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.chain import resolve_chain
from pgwal.backup.exclusion import required_directories
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.retention_rules import RetentionRules
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.engine.copy import Copy, CopyRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository

NEW = "20261122T131530Z_full"
AGAIN = "20261122T131531Z_full"
"""Who died with a backup takes the next one later."""
LATER = "20261122T141530Z_full"
START = Lsn(3 * MB + 40)
"""Where the newest of the repository starts, too: a new one is newer by its name, and expire need not keep others."""
FILES = {
    "PG_VERSION": b"16\n",
    "base/5/16384": bytes(24576),
    "base/5/PG_VERSION": b"16\n",
    "pg_xact/0000": b"\1" * 99,
}


class Site:
    """Copies of one repository, each in a place of its own kind."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._kind = kind
        self._directory = directory
        self.origin = PLACES[kind](directory)

    def copy(self) -> Place:
        if isinstance(self.origin, LocalPlace):
            shutil.rmtree(self._directory / "copy", ignore_errors=True)
            shutil.copytree(self.origin.root, self._directory / "copy")
            return LocalPlace(self._directory / "copy")
        place = PLACES[self._kind](self._directory)
        for name, _ in self.origin.store.list():
            place.store.put(name, self.origin.store.get(name))
        return place


@pytest.fixture(params=list(PLACES))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(request.param, tmp_path)


def dying(site: Site, act: Callable[[Place], None]) -> Iterator[Place]:
    """Yield what a process leaves that died at the first operation, at the second, ..., and at last at none."""
    number = 0
    while True:
        place, fate = site.copy(), Fate(dies_at=number)
        try:
            act(FaultyPlace(place, fate))
        except Died:
            pass
        else:
            # A thread puts into a store what a stream brings, in more or fewer operations each time.
            assert len(fate.operations) == number or place.is_remote
        yield place
        if len(fate.operations) <= number:
            break
        number += 1


# ---- a backup


def take_backup(place: Place, data_directory: Path, backup_id: str = NEW) -> None:
    """Copy a data directory as a full backup does, without the server."""
    repository = Repository.open(place)
    stop = repository.catalogue.entry(NEW if backup_id == LATER else SECOND).stop_lsn
    rules = CopyRules(frozenset(), "CRC32C", None, None)
    with repository.lock_backups():
        repository.catalogue.clear_unfinished()
        with (
            repository.catalogue.stage(backup_id) as staged,
            Copy([LocalDataDirectory(data_directory)], None, staged, ManifestWriter(MAJOR, 1), rules, None) as copy,
        ):
            copy.copy_all(list)
            copy.copy_control_file()
            copy.store("backup_label", backup_label(START, None))
            copy.write_manifest([])
            copy.data.sync()
            packed = copy.data.contents()
            size_bytes = None if packed is None else packed.size_bytes
            staged.publish(entry_of(backup_id, None, START, stop, copy.totals, size_bytes))


def make_data_directory(directory: Path) -> None:
    for name in required_directories(MAJOR):
        (directory / name).mkdir(parents=True)
    for name, content in {**FILES, "global/pg_control": control_file(START)}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def test_a_backup_is_there_whole_or_not_at_all(site: Site, tmp_path: Path) -> None:
    make_data_directory(tmp_path / "data")
    build_repository(site.origin)
    seen = []
    for number, place in enumerate(dying(site, lambda place: take_backup(place, tmp_path / "data"))):
        repository = Repository.open(place)
        ids = repository.catalogue.ids()
        seen.append(NEW in ids)
        assert set(ids) - {NEW} == {FULL, FIRST, SECOND}
        if number % 4 == 0 or seen[-1]:
            assert verify(VerifyRequest(place)).problems == []
        if not seen[-1]:
            take_backup(place, tmp_path / "data", AGAIN)
            assert repository.catalogue.unfinished() == []
            assert AGAIN in repository.catalogue.ids()
    assert seen == sorted(seen), "no earlier than with the last operations"
    assert 10 < seen.count(False) < len(seen)
    restore_backup(RestoreRequest(place, NEW, tmp_path / "restored", "false", wal_is_here=False))
    assert {name: (tmp_path / "restored" / name).read_bytes() for name in FILES} == FILES
    assert all((tmp_path / "restored" / name).is_dir() for name in required_directories(MAJOR))


# ---- expire


def test_what_an_expire_leaves_is_whole_chains(site: Site, tmp_path: Path) -> None:
    make_data_directory(tmp_path / "data")
    build_repository(site.origin)
    take_backup(site.origin, tmp_path / "data")
    counts = []
    for place in dying(site, lambda place: expire(ExpireRequest(place, RetentionRules(keep_full=1)))):
        repository = Repository.open(place)
        entries = repository.catalogue.entries()
        counts.append(len(entries))
        assert NEW in repository.catalogue.ids()
        for entry in entries:
            resolve_chain(entries, entry.backup_id)
        assert verify(VerifyRequest(place)).problems == []
        expire(ExpireRequest(place, RetentionRules(keep_full=1)))
        assert (repository.catalogue.ids(), repository.catalogue.unfinished()) == ([NEW], [])
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {4, 3, 2, 1}


# ---- stream


def receive(place: Place, server: ModelServer) -> None:
    stop = StopRequest()
    options = StreamOptions(once=True, compression=Compression(CompressionMethod.NONE))
    try:
        traffic = Traffic(Random(0), lambda *_: None)
        Receiver(place, ConnectionParameters(""), options, stop, opener=lambda *_: ModelSender(server, traffic)).run()
    finally:
        stop.close()


# The other threads of a process die with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stream_goes_on_where_it_died(site: Site) -> None:
    wal = WalBuilder(MAJOR, start_lsn=BEGIN)
    wal.append_all([commit(9), *4 * [change(1, 300_000, 1)]])
    server = ModelServer(wal, wal.end_lsn)
    expected = None

    def receive_twice(place: Place) -> None:
        # A receiver begins with the segment that the server is at.
        begun = server.copy()
        begun.flush_lsn = wal.records[1].end_lsn
        receive(place, begun)
        receive(place, server.copy())

    for place in dying(site, receive_twice):
        if place.store.exists("pgwal.json"):
            state = Repository.open(place).receiver_state()
            if state is not None:
                assert received(place)[: state.flushed_lsn - BEGIN] == sent(server)[: state.flushed_lsn - BEGIN]
        receive(place, server.copy()) if is_begun(place) else receive_twice(place)
        assert received(place)[: wal.end_lsn - BEGIN] == sent(server)
        repository = Repository.open(place)
        expected = expected or repository.summaries.ranges()
        assert repository.summaries.ranges() == expected
    assert expected


def is_begun(place: Place) -> bool:
    return place.store.exists("pgwal.json") and bool(Repository.open(place).wal.segments())


def sent(server: ModelServer) -> bytes:
    return server.wal.wal_between(BEGIN, server.wal.end_lsn)


def received(place: Place) -> bytes:
    repository = Repository.open(place)
    return b"".join(repository.wal.read(1, BEGIN)) if repository.wal.segments() else b""


# ---- making a repository


def test_of_two_who_make_a_repository_one_says_whose_it_is(site: Site) -> None:
    """The second one looks when the first has not written that yet."""
    place = site.origin
    put = place.store.put

    def after_another(name: str, content: bytes, **options: bool) -> None:
        place.store.put = put  # type: ignore[method-assign]
        Repository.open_or_create(place, RepositoryIdentity(1, MB, MAJOR))
        put(name, content, **options)

    place.store.put = after_another  # type: ignore[method-assign, assignment]
    assert Repository.open_or_create(place, RepositoryIdentity(1, MB, MAJOR)).identity.system_identifier == 1
