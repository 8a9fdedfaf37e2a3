"""What a receiver must have made of a server's WAL: the same bytes, and the same map as the server's own summaries.

The server keeps all of its WAL, in segments of 1 MB; see ``SETTINGS``.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psycopg
from differential.test_summaries import native_summaries
from fix_servers import ServerFactory
from pgwal_process import succeed
from seeds import new_seed
from test_main_job import prepare, run_load

from pgwal.engine.summarize import read_changes
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.address import Address
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import decode_summary
from pgwal_cli.throwaway_server import ThrowawayServer

WAIT_S = 60
SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
SETTINGS: dict[str, str | int | bool] = {"wal_keep_size": "8GB", "max_wal_size": "4GB", "autovacuum": False}


def fault_count(default: int) -> int:
    """Return how many faults to make: PGWAL_FAULTS, for a long run by hand."""
    return int(os.environ.get("PGWAL_FAULTS") or default)


def seeded() -> random.Random:
    """Return what the moments of faults are drawn from."""
    return random.Random(new_seed())


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def keeping_server(make_server: ServerFactory) -> ThrowawayServer:
    """Make a server that keeps its WAL, and summarises it where it can."""
    settings = SETTINGS | ({"summarize_wal": True} if make_server.installation.major >= 17 else {})
    return make_server(initdb_args=("-k", "--wal-segsize=1"), settings=settings)


def one_lsn(server: ThrowawayServer, expression: str) -> Lsn:
    with server.connect() as connection:
        row = connection.execute(f"SELECT coalesce({expression}, '0/0'::pg_lsn)::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0])


def flush_lsn(server: ThrowawayServer) -> Lsn:
    return one_lsn(server, "pg_current_wal_flush_lsn()")


# ---- load


@contextmanager
def load(server: ThrowawayServer) -> Iterator[None]:
    """Have the server write WAL, and make a checkpoint now and then, until it is gone or the context is left."""
    ended = threading.Event()
    threads = [threading.Thread(target=_until_gone, args=(server, ended, work)) for work in (_rows, _checkpoints)]
    benchmark = _pgbench(server)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if benchmark is not None:
            benchmark.kill()
            benchmark.wait()
        for thread in threads:
            thread.join()


def prepare_load(server: ThrowawayServer) -> None:
    prepare(server)
    if server.installation.has_tool("pgbench"):
        server.run_tool("pgbench", "-i", "-q", "postgres")


def _pgbench(server: ThrowawayServer) -> subprocess.Popen[bytes] | None:
    """Start it at a rate that leaves other processes room; a server whose package lacks it has the rest of the load."""
    if not server.installation.has_tool("pgbench"):
        return None
    where = ["-h", str(server.socket_directory), "-p", str(server.port), "-U", "postgres"]
    command = [server.installation.tool("pgbench"), "-n", "-c", "2", "-R", "300", "-T", "100000", *where, "postgres"]
    return subprocess.Popen(
        command, env=server.installation.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _until_gone(server: ThrowawayServer, ended: threading.Event, work: Callable[[ThrowawayServer, int], None]) -> None:
    step = 0
    while not ended.is_set():
        step += 1
        try:
            work(server, step)
        except psycopg.Error:
            return
        ended.wait(0.3)


def _rows(server: ThrowawayServer, step: int) -> None:
    with server.connect() as connection:
        connection.execute(f"DROP TABLE IF EXISTS made_{step % 80}")
    run_load(server, step % 80)


def _checkpoints(server: ThrowawayServer, _: int) -> None:
    time.sleep(0.7)
    with server.connect() as connection:
        connection.execute("CHECKPOINT")


# ---- what must be the same


def server_bytes(server: ThrowawayServer, repository: Repository, timeline_id: int, segment_no: int) -> bytes:
    name = repository.geometry.file_name(timeline_id, segment_no)
    return (server.data_directory / "pg_wal" / name).read_bytes()


def assert_same_wal(server: ThrowawayServer, repo: Address, end: Lsn, *, start: Lsn | None = None) -> None:
    """Check that everything before ``end`` is in the archive as the server has it, with no hole, on timeline 1."""
    repository = Repository.open(repo)
    geometry = repository.geometry
    segments = [segment for segment in repository.wal.segments() if segment.timeline_id == 1]
    numbers = [segment.segment_no for segment in segments]
    assert numbers, "nothing was received"
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert end <= geometry.segment_start(numbers[-1] + 1), f"{end} is not here"
    first = numbers[0] if start is None else geometry.segment_no(start)
    for number in range(first, geometry.last_segment_no(end) + 1):
        length = min(end - geometry.segment_start(number), geometry.segment_size)
        name = geometry.file_name(1, number)
        ours = repository.wal.read_segment(name)[:length]
        theirs = server_bytes(server, repository, 1, number)[:length]
        assert ours == theirs, f"{name} differs at {_difference(ours, theirs)} of {length}"


def _difference(ours: bytes, theirs: bytes) -> str:
    """Say where bytes differ first, how they go on on either side, and whether one side is zeros from there on."""
    at = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    sides = [f"{side[at : at + 32].hex()}{' then zeros' if not any(side[at:]) else ''}" for side in (ours, theirs)]
    return f"{at}: {sides[0]}, {sides[1]} on the server, of {len(ours)} bytes and {len(theirs)}"


def assert_whole_segments_are_the_servers(server: ThrowawayServer, repo: Path) -> None:
    repository = Repository.open(repo)
    for segment in repository.wal.segments():
        if segment.complete:
            name = repository.geometry.file_name(segment.timeline_id, segment.segment_no)
            theirs = server_bytes(server, repository, segment.timeline_id, segment.segment_no)
            assert repository.wal.read_segment(name) == theirs, name


def assert_same_map(server: ThrowawayServer, repo: Path) -> None:
    """Check that the map of the whole range is the server's: from its summaries, or before 17 from its own WAL."""
    repository = Repository.open(repo)
    ours = repository.summaries.ranges()
    assert len(ours) > 1
    for before, after in pairwise(ours):
        place = repository.geometry.first_record_position
        assert place(before.end) == place(after.start), f"{before}, {after}"
    if server.installation.major < 17:
        bounds = ["--from", str(ours[0].start), "--to", str(ours[-1].end), "--json"]
        mine = succeed("map", "--repo", repo, *bounds)
        assert mine == succeed("map", "--wal", server.data_directory / "pg_wal", *bounds)
        return
    native = {r: file for r, file in native_summaries(server).items() if ours[1].start <= r.start}
    compared = sorted(r for r in native if r.end <= ours[-1].end)
    assert compared, "the server has summarised nothing"
    assert compared == [r for r in ours[1:] if r.end <= compared[-1].end], "cut elsewhere"
    whole = BlockMap()
    for summary_range in compared:
        theirs = decode_summary(native[summary_range].read_bytes(), "the server's")
        assert repository.summaries.read(summary_range) == theirs, str(summary_range)
        whole.merge(theirs)
    assert read_changes(repository, [LsnRange(1, compared[0].start, compared[-1].end)]) == whole


def assert_all_is_here(server: ThrowawayServer, repo: Path) -> None:
    """Receive the rest, and check everything."""
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", "--slot", "pgwal")
    state = Repository.open(repo).receiver_state()
    assert state is not None
    assert_same_wal(server, repo, state.flushed_lsn)
    assert_whole_segments_are_the_servers(server, repo)
    assert_same_map(server, repo)
    assert [path.name for path in repo.rglob("*.tmp")] == []
