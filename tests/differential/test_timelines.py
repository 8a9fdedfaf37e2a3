"""A standby is promoted: the receiver follows to the new timeline, and incremental backups go on from the old one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest
from differential.test_summaries import last_cut, native_summaries, wait_for_both
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import PGWAL, checksums, prepare, run_load, wait_until_promoted

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.summary.codec import decode_summary
from pgwal.timeline import TimelineHistory
from pgwal_cli.exit_codes import CHAIN_BROKEN
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.other_minors

WAIT_S = 60


@dataclass(frozen=True)
class Pair:
    """A primary and its standby, and the repository that the receiver fills."""

    primary: ThrowawayServer
    standby: ThrowawayServer
    repo: Path

    @property
    def conninfo(self) -> str:
        """Whichever of the two is the primary."""
        # libpq asks a server before 14 for what its replication connections do not answer, unless it is this.
        wanted = "primary" if self.primary.installation.major >= 14 else "read-write"
        servers = (self.primary, self.standby)
        hosts = ",".join(str(server.socket_directory) for server in servers)
        ports = ",".join(str(server.port) for server in servers)
        return f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs={wanted}"

    def source(self, server: ThrowawayServer) -> list[str | Path]:
        return ["--repo", self.repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]


@pytest.fixture
def pair(make_server: ServerFactory, scratch: Path) -> Pair:
    settings: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "wal_retrieve_retry_interval": "100ms"}
    if make_server.installation.major >= 17:
        settings["summarize_wal"] = True
    primary = make_server(settings=settings, start=False)
    # A cold copy: the oldest versions here come without pg_basebackup.
    copy = scratch / "standby"
    shutil.copytree(primary.data_directory, copy, symlinks=True)
    (copy / "standby.signal").touch()
    primary.start()
    standby = make_server(adopt=copy, settings={"primary_conninfo": primary.conninfo, "hot_standby": True})
    return Pair(primary, standby, scratch / "repo")


@contextmanager
def receiver(conninfo: str, repo: Path) -> Iterator[subprocess.Popen[str]]:
    """Run pgwal stream; it must end well when asked to."""
    process = subprocess.Popen(
        [*PGWAL, "stream", "--repo", str(repo), "-d", conninfo], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: process.poll() is not None or has_received(repo, 1, Lsn(0)), "a receiver")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=30)
        print(messages)
    assert process.returncode == 0, messages


def has_received(repo: Path, timeline_id: int, lsn: Lsn) -> bool:
    if not (repo / "pgwal.json").exists():
        return False
    state = Repository.open(repo).receiver_state()
    return state is not None and state.timeline_id >= timeline_id and state.flushed_lsn >= lsn


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def one_value(server: ThrowawayServer, statement: str) -> str:
    with server.connect() as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def replays(standby: ThrowawayServer, lsn: Lsn) -> bool:
    return Lsn.parse(one_value(standby, "SELECT pg_last_wal_replay_lsn()")) >= lsn


def insert_lsn(server: ThrowawayServer) -> Lsn:
    return Lsn.parse(one_value(server, "SELECT pg_current_wal_insert_lsn()"))


@contextmanager
def running_load(server: ThrowawayServer) -> Iterator[None]:
    """Change rows, until the server is gone or the context is left."""
    ended = threading.Event()

    def run() -> None:
        for step in range(10, 80):
            try:
                run_load(server, step)
            except psycopg.Error:
                return
            if ended.is_set():
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def switch_point(pair: Pair) -> Lsn:
    content = (pair.repo / "wal" / "00000002.history").read_bytes()
    return TimelineHistory.decode(2, content).switches[0].switch_lsn


def assert_summaries_keep_to_their_timelines(pair: Pair) -> None:
    repository = Repository.open(pair.repo)
    place = repository.geometry.first_record_position
    switch = place(switch_point(pair))
    ranges = repository.summaries.ranges()
    assert {r.timeline_id for r in ranges} == {1, 2}
    first, second = ([r for r in ranges if r.timeline_id == number] for number in (1, 2))
    # What the old primary wrote, and the standby did not get, may be summarised on the old timeline.
    assert all(place(r.start) >= switch for r in second)
    assert min(place(r.start) for r in second) == switch
    assert any(place(r.end) == switch for r in first) or any(r.end > switch for r in first)


def assert_summaries_equal_the_servers(pair: Pair) -> None:
    repository = Repository.open(pair.repo)
    native = native_summaries(pair.standby)
    common = [r for r in repository.summaries.ranges() if r in native]
    assert {r.timeline_id for r in common} == {1, 2}
    for summary_range in common:
        expected = decode_summary(native[summary_range].read_bytes(), "the server's")
        assert repository.summaries.read(summary_range) == expected, str(summary_range)
    # Of the new timeline, nothing is cut elsewhere.
    ours = [r for r in repository.summaries.ranges() if r.timeline_id == 2]
    end = max(r.end for r in native)
    assert [r for r in ours if r.end <= end] == sorted(
        r for r in native if r.timeline_id == 2 and r.end <= ours[-1].end
    )


def back_up_and_restore(pair: Pair, full: dict[str, str], make_server: ServerFactory, scratch: Path) -> None:
    """Build an incremental on the full of the old timeline, restore it, and compare with the new primary."""
    incremental = json.loads(succeed("incremental", *pair.source(pair.standby)))
    assert incremental["prior"] == full["id"]
    assert [part["timeline"] for part in incremental["window"]] == [1, 2]
    assert 0 < incremental["copied_block_count"] < incremental["block_count"]
    run_load(pair.standby, 90)
    expected = checksums(pair.standby)
    succeed("stream", "--repo", pair.repo, "-d", pair.standby.conninfo, "--once")
    restore_and_compare(pair, expected, make_server, scratch)


def restore_and_compare(
    pair: Pair, expected: dict[str, tuple[int, str]], make_server: ServerFactory, scratch: Path
) -> None:
    """Restore the latest backup and all WAL: a primary that holds what is expected."""
    target = scratch / "restored"
    succeed("restore", "latest", "--repo", pair.repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(pair.repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\nprimary_conninfo = ''\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected


def promote(pair: Pair, repo: Path) -> None:
    """Promote the standby, and wait until the receiver has what the new primary wrote."""
    pair.standby.promote()
    run_load(pair.standby, 80)
    # Before 17 summaries are cut at segment ends.
    one_value(pair.standby, "SELECT pg_switch_wal()")
    run_load(pair.standby, 81)
    wait_for(lambda: has_received(repo, 2, insert_lsn(pair.standby)), "the new timeline")


def wait_for_native(pair: Pair) -> None:
    if pair.standby.installation.major >= 17:
        with pair.standby.connect() as connection:
            connection.execute("CHECKPOINT")
        wait_for_both(pair.standby, pair.repo, last_cut(pair.standby))
        assert_summaries_equal_the_servers(pair)


@pytest.mark.postgres(13, 14, 15, 17, 18, 19)
def test_failover_under_load(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """The primary crashes; a connection string with both servers leads the receiver to the new primary."""
    prepare(pair.primary)
    with receiver(pair.conninfo, pair.repo):
        full = json.loads(succeed("full", *pair.source(pair.primary)))
        with running_load(pair.primary):
            start = insert_lsn(pair.primary)
            wait_for(lambda: replays(pair.standby, Lsn(start + 500_000)), "the standby to follow")
            pair.primary.kill()
        promote(pair, pair.repo)
        wait_for_native(pair)
    assert_summaries_keep_to_their_timelines(pair)
    back_up_and_restore(pair, full, make_server, scratch)


@pytest.mark.postgres(15, 18, 19)
def test_promotion_of_the_server_that_is_streamed_from(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """The receiver is a cascading standby: its own server is promoted, and the stream's timeline ends."""
    prepare(pair.primary)
    wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
    with receiver(pair.standby.conninfo, pair.repo):
        # The primary's backup needs WAL that comes by way of the standby.
        full = json.loads(succeed("full", *pair.source(pair.primary)))
        with running_load(pair.primary):
            start = insert_lsn(pair.primary)
            wait_for(lambda: replays(pair.standby, Lsn(start + 500_000)), "the standby to follow")
            promote(pair, pair.repo)
        wait_for_native(pair)
    # The old primary went on: none of that is here.
    assert_summaries_keep_to_their_timelines(pair)
    pair.primary.stop()
    back_up_and_restore(pair, full, make_server, scratch)


@pytest.mark.postgres(15, 17, 18, 19)
def test_promotion_on_a_segment_border(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """WAL ends with a switch: the new timeline begins with a segment, of which nothing is copied.

    The server's own incremental backup fails here, for it takes the page header in between for missing WAL.
    """
    prepare(pair.primary)
    with receiver(pair.conninfo, pair.repo):
        full = json.loads(succeed("full", *pair.source(pair.primary)))
        run_load(pair.primary, 1)
        # It notes running transactions in WAL now and then, and must not do so behind the switch.
        writer = one_value(pair.primary, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'")
        os.kill(int(writer), signal.SIGSTOP)
        one_value(pair.primary, "SELECT pg_switch_wal()")
        border = Lsn(-(-insert_lsn(pair.primary) // (16 << 20)) * (16 << 20) - (16 << 20))
        wait_for(lambda: replays(pair.standby, border), "the standby to follow")
        pair.primary.kill()
        promote(pair, pair.repo)
        assert switch_point(pair) == border
        wait_for_native(pair)
    assert_summaries_keep_to_their_timelines(pair)
    back_up_and_restore(pair, full, make_server, scratch)


@pytest.mark.postgres(13, 18, 19)
def test_promotion_while_no_receiver_runs(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """The incremental backup fetches the new timeline's history itself, with the WAL of both timelines."""
    prepare(pair.primary)
    full = json.loads(succeed("full", *pair.source(pair.primary)))
    run_load(pair.primary, 1)
    wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
    pair.primary.kill()
    pair.standby.promote()
    run_load(pair.standby, 2)
    back_up_and_restore(pair, full, make_server, scratch)


@pytest.mark.postgres(13, 18, 19)
def test_a_restored_backup_of_a_standby_is_no_standby(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """The backup holds standby.signal, as the server's own would; the restored server ends recovery all the same."""
    prepare(pair.primary)
    with receiver(pair.primary.conninfo, pair.repo):
        one_value(pair.primary, "SELECT pg_switch_wal()")
        wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
        backup = json.loads(succeed("full", *pair.source(pair.standby)))
        assert (pair.repo / "backups" / backup["id"] / "data" / "standby.signal").exists()
        run_load(pair.primary, 1)
        expected = checksums(pair.primary)
        wait_for(lambda: has_received(pair.repo, 1, insert_lsn(pair.primary)), "the receiver")
    restore_and_compare(pair, expected, make_server, scratch)


@pytest.mark.postgres(13, 18, 19)
def test_incrementals_of_a_standby(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """A standby starts a backup at its last restart point: without a new one there is no window, and it says so."""
    prepare(pair.primary)
    with receiver(pair.primary.conninfo, pair.repo):
        one_value(pair.primary, "SELECT pg_switch_wal()")
        wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
        full = json.loads(succeed("full", *pair.source(pair.standby)))
        run_load(pair.primary, 1)
        outcome = run_pgwal("incremental", "--since", full["id"], *pair.source(pair.standby))
        assert_failed(outcome, CHAIN_BROKEN, "the standby has made no restart point since", "CHECKPOINT")
        for step in (2, 3):
            run_load(pair.primary, step)
            with pair.primary.connect() as session:
                session.execute("CHECKPOINT")
            wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
            incremental = json.loads(succeed("incremental", "--since", "latest", *pair.source(pair.standby)))
            assert Lsn.parse(incremental["start_lsn"]) > Lsn.parse(full["start_lsn"])
        run_load(pair.primary, 4)
        expected = checksums(pair.primary)
        wait_for(lambda: has_received(pair.repo, 1, insert_lsn(pair.primary)), "the receiver")
    restore_and_compare(pair, expected, make_server, scratch)


@pytest.mark.postgres(13, 18, 19)
def test_a_receiver_that_is_ahead_of_the_new_primary(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:
    """It got segments that the standby did not: it follows from where the standby left, and keeps what it has."""
    prepare(pair.primary)
    with receiver(pair.primary.conninfo, pair.repo):
        full = json.loads(succeed("full", *pair.source(pair.primary)))
        wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
        pair.standby.configure(primary_conninfo="")
        pair.standby.reload()
        wait_for(lambda: one_value(pair.standby, "SELECT count(*) FROM pg_stat_wal_receiver") == "0", "the standby")
        for step in (1, 2):
            run_load(pair.primary, step)
            one_value(pair.primary, "SELECT pg_switch_wal()")
        run_load(pair.primary, 3)
        wait_for(lambda: has_received(pair.repo, 1, insert_lsn(pair.primary)), "the receiver")
    pair.primary.kill()
    pair.standby.promote()
    before = repository_wal(pair.repo)
    follow = ["stream", "--repo", pair.repo, "-d", pair.standby.conninfo, "--once"]
    followed = run_pgwal(*follow)
    assert followed.code == 0, followed.stderr
    assert "this server never had all WAL of timeline 1 that the repository has" in followed.stderr
    # Again, when the newest segment is still of the old timeline; and when it is not.
    for step in range(80, 84):
        run_load(pair.standby, step)
        one_value(pair.standby, "SELECT pg_switch_wal()")
        succeed(*follow)
    after = repository_wal(pair.repo)
    assert {name: after.get(name) for name in before} == before
    assert_all_of_the_new_timeline_is_here(pair)
    back_up_and_restore(pair, full, make_server, scratch)


def repository_wal(repo: Path) -> dict[str, str]:
    """Return a digest of each segment that the archive gives back of timeline 1, however it is kept."""
    repository = Repository.open(repo)
    segments = [segment for segment in repository.wal.segments() if segment.timeline_id == 1]
    names = [repository.geometry.file_name(1, segment.segment_no) for segment in segments]
    return {name: sha256(repository.wal.read_segment(name)).hexdigest() for name in names}


def assert_all_of_the_new_timeline_is_here(pair: Pair) -> None:
    repository = Repository.open(pair.repo)
    geometry = repository.geometry
    segments = [segment for segment in repository.wal.segments() if segment.timeline_id == 2]
    numbers = [segment.segment_no for segment in segments]
    assert numbers == list(range(geometry.segment_no(switch_point(pair)), numbers[-1] + 1))
    for segment in segments:
        name = geometry.file_name(2, segment.segment_no)
        if segment.complete:
            theirs = (pair.standby.data_directory / "pg_wal" / name).read_bytes()
            assert sha256(repository.wal.read_segment(name)).digest() == sha256(theirs).digest(), name


@pytest.mark.postgres(18, 19)
def test_the_primary_from_before_a_failover_is_refused(pair: Pair) -> None:
    prepare(pair.primary)
    wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
    succeed("stream", "--repo", pair.repo, "-d", pair.standby.conninfo, "--once")
    pair.standby.promote()
    succeed("stream", "--repo", pair.repo, "-d", pair.standby.conninfo, "--once")
    outcome = run_pgwal("stream", "--repo", pair.repo, "-d", pair.primary.conninfo, "--once")
    assert outcome.code == 1
    assert "holds WAL of timeline 2, this server is still on timeline 1" in outcome.stderr
    assert "the primary from before a failover" in outcome.hints[0]
