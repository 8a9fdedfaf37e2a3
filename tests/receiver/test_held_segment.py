"""Segments that are held in memory until they are whole: what the spool has of them, and an encrypted directory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from hypothesis import given
from hypothesis import strategies as st
from receiver.oracle import SLOT, assert_same_wal, flush_lsn, keeping_server
from receiver.test_durability import create_slot
from test_main_job import prepare

from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.initialise import initialise
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import BrokenInvariant, StorageFull
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.compression import Compression
from pgwal.repository.held_segment import HeldPieces, HeldSegment
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.spooled_objects import SpooledObjects
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal.repository.store import ObjectSealer
from pgwal_cli.throwaway_server import ThrowawayServer

SIZE = 4096
NAME, PARTIAL = "wal/000000010000000000000001", "wal/000000010000000000000001.partial"
CONTENT = bytes(number * 7 % 251 for number in range(SIZE))


class Archive:
    """Where whole segments go, if it takes them."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.found: bytes | None = None

    def sealer(self, name: str) -> None:
        assert name == NAME.rpartition("/")[2]

    def store_whole(self, name: str, content: HeldPieces | ObjectSealer) -> bool:
        assert name == NAME.rpartition("/")[2]
        if self.takes:
            self.found = b"".join(content.content_from(0))
        return self.takes


@given(cuts=st.lists(st.integers(0, SIZE), max_size=6), syncs=st.sets(st.integers(0, 6)), takes=st.booleans())
def test_the_spool_has_what_was_synced_and_the_archive_all_of_it(cuts: list[int], syncs: set[int], takes: bool) -> None:
    place, archive = MemoryPlace(), Archive(takes=takes)
    segment = HeldSegment(place.spool, PARTIAL, SIZE, archive)
    for number, (start, end) in enumerate(pairwise([0, *sorted(cuts), SIZE])):
        segment.write(start, memoryview(CONTENT)[start:end])
        if number in syncs:
            segment.sync()
            assert place.store.get(PARTIAL) == CONTENT[:end].ljust(SIZE, b"\0")
        elif not any(synced < number for synced in syncs):
            assert not place.store.exists(PARTIAL)
    segment.rename(NAME.rpartition("/")[2], is_read_soon=True)
    assert archive.found == (CONTENT if takes else None)
    # Whoever stores it elsewhere removes what there is of it here.
    assert place.store.exists(NAME) != takes
    assert takes or place.store.get(NAME) == CONTENT


def test_what_is_not_whole_is_not_stored() -> None:
    place, archive = MemoryPlace(), Archive(takes=True)
    segment = HeldSegment(place.spool, PARTIAL, SIZE, archive)
    segment.write(0, CONTENT[:100])
    with pytest.raises(BrokenInvariant):
        segment.write(101, CONTENT[101:])
    with pytest.raises(BrokenInvariant):
        segment.write(100, CONTENT)
    segment.close()
    assert archive.found is None
    assert not list(place.store.list())


@pytest.mark.postgres(18)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_wal_at_full_speed_is_stored_without_a_spool(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    through_spool, at_once = stored_ways(monkeypatch)
    server, place = keeping_server(make_server), encrypted(scratch, monkeypatch)
    create_slot(server)
    for step in range(3):
        with server.connect() as connection:
            connection.execute(f"CREATE TABLE filled_{step} AS SELECT repeat('x', 100) FROM generate_series(1, 60000)")
        receive(place, server.conninfo, compression)
    # Those with which each of them began were begun by the one before.
    assert len(through_spool) <= 3
    assert len(at_once) > 12
    assert_is_whole(server, place)
    (spool,) = (scratch / "state" / "pgwal" / "spool").iterdir()
    assert len(list((spool / "wal").iterdir())) <= 1


@pytest.mark.postgres(18)
def test_what_the_repository_does_not_take_waits_in_the_spool(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, place = keeping_server(make_server), encrypted(scratch, monkeypatch)
    create_slot(server)
    prepare(server)
    through_spool, at_once = stored_ways(monkeypatch, fails=True)
    receive(place, server.conninfo, "zstd")
    assert at_once
    assert set(at_once) <= set(through_spool)
    assert_is_whole(server, place)


def stored_ways(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> tuple[list[str], list[str]]:
    """Return where the names of segments will be that go through the spool, and of those that do not, or ``fails``."""
    through_spool: list[str] = []
    at_once: list[str] = []
    store_segment, store_received = SpooledObjects.store_segment, SpooledObjects.store_received

    def noted_segment(self: SpooledObjects, name: str) -> None:
        through_spool.append(name)
        store_segment(self, name)

    def noted_received(self: SpooledObjects, name: str, content: HeldPieces | ObjectSealer) -> None:
        at_once.append(name)
        if fails:
            raise StorageFull("there was no room for a moment")
        store_received(self, name, content)

    monkeypatch.setattr(SpooledObjects, "store_segment", noted_segment)
    monkeypatch.setattr(SpooledObjects, "store_received", noted_received)
    return through_spool, at_once


def encrypted(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> LocalPlace:
    """Make an encrypted repository, and return its place on a machine that has no identity."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(scratch / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))
    place = LocalPlace(scratch / "repo")
    identity = Identity.generate()
    write_identity(scratch / "identity.txt", identity)
    initialise(place, DEFAULT_PACKED_FORMAT, [identity.recipient])
    return place


def assert_is_whole(server: ThrowawayServer, place: LocalPlace) -> None:
    """Check that a repository has all that a server wrote, as its recipient sees it."""
    identity = place.root.parent / "identity.txt"
    assert_same_wal(server, place.with_keys(KeySources(identity)), flush_lsn(server))


def receive(place: LocalPlace, conninfo: str, compression: str) -> None:
    stop = StopRequest()
    options = StreamOptions(slot=SLOT[1], once=True, reconnect=False, compression=Compression.parse(compression))
    try:
        Receiver(place, ConnectionParameters(conninfo), options, stop).run()
    finally:
        stop.close()
