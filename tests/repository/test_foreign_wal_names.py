"""Files in ``wal/`` whose names are those of segments of another size: passed over by every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from pgwal_process import succeed
from test_main_job import prepare

from pgwal_cli.throwaway_server import ThrowawayServer

FOREIGN = ("00000001FFFFFFFFFFFFFFFF.zst", "00000001000000010000FFFF.gz", "0000000100000000FFFFFFFF.lz4")


@pytest.mark.postgres(18)
@pytest.mark.only_format("packed")
def test_segments_of_another_size_stop_no_command(server: ThrowawayServer, repo: Path, scratch: Path) -> None:
    prepare(server)
    where = ["--repo", str(repo), "-d", server.conninfo]
    backup = [*where, "-c", "fast", "--slot", "pgwal"]
    succeed("stream", *where, "--slot", "pgwal", "--create-slot", "--once")
    succeed("full", *backup)
    for name in FOREIGN:
        (repo / "wal" / name).write_bytes(b"")
    succeed("stream", *where, "--slot", "pgwal", "--once")
    succeed("incremental", *backup)
    succeed("status", *where)
    assert "nothing is wrong" in succeed("verify", "--repo", repo)
    succeed("expire", "--repo", repo, "--keep-full", "1")
    succeed("restore", "--repo", repo, "-D", scratch / "restored")
    assert len(succeed("list", "--repo", repo).splitlines()) == 3
    assert {file.name for file in (repo / "wal").iterdir()} >= set(FOREIGN)
