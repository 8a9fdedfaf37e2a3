"""A restore states every recovery setting itself, whatever an earlier recovery has left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal, succeed
from psycopg.rows import TupleRow
from restore.restored_server import Scene

from pgwal_cli.throwaway_server import ThrowawayServer


def add(server: ThrowawayServer, number: int) -> None:
    with server.connect() as connection:
        connection.execute("INSERT INTO t VALUES (%s)", [number])
        connection.execute("SELECT pg_create_restore_point(%s)", [f"after {number}"])


def ids(server: ThrowawayServer) -> list[int]:
    with server.connect() as connection:
        return [row[0] for row in connection.execute("SELECT id FROM t ORDER BY id")]


def wait_until_paused(connection: psycopg.Connection[TupleRow]) -> None:
    deadline = time.monotonic() + 60
    while connection.execute("SELECT pg_is_wal_replay_paused()").fetchone() != (True,):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.postgres(13, 16, 18)
def test_settings_of_an_earlier_recovery_decide_nothing(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, marker = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo", scratch / "marker"
    data = server.data_directory
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int)")
    # Not reloaded: a recovery is what reads these.
    with (data / "postgresql.conf").open("a") as file:
        file.write(
            "recovery_target_name = 'after 1'\nrecovery_target_inclusive = off\nrecovery_target_action = shutdown\n"
            f"recovery_end_command = 'touch {marker}'\narchive_cleanup_command = 'touch {marker}'\n"
            "recovery_min_apply_delay = '1h'\nprimary_conninfo = 'host=/nowhere'\nprimary_slot_name = 'gone'\n"
            "include 'earlier.conf'\n"
        )
    (data / "earlier.conf").write_text("recovery_target_xid = '3'\nrecovery_target_timeline = '1'\n")
    # The place of all that a restore says: lost in one backup, an old file in the other.
    (data / "postgresql.auto.conf").unlink()
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", data, "-c", "fast"]
    succeed("full", *source)
    add(server, 1)
    add(server, 2)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    scene = Scene(repo, make_server)
    with scene.started(scene.restore(scratch / "all")) as restored:
        assert ids(restored) == [1, 2]
        with restored.connect() as connection:
            assert connection.execute("SHOW recovery_min_apply_delay").fetchone() == ("0",)
            assert connection.execute("SHOW primary_conninfo").fetchone() == ("",)
    target = scene.restore(scratch / "one", "--target-name", "after 1", "--target-action", "promote")
    with scene.started(target) as restored:
        assert ids(restored) == [1]
    assert not marker.exists()
    (data / "postgresql.auto.conf").symlink_to("/dev/null")
    succeed("full", *source)
    add(server, 3)
    add(server, 4)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    target = scene.restore(scratch / "linked", "--target-name", "after 3", "--target-action", "promote")
    assert not (target / "postgresql.auto.conf").is_symlink()
    with scene.started(target) as restored:
        assert ids(restored) == [1, 2, 3]


@pytest.mark.postgres(13, 18)
def test_max_connections_raised_behind_the_backup(make_server: ServerFactory, scratch: Path) -> None:
    settings: dict[str, str | int | bool] = {"max_connections": 20, "hot_standby": False}
    server, repo = make_server(initdb_args=("--wal-segsize=1",), settings=settings), scratch / "repo"
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int)")
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    add(server, 1)
    server.configure(max_connections=50, max_locks_per_transaction=256)
    server.restart()
    add(server, 2)
    add(server, 3)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    scene = Scene(repo, make_server)
    with scene.started(scene.restore(scratch / "all")) as restored:
        assert ids(restored) == [1, 2, 3]
    outcome = run_pgwal("restore", "--repo", repo, "-N", "-D", scratch / "paused", "--target-name", "after 2")
    assert outcome.code == 0, outcome.stderr
    assert "max_connections is set to 50, to which WAL behind the backup raises it from 20" in outcome.stderr
    assert "max_locks_per_transaction is set to 256" in outcome.stderr
    # With hot_standby = off, as the backup has it, the server would shut down instead of pausing.
    with scene.started(scratch / "paused", promoted=False) as restored, restored.connect() as connection:
        wait_until_paused(connection)
        assert ids(restored) == [1, 2]
        assert connection.execute("SHOW max_connections").fetchone() == ("50",)
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        connection.execute("SELECT pg_wal_replay_resume()")
