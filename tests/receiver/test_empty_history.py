"""A history file that a crash left empty is none: whoever receives fetches it again."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import WalBuilder
from receiver.model_server import BEGIN, ModelSender, ModelServer, Traffic, change, commit, end_of_recovery

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import ObjectNotFound
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository

MAJOR = 16
_LONG_S = 60.0


@pytest.fixture
def server() -> ModelServer:
    """A server on timeline 3."""
    wal = WalBuilder(MAJOR, start_lsn=BEGIN)
    wal.append_all([commit(1), change(1, 400_000, 1), commit(2)])
    server = ModelServer(wal, wal.end_lsn)
    for timeline_id in (2, 3):
        server.turn_to(timeline_id, server.wal.end_lsn, "no recovery target specified", archives=False)
        server.wal.append(end_of_recovery(MAJOR, 3, timeline_id, timeline_id - 1))
        server.wal.append_all([change(2, 500_000, timeline_id), commit(4)])
        server.flush_lsn = server.wal.end_lsn
    return server


def receive(place: LocalPlace, server: ModelServer, *, for_backup: bool) -> None:
    stop = StopRequest()
    given_up = threading.Timer(_LONG_S, stop.set)
    given_up.start()
    traffic = Traffic(Random(0), lambda *_: None)
    options = StreamOptions(once=True, for_backup=for_backup)
    receiver = Receiver(place, ConnectionParameters(""), options, stop, opener=lambda *_: ModelSender(server, traffic))
    with closing(stop):
        try:
            receiver.run()
            assert not stop.is_set(), "it waits for something that never comes"
        finally:
            given_up.cancel()
            given_up.join()


@pytest.mark.parametrize("for_backup", [False, True], ids=["stream", "incremental"])
@pytest.mark.parametrize("timeline_id", [2, 3])
def test_it_is_fetched_again(server: ModelServer, tmp_path: Path, timeline_id: int, *, for_backup: bool) -> None:
    place = LocalPlace(tmp_path / "repo")
    receive(place, server, for_backup=for_backup)
    file = tmp_path / f"repo/wal/{timeline_id:08X}.history"
    assert file.read_bytes() == server.histories[timeline_id]
    file.write_bytes(b"")
    wal = Repository.open(place).wal
    assert not wal.has_history(timeline_id)
    assert [history.timeline_id for history in wal.histories()] == [5 - timeline_id]
    with pytest.raises(ObjectNotFound, match=r"\.history is empty"):
        wal.history(timeline_id)
    server.wal.append_all([change(2, 500_000, 7), commit(5)])
    server.flush_lsn = server.wal.end_lsn
    receive(place, server, for_backup=for_backup)
    assert file.read_bytes() == server.histories[timeline_id]
    assert [history.timeline_id for history in Repository.open(place).wal.histories()] == [2, 3]
