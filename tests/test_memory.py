"""The most memory that commands have, of WAL and summaries that anyone may have made as large as possible."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import peak_mb
from receiver.oracle import keeping_server, wait_for
from receiver.test_durability import receiving

from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.summary import codec
from pgwal_cli.throwaway_server import ThrowawayServer

MB = 1 << 20


@pytest.mark.postgres(18)
def test_a_receiver_needs_no_more_memory_for_a_long_record(server: ThrowawayServer, scratch: Path) -> None:
    stream = ("stream", "--repo", scratch / "repo", "-d", server.conninfo, "--once", "--slot", "s")
    without = peak_mb(*stream, "--create-slot")
    with server.connect() as connection:
        connection.execute("SELECT pg_logical_emit_message(false, 'long', repeat('y', 100000000))")
    assert peak_mb(*stream) < without + 30


@pytest.mark.postgres(15, 18)
def test_a_summary_that_is_too_large_ends_no_receiving(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    with receiving(server, repo, synchronous=False) as receiver, server.connect() as connection:

        def work() -> None:
            connection.execute("CREATE TABLE IF NOT EXISTS t (id int)")
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("CHECKPOINT")
            connection.execute("SELECT pg_switch_wal()")

        with monkeypatch.context() as patched:
            patched.setattr(codec, "MAX_SUMMARY_ENTRIES", 0)
            work()
            wait_for(lambda: receiver.progress.metrics.errors["summary"], "the refusal")
            refused_lsn = receiver.progress.metrics.flushed_lsn
        written = receiver.progress.metrics.summaries_written
        work()
        wait_for(lambda: receiver.progress.metrics.summaries_written > written, "the next summary")
        assert receiver.progress.metrics.flushed_lsn > refused_lsn


def test_fetch_wal_needs_no_more_memory_for_a_large_segment(tmp_path: Path) -> None:
    size_bytes, name = 128 * MB, "000000010000000000000003"
    repo = tmp_path / "repo"
    Repository.open_or_create(repo, RepositoryIdentity(1, size_bytes, 18))
    header = struct.pack("<HHIQI4xQII", 0xD118, 2, 1, 3 * size_bytes, 0, 1, size_bytes, 8192)
    with (repo / "wal" / name).open("wb") as file:
        file.write(header)
        # A hole, which takes no room.
        file.truncate(size_bytes)
    assert peak_mb("fetch-wal", "--repo", repo, name, tmp_path / "fetched") < 100
    fetched = tmp_path / "fetched"
    assert fetched.stat().st_size == size_bytes
    fetched.unlink()
