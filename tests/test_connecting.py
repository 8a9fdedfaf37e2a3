"""Where a connection may lead, and what users write as PostgreSQL's own tools take it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from pgwal_process import assert_failed, run_pgwal, succeed
from support.lying_server import LyingServer

from pgwal_cli.throwaway_server import ThrowawayServer

USAGE = 2


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
@pytest.mark.postgres(18)
def test_an_abstract_socket(server: ThrowawayServer, tmp_path: Path) -> None:
    name = f"@pgwal-test-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name[1:]}/.s.PGSQL.5432")
    listener.listen()
    with LyingServer(server, listener=listener):
        where = ["-h", name, "-p", "5432", "-U", "postgres", "-d", "postgres"]
        succeed("full", "--repo", tmp_path / "repo", *where, "-c", "fast", "-j", "2")
    refused = run_pgwal("check", "-h", "@pgwal-nobody", "-p", "1", "-U", "postgres")
    assert_failed(refused, 3, "Connection refused", "server runs")


@pytest.mark.postgres(18)
def test_replication_in_a_connection_string_changes_nothing(server: ThrowawayServer, tmp_path: Path) -> None:
    for value in ("true", "database", "nonsense"):
        succeed("stream", "--repo", tmp_path / "repo", "--once", "-d", f"{server.conninfo} replication={value}")
        succeed("full", "--repo", tmp_path / "repo", "-c", "fast", "-d", f"{server.conninfo} replication={value}")


def test_timelines_and_positions_are_read_as_the_server_reads_them(tmp_path: Path) -> None:
    wal: list[str | Path] = ["inspect", tmp_path]
    restoring: list[str | Path] = ["restore", "latest", "--repo", tmp_path, "-D", tmp_path]
    for text in ("00000010", "0", "-1", "0x", "1_0", "٣", "4294967296", "99999999999999999999", "0x100000000"):
        assert_failed(run_pgwal(*wal, "--timeline", text), USAGE, "is not a timeline")
        assert_failed(run_pgwal(*restoring, "--target-timeline", text), USAGE, "is not a timeline")
    for text in ("16", "0x10", "0XfF", "4294967295"):
        assert_failed(run_pgwal(*wal, "--timeline", text), 1, "holds no WAL segments")
    for text in ("80000000/0", "FFFFFFFF/FFFFFFFF"):
        assert_failed(run_pgwal(*wal, "--from", text), USAGE, "no WAL reaches")
    assert_failed(run_pgwal(*wal, "--from", "7FFFFFFF/FFFFFFFF"), 1, "holds no WAL segments")


@pytest.mark.postgres(18)
def test_check_says_why_a_slot_is_of_no_use_and_who_waits_for_pgwal(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('pgwal', true)")
        connection.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 60
        query = "SELECT FROM pg_replication_slots WHERE invalidation_reason IS NOT NULL"
        while connection.execute(query).rowcount == 0:
            assert time.monotonic() < deadline
            time.sleep(0.3)
            connection.execute("CHECKPOINT")
    outcome = run_pgwal("check", "-d", server.conninfo, "--slot", "pgwal", "--json")
    found = {finding["name"]: finding for finding in json.loads(outcome.stdout)["findings"]}
    assert found["slot pgwal"]["message"] == "was invalidated by the server: idle_timeout"
    assert "lost" not in found["slot pgwal"]["message"]
    assert found["synchronous_standby_names"]["status"] == "warning"


@pytest.mark.postgres(18)
def test_check_of_a_store_that_does_not_answer_is_no_connection(
    server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "word",
        }.items():
            monkeypatch.setenv(name, value)
        outcome = run_pgwal("check", "-d", server.conninfo, env={"PGWAL_REPO": "s3://bucket/repo"})
        assert_failed(outcome, 3, "does not answer", "AWS_ENDPOINT_URL")
