"""Receiver, server and network fail at random moments; nothing that was reported is lost, nothing is received wrong.

Two or three faults each by default.  PGWAL_FAULTS=200 makes as many of each kind, PGWAL_SEED repeats a run.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_nothing_raw, finish, start_pgwal
from receiver.oracle import (
    SLOT,
    assert_all_is_here,
    assert_same_wal,
    fault_count,
    flush_lsn,
    keeping_server,
    load,
    one_lsn,
    prepare_load,
    seeded,
    wait_for,
)
from receiver.proxy import Proxy
from test_main_job import server_streams

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.timeout(3600)

REPORTED = """(SELECT max(lsn) FROM (SELECT flush_lsn AS lsn FROM pg_stat_replication
    UNION ALL SELECT restart_lsn FROM pg_replication_slots) AS reported)"""


def start_receiver(repo: Path, conninfo: str, *args: str) -> subprocess.Popen[str]:
    return start_pgwal("stream", "--repo", repo, "-d", conninfo, *SLOT, *args)


@contextmanager
def lasting_receiver(repo: Path, conninfo: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a receiver that must outlive what happens."""
    process = start_receiver(repo, conninfo, *args)
    try:
        yield process
        assert process.poll() is None
    finally:
        process.terminate()
        outcome = finish(process)
        print(outcome.stderr)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)


def has_flushed(repo: Path, lsn: Lsn) -> bool:
    if not (repo / "pgwal.json").exists():
        return False
    state = Repository.open(repo).receiver_state()
    return state is not None and state.flushed_lsn >= lsn


def kill_at_a_random_moment(server: ThrowawayServer, repo: Path, rng: random.Random) -> bool:
    """Start a receiver and kill it while it starts, or later while it streams; tell whether it had streamed."""
    process = start_receiver(repo, server.conninfo)
    try:
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 1))
        else:
            wait_for(lambda: server_streams(server) or process.poll() is not None, "the stream")
            time.sleep(rng.uniform(0, 0.7))
        streams = server_streams(server)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        outcome = finish(process)
    # A receiver may come while the server still serves the one that was killed before it.
    assert outcome.code == -signal.SIGKILL or 'slot "pgwal" is active' in outcome.stderr, outcome.stderr
    return streams


@pytest.mark.postgres(13, 18)
def test_the_receiver_is_killed(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, rng = keeping_server(make_server), scratch / "repo", seeded()
    prepare_load(server)
    # Where a new slot keeps WAL from is reported by nobody: from here on, it is what the receiver has.
    assert finish(start_receiver(repo, server.conninfo, "--once")).code == 0
    checked: Lsn | None = None
    kills = 0
    with load(server):
        while kills < fault_count(3):
            kills += kill_at_a_random_moment(server, repo, rng)
            # What the slot is told of stays known when the receiver is gone.
            reported = one_lsn(server, REPORTED)
            if checked is not None or reported:
                assert_same_wal(server, repo, reported, start=checked)
                checked = reported
    assert checked is not None
    assert_all_is_here(server, repo)


@pytest.mark.postgres(15, 18)
def test_the_server_is_killed(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, rng = keeping_server(make_server), scratch / "repo", seeded()
    prepare_load(server)
    # Where a new slot keeps WAL from is reported by nobody: from here on, it is what the receiver has.
    assert finish(start_receiver(repo, server.conninfo, "--once")).code == 0
    with lasting_receiver(repo, server.conninfo):
        for _ in range(fault_count(2)):
            with load(server):
                wait_for(lambda: server_streams(server), "the stream")
                time.sleep(rng.uniform(0.1, 1.5))
                reported = one_lsn(server, REPORTED)
                if rng.random() < 0.5:
                    server.kill()
                else:
                    server.stop("immediate")
            assert_same_wal(server, repo, reported)
            server.start()
    assert_all_is_here(server, repo)


@pytest.mark.postgres(18)
def test_the_network_is_cut_slowed_and_frozen(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, rng = keeping_server(make_server), scratch / "repo", seeded()
    # The server has to notice a network that says nothing: until then it keeps the slot.
    server.configure(wal_sender_timeout="1s")
    server.listen_addresses = "127.0.0.1"
    server.restart()
    prepare_load(server)
    # Where a new slot keeps WAL from is reported by nobody: from here on, it is what the receiver has.
    assert finish(start_receiver(repo, server.conninfo, "--once")).code == 0
    kinds = ("cut", "slow", "freeze")
    with Proxy(server.port) as proxy, load(server):
        conninfo = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres connect_timeout=2"
        with lasting_receiver(repo, conninfo, "--status-interval", "0.3"):
            for number in range(fault_count(3)):
                wait_for(lambda: has_flushed(repo, Lsn(1)) and server_streams(server), "the stream")
                kind = kinds[number % len(kinds)]
                print(kind)
                if kind == "cut":
                    cuts = proxy.cuts
                    proxy.cut_after(rng.randrange(1, 200_000))
                    wait_for(lambda before=cuts: proxy.cuts > before, "the cut")
                elif kind == "slow":
                    proxy.delay_s = rng.uniform(0.005, 0.05)
                    time.sleep(rng.uniform(0.5, 1.5))
                    proxy.delay_s = 0
                else:
                    proxy.frozen.set()
                    wait_for(lambda: not server_streams(server), "the server to give up")
                    proxy.frozen.clear()
                reported = one_lsn(server, REPORTED)
                assert_same_wal(server, repo, reported)
            end = flush_lsn(server)
            wait_for(lambda: has_flushed(repo, end), "the receiver to catch up")
    assert_all_is_here(server, repo)
