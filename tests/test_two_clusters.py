"""Two clusters of different major versions in one configuration file: the whole main job, by their names alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates, find_installation
from pgwal_process import PGWAL, finish, run_pgwal, start_pgwal, succeed
from test_main_job import checksums, prepare, run_load, server_streams, wait_until_promoted

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_installation import make_reachable
from pgwal_cli.throwaway_server import ThrowawayServer

OTHER_MAJORS = (13, 14, 16, 17)
"""The first of them that is there beside 18."""


@pytest.fixture
def make_other(session_scratch: Path, server_templates: Templates, scratch: Path) -> Iterator[ServerFactory]:
    found = next((each for major in OTHER_MAJORS if (each := find_installation(major).installation)), None)
    if found is None:
        pytest.skip("no other major version than 18 is there")
    below = scratch / "other"
    below.mkdir()
    with ServerFactory(make_reachable(found, session_scratch), server_templates, below) as factory:
        yield factory


def table(name: str, server: ThrowawayServer, scratch: Path) -> str:
    return f"""
        [cluster.{name}]
        repo = "{scratch}/repo-{name}"
        host = "{server.socket_directory}"
        port = {server.port}

        [cluster.{name}.restore]
        pgdata = "{scratch}/restored-{name}"
        """


@pytest.mark.postgres(18)
def test_the_main_job_of_two_clusters(
    server: ThrowawayServer, make_server: ServerFactory, make_other: ServerFactory, scratch: Path
) -> None:
    other = make_other()
    servers = {"main": server, "legacy": other}
    file = scratch / "pgwal.toml"
    file.write_text(
        """
        [default]
        username = "postgres"
        dbname = "postgres"
        slot = "pgwal"
        create-slot = true
        if-not-exists = true
        checkpoint = "fast"
        keep-full = 1
        """
        + "".join(table(name, each, scratch) for name, each in servers.items())
    )
    file.chmod(0o644)
    env = {"PGWAL_CONFIG": str(file)}
    assert "main, legacy; nothing is wrong" in succeed("config", "check", env=env)
    assert json.loads(succeed("check", "--all", "--json", env=env))["clusters"][0]["result"]["lacking"] is False
    receivers = []
    for name, each in servers.items():
        prepare(each)
        receivers.append(start_pgwal("-C", name, "stream", env=env))
    for each in servers.values():
        wait_until_streaming(each)
    for name, each in servers.items():
        succeed("-C", name, "full", env=env)
        run_load(each, 1)
        succeed("incremental", "-C", name, env=env)
        run_load(each, 2)
    expected = {name: checksums(each) for name, each in servers.items()}
    wait_until_level(env)
    for receiver in receivers:
        receiver.terminate()
        assert finish(receiver).code == 0

    main, legacy = json.loads(succeed("list", "--all", "--json", env=env))["clusters"]
    assert (main["cluster"], legacy["cluster"]) == ("main", "legacy")
    for listed in (main, legacy):
        assert [backup["kind"] for backup in listed["result"]["backups"]] == ["full", "incremental"]
    assert succeed("verify", "--all", env=env).count("nothing is wrong") == 2
    assert "cluster legacy" in succeed("expire", "--all", "--dry-run", env=env)
    for name, factory in (("main", make_server), ("legacy", make_other)):
        succeed("-C", name, "restore", env=env)
        target = scratch / f"restored-{name}"
        with RestoreCommandRelay([*PGWAL, "--config", str(file), "-C", name, "fetch-wal"], scratch / name) as relay:
            with (target / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"restore_command = '{relay.restore_command}'\n")
            restored = factory(adopt=target)
            wait_until_promoted(restored)
            assert checksums(restored) == expected[name]

    other.stop()
    outcome = run_pgwal("status", "--all", "--json", env=env)
    main, legacy = json.loads(outcome.stdout)["clusters"]
    assert (outcome.code, main["exit_code"], legacy["exit_code"]) == (3, 0, 3)
    assert legacy["result"]["server"] is None
    assert legacy["error"]["kind"] == "ConnectionFailed"


def wait_until_streaming(server: ThrowawayServer) -> None:
    deadline = time.monotonic() + 60
    while not server_streams(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_level(env: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        found = json.loads(run_pgwal("status", "--all", "--json", env=env).stdout)["clusters"]
        if all(each["result"]["lag"] == {"wal_bytes": 0, "seconds": 0.0} for each in found):
            return
        assert time.monotonic() < deadline, found
