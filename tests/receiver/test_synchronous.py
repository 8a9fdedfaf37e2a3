"""A receiver as a synchronous standby: a commit returns when it is safe here, and not before."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest
from fix_servers import ServerFactory
from pgwal_process import PGWAL, finish, start_pgwal, succeed
from receiver.oracle import SLOT, seeded, wait_for
from test_main_job import prepare, wait_until_promoted

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

SETTINGS: dict[str, str | int | bool] = {"synchronous_commit": "on", "wal_keep_size": "1GB"}
NAME = "archive"


class Commit(threading.Thread):
    """A transaction in a thread, whose commit may have to wait."""

    def __init__(self, server: ThrowawayServer, statement: str) -> None:
        super().__init__()
        self._server = server
        self._statement = statement
        self.start()

    def run(self) -> None:
        with self._server.connect() as connection:
            connection.execute(self._statement.encode())

    def waits(self) -> bool:
        with self._server.connect() as connection:
            return connection.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'").rowcount > 0


def receiver_args(server: ThrowawayServer, repo: Path) -> list[str | Path]:
    conninfo = f"{server.conninfo} application_name={NAME}"
    return ["stream", "--repo", repo, "-d", conninfo, "--synchronous", "--status-interval", "60", *SLOT]


def is_synchronous(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        query = "SELECT FROM pg_stat_replication WHERE application_name = %s AND sync_state = 'sync'"
        return connection.execute(query, [NAME]).rowcount == 1


def require_receiver(server: ThrowawayServer) -> None:
    server.configure(synchronous_standby_names=NAME)
    server.reload()
    wait_for(lambda: is_synchronous(server), "the receiver to count as synchronous")


@pytest.mark.postgres(13, 18)
def test_a_commit_waits_for_the_receiver(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(settings=SETTINGS), scratch / "repo"
    prepare(server)
    process = start_pgwal(*receiver_args(server, repo))
    try:
        require_receiver(server)
        Commit(server, "CREATE TABLE there (id int)").join(timeout=10)

        process.send_signal(signal.SIGSTOP)
        stopped = Commit(server, "INSERT INTO there VALUES (1)")
        wait_for(stopped.waits, "the commit to wait")
        stopped.join(timeout=1)
        assert stopped.is_alive()
        process.send_signal(signal.SIGCONT)
        stopped.join(timeout=10)
        assert not stopped.is_alive()
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr

    absent = Commit(server, "INSERT INTO there VALUES (2)")
    wait_for(absent.waits, "the commit to wait")
    absent.join(timeout=1)
    assert absent.is_alive()
    process = start_pgwal(*receiver_args(server, repo))
    absent.join(timeout=20)
    process.terminate()
    finish(process)
    assert not absent.is_alive()


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("names", ["*", 'FIRST 1 (other, "' + NAME.upper() + '")'])
@pytest.mark.parametrize("is_known_early", [True, False], ids=["before", "after"])
def test_commits_do_not_wait_for_the_status_interval(
    make_server: ServerFactory, scratch: Path, names: str, is_known_early: bool
) -> None:
    """Without --synchronous, and whether or not the server names the receiver before it connects."""
    server, repo = make_server(settings=SETTINGS), scratch / "repo"
    prepare(server)
    if is_known_early:
        server.configure(synchronous_standby_names=names)
        server.reload()
    process = start_pgwal(*(arg for arg in receiver_args(server, repo) if arg != "--synchronous"))
    try:
        if not is_known_early:
            wait_for(lambda: (repo / "receiver.json").exists(), "the receiver to stream")
            server.configure(synchronous_standby_names=names)
            server.reload()
        # For this, too, it must report soon what is durable.
        wait_for(lambda: is_synchronous(server), "the receiver to count as synchronous")
        with server.connect() as connection:
            connection.execute("CREATE TABLE there (id int)")
            for number in range(5):
                connection.execute("INSERT INTO there VALUES (%s)", [number])
        began = time.monotonic()
        with server.connect() as connection:
            connection.execute("INSERT INTO there VALUES (5)")
        # The status interval is 60 s.
        assert time.monotonic() - began < 10
    finally:
        process.terminate()
        finish(process)


@pytest.mark.postgres(18)
def test_a_commit_is_quick_while_the_server_is_busy(make_server: ServerFactory, scratch: Path) -> None:
    """Others write WAL all the time, so that the receiver seldom finds the connection empty."""
    server, repo = make_server(settings=SETTINGS | {"max_wal_size": "4GB"}), scratch / "repo"
    prepare(server)
    ended = threading.Event()

    def write() -> None:
        with server.connect() as connection:
            connection.execute("SET synchronous_commit = off")
            # As much as a receiver keeps up with, and not without an end: a slot keeps all of it.
            for _ in range(1000):
                connection.execute("SELECT pg_logical_emit_message(false, 'busy', repeat('b', 50000))")
                if ended.wait(0.005):
                    return

    process = start_pgwal(*receiver_args(server, repo))
    writers = [threading.Thread(target=write) for _ in range(2)]
    try:
        require_receiver(server)
        for writer in writers:
            writer.start()
        took = []
        with server.connect() as connection:
            connection.execute("CREATE TABLE quick (id int)")
            for number in range(10):
                began = time.monotonic()
                connection.execute("INSERT INTO quick VALUES (%s)", [number])
                took.append(time.monotonic() - began)
        assert max(took) < 5, took
    finally:
        ended.set()
        for writer in writers:
            writer.join()
        process.terminate()
        finish(process)


@pytest.mark.postgres(15, 18)
def test_what_was_committed_survives_receiver_and_server(make_server: ServerFactory, scratch: Path) -> None:
    """Both are killed under load, and the server never starts again: every row that was confirmed is restored."""
    server, repo, target, rng = make_server(settings=SETTINGS), scratch / "repo", scratch / "restored", seeded()
    prepare(server)
    with server.connect() as connection:
        connection.execute("CREATE TABLE promised (id int PRIMARY KEY)")
    process = start_pgwal(*receiver_args(server, repo))
    confirmed: list[int] = []

    def promise(first: int) -> None:
        try:
            with server.connect() as connection:
                for number in range(first, first + 1_000_000):
                    connection.execute("INSERT INTO promised VALUES (%s)", [number])
                    confirmed.append(number)
        except psycopg.Error:
            return

    try:
        require_receiver(server)
        source: list[str | Path] = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory]
        json.loads(succeed("full", *source, "-c", "fast", "--json"))
        clients = [threading.Thread(target=promise, args=(number * 1_000_000,)) for number in range(3)]
        for client in clients:
            client.start()
        wait_for(lambda: len(confirmed) > 100, "rows")
        time.sleep(rng.uniform(0, 1))
        # The receiver first: what the server confirms after this would be a lie.
        process.kill()
        server.kill()
        for client in clients:
            client.join()
    finally:
        process.kill()
        finish(process)

    succeed("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\nsynchronous_standby_names = ''\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        with restored.connect() as connection:
            found = {number for (number,) in connection.execute("SELECT id FROM promised")}
    assert set(confirmed) <= found, f"{len(set(confirmed) - found)} of {len(confirmed)} rows are lost"
