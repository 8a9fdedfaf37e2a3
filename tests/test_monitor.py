"""``pgwal monitor``: what it calls critical, a warning and in order, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from pgwal_process import Outcome, run_pgwal, succeed
from test_main_job import prepare, run_load, streaming

from pgwal_cli.throwaway_server import ThrowawayServer

OK, WARNING, CRITICAL, UNKNOWN = range(4)


@pytest.mark.postgres(18)
def test_what_is_worst_decides(server: ThrowawayServer, scratch: Path) -> None:
    prepare(server)
    repo = scratch / "repo"
    where = ["--repo", repo, "-d", server.conninfo]

    def monitor(*more: str) -> Outcome:
        return run_pgwal("monitor", *where, *more)

    assert monitor().code == UNKNOWN
    assert monitor().stdout.startswith("UNKNOWN: there is no repository in")
    with streaming(server, repo, "--slot", "pgwal", "--create-slot"):
        none = monitor()
        assert (none.code, none.stdout.partition(";")[0]) == (CRITICAL, "CRITICAL: there is no backup")
        succeed("full", *where, "-c", "fast")
        fine = monitor()
        assert (fine.code, fine.stderr) == (OK, "")
        assert fine.stdout.startswith("OK: newest backup 0.0 h old; receiver running; ")
        assert fine.stdout.count("\n") == 1
        old = monitor("--max-age", "0")
        assert (old.code, old.stdout.partition(" 0.0")[0]) == (WARNING, "WARNING: newest backup")
        missing = monitor("--slot", "nowhere")
        assert (missing.code, missing.stdout.partition(";")[0]) == (CRITICAL, "CRITICAL: slot nowhere does not exist")
        away = run_pgwal("monitor", "--repo", repo, "-h", "/nonexistent")
        assert (away.code, away.stdout.partition(";")[0]) == (WARNING, "WARNING: the server was not reached")
        for step in range(2):
            run_load(server, step)
            with server.connect() as connection:
                connection.execute("SELECT pg_switch_wal()")
    down = monitor()
    assert (down.code, down.stdout.partition(";")[0]) == (CRITICAL, "CRITICAL: no receiver is running")
    assert "slot pgwal is not in use" in down.stdout
    succeed("stream", *where, "--slot", "pgwal", "--once")
    # The one with the backup's own end is the second.
    sorted(path for path in (repo / "wal").iterdir() if len(path.name.partition(".")[0]) == 24)[-2].unlink()
    for summary in (repo / "summaries").iterdir():
        summary.unlink()
    gap = monitor()
    assert (gap.code, "WAL is missing since the newest backup" in gap.stdout) == (CRITICAL, True)
