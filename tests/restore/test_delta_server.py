"""Restored into what a server has left: an older state, a crashed one, a replayed one; never where one still runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.damaged_directory import tree
from restore.restored_server import Scene, assert_sound, checksums
from seeds import new_seed

from pgwal_cli.server_processes import wait_until_gone
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

SETTINGS: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB", "shared_buffers": "16MB"}
PREPARE = """
    CREATE TABLE kept (id int PRIMARY KEY, filler text);
    INSERT INTO kept SELECT i, repeat('k', 400) FROM generate_series(1, 8000) AS i;
    CREATE TABLE shrinking AS SELECT * FROM kept;
    CREATE UNLOGGED TABLE unlogged AS SELECT * FROM kept;
    CREATE TABLE elsewhere TABLESPACE side AS SELECT * FROM kept;
"""
HIDDEN = """
from pgwal.encryption.core_files import keep_out_of_core_files
keep_out_of_core_files()
print("hidden", flush=True)
input()
"""
CHANGES = (
    "UPDATE kept SET filler = 'one' WHERE id % 500 = 1; DELETE FROM shrinking WHERE id > 500",
    "VACUUM shrinking; CREATE TABLE created TABLESPACE side AS SELECT * FROM kept WHERE id % 3 = 0",
    "DROP TABLE created; UPDATE elsewhere SET filler = 'two' WHERE id < 100; CREATE DATABASE another",
)


def run(server: ThrowawayServer, script: str) -> None:
    with server.connect(autocommit=True) as connection:
        for statement in script.split(";"):
            if statement.strip():
                connection.execute(statement.encode())


@pytest.mark.postgres(18)
def test_of_a_crashed_server(make_server: ServerFactory, scratch: Path, repo: Path) -> None:
    server, side = make_server(settings=SETTINGS), scratch / "side"
    side.mkdir(mode=0o700)
    give_to_server(side)
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"]
    run(server, f"CREATE TABLESPACE side LOCATION '{side}';" + PREPARE)
    ids = [json.loads(succeed("full", *source))["id"]]
    for change in CHANGES:
        run(server, change)
        ids.append(json.loads(succeed("incremental", *source))["id"])
    rows = checksums(server) | {"unlogged": (0, "")}
    run(server, "UPDATE kept SET filler = 'lost' WHERE id < 1000; CREATE TABLE lost AS SELECT * FROM kept")
    server.kill()
    target = server.data_directory
    owner = target.stat().st_uid
    words = ["--repo", repo, "-N", "--target-immediate", "--target-action=promote"]
    seed = new_seed()
    for backup in [*random.Random(seed).sample(ids, k=2), ids[-1]]:
        fresh, elsewhere = scratch / "fresh", scratch / "elsewhere"
        succeed("restore", backup, *words, "-D", fresh, "-T", f"{side}={elsewhere}")
        in_place = ["restore", backup, *words, "-D", target, "--delta"]
        assert_failed(run_pgwal(*in_place), 1, "would write outside", "--allow-tablespaces-in-place")
        outcome = run_pgwal(*in_place, "--allow-tablespaces-in-place", "--json")
        assert outcome.code == 0, outcome.stderr
        report = json.loads(outcome.stdout)
        assert report["kept_bytes"] > report["written_bytes"]
        places = {side: "side", elsewhere: "side"}
        assert tree(target, places) == tree(fresh, places)
        assert tree(side) == tree(elsewhere)
        # As root finds them, and leaves them.
        assert {path.lstat().st_uid for path in (target, *target.rglob("*"), side, *side.rglob("*"))} == {owner}
        shutil.rmtree(fresh)
        shutil.rmtree(elsewhere)
    scene = Scene(repo, make_server)
    give_to_server(side)
    with scene.started(target) as restored:
        assert checksums(restored) == rows
        assert_sound(restored)


@pytest.mark.postgres(18)
def test_not_where_a_server_runs(make_server: ServerFactory, repo: Path) -> None:
    server = make_server(settings=SETTINGS)
    run(server, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    words = ["restore", "--repo", repo, "-D", server.data_directory, "--delta", "--target-immediate"]
    pid_file = server.data_directory / "postmaster.pid"
    content = pid_file.read_bytes()
    postmaster = int(content.split()[0])
    refused = f"a server runs on {server.data_directory}"
    assert_failed(run_pgwal(*words), 1, f"{refused}: process {postmaster} of its postmaster.pid is alive", "Stop it")
    if Path("/proc").is_dir():
        # As from outside of a container, or when somebody has removed the file.
        pid_file.unlink()
        assert_failed(run_pgwal(*words), 1, f"{refused}: process .* is a server's, and works there")
        pid_file.write_bytes(content)
        give_to_server(pid_file)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            # Its postmaster is gone, and it may go on to write.
            os.kill(postmaster, signal.SIGKILL)
            wait_until_gone([postmaster])
            assert_failed(run_pgwal(*words), 1, refused)
        finally:
            os.kill(backend, signal.SIGKILL)
    server.kill()
    # The id of a process that is none of a server there, and does not let itself be looked at, as one with a key.
    with subprocess.Popen([sys.executable, "-c", HIDDEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hidden:
        assert hidden.stdout is not None
        assert hidden.stdout.readline()
        pid_file.write_bytes(content.replace(b"%d\n" % postmaster, b"%d\n" % hidden.pid, 1))
        succeed(*words)
        hidden.kill()
    assert not pid_file.exists()
