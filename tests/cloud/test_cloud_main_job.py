"""The main job with a repository in an object store: each command, on real servers of both kinds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from support.shared_bucket import shared_bucket
from test_main_job import PGWAL, checksums, pgwal, prepare, run_load, streaming, wait_until_promoted

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a place in a bucket, which commands reach by the variables of this process."""
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().place().address


@pytest.mark.postgres(13, 15, 18, 19)
def test_backups_restored_from_a_bucket_hold_the_same_rows(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, address: str
) -> None:
    target = scratch / "restored"
    source = ["--repo", address, "-d", server.conninfo, "-c", "fast"]
    prepare(server)
    with streaming(server, address, "--slot", "pgwal", "--create-slot", "--if-not-exists"):
        full = json.loads(pgwal("full", *source, "--json"))
        run_load(server, 1)
        first = json.loads(pgwal("incremental", *source, "--json"))
        run_load(server, 2)
    second = json.loads(pgwal("incremental", *source, "--since", full["start_lsn"], "--slot", "pgwal", "--json"))
    assert (first["prior"], second["prior"]) == (full["id"], full["id"])
    assert 0 < first["copied_block_count"] < first["block_count"]
    listed = json.loads(pgwal("list", "--repo", address, "--json"))["backups"]
    assert [(entry["id"], entry["format"]) for entry in listed] == [
        (backup["id"], "packed") for backup in (full, first, second)
    ]
    assert first["id"] in pgwal("show", first["id"], "--repo", address)
    assert "FORK main: blocks" in pgwal(
        "map", "--repo", address, "--from", full["start_lsn"], "--to", second["start_lsn"]
    )
    assert json.loads(pgwal("verify", "--repo", address, "--json"))["problems"] == []
    assert address in pgwal("status", "--repo", address, "-d", server.conninfo, "--slot", "pgwal")
    run_load(server, 3)
    with streaming(server, address, "--slot", "pgwal"):
        time.sleep(1)
    expected = checksums(server)

    pgwal("export", second["id"], "--repo", address, "-o", scratch / "exported")
    assert (scratch / "exported" / "backup_manifest").exists()
    pgwal("combine", second["id"], "--repo", address, "-o", scratch / "combined")
    assert (scratch / "combined" / "global" / "pg_control").exists()
    pgwal("restore", "latest", "--repo", address, "-D", target)
    assert f"--repo {address}" in (target / "postgresql.auto.conf").read_text()
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", address], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
    expired = json.loads(pgwal("expire", "--keep-full", "1", "--repo", address, "--json"))
    assert expired["expired_backups"] == []
