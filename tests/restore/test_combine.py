"""A synthetic full backup is, byte for byte, what pg_combinebackup makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import streaming

from pgwal.backup.manifest import read_manifest
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

OF_THEIR_OWN = {"backup_manifest", "backup_label"}


def run_sql(server: ThrowawayServer, *statements: str) -> None:
    with server.connect(autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if path.name not in OF_THEIR_OWN
    }


@pytest.mark.postgres(17, 18, 19)
def test_equal_to_the_native_tool(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(settings={"autovacuum": False, "summarize_wal": True, "wal_keep_size": "1GB"})
    repo = scratch / "repo"
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    run_sql(server, "CREATE TABLE t AS SELECT i, repeat('x', 100) AS f FROM generate_series(1, 20000) AS i")
    with streaming(server, repo):
        ids = [json.loads(succeed("full", *source))["id"]]
        for step in range(3):
            run_sql(
                server,
                f"UPDATE t SET i = -i WHERE i % 500 = {step}",
                f"CREATE TABLE made_{step} AS SELECT * FROM t WHERE i < 100",
                f"DELETE FROM t WHERE i > {18000 - 3000 * step}",
                "VACUUM t",
                "ALTER SYSTEM SET work_mem = '5MB'",
            )
            ids.append(json.loads(succeed("incremental", *source))["id"])
    native, ours = scratch / "native", scratch / "ours"
    for count in (2, 4):
        chain = [str(repo / "backups" / backup_id / "data") for backup_id in ids[:count]]
        give_to_server(repo)
        server.run_tool("pg_combinebackup", "--no-sync", "-o", f"{native}{count}", *chain)
        succeed("combine", ids[count - 1], "--repo", repo, "-o", f"{ours}{count}", "-N")
        made = Path(f"{ours}{count}")
        give_to_server(made)
        assert tree(made) == tree(Path(f"{native}{count}"))
        assert (made / "backup_label").read_bytes() == (Path(f"{native}{count}") / "backup_label").read_bytes()
        server.run_tool("pg_verifybackup", "-n", str(made))
        theirs, mine = (
            read_manifest((Path(f"{place}{count}") / "backup_manifest").read_bytes()) for place in (native, ours)
        )
        assert {file._replace(last_modified="") for file in mine.files} == {
            file._replace(last_modified="") for file in theirs.files
        }
        assert (mine.version, mine.system_identifier, mine.wal_ranges) == (
            theirs.version,
            theirs.system_identifier,
            theirs.wal_ranges,
        )


def test_combine_says_what_is_wrong(tmp_path: Path) -> None:
    outcome = run_pgwal("combine", "20260101T000000Z_full", "--repo", tmp_path, "-o", tmp_path / "x")
    assert_failed(outcome, 1, "there is no repository")
