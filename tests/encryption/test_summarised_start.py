"""A backup that starts within a segment, whose WAL nobody on this host can open any more when it is built on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from encryption.test_long_backup import held_segments, write_much
from fix_servers import ServerFactory
from pgwal_process import succeed
from restore.restored_server import Scene
from test_main_job import checksums, streaming

from pgwal.budget import HELD_SECRET_SEGMENTS
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.segment import WalGeometry
from pgwal_cli.throwaway_server import ThrowawayServer


@contextmanager
def writing(server: ThrowawayServer) -> Iterator[None]:
    """Write all the time."""
    stopped = Event()

    def write() -> None:
        with server.connect() as connection:
            while not stopped.is_set():
                # It is emptied, and grows again: what the segment's summary says of before the start has limits, too.
                connection.execute("TRUNCATE shrunk")
                connection.execute("INSERT INTO shrunk SELECT generate_series(1, 1000)")
                connection.execute("DELETE FROM shrunk WHERE i > 300")
                connection.execute("VACUUM shrunk")

    with ThreadPoolExecutor(1) as threads:
        wrote = threads.submit(write)
        try:
            yield
        finally:
            stopped.set()
            wrote.result()


def take_within_a_segment(server: ThrowawayServer, repo: Path) -> Lsn:
    """Take full backups until one starts where others have written into its segment, and return that position."""
    geometry = WalGeometry(1 << 20)
    for _ in range(20):
        with writing(server):
            made = take_backup(BackupRequest(LocalPlace(repo), ConnectionParameters(server.conninfo), None, fast=True))
        start = made.entry.start_lsn
        if start > geometry.first_record_position(geometry.segment_start(geometry.segment_no(start))):
            return start
    raise AssertionError("nobody has written before a backup started")


@pytest.mark.postgres(13, 14, 16, 18)
def test_what_a_summary_says_of_more_is_taken_where_its_wal_cannot_be_opened(
    make_server: ServerFactory, scratch: Path
) -> None:
    """Before 17, summaries are cut at segments alone, and others write where a backup starts."""
    server, repo = make_server(initdb_args=("--wal-segsize=1",), settings={"wal_keep_size": "1GB"}), scratch / "repo"
    key = scratch / "identity"
    recipient = succeed("key", "generate", "-o", key).strip()
    succeed("init", "--repo", repo, "--recipient", recipient)
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 5000) AS id, 'before' AS what")
        connection.execute("CREATE TABLE shrunk (i int)")
        connection.execute("CHECKPOINT")
    with streaming(server, repo):
        start = take_within_a_segment(server, repo)
        with server.connect() as connection:
            connection.execute("UPDATE kept SET what = 'after' WHERE id < 500")
        write_much(server, repo)
        geometry = Repository.open(repo).geometry
        assert geometry.file_name(1, geometry.segment_no(start)) not in held_segments(repo)
        assert len(held_segments(repo)) <= HELD_SECRET_SEGMENTS + 3
        source = ["--repo", repo, "-d", server.conninfo]
        succeed("audit", *source)
        succeed("incremental", *source, "-c", "fast", "--audit", "100")
        expected = checksums(server)
    scene = Scene(repo, make_server)
    restored = scene.restore(scratch / "restored", "latest", "--identity", key)
    with scene.started(restored) as started, started.connect() as connection:
        rows = connection.execute("SELECT what, count(*) FROM kept GROUP BY what ORDER BY what").fetchall()
        assert checksums(started) == expected
    assert rows == [("after", 499), ("before", 4501)]
