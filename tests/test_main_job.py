"""The main job by hand, as the README shows it: stream, full, incrementals, list, map, restore, on real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from support.json_documents import hold_to_schemas

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

PGWAL = [sys.executable, "-P", "-m", "pgwal_cli"]

LOAD = """
    INSERT INTO account SELECT i, 0, repeat('x', 100) FROM generate_series((SELECT max(id) + 1 FROM account),
        (SELECT max(id) + 500 FROM account)) AS i;
    UPDATE account SET balance = balance + 1 WHERE id % 97 = {step};
    DELETE FROM account WHERE id % 89 = {step};
    CREATE TABLE made_{step} AS SELECT * FROM account WHERE id % 50 = 0;
"""


def pgwal(*args: str | Path) -> str:
    finished = subprocess.run([*PGWAL, *map(str, args)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    hold_to_schemas([*map(str, args)], finished.returncode, finished.stdout, finished.stderr)
    return finished.stdout


@contextmanager
def streaming(server: ThrowawayServer, repo: Path | str, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*PGWAL, "stream", "--repo", str(repo), "-d", server.conninfo, *args], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not server_streams(server):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=30)
        assert process.returncode == 0, messages


def server_streams(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").fetchone()
    return row is not None and row[0] > 0


def checksums(server: ThrowawayServer) -> dict[str, tuple[int, str]]:
    """Return rows and a checksum of every table of the database."""
    with server.connect() as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        ]
        found = {}
        for table in tables:
            row = connection.execute(
                f"SELECT count(*), coalesce(md5(string_agg(t::text, '' ORDER BY t::text)), '') FROM {table} AS t"
            ).fetchone()
            assert row is not None
            found[table] = (int(row[0]), str(row[1]))
    return found


def run_load(server: ThrowawayServer, step: int) -> None:
    with server.connect() as connection:
        connection.execute(LOAD.format(step=step))


def prepare(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int, filler text)")
        connection.execute("INSERT INTO account SELECT i, 0, repeat('x', 100) FROM generate_series(1, 20000) AS i")


@pytest.mark.postgres
@pytest.mark.packed_on_all
@pytest.mark.parametrize("way", ["sql", "pgdata"])
def test_backups_restored_hold_the_same_rows(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, repo: Path, way: str
) -> None:
    target = scratch / "restored"
    source: list[str | Path] = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    source += ["--pgdata", server.data_directory] if way == "pgdata" else []
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot", "--if-not-exists"):
        full = json.loads(pgwal("full", *source, "--json"))
        run_load(server, 1)
        first = json.loads(pgwal("incremental", *source, "--since", "latest", "--json"))
        run_load(server, 2)
        second = json.loads(pgwal("incremental", *source, "--since", full["start_lsn"], "--json"))
        run_load(server, 3)
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
    run_load(server, 4)
    # Without a receiver, the backup runs one itself.
    third = json.loads(pgwal("incremental", *source, "--slot", "pgwal", "--json"))
    assert (first["prior"], second["prior"], third["prior"]) == (full["id"], full["id"], second["id"])
    assert 0 < first["copied_block_count"] < first["block_count"]
    listed = json.loads(pgwal("list", "--repo", repo, "--json"))["backups"]
    assert [entry["id"] for entry in listed] == [backup["id"] for backup in (full, first, second, third)]
    assert "FORK main: blocks" in pgwal("map", "--repo", repo, "--from", full["start_lsn"], "--to", third["start_lsn"])
    run_load(server, 5)
    with streaming(server, repo, "--slot", "pgwal"):
        time.sleep(1)
    expected = checksums(server)

    pgwal("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected


def wait_until_promoted(server: ThrowawayServer) -> None:
    deadline = time.monotonic() + 60
    while not server.has_ended_recovery():
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.05)
