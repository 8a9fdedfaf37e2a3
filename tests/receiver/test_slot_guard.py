"""A slot that makes the server retain more than it may: who says so, when it is dropped, and what then is left."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from test_main_job import prepare, streaming

from pgwal.engine import slot_guard
from pgwal.engine.slot_guard import Retention, RetentionLimit, SlotGuard
from pgwal.engine.status import ServerStatus
from pgwal.engine.stop import StopRequest
from pgwal.errors import SlotDropped
from pgwal.lsn import Lsn
from pgwal.postgres.slots import SlotFacts
from pgwal_cli.exit_codes import FAILED, USAGE
from pgwal_cli.throwaway_server import ThrowawayServer

SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
MB = 1 << 20
TIMEOUT_S = 60


# ---- what is decided


def retaining(size_mb: float) -> ServerStatus:
    slot = SlotFacts("pgwal", "physical", False, None, Lsn(100 * MB), "reserved")
    return ServerStatus(1, Lsn(100 * MB + int(size_mb * MB)), False, "pgwal", slot)


@pytest.mark.parametrize(
    ("retained_mb", "retention"),
    [(0, Retention.WITHIN), (74.9, Retention.WITHIN), (75, Retention.NEAR), (100, Retention.NEAR)],
)
def test_a_warning_begins_at_three_quarters(retained_mb: float, retention: Retention) -> None:
    limit = RetentionLimit(100 * MB)
    assert limit.judge(int(retained_mb * MB)) is retention
    assert limit.judge(100 * MB + 1) is Retention.BEYOND
    assert limit.judge(None) is Retention.WITHIN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(slot_guard.time, "monotonic", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


def guard(*, drops: bool = True) -> tuple[SlotGuard, StopRequest]:
    stop = StopRequest()
    return SlotGuard("pgwal", RetentionLimit(100 * MB), stop, drops=drops), stop


def test_a_slot_goes_when_it_was_beyond_for_long(clock: Callable[[float], None]) -> None:
    watched, stop = guard()
    for size_mb in (150, 150, 151):
        watched.look(retaining(size_mb))
        assert not stop.is_set()
        clock(slot_guard.SLOT_GRACE_S / 2 - 0.1)
    clock(1)
    watched.look(retaining(151))
    assert watched.must_drop
    assert stop.is_set()


def test_a_slot_whose_receiver_catches_up_stays(clock: Callable[[float], None]) -> None:
    watched, stop = guard()
    for size_mb in (1000, 900, 800, 150, 101):
        watched.look(retaining(size_mb))
        clock(slot_guard.SLOT_GRACE_S * 2)
    assert not stop.is_set()
    watched.look(retaining(90))
    clock(slot_guard.SLOT_GRACE_S * 2)
    # Beyond again: the time begins again.
    watched.look(retaining(101))
    assert not stop.is_set()


def test_a_slot_stays_where_nobody_wants_it_dropped(clock: Callable[[float], None]) -> None:
    watched, stop = guard(drops=False)
    for _ in range(5):
        watched.look(retaining(1000))
        clock(slot_guard.SLOT_GRACE_S * 2)
    assert watched.is_beyond
    assert not stop.is_set()


# ---- with a server whose receiver is away


def write_wal(server: ThrowawayServer, size_mb: int) -> None:
    with server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS filler (t text)")
        connection.execute("ALTER TABLE filler ALTER t SET STORAGE EXTERNAL")
        for _ in range(size_mb):
            connection.execute("INSERT INTO filler SELECT repeat('x', 1000000)")


def slot_exists(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        return connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'pgwal'").fetchone() is not None


def status_of(server: ThrowawayServer, repo: Path, *args: str) -> dict[str, Any]:
    found = json.loads(succeed("status", "--repo", repo, "-d", server.conninfo, "--json", *args))
    assert isinstance(found, dict)
    return found


@pytest.mark.postgres(13)
def test_status_and_check_see_what_an_absent_receiver_leaves(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("--wal-segsize=1",), settings={"max_slot_wal_keep_size": "64MB"})
    repo = scratch / "repo"
    prepare(server)
    with streaming(server, repo, *SLOT):
        pass
    write_wal(server, 9)
    connecting = ("-d", server.conninfo, "--slot", "pgwal")
    found = status_of(server, repo, "--max-retained", "10M")["server"]["replication_slot"]
    assert 7.5 * MB < found["retained_bytes"] <= 10 * MB, "or the numbers here are to be others"
    assert (found["retention"], found["max_retained_bytes"]) == ("near", 10 * MB)
    assert 0 < found["safe_wal_bytes"] < 64 * MB
    near = run_pgwal("check", *connecting, "--max-retained", "10M")
    assert near.code == 0
    assert "warning  WAL retained by slot pgwal: " in near.stdout
    beyond = run_pgwal("check", *connecting, "--max-retained", "5M")
    assert beyond.code == FAILED
    assert "lacking  WAL retained by slot pgwal: " in beyond.stdout
    assert "no receiver is connected" in beyond.stdout
    text = succeed("status", "--repo", repo, "-d", server.conninfo, "--max-retained", "5M")
    assert "the server gives it up after another" in text
    assert "warning: that is more than 5120 kB" in text
    # A receiver that comes back receives what was retained, however much it is.
    once = run_pgwal("stream", "--repo", repo, *connecting, "--once", "--max-retained", "5M", "--drop-slot")
    assert once.code == 0, once.stderr
    assert slot_exists(server)
    assert status_of(server, repo, "--max-retained", "5M")["server"]["replication_slot"]["retention"] == "within"


@pytest.mark.postgres(18)
def test_a_slot_is_dropped_when_the_repository_takes_nothing(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("--wal-segsize=1",))
    repo = scratch / "repo"
    prepare(server)
    with server.connect() as connection:
        connection.execute("CREATE ROLE receiver LOGIN REPLICATION")
    with streaming(server, repo, *SLOT):
        full = json.loads(succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"))
    write_wal(server, 8)
    # The repository takes nothing, for others may write it.
    mode = repo.stat().st_mode
    repo.chmod(0o777)
    # No more than the role of a receiver may is needed.
    streams = ["stream", "--repo", repo, "-d", f"{server.conninfo} user=receiver", "--slot", "pgwal"]
    assert run_pgwal(*streams, "--max-retained", "5M").code == FAILED
    assert slot_exists(server)
    process = start_pgwal(*streams, "--max-retained", "5M", "--drop-slot", "--metrics", "127.0.0.1:0")
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1]
    wait_for(lambda: 'pgwal_slot_retention_warning{slot="pgwal"} 1.0' in scrape(address))
    assert 'pgwal_slot_max_retained_bytes{slot="pgwal"} 5.24288e+06' in scrape(address)
    outcome = finish(process)
    assert_nothing_raw(outcome)
    assert "makes the server retain" in outcome.stderr
    assert outcome.code == SlotDropped.exit_code, outcome.stderr
    assert "was dropped: it made the server retain" in outcome.errors[-1]
    assert "no incremental can build on any backup" in outcome.errors[-1]
    assert "--create-slot" in outcome.hints[-1]
    assert not slot_exists(server)

    repo.chmod(mode)
    # The server may have the WAL yet: then nothing is lost; else a full backup is the way out, as the hint says.
    with server.connect() as connection:
        for _ in range(3):
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
    backup = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"]
    assert run_pgwal("incremental", *backup, "--since", full["id"]).code == SlotDropped.exit_code
    succeed("full", *backup)
    succeed("verify", "--repo", repo)


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_guard_needs_what_it_guards(tmp_path: Path) -> None:
    stream = ("stream", "--repo", tmp_path)
    assert_failed(run_pgwal(*stream, "--max-retained", "1G"), USAGE, "--max-retained needs --slot")
    assert_failed(run_pgwal(*stream, "--slot", "s", "--drop-slot"), USAGE, "--drop-slot needs --max-retained")
    assert_failed(run_pgwal("check", "--max-retained", "1G"), USAGE, "--max-retained needs --slot")
