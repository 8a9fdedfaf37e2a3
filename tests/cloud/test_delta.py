"""A restore into what is there, from an object store, in clear and encrypted: what a fresh one gives, for less."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal, succeed
from restore.damaged_directory import Damage, tree
from restore.restored_server import checksums
from seeds import new_seed
from support.shared_bucket import shared_bucket
from test_main_job import PGWAL, wait_until_promoted

from pgwal_cli.restore_command_relay import RestoreCommandRelay


@pytest.mark.postgres(18)
@pytest.mark.parametrize("encrypted", [False, True] if "PGWAL_LARGE_TESTS" in os.environ else [True])
def test_from_a_bucket(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(scratch / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))
    address = shared_bucket().place().address
    identity = scratch / "identity.txt"
    if encrypted:
        recipient = succeed("key", "generate", "-o", identity).strip()
        succeed("init", "--repo", address, "--recipient", recipient)
    server = make_server(settings={"autovacuum": False, "wal_keep_size": "1GB"})
    source = ["--repo", address, "-d", server.conninfo, "-c", "fast", "--json"]
    with server.connect(autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) AS i")
        ids = [json.loads(succeed("full", *source))["id"]]
        connection.execute("UPDATE t SET i = -i WHERE i BETWEEN 1000 AND 1100")
        ids.append(json.loads(succeed("incremental", *source))["id"])
    rows = checksums(server)
    server.kill()
    words = ["--repo", address, "-N", "--target-immediate", "--target-action=promote", "--json"]
    key = ["--identity", str(identity)] if encrypted else []
    words += key
    fresh, target = scratch / "fresh", scratch / "target"
    whole = json.loads(succeed("restore", ids[1], *words, "-D", fresh))
    expected = tree(fresh)
    seed = new_seed()
    for before in ids:
        succeed("restore", before, *words, "-D", target)
        done = Damage(target, scratch / "outside", random.Random(seed)).do(3)
        outcome = run_pgwal("restore", ids[1], *words, "-D", target, "--delta")
        assert outcome.code == 0, outcome.stderr
        assert tree(target) == expected, done
        again = json.loads(succeed("restore", ids[1], *words, "-D", target, "--delta"))
        assert again["written_bytes"] == 0
        assert again["fetched_bytes"] < whole["fetched_bytes"] / 2
        shutil.rmtree(scratch / "outside")
        if before == ids[0]:
            shutil.rmtree(target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", address, *key], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == rows
