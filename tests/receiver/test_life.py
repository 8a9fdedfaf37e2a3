"""What a receiver lives through in years: full disks, clocks that jump, restarts; and how it ends when told to."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from receiver.oracle import (
    SLOT,
    assert_same_wal,
    assert_whole_segments_are_the_servers,
    flush_lsn,
    keeping_server,
    one_lsn,
    wait_for,
)
from test_main_job import prepare, run_load, server_streams

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import ThrowawayServer

MB = 1 << 20


def mount(*args: str | Path) -> None:
    finished = subprocess.run(["mount", *args], capture_output=True, text=True)
    if finished.returncode != 0:
        pytest.skip(f"this machine lets no file system be mounted: {finished.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m,mode=0755", "tmpfs", mount_point)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


def write_segments(server: ThrowawayServer, count: int) -> None:
    with server.connect() as connection:
        for number in range(count):
            # Of this kind that compression makes nothing smaller.
            connection.execute(
                "SELECT pg_logical_emit_message(true, 'random', (SELECT string_agg(md5((%s * i)::text), '')"
                " FROM generate_series(1, 30000) AS i))",
                [number + 2],
            )
            connection.execute("SELECT pg_switch_wal()")


@pytest.mark.postgres(15, 18)
def test_a_full_disk_is_waited_for(make_server: ServerFactory, small_disk: Path) -> None:
    """The receiver says so and pauses, takes nothing for received that is not, and goes on when there is room."""
    server, repo = keeping_server(make_server), small_disk / "repo"
    process = start_pgwal("stream", "--repo", repo, "-d", server.conninfo, *SLOT, "--compress", "none")
    try:
        wait_for(lambda: server_streams(server) or process.poll() is not None, "the stream")
        write_segments(server, 12)
        wait_for(lambda: not server_streams(server) or process.poll() is not None, "the receiver to stop")
        held = one_lsn(server, "(SELECT restart_lsn FROM pg_replication_slots)")
        assert held < flush_lsn(server)
        time.sleep(1)
        assert process.poll() is None
        assert_same_wal(server, repo, held)
        mount("-o", "remount,size=64m", small_disk)
        end = flush_lsn(server)
        wait_for(lambda: has_flushed(repo, end) or process.poll() is not None, "the receiver to go on")
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert "No space left on device; receiving pauses until there is room" in outcome.stderr
    assert_same_wal(server, repo, end)
    assert_whole_segments_are_the_servers(server, repo)
    # The slot's position may lie within a record; summaries begin and end where records do.
    ranges = Repository.open(repo).summaries.ranges()
    bounds = ["--from", str(ranges[0].start), "--to", str(ranges[-1].end), "--json"]
    assert succeed("map", "--repo", repo, *bounds) == succeed("map", "--wal", server.data_directory / "pg_wal", *bounds)


@pytest.mark.postgres(18)
def test_a_full_disk_ends_a_receiver_that_is_not_to_wait(make_server: ServerFactory, small_disk: Path) -> None:
    server, repo = keeping_server(make_server), small_disk / "repo"
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", server.conninfo, *SLOT, "--compress", "none"]
    succeed(*stream, "--once")
    write_segments(server, 12)
    for end in ("--once", "--no-loop"):
        assert_failed(run_pgwal(*stream, end), FAILED, "No space left on device", "Free some space")
    # What could not be made whole is not left there: pg_receivewal would refuse it.
    assert all(path.stat().st_size == MB for path in (repo / "wal").iterdir())


def has_flushed(repo: Path, lsn: Lsn) -> bool:
    state = Repository.open(repo).receiver_state()
    return state is not None and state.flushed_lsn >= lsn


@pytest.mark.postgres(18)
def test_a_read_only_file_system_is_named(make_server: ServerFactory, small_disk: Path) -> None:
    server = keeping_server(make_server)
    stream: list[str | Path] = ["stream", "--repo", small_disk / "repo", "-d", server.conninfo]
    succeed(*stream, "--once")
    mount("-o", "remount,ro", small_disk)
    for path in (small_disk / "repo", small_disk / "another"):
        outcome = run_pgwal("stream", "--repo", path, "-d", server.conninfo)
        assert_failed(outcome, FAILED, f"{path}.*: Read-only file system", "file system that can be written")
    mount("-o", "remount,rw", small_disk)
    succeed(*stream, "--once")


@pytest.mark.postgres(18)
def test_a_clock_that_jumps_disturbs_nothing(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the time of day says, status goes out when it is due and nothing is taken for silent or late."""
    server, repo = keeping_server(make_server), scratch / "repo"
    server.configure(wal_sender_timeout="2s")
    server.reload()
    prepare(server)
    real, rng = time.time, random.Random(4)
    monkeypatch.setattr(time, "time", lambda: real() + rng.uniform(-1, 1) * 86400 * 365)
    stop = StopRequest()
    # Silence of six intervals would end the stream.
    options = StreamOptions(slot="pgwal", create_slot=True, status_interval_s=0.5)
    receiver = Receiver(LocalPlace(repo), ConnectionParameters(server.conninfo), options, stop)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        for step in range(3):
            run_load(server, step)
            time.sleep(1.5)
        end = flush_lsn(server)
        wait_for(lambda: receiver.progress.metrics.flushed_lsn >= end, "the receiver")
        wait_for(lambda: one_lsn(server, "(SELECT restart_lsn FROM pg_replication_slots)") >= end, "the report")
    finally:
        stop.set()
        thread.join()
        stop.close()
    assert receiver.progress.metrics.reconnects == 0
    assert not receiver.progress.metrics.errors.total()
    assert_same_wal(server, repo, end)


@pytest.mark.postgres(13, 18)
def test_a_restart_of_the_server_is_survived_or_not_as_asked(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    prepare(server)
    for wants_to_end in (False, True):
        process = start_pgwal(
            "stream", "--repo", repo, "-d", server.conninfo, *SLOT, *(["--no-loop"] if wants_to_end else [])
        )
        try:
            wait_for(lambda: server_streams(server), "the stream")
            server.restart()
            if wants_to_end:
                outcome = finish(process)
                assert_failed(outcome, FAILED, "replication was interrupted: the server ended the stream")
            else:
                run_load(server, 1)
                end = flush_lsn(server)
                wait_for(lambda lsn=end: has_flushed(repo, lsn), "the receiver to come back")
        finally:
            process.terminate()
            outcome = finish(process)
        assert outcome.code == (FAILED if wants_to_end else 0), outcome.stderr
    assert_same_wal(server, repo, end)


@pytest.mark.postgres(13, 18)
def test_it_ends_where_it_is_told_to(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    prepare(server)
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", server.conninfo, *SLOT]
    succeed(*stream, "--once")
    end = Lsn(flush_lsn(server) + MB)
    process = start_pgwal(*stream, "--endpos", str(end))
    try:
        wait_for(lambda: server_streams(server), "the stream")
        assert process.poll() is None
        for step in range(2, 6):
            run_load(server, step)
    finally:
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert has_flushed(repo, end)
    assert_same_wal(server, repo, end)
