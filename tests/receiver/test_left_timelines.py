"""A receiver into an object store was killed, and left WAL of more than one timeline in its spool."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import WalBuilder
from receiver.model_server import BEGIN, GEOMETRY, ModelSender, ModelServer, Traffic, change, commit, end_of_recovery
from receiver.test_spooled_place import PLAIN, Store

from pgwal.engine.coverage import read_coverage
from pgwal.engine.delivering import deliver_left
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import SpoolOptions, StreamOptions
from pgwal.errors import RepositoryError
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.repository import Repository
from pgwal.repository.spooled_place import opened_spool
from pgwal.segment import is_segment_name

# Summaries end with segments.
MAJOR = 16
_LONG_S = 30.0


@pytest.fixture
def server() -> ModelServer:
    """A server on timeline 2, which has WAL of some segments on both."""
    wal = WalBuilder(MAJOR, start_lsn=BEGIN)
    wal.append_all([commit(1), *8 * [change(1, 400_000, 1)], commit(2)])
    server = ModelServer(wal, wal.end_lsn)
    server.turn_to(2, wal.end_lsn, "no recovery target specified", archives=False)
    server.wal.append(end_of_recovery(MAJOR, 3, 2, 1))
    server.wal.append_all([*8 * [change(2, 500_000, 2)], commit(4)])
    server.flush_lsn = server.wal.end_lsn
    return server


def receive(place: Store, server: ModelServer, spool: Path, most_segments: int = 100) -> None:
    stop = StopRequest()
    options = StreamOptions(
        once=True, compression=PLAIN, spool=SpoolOptions(spool, most_bytes=most_segments * GEOMETRY.segment_size)
    )
    given_up = threading.Timer(_LONG_S, stop.set)
    given_up.start()
    traffic = Traffic(Random(0), lambda *_: None)
    receiver = Receiver(place, ConnectionParameters(""), options, stop, opener=lambda *_: ModelSender(server, traffic))
    with closing(stop):
        try:
            receiver.run()
            assert not stop.is_set(), "it waits for something that never comes"
        finally:
            given_up.cancel()
            given_up.join()


@pytest.fixture
def left(server: ModelServer, tmp_path: Path) -> Store:
    """A store that has the beginning of timeline 1; the spool below tmp_path has the rest, and timeline 2."""
    place = Store()
    # A receiver begins with the segment that the server is at.
    for end in (server.wal.records[0].end_lsn, Lsn(GEOMETRY.segment_start(3) - 8192)):
        begun = server.copy()
        begun.wal, begun.histories = server.wal.cut(end, 1), {}
        begun.flush_lsn = begun.wal.whole_end_lsn
        receive(place, begun, tmp_path)
    identity = Repository.open(place).identity
    with opened_spool(place, tmp_path, identity) as spooled:
        store = spooled.local.store
        store.delete_all("wal")
        store.put("wal/00000002.history", server.histories[2])
        for timeline_id in (1, 2):
            for number in range(1, GEOMETRY.segment_no(server.flush_lsn) + 1):
                content = server.file(timeline_id, number)
                if content is not None:
                    is_whole = len(content) == GEOMETRY.segment_size
                    name = GEOMETRY.file_name(timeline_id, number) + ("" if is_whole else ".partial")
                    store.put(f"wal/{name}", content)
        names = [name.removeprefix("wal/") for name, _ in store.list("wal/")]
    assert {name[:8] for name in names if is_segment_name(name)} == {"00000001", "00000002"}
    return place


def require_all(place: Store, server: ModelServer) -> None:
    wal = Repository.open(place).wal
    ((_, promoted_at),) = server.history.switches
    begin = GEOMETRY.segment_start(GEOMETRY.segment_no(promoted_at))
    for timeline_id, start, end in ((1, BEGIN, promoted_at), (2, begin, server.flush_lsn)):
        assert b"".join(wal.read(timeline_id, start))[: end - start] == server.wal.wal_between(start, end)


def test_a_full_spool_with_wal_of_a_later_timeline_is_emptied(left: Store, server: ModelServer, tmp_path: Path) -> None:
    """Nothing leaves it that was not compared, which takes no room."""
    receive(left, server, tmp_path, most_segments=4)
    require_all(left, server)


@pytest.mark.parametrize("comes_back", [True, False], ids=["the server answers", "it comes back later"])
def test_summaries_have_no_hole_where_a_timeline_ends(
    left: Store, server: ModelServer, tmp_path: Path, comes_back: bool
) -> None:
    if not comes_back:
        deliver_left(left, StreamOptions(spool=SpoolOptions(tmp_path), compression=PLAIN))
    receive(left, server, tmp_path)
    require_all(left, server)
    repository = Repository.open(left)
    coverage = read_coverage(repository, repository.receiver_state())
    assert [(found.timeline_id, found.summary_holes, found.wal_holes) for found in coverage] == [
        (1, [], []),
        (2, [], []),
    ]


@pytest.mark.parametrize("is_same", [True, False])
def test_a_timeline_that_begins_in_the_first_segment(tmp_path: Path, is_same: bool) -> None:
    """Nothing in front of it is in the archive, but what it begins with."""
    place, servers = Store(), []
    for row in (1, 1 if is_same else 5):
        wal = WalBuilder(MAJOR, start_lsn=BEGIN)
        wal.append_all([commit(row), change(1, 50_000, 1), commit(2)])
        servers.append(ModelServer(wal, wal.end_lsn))
    receive(place, servers[0], tmp_path)
    server = servers[1]
    server.turn_to(2, server.flush_lsn, "no recovery target specified", archives=False)
    server.wal.append_all([end_of_recovery(MAJOR, 3, 2, 1), commit(4)])
    content = server.wal.wal_between(BEGIN, server.wal.end_lsn)
    with opened_spool(place, tmp_path, Repository.open(place).identity) as spooled:
        spooled.local.store.delete_all("wal")
        spooled.local.store.put("wal/00000002.history", server.histories[2])
        spooled.local.store.put(f"wal/{GEOMETRY.file_name(2, 1)}.partial", content)
    options = StreamOptions(spool=SpoolOptions(tmp_path), compression=PLAIN)
    if not is_same:
        with pytest.raises(RepositoryError, match="does not go on"):
            deliver_left(place, options)
        return
    deliver_left(place, options)
    assert any(name.startswith(GEOMETRY.file_name(2, 1)) for name in place.names())
