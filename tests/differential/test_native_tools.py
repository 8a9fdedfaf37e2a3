"""PostgreSQL 18's own tools accept what pgwal writes: pg_verifybackup each backup, pg_combinebackup the chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import checksums, prepare, run_load, streaming

from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

pytestmark = pytest.mark.other_minors


def readable_copy(repo: Path, backup_id: str, scratch: Path) -> Path:
    """Copy a backup to where the server's user can read it: plain files as they are, others by export."""
    copy, data = scratch / backup_id, repo / "backups" / backup_id / "data"
    if (data / "PG_VERSION").exists():
        shutil.copytree(data, copy)
    else:
        succeed("export", backup_id, "--repo", repo, "-o", copy, "-N")
    give_to_server(copy)
    return copy


@pytest.mark.postgres(17, 18, 19)
@pytest.mark.packed_on_all
@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
def test_native_tools_accept_the_chain(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, repo: Path, algorithm: str
) -> None:
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    source += ["--manifest-checksums", algorithm]
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot", "--compress", "none"):
        backups = [json.loads(succeed("full", *source))]
        for step in (1, 2):
            run_load(server, step)
            backups.append(json.loads(succeed("incremental", *source)))
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
    copies = [readable_copy(repo, backup["id"], scratch) for backup in backups]
    assert any(copies[-1].rglob("INCREMENTAL.*"))
    for copy in copies:
        verified = server.run_tool("pg_verifybackup", "-n", str(copy))
        assert "backup successfully verified" in verified.stdout
    combined = scratch / "combined"
    server.run_tool("pg_combinebackup", *map(str, copies), "-o", str(combined))
    server.run_tool("pg_verifybackup", "-n", str(combined))
    expected = checksums(server)

    # The WAL of the backup itself makes the combined directory consistent; no further change was made since.
    for segment in (repo / "wal").glob("*"):
        shutil.copy(segment, combined / "pg_wal" / segment.name.removesuffix(".partial"))
    give_to_server(combined)
    assert checksums(make_server(adopt=combined)) == expected
