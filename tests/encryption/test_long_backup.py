"""A backup that lasts while much WAL is received and summarised, on a host that has public keys alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import streaming

from pgwal.budget import HELD_SECRET_SEGMENTS
from pgwal.encryption.key_places import wal_secrets_path
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer


def write_much(server: ThrowawayServer, repo: Path) -> None:
    """Have more segments summarised than secrets are held of."""
    with server.connect() as connection:
        for _ in range(HELD_SECRET_SEGMENTS + 3):
            connection.execute("SELECT pg_logical_emit_message(false, 'much', repeat('m', 9000)), pg_switch_wal()")
            row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            connection.execute("CHECKPOINT")
        connection.execute("SELECT pg_switch_wal()")
    assert row is not None
    repository, deadline = Repository.open(repo), time.monotonic() + 120
    while (state := repository.receiver_state()) is None or state.summarised_lsn < Lsn.parse(row[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def held_segments(repo: Path) -> set[str]:
    lines = wal_secrets_path(str(repo)).read_text().splitlines()
    return {line.split()[1] for line in lines if line}


@pytest.mark.postgres(14, 18)
def test_a_backup_can_read_the_wal_of_its_start_when_it_ends(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(initdb_args=("--wal-segsize=1",), settings={"wal_keep_size": "1GB"}), scratch / "repo"
    recipient = succeed("key", "generate", "-o", scratch / "identity").strip()
    succeed("init", "--repo", repo, "--recipient", recipient)
    is_first = True

    def write(_done: int, _total: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            write_much(server, repo)
            assert len(held_segments(repo)) > HELD_SECRET_SEGMENTS

    with streaming(server, repo):
        for since in (None, "latest"):
            is_first = True
            parameters = ConnectionParameters(server.conninfo)
            made = take_backup(BackupRequest(LocalPlace(repo), parameters, None, since, fast=True), write)
            assert not is_first
        assert [entry.backup_id for entry in Repository.open(repo).catalogue.entries()][-1] == made.entry.backup_id
        write_much(server, repo)
        # Those of the segments that are not summarised are held, too.
        assert len(held_segments(repo)) <= HELD_SECRET_SEGMENTS + 3
