"""verify, expire and list on backups of real servers, with a receiver at work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from test_main_job import PGWAL, checksums, prepare, run_load, streaming, wait_until_promoted

from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import FAILED, VERIFICATION_FAILED
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
DAMAGES = 40
TRIAL_S = 300


def source_of(server: ThrowawayServer, repo: Path) -> list[str | Path]:
    return ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]


def ids(repo: Path) -> list[str]:
    return Repository.open(repo).catalogue.ids()


# The wheel of 16 comes without amcheck.
@pytest.mark.postgres(13, 15, 18)
def test_backups_are_verified_tried_and_expired_beside_a_receiver(
    make_server: ServerFactory, scratch: Path, repo: Path, guarded_scratch: Path
) -> None:
    server = make_server(initdb_args=("-k",), settings={"archive_mode": True, "archive_command": "exit 1"})
    location = scratch / "space"
    location.mkdir()
    location.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(location, server.data_directory.stat().st_uid, server.data_directory.stat().st_gid)
        location.chmod(0o700)
    source = source_of(server, repo)
    prepare(server)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE space LOCATION '{location}'")
        connection.execute("CREATE TABLE elsewhere TABLESPACE space AS SELECT generate_series(1, 1000) AS id")
        connection.execute("CREATE DATABASE other")
    with streaming(server, repo, *SLOT):
        backups = []
        for number in range(5):
            backups.append(json.loads(succeed("full" if number in (0, 3) else "incremental", *source)))
            run_load(server, number + 1)
        verified = run_pgwal("verify", "--repo", repo, "-j", "2")
        assert verified.code == 0, verified.stdout
        expired = json.loads(succeed("expire", "--repo", repo, "--keep-full", "1", "--json"))
        assert [backup["id"] for backup in expired["expired_backups"]] == [
            backups[number]["id"] for number in (2, 1, 0)
        ]
        assert expired["removed_wal"]
        # A running receiver, and the next incremental, find all that they need.
        run_load(server, 6)
        backups.append(json.loads(succeed("incremental", *source)))
        assert backups[-1]["prior"] == backups[4]["id"]
    assert ids(repo) == [backup["id"] for backup in backups[3:]]
    listed = json.loads(succeed("list", "--repo", repo, "--json"))["backups"]
    assert all(backup["recoverable"]["whole"] for backup in listed)
    expected = checksums(server)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    server.stop()

    bindir = make_server.installation.bin_dir
    place = guarded_scratch / "trial"
    outcome = finish(
        start_pgwal("verify", "--repo", repo, "--restore", "--restore-dir", place, "--bindir", bindir, "--json"),
        TRIAL_S,
    )
    assert_nothing_raw(outcome)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    trial = json.loads(outcome.stdout)["trial"]
    assert (trial["backup"], trial["messages"]) == (backups[-1]["id"], [])
    assert trial["database_count"] == 3
    assert trial["index_count"] > 300
    assert trial["table_count"] > 200 or make_server.installation.major == 13
    assert list(place.iterdir()) == []

    target, space = scratch / "restored", scratch / "restored_space"
    succeed("restore", "latest", "--repo", repo, "-D", target, "-T", f"{location}={space}")
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as file:
            file.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected


@pytest.mark.postgres(18)
def test_damage_of_a_real_backup_is_listed_whole(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("-k", "--wal-segsize=1"))
    repo = scratch / "repo"
    source = source_of(server, repo)
    prepare(server)
    full = json.loads(succeed("full", *source))
    run_load(server, 1)
    incremental = json.loads(succeed("incremental", *source))
    random = Random(20261122)
    files = [path for path in (repo / "backups").rglob("*") if path.is_file() and path.stat().st_size]
    lists = [path for path in files if path.name in ("backup.json", "backup_manifest")]
    chosen = random.sample([path for path in files if path not in lists], DAMAGES)
    for path in chosen:
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    outcome = run_pgwal("verify", incremental["id"], "--repo", repo, "--json")
    assert outcome.code == VERIFICATION_FAILED
    found = {problem["path"] for problem in json.loads(outcome.stdout)["problems"]}
    assert found == {str(path.relative_to(repo)) for path in chosen}
    assert full["id"] in json.loads(outcome.stdout)["verified_backups"]


@pytest.mark.postgres(18)
def test_a_trial_restore_finds_what_the_digests_cannot(make_server: ServerFactory, scratch: Path) -> None:
    # Without checksums, an index that lacks an entry is backed up, digested and stored as it is.
    server = make_server(initdb_args=("--wal-segsize=1", "--no-data-checksums"))
    repo = scratch / "repo"
    prepare(server)
    with server.connect() as connection:
        connection.execute("UPDATE pg_index SET indisready = false WHERE indexrelid = 'account_pkey'::regclass")
    with server.connect() as connection:
        connection.execute("INSERT INTO account VALUES (-1, 0, 'not in the index')")
    with server.connect() as connection:
        connection.execute("UPDATE pg_index SET indisready = true WHERE indexrelid = 'account_pkey'::regclass")
    succeed("full", *source_of(server, repo))
    trial = ["--restore", "--bindir", make_server.installation.bin_dir]
    assert_failed(run_pgwal("verify", "--repo", repo, "--bindir", "/nonexistent"), 2, "are for --restore")
    assert_failed(run_pgwal("verify", "--repo", repo, "--restore", "--bindir", "/nonexistent"), FAILED, "cannot run")
    assert_failed(
        run_pgwal("verify", "--repo", repo, "--restore", env={"PATH": "/nonexistent"}), FAILED, "no pg_ctl", "--bindir"
    )
    occupied = run_pgwal("verify", "--repo", repo, *trial, "--restore-dir", repo)
    assert_failed(occupied, FAILED, "is not empty")
    outcome = finish(start_pgwal("verify", "--repo", repo, *trial), TRIAL_S)
    assert outcome.code == VERIFICATION_FAILED, outcome.stdout + outcome.stderr
    (line,) = [line for line in outcome.stdout.splitlines() if "account_pkey" in line]
    assert line.startswith("postgres: index public.account_pkey: ")
    assert "lacks matching index tuple" in line


@pytest.mark.postgres(13, 18)
def test_a_trial_restore_has_room_for_what_the_server_had(make_server: ServerFactory, scratch: Path) -> None:
    """Prepared transactions outlive a recovery, with their locks: more of both than a server has by default."""
    many = {"max_prepared_transactions": 7, "max_locks_per_transaction": 300, "max_connections": 120}
    server, repo = make_server(initdb_args=("--wal-segsize=1",), settings=many), scratch / "repo"
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int)")
        for number in range(6):
            connection.execute("BEGIN")
            connection.execute(f"INSERT INTO t VALUES ({number})")
            connection.execute(f"PREPARE TRANSACTION 'prepared {number}'")
    succeed("full", *source_of(server, repo))
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    trial = ["--restore", "--bindir", make_server.installation.bin_dir]
    outcome = finish(start_pgwal("verify", "--repo", repo, *trial), TRIAL_S)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
