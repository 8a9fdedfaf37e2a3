"""Restored standbys: they replay the archive, stream from their primary, feed others, and outlive a failover."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.made_repository import MadeRepository
from restore.restored_server import Scene, checksums
from test_main_job import wait_until_promoted

from pgwal.backup.recovery import RecoveryTarget, recovery_settings
from pgwal.backup.standby import Standby
from pgwal_cli.throwaway_server import ThrowawayServer

TIMEOUT_S = 120
SECRET = "open sesame"


# ---- settings


@pytest.mark.parametrize("major", [13, 18])
def test_settings_of_a_standby(major: int) -> None:
    stated = list(recovery_settings(RecoveryTarget(), "fetch", major, Standby("host=primary", "slot_1")))
    assert len({name for name, _ in stated}) == len(stated)
    settings = dict(stated)
    assert (settings["primary_conninfo"], settings["primary_slot_name"]) == ("host=primary", "slot_1")
    assert (settings["restore_command"], settings["recovery_target_timeline"]) == ("fetch", "latest")
    # What an earlier life had set counts no more.
    alone = dict(recovery_settings(RecoveryTarget(), "fetch", major, Standby()))
    assert (alone["primary_conninfo"], alone["primary_slot_name"]) == ("", "")


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    restore = ["restore", "--repo", tmp_path / "repo", "-D", tmp_path / "data"]
    assert_failed(run_pgwal(*restore, "--primary-slot", "x"), 2, "are for --standby")
    assert_failed(run_pgwal(*restore, "--primary-conninfo", "host=x"), 2, "are for --standby")
    assert_failed(run_pgwal(*restore, "--standby", "--target-immediate"), 2, "takes no target but a timeline")
    assert_failed(run_pgwal(*restore, "--standby", "--primary-slot", "x"), 1, "none is named", "--primary-conninfo")
    primary = ["--standby", "--primary-conninfo", "host=x", "--primary-slot"]
    for name in ("", "Upper", "a-b", "x" * 64):
        assert_failed(run_pgwal(*restore, *primary, name), 1, "not the name of a replication slot", "lower-case")


def test_a_password_is_shown_nowhere(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    made.add({})
    restore = ["restore", "--repo", made.path, "--standby", "-D"]
    conninfo = f"host=primary user=replicator password='{SECRET}'"
    for number, more in enumerate((["--json"], [], ["--dry-run"], ["--dry-run", "--json"])):
        target = tmp_path / f"data{number}"
        outcome = run_pgwal(*restore, target, "--primary-conninfo", conninfo, *more)
        assert outcome.code == 0, outcome.stderr
        assert SECRET not in outcome.stdout + outcome.stderr
        assert "postgresql.auto.conf: keep it in a file instead" in outcome.stderr
    quoted = conninfo.replace("'", "''")
    assert f"primary_conninfo = '{quoted}'\n" in (tmp_path / "data0/postgresql.auto.conf").read_text()
    # libpq's own words would quote it.
    for wrong in (f"host=primary password={SECRET}", f"password='{SECRET}", f"postgres://{SECRET}@"):
        outcome = run_pgwal(*restore, tmp_path / "none", "--primary-conninfo", wrong, "--json")
        assert_failed(outcome, 2, "--primary-conninfo: it is no connection string")
        assert not set(SECRET.split()) & set(re.findall(r"\w+", outcome.stdout + outcome.stderr))
    assert repr(Standby(conninfo)) == "Standby(primary_slot=None)"


def test_a_standby_gets_whole_segments_alone(tmp_path: Path) -> None:
    """What it has received of a segment, and confirmed, may be more than the archive has of it."""
    made = MadeRepository(tmp_path / "repo")
    made.add({})
    made.add({})
    wal = made.path / "wal"
    (wal / "000000010000000000000002").rename(wal / "000000010000000000000002.partial")
    fetch = ["fetch-wal", "--repo", made.path, "--standby"]
    # Nor is a gap an end: its primary may have what is missing.
    (wal / "000000010000000000000001").rename(wal / "000000010000000000000003")
    for name in ("000000010000000000000001", "000000010000000000000002", "000000010000000000000004"):
        for more in ([], ["--prefetch"]):
            assert run_pgwal(*fetch, *more, name, tmp_path / "RECOVERYXLOG").code == 1
            assert not (tmp_path / "RECOVERYXLOG").exists()
    assert run_pgwal("fetch-wal", "--repo", made.path, "000000010000000000000001", tmp_path / "x").code == 126
    succeed("restore", "--repo", made.path, "--standby", "--to-gap", "-D", tmp_path / "data")
    assert " --standby --prefetch " in (tmp_path / "data/postgresql.auto.conf").read_text()


# ---- servers


def value(server: ThrowawayServer, query: str) -> str:
    with server.connect() as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def wait_until(condition: Callable[[], bool], *servers: ThrowawayServer) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "\n".join(server.log_tail() for server in servers)
        time.sleep(0.05)


def assert_level(standby: ThrowawayServer, primary: ThrowawayServer) -> None:
    """Wait until a standby has replayed all that its primary has, by a stream, and compare all rows."""
    position = value(primary, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
        " ELSE pg_current_wal_lsn() END::text")  # fmt: skip
    query = f"SELECT coalesce(pg_last_wal_replay_lsn() >= '{position}', false)"
    wait_until(lambda: value(standby, query) == "True", standby, primary)
    streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'"
    wait_until(lambda: value(standby, streams) == "1", standby, primary)
    assert value(standby, "SELECT pg_is_in_recovery()") == "True"
    assert checksums(standby) == checksums(primary)


def add(server: ThrowawayServer, first: int) -> None:
    with server.connect() as connection:
        connection.execute(
            f"INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series({first}, {first + 3000}) AS i"
        )


class Line:
    """A primary whose WAL is archived up to a point, and standbys of it."""

    def __init__(self, make_server: ServerFactory, scratch: Path) -> None:
        self.scratch, self.scene = scratch, Scene(scratch / "repo", make_server)
        settings: dict[str, str | int | bool] = {"wal_keep_size": "256MB", "wal_retrieve_retry_interval": "100ms"}
        self.primary = make_server(initdb_args=("--wal-segsize=1",), settings=settings)
        with self.primary.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY, filler text)")
        succeed("full", "--repo", self.scene.repo, "-d", self.primary.conninfo, "-c", "fast")
        add(self.primary, 1)
        succeed("incremental", "--repo", self.scene.repo, "-d", self.primary.conninfo, "-c", "fast")
        add(self.primary, 10_000)
        self.archive(self.primary)
        # These come by the stream alone.
        add(self.primary, 20_000)

    def archive(self, server: ThrowawayServer) -> None:
        succeed("stream", "--repo", self.scene.repo, "-d", server.conninfo, "--once")

    def restore(self, name: str, primary: ThrowawayServer, *args: str) -> Path:
        target = self.scratch / name
        return self.scene.restore(target, "--standby", "--primary-conninfo", primary.conninfo, *args)


@pytest.mark.postgres(18)
def test_a_standby_follows_and_feeds_another(make_server: ServerFactory, scratch: Path) -> None:
    follow(make_server, scratch)


@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="PGWAL_LARGE_TESTS is not set")
@pytest.mark.postgres(13, 14, 15, 16, 17, 19)
def test_a_standby_follows_on_every_version(make_server: ServerFactory, scratch: Path) -> None:
    follow(make_server, scratch)


def follow(make_server: ServerFactory, scratch: Path) -> None:
    """A standby, one of it in turn, a failover to the first, and then a new one of the backup from before that."""
    line = Line(make_server, scratch)
    primary, scene = line.primary, line.scene
    with primary.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('restored', true)")
    target = line.restore("one", primary, "--primary-slot", "restored")
    assert (target / "standby.signal").exists()
    assert not (target / "recovery.signal").exists()
    with scene.started(target, promoted=False, for_standby=True) as one:
        assert_level(one, primary)
        assert "from archive" in one.log_tail(10_000)
        assert value(primary, "SELECT active FROM pg_replication_slots WHERE slot_name = 'restored'") == "True"
        with scene.started(line.restore("two", one), promoted=False, for_standby=True) as two:
            add(primary, 30_000)
            assert_level(one, primary)
            assert_level(two, one)
            expected = checksums(primary)
            primary.kill()
            one.promote()
            wait_until_promoted(one)
            add(one, 40_000)
            assert_level(two, one)
            assert checksums(two).keys() == expected.keys()
        # The archive does not know of the new timeline: the standby has its history from the new primary.
        with scene.started(line.restore("three", one), promoted=False, for_standby=True) as three:
            assert_level(three, one)
        line.archive(one)
        add(one, 50_000)
        with scene.started(line.restore("four", one), promoted=False, for_standby=True) as four:
            assert_level(four, one)
            assert value(four, "SELECT received_tli FROM pg_stat_wal_receiver") == "2"


@pytest.mark.postgres(18)
def test_a_standby_keeps_what_it_confirmed(make_server: ServerFactory, scratch: Path) -> None:
    """The archive's open segment has less than a standby whose primary is gone: it must not replace what is there."""
    line = Line(make_server, scratch)
    primary, scene = line.primary, line.scene
    with scene.started(line.restore("one", primary), promoted=False, for_standby=True) as one:
        assert_level(one, primary)
        # In one segment: what the archive has of it, and what the standby alone has.
        with primary.connect() as connection:
            connection.execute("SELECT pg_switch_wal(); INSERT INTO t VALUES (-1, 'archived')")
        line.archive(primary)
        with primary.connect() as connection:
            connection.execute("INSERT INTO t VALUES (-2, 'confirmed')")
        expected, position = checksums(primary), value(primary, "SELECT pg_current_wal_flush_lsn()::text")
        received = f"SELECT pg_last_wal_receive_lsn() >= '{position}'"
        wait_until(lambda: value(one, received) == "True", one, primary)
        (open_segment,) = (scene.repo / "wal").glob("*.partial")
        assert value(primary, "SELECT pg_walfile_name(pg_current_wal_flush_lsn())") == open_segment.stem
        primary.kill()
        one.kill()
        one.start()
        one.promote()
        wait_until_promoted(one)
        assert checksums(one) == expected
