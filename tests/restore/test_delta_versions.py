"""On every version, what a server has left becomes what a fresh restore is, of all databases or of one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal, succeed
from restore.damaged_directory import Damage, tree
from seeds import new_seed
from support.shared_bucket import shared_bucket

from pgwal_cli.throwaway_server import ThrowawayServer

DAMAGES = (0, 4)
SETTINGS: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB"}


def run(server: ThrowawayServer, database: str, *statements: str) -> None:
    with server.connect(dbname=database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def compare(server: ThrowawayServer, scratch: Path, repo: Path | str) -> None:
    """Take a full and an incremental backup, kill the server, and restore both of them over what is left of it."""
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"]
    for name in ("one", "two"):
        run(server, "postgres", f"CREATE DATABASE {name}")
        run(server, name, "CREATE TABLE t AS SELECT i, repeat('x', 300) AS filler FROM generate_series(1, 6000) AS i")
    ids = [json.loads(succeed("full", *source))["id"]]
    for name in ("one", "two"):
        run(server, name, "UPDATE t SET i = -i WHERE i < 50", "CREATE TABLE more AS SELECT * FROM t WHERE i < 500")
    ids.append(json.loads(succeed("incremental", *source))["id"])
    run(server, "one", "UPDATE t SET i = 0 WHERE i > 5000", "DROP TABLE more")
    # Without an image of its page, so that the block comes out of the backup.
    run(server, "two", "DELETE FROM t WHERE i BETWEEN 100 AND 110")
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    server.kill()
    seed = new_seed()
    rng, target, fresh = random.Random(seed), server.data_directory, scratch / "fresh"
    for count in DAMAGES:
        for backup, databases in ((ids[0], []), (ids[1], ["--database", "one"]), (ids[1], [])):
            words = ["restore", backup, "--repo", repo, "-N", *databases]
            succeed(*words, "-D", fresh)
            outside = scratch / "outside"
            done = Damage(target, outside, rng).do(count)
            outcome = run_pgwal(*words, "-D", target, "--delta", "--json")
            assert outcome.code == 0, (outcome.stderr, done)
            assert tree(target) == tree(fresh), done
            report = json.loads(outcome.stdout)
            # Of what is there, most is as it was: template0, and what of the tables has not changed.
            assert report["kept_bytes"] > 0, done
            if databases:
                assert blocks(target) <= blocks(fresh) * 1.1, "holes are holes"
            shutil.rmtree(fresh)
            shutil.rmtree(outside)


def blocks(directory: Path) -> int:
    return sum(path.lstat().st_blocks for path in (directory / "base").rglob("*"))


@pytest.mark.postgres
def test_what_a_server_left(make_server: ServerFactory, scratch: Path, repo: Path) -> None:
    compare(make_server(settings=SETTINGS), scratch, repo)


@pytest.mark.postgres
def test_what_a_server_left_from_a_bucket(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))
    compare(make_server(settings=SETTINGS), scratch, shared_bucket().place().address)
