"""A backup is published when the WAL in the archive is shown to be its server's, whole from its start to its stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from differential.test_timelines import (
    Pair,
    has_received,
    insert_lsn,
    one_value,
    pair,
    receiver,
    replays,
    restore_and_compare,
    wait_for,
)
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import checksums, prepare, run_load, server_streams, streaming

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.receiving import receiving
from pgwal.engine.record_chain import read_record
from pgwal.errors import SlotUnavailable, WalGap
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.wal.checkpoint import require_pg_controls_checkpoint
from pgwal.wal.decoder import decode_payload
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import WalRecord
from pgwal_cli.exit_codes import CHAIN_BROKEN
from pgwal_cli.throwaway_server import ThrowawayServer

__all__ = ["pair"]

FEW_SEGMENTS = {"min_wal_size": "2MB", "max_wal_size": "2MB", "wal_keep_size": "0"}


def source(server: ThrowawayServer, repo: Path) -> list[str | Path]:
    return ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]


def execute(server: ThrowawayServer, *statements: str) -> None:
    with server.connect() as connection:
        for statement in statements:
            connection.execute(statement.encode())


def control_file(server: ThrowawayServer) -> ControlFile:
    return ControlFile.decode((server.data_directory / CONTROL_FILE_PATH).read_bytes())


def assert_nothing_counts(repo: Path) -> None:
    assert Repository.open(repo).catalogue.entries() == []


# ---- whose WAL it is


@pytest.mark.postgres
def test_pg_control_equals_the_archives_checkpoint(server: ThrowawayServer, scratch: Path) -> None:
    """Of a checkpoint while the server runs, and of one that shuts it down: all bytes, padding too."""
    repo = scratch / "repo"
    stream = ["stream", "--repo", repo, "-d", server.conninfo, "--once"]
    prepare(server)
    succeed(*stream)
    execute(server, "CHECKPOINT")
    for _ in range(2):
        succeed(*stream)
        control = control_file(server)
        found = read_record(Repository.open(repo), control.timeline_id, control.checkpoint_lsn)
        require_pg_controls_checkpoint(control, found)
        assert isinstance(found, WalRecord)
        assert found.main_data == control.checkpoint
        server.restart()


@pytest.mark.postgres(13, 18, 19)
def test_pg_control_of_a_standby_may_know_a_later_transaction(pair: Pair) -> None:
    """It names the record of its restart point, and the next transaction of the last checkpoint that it replayed."""
    prepare(pair.primary)
    pair.standby.configure(shared_buffers="128kB", bgwriter_lru_maxpages=0)
    pair.standby.restart()
    with receiver(pair.primary.conninfo, pair.repo):
        for step in (1, 2):
            run_load(pair.primary, step)
            execute(pair.primary, "CHECKPOINT")
            wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
            if step == 1:
                execute(pair.standby, "CHECKPOINT")
        run_load(pair.primary, 3)
        end = insert_lsn(pair.primary)
        wait_for(lambda: replays(pair.standby, end), "the standby to follow")
        wait_for(lambda: has_received(pair.repo, 1, end), "the receiver")
        # Reading evicts pages that were changed by replaying, and the point up to which that must go is noted first.
        execute(pair.standby, "SELECT sum(balance) FROM account", "SELECT count(*) FROM pg_attribute")
        repository = Repository.open(pair.repo)
        control = control_file(pair.standby)
        found = read_record(repository, control.timeline_id, control.checkpoint_lsn)
        assert isinstance(found, WalRecord)
        archived = decode_payload(wal_format_of_major(control.major), found)
        next_xid_at = 32 if control.major >= 19 else 24
        assert int.from_bytes(control.checkpoint[next_xid_at : next_xid_at + 8], "little") > archived.next_xid
        require_pg_controls_checkpoint(control, found)
        backup = json.loads(succeed("full", *source(pair.standby, pair.repo), "--json"))
        succeed("verify", backup["id"], "--repo", pair.repo)


@pytest.mark.postgres(14, 18, 19)
def test_a_receiver_that_is_connected_to_another_server(make_server: ServerFactory, scratch: Path) -> None:
    """Two copies of one cluster: identifier, timeline and names of segments are equal, and WAL is there in time."""
    repo = scratch / "repo"
    server, other = make_server(), make_server(settings={"wal_keep_size": "1GB"})
    prepare(server)
    with streaming(other, repo):
        prepare(other)
        for step in range(3):
            run_load(other, step)
            execute(other, "SELECT pg_switch_wal()")
        outcome = run_pgwal("full", *source(server, repo))
        assert_failed(outcome, CHAIN_BROKEN, "checkpoint record.* the archive", "WAL of another server")
        assert_nothing_counts(repo)
        # What is built on lies behind this server's position: nobody must be told about a standby.
        succeed("full", *source(other, repo))
        outcome = run_pgwal("incremental", *source(server, repo))
        assert_failed(
            outcome, CHAIN_BROKEN, "put back to an earlier state, or it is another one", "Check the connection"
        )


@pytest.mark.postgres(14, 18, 19)
@pytest.mark.parametrize("receives", ["itself", "nothing"])
def test_a_server_that_was_put_back(make_server: ServerFactory, scratch: Path, receives: str) -> None:
    """A cold copy of the data directory is put back; what was received since is of a life that nobody has any more.

    The backup's own receiver may see that; another one that runs, and hangs, sees nothing.
    """
    repo, copy = scratch / "repo", scratch / "copy"
    server = make_server()
    prepare(server)
    server.stop()
    shutil.copytree(server.data_directory, copy, symlinks=True)
    server.start()
    with streaming(server, repo):
        for step in range(3):
            run_load(server, step)
            execute(server, "SELECT pg_switch_wal()")
        wait_for(lambda: len(archived(repo)) > 2, "the segments")
    kept = archived(repo)
    server.kill()
    server = make_server(adopt=copy)
    run_load(server, 5)
    taken = nullcontext() if receives == "itself" else Repository.open(repo).lock_receiver()
    with taken:
        outcome = run_pgwal("full", *source(server, repo))
    assert outcome.code in (1, CHAIN_BROKEN), outcome.stderr
    assert len(outcome.errors) == 1
    assert_nothing_counts(repo)
    assert {name: content for name, content in archived(repo).items() if name in kept} == kept


def archived(repo: Path) -> dict[str, bytes]:
    """Return the whole segments of the archive as the server would get them."""
    repository = Repository.open(repo)
    names = [
        repository.geometry.file_name(s.timeline_id, s.segment_no) for s in repository.wal.segments() if s.complete
    ]
    return {name: repository.wal.read_segment(name) for name in names}


# ---- all of it


def taking(server: ThrowawayServer, repo: Path, meanwhile: Callable[[], None]) -> None:
    """Take a full backup in this process; ``meanwhile`` is called once, while files are copied."""
    waiting = [meanwhile]

    def on_progress(_done: int, _total: int) -> None:
        while waiting:
            waiting.pop()()

    parameters = ConnectionParameters(server.conninfo)
    take_backup(BackupRequest(LocalPlace(repo), parameters, server.data_directory, fast=True), on_progress)


@pytest.mark.postgres(13, 18, 19)
def test_wal_that_is_removed_while_the_connection_is_broken(make_server: ServerFactory, scratch: Path) -> None:
    """Without a slot that outlives the connection the server recycles WAL that was not received: nothing is skipped."""
    server = make_server(initdb_args=("--wal-segsize=1",), settings=FEW_SEGMENTS)
    repo = scratch / "repo"
    prepare(server)
    succeed("full", *source(server, repo))
    before = Repository.open(repo).catalogue.ids()

    def break_connection() -> None:
        hba = server.data_directory / "pg_hba.conf"
        rules = hba.read_text()
        hba.write_text("local replication all reject\nhost replication all all reject\n" + rules)
        server.reload()
        wait_for(lambda: not terminated_walsenders(server), "the receiver to be kept out")
        for step in range(4):
            run_load(server, step)
            execute(server, "SELECT pg_switch_wal()", "CHECKPOINT")
        hba.write_text(rules)
        server.reload()
        repository = Repository.open(repo)
        wait_for(lambda: server_streams(server) or not repository.receiver_is_running(), "the receiver to come back")

    with pytest.raises(WalGap, match=r"the backup is not published, .* has already removed WAL segment") as raised:
        taking(server, repo, break_connection)
    assert raised.value.hint is not None
    assert Repository.open(repo).catalogue.ids() == before
    # From the next one on all is well: before it starts, what is gone is given up.
    latest = json.loads(succeed("full", *source(server, repo), "--json"))
    succeed("verify", latest["id"], "--repo", repo)


def terminated_walsenders(server: ThrowawayServer) -> int:
    return int(one_value(server, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication"))


@pytest.mark.postgres(13, 18, 19)
def test_a_segment_that_is_gone_before_the_backup_ends(make_server: ServerFactory, scratch: Path) -> None:
    """What the receiver has reached is not what the archive holds."""
    server = make_server(initdb_args=("--wal-segsize=1",))
    repo = scratch / "repo"
    prepare(server)

    def remove_segment() -> None:
        repository = Repository.open(repo)
        number = repository.geometry.segment_no(insert_lsn(server))
        for step in range(2):
            run_load(server, step)
            execute(server, "SELECT pg_switch_wal()")
        wait_for(lambda: repository.wal.is_complete(1, number + 1), "the segments")
        name = repository.geometry.file_name(1, number)
        # A plain one that is being compressed is open: deleted, it would come back under its compressed name.
        wait_for(lambda: [path.name for path in (repo / "wal").glob(f"{name}*")] == [f"{name}.zst"], "the compressor")
        (repo / f"wal/{name}.zst").unlink()

    gap = r"the backup is not published, .* is not in the archive"
    with streaming(server, repo, "--slot", "pgwal", "--create-slot"), pytest.raises(WalGap, match=gap):
        taking(server, repo, remove_segment)
    assert_nothing_counts(repo)


@pytest.mark.postgres(18, 19)
def test_an_error_of_the_receiver_is_heard_when_the_wal_is_there(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(), scratch / "repo"
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", "--slot", "own", "--create-slot")
    repository = Repository.open(repo)
    lsn = insert_lsn(server)
    execute(server, "CREATE TABLE seen ()")
    with receiving(repository, ConnectionParameters(server.conninfo), "own", skip_removed=True) as wal:
        wal.wait_until_written(1, lsn)

        def drop_slot() -> bool:
            terminated_walsenders(server)
            inactive = "FROM pg_replication_slots WHERE slot_name = 'own' AND NOT active"
            return one_value(server, f"SELECT count(pg_drop_replication_slot(slot_name)) {inactive}") == "1"

        wait_for(drop_slot, "the slot to be free")

        def is_heard() -> bool:
            try:
                wal.wait_until_written(1, lsn)
            except SlotUnavailable:
                return True
            return False

        wait_for(is_heard, "the receiver's error")


@pytest.mark.postgres(13, 18, 19)
@pytest.mark.parametrize("paused", [False, True])
def test_the_first_backup_of_a_standby(pair: Pair, make_server: ServerFactory, scratch: Path, paused: bool) -> None:
    """It starts at the last restart point, segments before what the standby has: they are received as well."""
    prepare(pair.primary)
    for step in range(3):
        execute(pair.primary, "SELECT pg_switch_wal()")
        run_load(pair.primary, step)
    wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
    if paused:
        execute(pair.standby, "SELECT pg_wal_replay_pause()")
    expected = checksums(pair.standby)
    backup = json.loads(succeed("full", *source(pair.standby, pair.repo), "--json"))
    succeed("verify", backup["id"], "--repo", pair.repo)
    restore_and_compare(pair, expected, make_server, scratch)


@pytest.mark.postgres(13, 18, 19)
def test_a_standby_whose_receiver_began_behind_its_restart_point(pair: Pair) -> None:
    """What is missing is said before anything is copied, and how the standby comes to a restart point."""
    prepare(pair.primary)
    for step in range(3):
        execute(pair.primary, "SELECT pg_switch_wal()")
        run_load(pair.primary, step)
    wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
    with receiver(pair.standby.conninfo, pair.repo):
        outcome = run_pgwal("full", *source(pair.standby, pair.repo))
        assert_failed(
            outcome, CHAIN_BROKEN, "not published.*segment 0{7}1.* is not in the archive", "CHECKPOINT on the"
        )
        assert_nothing_counts(pair.repo)
        execute(pair.primary, "CHECKPOINT")
        wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
        backup = json.loads(succeed("full", *source(pair.standby, pair.repo), "--json"))
        succeed("verify", backup["id"], "--repo", pair.repo)


@pytest.mark.postgres(13, 18, 19)
def test_a_backup_that_ends_where_a_segment_begins(server: ThrowawayServer, scratch: Path) -> None:
    """WAL is switched while the backup is taken, and nothing is written but the record that ends it."""
    repo = scratch / "repo"
    prepare(server)
    request = BackupRequest(LocalPlace(repo), ConnectionParameters(server.conninfo), fast=True)

    def switch(done: int, total: int) -> None:
        if done >= total:
            execute(server, "SELECT pg_switch_wal()")

    for _ in range(3):
        entry = take_backup(request, switch).entry
        if entry.stop_lsn % Repository.open(repo).geometry.segment_size < 128:
            break
    else:
        pytest.fail("no backup ended where a segment begins")
