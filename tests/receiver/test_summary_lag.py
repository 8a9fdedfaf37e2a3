"""Summaries keep up with what is received at full speed, and nothing that is summarised is read a second time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from receiver.oracle import flush_lsn, keeping_server, one_lsn, wait_for
from test_main_job import prepare, run_load, streaming

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.wal_directory import WalDirectory
from pgwal_cli.throwaway_server import ThrowawayServer

LAG_MAX_S = 1.0
RUN_S = 4.0


def write_at_full_speed(server: ThrowawayServer, ended: threading.Event) -> None:
    """Write records as dense as they come, without a pause."""
    with server.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("CREATE TABLE dense (id int, filler text)")
        while not ended.is_set():
            connection.execute("INSERT INTO dense SELECT i, 'x' FROM generate_series(1, 50000) AS i")


def run(receiver: Receiver) -> threading.Thread:
    thread = threading.Thread(target=receiver.run)
    thread.start()
    assert receiver.progress.streaming.wait(30)
    return thread


@pytest.mark.postgres(15, 18)
def test_summaries_are_level_with_what_is_received(make_server: ServerFactory, scratch: Path) -> None:
    """For each moment: how long until everything that had been written by then was in a map?"""
    server, repo, stop = keeping_server(make_server), scratch / "repo", StopRequest()
    options = StreamOptions(slot="pgwal", create_slot=True)
    receiver = Receiver(LocalPlace(repo), ConnectionParameters(server.conninfo), options, stop)
    thread, ended = run(receiver), threading.Event()
    writer = threading.Thread(target=write_at_full_speed, args=(server, ended))
    samples: list[tuple[float, Lsn, Lsn]] = []
    try:
        writer.start()
        begin, deadline = flush_lsn(server), time.monotonic() + RUN_S
        while time.monotonic() < deadline:
            metrics = receiver.progress.metrics
            # In this order: what is written is noted before what is summarised.
            summarised = metrics.summarised_lsn
            samples.append((time.monotonic(), metrics.written_lsn, summarised))
            time.sleep(0.01)
    finally:
        ended.set()
        writer.join()
        stop.set()
        thread.join()
        stop.close()
    assert receiver.progress.metrics.errors.total() == 0
    received = samples[-1][1] - begin
    lags = list(_lags(samples))
    print(f"{received / RUN_S / 1e6:.0f} MB/s, at most {max(lags):.3f} s behind")
    assert received > 8 << 20
    assert max(lags) < LAG_MAX_S


def _lags(samples: list[tuple[float, Lsn, Lsn]]) -> Iterator[float]:
    """Yield the time from each sample to the first one in which its WAL is summarised, or to the last one."""
    later = 0
    for number, (taken_s, written, _) in enumerate(samples):
        later = max(later, number)
        # A record whose end has not come yet cannot be in a map: those here are of less than a page.
        while later < len(samples) - 1 and samples[later][2] < written - 8192:
            later += 1
        yield samples[later][0] - taken_s


def slot_is_active(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        return connection.execute("SELECT FROM pg_replication_slots WHERE active").rowcount > 0


@pytest.mark.postgres(13, 18)
def test_what_is_summarised_is_not_read_again(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot"):
        for step in range(4):
            run_load(server, step)
            with server.connect() as connection:
                connection.execute("CHECKPOINT")
                connection.execute("SELECT pg_switch_wal()")
        for step in range(4, 7):
            run_load(server, step)
    # A receiver that has to wait for the slot looks at the archive again each time.
    wait_for(lambda: not slot_is_active(server), "the server to notice that the receiver has ended")
    last = Repository.open(repo).summaries.ranges()[-1].end
    reads: list[tuple[Lsn, int]] = []
    read = WalDirectory.read

    def counted(self: WalDirectory, timeline_id: int, start: Lsn) -> Iterator[bytes]:
        size = 0
        try:
            for data in read(self, timeline_id, start):
                size += len(data)
                yield data
        finally:
            reads.append((start, size))

    monkeypatch.setattr(WalDirectory, "read", counted)
    stop = StopRequest()
    receiver = Receiver(LocalPlace(repo), ConnectionParameters(server.conninfo), StreamOptions(slot="pgwal"), stop)
    thread = run(receiver)
    stop.set()
    thread.join()
    stop.close()
    flushed = one_lsn(server, "(SELECT restart_lsn FROM pg_replication_slots)")
    # Before anything is received, a record that bears a time is looked for: from the last whole segment back.
    segment_size = Repository.open(repo).geometry.segment_size
    for_proof = [(start, size) for start, size in reads if start != last]
    newest = for_proof[0][0]
    assert [start for start, _ in for_proof] == [newest - back * segment_size for back in range(len(for_proof))]
    assert newest % segment_size == 0
    assert all(size <= segment_size for _, size in for_proof)
    # Of the segment that is received anew, nothing is summarised again.
    assert sum(size for start, size in reads if start == last) <= max(0, flushed - last) + 8192
