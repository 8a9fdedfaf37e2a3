"""WAL that the server has removed: an incremental is refused, a full backup starts anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal, succeed
from test_main_job import prepare, run_load

from pgwal_cli.exit_codes import CHAIN_BROKEN


@pytest.mark.postgres(15, 18)
def test_a_full_backup_goes_over_the_hole(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("--wal-segsize=1",), settings={"min_wal_size": "2MB", "max_wal_size": "2MB"})
    repo = scratch / "repo"
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]
    prepare(server)
    succeed("full", *source)
    for step in range(3):
        run_load(server, step)
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
    refused = run_pgwal("incremental", *source)
    assert refused.code == CHAIN_BROKEN
    assert "has already removed WAL segment" in refused.stderr
    second = json.loads(succeed("full", *source, "--json"))
    with server.connect() as connection:
        connection.execute("CREATE TABLE late (id int)")
    assert json.loads(succeed("incremental", *source, "--json"))["prior"] == second["id"]
