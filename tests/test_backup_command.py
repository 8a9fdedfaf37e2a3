"""``pgwal backup``: incremental where that is possible, else full, and it says why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pgwal_process import run_pgwal
from test_main_job import prepare, run_load

from pgwal_cli.exit_codes import CHAIN_BROKEN
from pgwal_cli.throwaway_server import ThrowawayServer


@pytest.mark.postgres(18)
def test_the_backup_that_is_due(server: ThrowawayServer, repo: Path) -> None:
    prepare(server)
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    refused = run_pgwal("backup", *source, "--require-incremental")
    assert refused.code == CHAIN_BROKEN
    first = run_pgwal("backup", *source)
    assert (first.code, json.loads(first.stdout)["kind"]) == (0, "full")
    assert re.search("no incremental backup is possible: .*(there is no repository|holds nothing yet)", first.stderr)
    run_load(server, 1)
    second = run_pgwal("backup", *source)
    assert (second.code, json.loads(second.stdout)["prior"]) == (0, json.loads(first.stdout)["id"])
    # The WAL in between is lost, and with it what the next incremental would have been.
    for path in [*(repo / "wal").iterdir(), *(repo / "summaries").iterdir()]:
        path.unlink()
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
    third = run_pgwal("backup", *source)
    assert (third.code, json.loads(third.stdout)["kind"]) == (0, "full")
    assert "WAL is missing" in third.stderr
