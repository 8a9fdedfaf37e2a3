"""PostgreSQL's own tools take a merged backup for a full one: pg_verifybackup, and pg_combinebackup as what others
build on; and so does the next incremental backup of the server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from differential.test_native_tools import readable_copy
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import checksums, prepare, run_load, streaming

from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server


@pytest.mark.postgres(17, 18, 19)
def test_native_tools_accept_a_merged_backup_and_what_builds_on_it(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, repo: Path
) -> None:
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot", "--compress", "none"):
        succeed("full", *source)
        for step in (1, 2):
            run_load(server, step)
            succeed("incremental", *source)
        merged = json.loads(succeed("merge", "--repo", repo, "--json"))
        assert merged["backup_count"] == 3
        assert merged["written_bytes"] < merged["size_bytes"] / 2
        succeed("expire", "--repo", repo, "--keep-full", "1")
        assert [each["id"] for each in json.loads(succeed("list", "--repo", repo, "--json"))["backups"]] == [
            merged["id"]
        ]
        run_load(server, 3)
        last = json.loads(succeed("incremental", *source))
        assert last["prior"] == merged["id"]
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
    copies = [readable_copy(repo, backup_id, scratch) for backup_id in (merged["id"], last["id"])]
    assert not any(copies[0].rglob("INCREMENTAL.*"))
    for copy in copies:
        verified = server.run_tool("pg_verifybackup", "-n", str(copy))
        assert "backup successfully verified" in verified.stdout
    combined = scratch / "combined"
    server.run_tool("pg_combinebackup", *map(str, copies), "-o", str(combined))
    expected = checksums(server)
    for segment in (repo / "wal").glob("*"):
        shutil.copy(segment, combined / "pg_wal" / segment.name.removesuffix(".partial"))
    give_to_server(combined)
    assert checksums(make_server(adopt=combined)) == expected
    assert json.loads(succeed("verify", "--repo", repo, "--json"))["problems"] == []


@pytest.mark.postgres(13, 15)
def test_a_merged_backup_is_verified_by_pg_verifybackup(server: ThrowawayServer, repo: Path, scratch: Path) -> None:
    if not server.installation.has_tool("pg_verifybackup"):
        pytest.skip("this installation comes without pg_verifybackup")
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot"):
        succeed("full", *source)
        run_load(server, 1)
        succeed("incremental", *source)
    merged = json.loads(succeed("merge", "--repo", repo, "--json"))["id"]
    verified = server.run_tool("pg_verifybackup", "-n", str(readable_copy(repo, merged, scratch)))
    assert "backup successfully verified" in verified.stdout


@pytest.mark.postgres(18)
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["packed", "encrypted"])
def test_a_merged_backup_is_verified_by_pg_verifybackup_when_its_packs_were_rewritten(
    server: ThrowawayServer, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_encrypted: bool
) -> None:
    repo, identity = tmp_path / "packed", tmp_path / "identity.txt"
    recipient, opening = list[str | Path](), list[str | Path]()
    if is_encrypted:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        recipient = ["--recipient", succeed("key", "generate", "-o", identity).strip()]
        opening = ["--identity", identity]
    succeed("init", "--repo", repo, "--format", "packed", *recipient)
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    source += ["--slot", "pgwal"]
    prepare(server)
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('pgwal', true)")
    succeed("full", *source)
    for step in range(1, 16):
        run_load(server, step)
        succeed("incremental", *source)
        merged = json.loads(succeed("merge", "--repo", repo, "--json", *opening))["id"]
        report = json.loads(succeed("expire", "--repo", repo, "--keep-full", "1", "--json"))
        if report["rewritten_packs"]:
            break
    gone = {pack["name"] for pack in report["rewritten_packs"]}
    assert gone, "no pack is worn"
    assert gone.isdisjoint(path.name for path in (repo / "packs").rglob("*"))
    exported = scratch / "exported"
    succeed("export", merged, "--repo", repo, "-o", exported, "-N", *opening)
    give_to_server(exported)
    assert "backup successfully verified" in server.run_tool("pg_verifybackup", "-n", str(exported)).stdout
    assert json.loads(succeed("verify", "--repo", repo, "--json", *opening))["problems"] == []
