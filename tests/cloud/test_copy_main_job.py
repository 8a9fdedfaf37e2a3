"""Second copies by hand: out of a directory into a bucket, and from there into another directory, beside a stream and
under load; the last one restores to a point in time by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from support.shared_bucket import shared_bucket
from test_main_job import PGWAL, checksums, pgwal, prepare, run_load, streaming, wait_until_promoted

from pgwal.repository.address import place_at
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.repository import Repository
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

IS_LARGE = "PGWAL_LARGE_TESTS" in os.environ
MAJORS = (13, 16, 18, 19) if IS_LARGE else (18,)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> CloudPlace:
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().place()


@contextmanager
def under_load(server: ThrowawayServer) -> Iterator[None]:
    ended = threading.Event()

    def change() -> None:
        with server.connect() as session:
            for number in range(1_000_000):
                session.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", (number % 20000 + 1,))
                if ended.wait(0.01):
                    return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def killed_on_the_way(place: CloudPlace, *command: str | Path) -> None:
    """Kill a copy as soon as something of a backup has arrived."""
    process = subprocess.Popen([*PGWAL, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not any(True for _ in place.store.list("packs/")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()


@pytest.mark.postgres(*MAJORS)
def test_a_copy_of_a_copy_restores_to_a_point_in_time_with_its_own_wal(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, bucket: CloudPlace
) -> None:
    repo, second, target = scratch / "repo", scratch / "second", scratch / "restored"
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--pgdata", server.data_directory]
    to_bucket = ["copy", "--repo", repo, "--to", bucket.address, "--with-wal"]
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot", "--if-not-exists"):
        full = json.loads(pgwal("full", *source, "--json"))["id"]
        run_load(server, 1)
        first = json.loads(pgwal("incremental", *source, "--json"))["id"]
        with under_load(server):
            killed_on_the_way(bucket, *to_bucket)
            copied = json.loads(pgwal(*to_bucket, "--json"))
            assert copied["copied_backups"] in ([full, first], [first])
            assert copied["problems"] == []
            assert copied["requests"]["put"] < 200
            second_incremental = json.loads(pgwal("incremental", *source, "--json"))["id"]
        # The end of a backup is known to the second.
        time.sleep(1.1)
        run_load(server, 2)
        expected = checksums(server)
        with server.connect() as session:
            row = session.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            point = row[0].isoformat()
        time.sleep(1.1)
        run_load(server, 3)
        with server.connect() as session:
            session.execute("SELECT pg_switch_wal()")
        run_load(server, 4)
    again = json.loads(pgwal(*to_bucket, "--json"))
    assert again["copied_backups"] == [second_incremental]
    assert json.loads(pgwal(*to_bucket, "--json"))["copied_backups"] == []
    entries = json.loads(pgwal("list", "--repo", bucket.address, "--json"))["backups"]
    assert {(entry["id"], entry["format"]) for entry in entries} == {
        (backup, "packed") for backup in (full, first, second_incremental)
    }
    shutil.rmtree(repo)
    onwards = json.loads(
        pgwal("copy", "--repo", bucket.address, "--to", second, "--with-wal", "-j", "2", "--json", "latest")
    )
    assert onwards["copied_backups"] == [full, first, second_incremental]
    for folder in ("packs", "wal", "backups"):
        bucket.store.delete_all(folder)
    assert "nothing is wrong" in pgwal("verify", "--repo", second)
    assert not any(Repository.open(place_at(str(second))).catalogue.folders().arriving)

    pgwal("restore", "latest", "--repo", second, "-D", target, "--target-time", point)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(second)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\nrecovery_target_action = 'promote'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
    if not IS_LARGE:
        return
    # The copy's backups are priors: the restored cluster goes on there, on a timeline of its own.
    run_load(restored, 5)
    on_copy = ["--repo", second, "-d", restored.conninfo]
    pgwal("stream", *on_copy, "--slot", "pgwal2", "--create-slot", "--once")
    last = json.loads(pgwal("incremental", *on_copy, "-c", "fast", "--slot", "pgwal2", "--json"))
    assert last["prior"] == second_incremental
    third = scratch / "third"
    pgwal("copy", "--repo", second, "--to", third, "--with-wal")
    assert (third / "wal" / "00000002.history").exists()
    assert "nothing is wrong" in pgwal("verify", "--repo", third)
