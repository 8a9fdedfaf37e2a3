"""A receiver and a backup may be started in any order: there is always one receiver, and neither of them fails."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from receiver.oracle import SLOT, assert_same_wal, flush_lsn, keeping_server, wait_for
from test_errors_interrupt import make_dirty, waits_for_checkpoint
from test_main_job import prepare, server_streams

from pgwal.engine.receiving import receiving
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import LOCKED
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.postgres(15, 18)


@contextmanager
def backup_that_waits(server: ThrowawayServer, repo: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a backup that receives WAL itself, and waits for its checkpoint as long as the context lasts."""
    prepare(server)
    make_dirty(server)
    process = start_pgwal("full", "--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory)
    try:
        wait_for(lambda: waits_for_checkpoint(server) or process.poll() is not None, "the checkpoint")
        assert process.poll() is None, finish(process)
        yield process
        with server.connect() as connection:
            connection.execute("CHECKPOINT")
        outcome = finish(process)
        assert outcome.code == 0, outcome.stderr
    finally:
        process.kill()


def slot_is_active(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        query = "SELECT FROM pg_replication_slots WHERE slot_name = 'pgwal' AND active"
        return connection.execute(query).rowcount == 1


def test_a_receiver_waits_for_a_backup_that_receives_itself(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", server.conninfo, *SLOT]
    with backup_that_waits(server, repo):
        process = start_pgwal(*stream)
        asked_to_stop = start_pgwal(*stream)
        try:
            for each in (process, asked_to_stop):
                assert each.stderr is not None
                message = each.stderr.readline()
                assert "is held by a backup's receiver, process" in message
                assert message.endswith("waiting for the backup, which receives WAL itself, to end\n")
            asked_to_stop.terminate()
            assert finish(asked_to_stop).code == 0
        finally:
            asked_to_stop.kill()
    try:
        wait_for(lambda: slot_is_active(server) or process.poll() is not None, "the receiver to take over")
        # From now on it is the one that others find.
        assert_failed(run_pgwal(*stream, "--once"), LOCKED, r"is held by a receiver, process \d+")
        taken = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]
        succeed("incremental", *taken)
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert_same_wal(server, repo, Repository.open(repo).catalogue.entries()[-1].stop_lsn)


def test_a_backup_uses_a_receiver_that_was_quicker(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One starts between the backup's look for a receiver and the start of its own."""
    server, repo = keeping_server(make_server), scratch / "repo"
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", *SLOT)
    process = start_pgwal("stream", "--repo", repo, "-d", server.conninfo, *SLOT)
    try:
        wait_for(lambda: server_streams(server) or process.poll() is not None, "the stream")
        repository = Repository.open(repo)
        monkeypatch.setattr(Repository, "receiver_is_running", lambda _: False)
        with receiving(repository, ConnectionParameters(server.conninfo), None, skip_removed=False) as wal:
            with server.connect() as connection:
                connection.execute("CREATE TABLE seen ()")
            wal.wait_until_safe(1, Lsn(flush_lsn(server)), whole_segment=False)
    finally:
        process.terminate()
        assert finish(process).code == 0
