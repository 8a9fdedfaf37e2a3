"""A server that hangs: who asks pgwal to stop does not wait for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_failed, assert_nothing_raw, finish, start_pgwal, succeed
from support.lying_server import LyingServer

from pgwal.errors import ConnectionFailed
from pgwal.postgres import connection as connection_module
from pgwal.postgres import silence
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.files import SqlDataDirectory
from pgwal.postgres.server import read_server_facts
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.server_processes import descendants, live_processes
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

pytestmark = pytest.mark.postgres(13, 18)
EITHER_WILL_DO = pytest.mark.postgres(18)

STOP_S = 3.0
"""How long a command may take that is asked to stop."""
STARTS = 10
"""And so many times what a command takes to start and end, measured beside: machines are busy."""
SOON_S = 60.0
"""When a test gives up."""
CHAIN_BROKEN = 4


@pytest.fixture(scope="module")
def servers(
    installation: ServerInstallation, server_templates: Templates, session_scratch: Path
) -> Iterator[ServerFactory]:
    with ServerFactory(installation, server_templates, session_scratch / f"hung-{installation.major}") as factory:
        yield factory


@pytest.fixture(scope="module")
def server(servers: ServerFactory) -> ThrowawayServer:
    return servers()


@contextmanager
def hung(server: ThrowawayServer) -> Iterator[None]:
    """Stop all processes of a server."""
    postmaster = int((server.data_directory / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGSTOP)
    stopped = [postmaster, *descendants(postmaster)]
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(stopped):
            if pid in live_processes():
                os.kill(pid, signal.SIGCONT)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def activity(server: ThrowawayServer, condition: str) -> int:
    with server.connect() as connection:
        query = f"SELECT FROM pg_stat_activity WHERE application_name = 'pgwal' AND {condition}"
        return connection.execute(query).rowcount


def stopped_by(process: subprocess.Popen[str], number: signal.Signals) -> Outcome:
    """Signal a process, wait for its end, and require that it came soon."""
    process.send_signal(number)
    began = time.monotonic()
    outcome = finish(process, SOON_S)
    took_s = time.monotonic() - began
    began = time.monotonic()
    finish(start_pgwal("--version"))
    assert took_s < STOP_S + STARTS * (time.monotonic() - began)
    return outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stream_is_stopped(server: ThrowawayServer, tmp_path: Path, number: signal.Signals) -> None:
    process = start_pgwal("stream", "--repo", tmp_path / "repo", "-d", server.conninfo)
    wait_for(lambda: activity(server, "backend_type = 'walsender'"), process)
    with hung(server):
        outcome = stopped_by(process, number)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert "the server did not answer within 2 s; stopped without it" in outcome.stderr


@EITHER_WILL_DO
def test_stream_is_stopped_while_it_connects(server: ThrowawayServer, tmp_path: Path) -> None:
    with hung(server):
        process = start_pgwal("stream", "--repo", tmp_path / "repo", "-d", f"{server.conninfo} connect_timeout=600")
        # Nobody else can tell what it waits for.
        wait_for(lambda: "S (sleeping)" in Path(f"/proc/{process.pid}/status").read_text(), process)
        time.sleep(1)
        outcome = stopped_by(process, signal.SIGTERM)
    assert outcome.code in (0, -signal.SIGTERM), outcome.stderr
    assert_nothing_raw(outcome)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_backup_over_sql_is_stopped(server: ThrowawayServer, tmp_path: Path, jobs: str) -> None:
    repo, big = tmp_path / "repo", server.data_directory / "big"
    with big.open("wb") as file:
        file.truncate(2 << 30)
    taking = ["full", "--repo", repo, "-d", server.conninfo, "-c", "fast", "-j", jobs]
    try:
        process = start_pgwal(*taking)
        wait_for(lambda: list(repo.glob("backups/*.unfinished/data/big")), process)
        with hung(server):
            outcome = stopped_by(process, signal.SIGINT)
    finally:
        big.unlink()
    assert outcome.code == 128 + signal.SIGINT, outcome.stderr
    assert_nothing_raw(outcome)
    assert outcome.stderr.splitlines()[-1] == "pgwal: interrupted"
    assert list((repo / "backups").iterdir()) == []


@EITHER_WILL_DO
def test_what_asks_the_server_is_stopped(server: ThrowawayServer, tmp_path: Path) -> None:
    for command in (["check"], ["status", "--repo", tmp_path / "repo"]):
        if command[0] == "status":
            succeed("stream", "--repo", tmp_path / "repo", "-d", server.conninfo, "--once")
        with hung(server):
            process = start_pgwal(*command, "-d", f"{server.conninfo} connect_timeout=600")
            time.sleep(1.5)
            outcome = stopped_by(process, signal.SIGINT)
        assert outcome.code in (128 + signal.SIGINT, -signal.SIGINT), outcome.stderr
        assert_nothing_raw(outcome)


# ---- a server that nobody interrupts the wait for


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask whether a server lives after half a second, not a minute."""
    monkeypatch.setattr(silence, "SILENCE_S", 0.5)
    monkeypatch.setattr(connection_module, "PROBE_S", 2)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_is_not_waited_for(server: ThrowawayServer) -> None:
    with connect_sql(ConnectionParameters(server.conninfo)) as connection, hung(server):
        with pytest.raises(ConnectionFailed, match=r"the server hangs: it has not answered for .* new connection"):
            read_server_facts(connection)
        assert connection.closed


@EITHER_WILL_DO
@pytest.mark.usefixtures("impatient")
def test_a_file_over_sql_of_a_server_that_hangs(server: ThrowawayServer) -> None:
    big = server.data_directory / "big"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    source = SqlDataDirectory(connect_sql(ConnectionParameters(server.conninfo)))
    chunks = source.read_file("big", 1 << 30)
    assert chunks is not None
    next(chunks)
    try:
        with hung(server), pytest.raises(ConnectionFailed, match="the server hangs"):
            deque(chunks, maxlen=0)
    finally:
        big.unlink()


@EITHER_WILL_DO
@pytest.mark.usefixtures("impatient")
def test_a_server_that_takes_long_is_waited_for_and_the_user_told(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As for a spread checkpoint, or a lock on the catalogue."""
    with server.connect() as other, connect_sql(ConnectionParameters(server.conninfo)) as connection:
        with other.transaction():
            other.execute("LOCK TABLE pg_tablespace IN ACCESS EXCLUSIVE MODE")
            waiting = threading.Thread(target=read_server_facts, args=[connection])
            waiting.start()
            deadline = time.monotonic() + 30
            while len(caplog.messages) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        waiting.join(timeout=30)
        assert not waiting.is_alive()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert all("waiting for the server, which has not answered for " in message for message in caplog.messages)


@EITHER_WILL_DO
def test_connections_end_when_the_machine_is_gone(server: ThrowawayServer) -> None:
    """Which the kernel alone can tell; what the user says wins."""
    with LyingServer(server) as proxy:
        parameters = ConnectionParameters(proxy.conninfo)
        with connect_sql(parameters) as connection, socket.socket(fileno=os.dup(connection.fileno())) as shared:
            assert shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
            assert shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 6
        parameters = ConnectionParameters(f"{proxy.conninfo} tcp_user_timeout=5000 keepalives_count=2")
        with connect_sql(parameters) as connection, socket.socket(fileno=os.dup(connection.fileno())) as shared:
            assert shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
            assert shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 2


# ---- a receiver that is connected to another server


@pytest.mark.parametrize("keeps_wal", [True, False], ids=["kept", "removed"])
def test_a_receiver_of_another_server_is_noticed(servers: ServerFactory, scratch: Path, keeps_wal: bool) -> None:
    if keeps_wal != (servers.installation.major == 13):
        pytest.skip("no version has a say in this: one each")
    server = servers(settings={"wal_keep_size" if keeps_wal else "max_wal_size": "64MB"})
    repo, copy = scratch / "repo", scratch / "copy"
    taking = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    succeed("full", *taking)
    server.stop()
    # As a snapshot of the machine that is started beside it.
    shutil.copytree(server.data_directory, copy)
    give_to_server(copy)
    other = servers(adopt=copy)
    server.start()
    for each, name, switches in ((server, "this", 3), (other, "that", 0)):
        with each.connect() as connection:
            connection.execute(f"CREATE TABLE {name} AS SELECT i FROM generate_series(1, 1000) i")
            for _ in range(switches):
                connection.execute("SELECT pg_switch_wal()")
                connection.execute(f"INSERT INTO {name} VALUES (1)")
            connection.execute("CHECKPOINT")
    receiver = start_pgwal("stream", "--repo", repo, "-d", other.conninfo)
    wait_for(lambda: activity(other, "backend_type = 'walsender'"), receiver)
    try:
        outcome = finish(start_pgwal("incremental", *taking), SOON_S)
    finally:
        receiver.terminate()
        finish(receiver)
    cause = "the WAL that arrives is not this server's" if keeps_wal else "that is another server, or a standby"
    assert_failed(outcome, CHAIN_BROKEN, cause, "to the same server")
