"""What a receiver does with WAL beyond storing it: when it says so, and when summaries are there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_main_job import streaming

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

# Far less than the status interval, and than the 15 s after which a server logs something of its own accord.
SOON_S = 5


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("mode", [(), ("--synchronous",)], ids=["lazy", "synchronous"])
def test_the_end_of_a_segment_is_noted_at_once(server: ThrowawayServer, scratch: Path, mode: tuple[str, ...]) -> None:
    """A full segment is durable with its last byte: neither summary nor state wait for what comes next."""
    repo = scratch / "repo"
    with (
        streaming(server, repo, "--slot", "pgwal", "--create-slot", "--status-interval", "60", *mode),
        server.connect() as connection,
    ):
        connection.execute("CREATE TABLE changed (id int)")
        row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
        repository = Repository.open(repo)
        _, segment_no = repository.geometry.parse_file_name(row[0])
        end = repository.geometry.segment_start(segment_no + 1)
        deadline = time.monotonic() + SOON_S
        while flushed_lsn(repository) < end or not is_summarised(repository, server, end):
            assert time.monotonic() < deadline, f"{flushed_lsn(repository)} of {end}"
            time.sleep(0.05)


def flushed_lsn(repository: Repository) -> Lsn:
    state = repository.receiver_state()
    return state.flushed_lsn if state is not None else Lsn(0)


def is_summarised(repository: Repository, server: ThrowawayServer, end: Lsn) -> bool:
    # From 17 on summaries are not cut at the ends of segments.
    return server.installation.major >= 17 or any(r.end == end for r in repository.summaries.ranges())
