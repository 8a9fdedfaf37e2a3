"""Long-term and merged backups come back on a real server: to their own end, with the WAL that was kept for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.restored_server import Rows, Scene
from test_main_job import checksums, prepare, run_load, streaming

from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import ThrowawayServer


@pytest.mark.postgres(18)
def test_each_backup_comes_back_as_it_was_though_wal_between_is_gone(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, repo: Path
) -> None:
    scene = Scene(repo, make_server)
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    backups: list[str] = []
    rows: list[Rows] = []
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot"):
        for step, command in enumerate(("full", "incremental", "full", "incremental", "incremental")):
            run_load(server, step)
            rows.append(checksums(server))
            backups.append(json.loads(succeed(command, *source))["id"])
            with server.connect() as connection:
                # Segments that no backup needs.
                for _ in range(2):
                    connection.execute("SELECT pg_create_restore_point('between')")
                    connection.execute("SELECT pg_switch_wal()")
    merged = json.loads(succeed("merge", backups[3], "--repo", repo, "--json"))["id"]
    report = json.loads(succeed("expire", "--repo", repo, "--keep-full", "9", "--keep-wal-for", "1", "--json"))
    assert report["long_term_backups"] == [*backups[:3], merged]
    assert len(report["removed_wal"]) >= 6
    assert json.loads(succeed("verify", "--repo", repo, "--json"))["problems"] == []
    to_its_end = ["--target-immediate", "--target-action", "promote"]
    for number, backup_id in ((1, backups[1]), (3, merged)):
        restored = scratch / f"restored{number}"
        assert_failed(
            run_pgwal("restore", backup_id, "--repo", repo, "-D", restored), FAILED, "is a long-term backup", "--target"
        )
        with scene.started(scene.restore(restored, backup_id, *to_its_end)) as found:
            assert checksums(found) == rows[number]
    with scene.started(scene.restore(scratch / "newest", backups[4])) as found:
        assert checksums(found) == rows[4]
