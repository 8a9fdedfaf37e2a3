"""Summaries equal those that a server of 17 or later makes itself: the same cuts, the same entries.

The first summary after a receiver starts for the first time may begin elsewhere, for the server began earlier, and
is left out; so is what the server had not summarised yet when it was asked.
"""

from __future__ import annotations

import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
from differential.workload import INITDB_ARGS, SETTINGS, Workload
from fix_servers import ServerFactory
from test_main_job import streaming

from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import decode_link, decode_summary, parse_summary_file_name, summary_file_name
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

pytestmark = pytest.mark.other_minors

SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
# The server's summariser sleeps for up to half a minute when there was little to do.
WAIT_S = 60


def native_summaries(server: ThrowawayServer) -> dict[LsnRange, Path]:
    """Return the server's own summary files by their ranges."""
    files = (server.data_directory / "pg_wal" / "summaries").glob("*")
    named = ((parse_summary_file_name(file.name), file) for file in files)
    return {summary_range: file for summary_range, file in named if summary_range is not None}


def wait_for_both(server: ThrowawayServer, repo: Path, lsn: Lsn) -> None:
    """Wait until the server and the receiver have written summaries up to ``lsn`` or further."""
    deadline = time.monotonic() + WAIT_S
    while True:
        ends = [
            max((r.end for r in ranges), default=Lsn(0))
            for ranges in (native_summaries(server), Repository.open(repo).summaries.ranges())
        ]
        if min(ends) >= lsn:
            return
        assert time.monotonic() < deadline, f"summaries up to {lsn} are wanted, there are {ends}"
        time.sleep(0.05)


def printed(server: ThrowawayServer, files: list[Path], *options: str) -> list[str]:
    """Return what pg_walsummary prints of several files, sorted."""
    return sorted(server.run_tool("pg_walsummary", *options, *map(str, files)).stdout.splitlines())


def contents_by_sql(server: ThrowawayServer, summary_range: LsnRange) -> set[tuple[object, ...]]:
    query = """SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
        FROM pg_wal_summary_contents(%s, %s::pg_lsn, %s::pg_lsn)"""
    timeline_id, start, end = summary_range
    with server.connect() as connection:
        return set(connection.execute(query, [timeline_id, str(start), str(end)]))


def rows(block_map: BlockMap) -> set[tuple[object, ...]]:
    """Return a map as pg_wal_summary_contents() shows it."""
    found: set[tuple[object, ...]] = set()
    for key, changes in block_map.entries():
        found.update((*key, block_no, False) for block_no in changes.blocks)
        if changes.limit_block != INVALID_BLOCK_NUMBER:
            found.add((*key, changes.limit_block, True))
    return found


def run_eventful_workload(server: ThrowawayServer, repo: Path, workload: Workload) -> None:
    """Run the workload with a receiver that is started twice, on a server that is restarted, and that crashes."""
    with streaming(server, repo, *SLOT):
        workload.run()
    with server.connect() as connection:
        connection.execute("CREATE TABLE unseen AS SELECT i FROM generate_series(1, 1000) AS i")
        connection.execute("CHECKPOINT")
        connection.execute("INSERT INTO unseen SELECT i FROM generate_series(1, 1000) AS i")
    with streaming(server, repo, *SLOT):
        server.configure(max_connections=77, wal_level="logical")
        server.restart()
        with server.connect() as connection:
            connection.execute("DROP TABLE unseen")
        server.kill()
        server.start()
        with server.connect() as connection:
            connection.execute("CREATE TABLE later AS SELECT i FROM generate_series(1, 1000) AS i")
            connection.execute("CHECKPOINT")
        wait_for_both(server, repo, last_cut(server))


def last_cut(server: ThrowawayServer) -> Lsn:
    """Return the redo point of the latest checkpoint, where a summary ends."""
    with server.connect() as connection:
        row = connection.execute("SELECT redo_lsn::text FROM pg_control_checkpoint()").fetchone()
    assert row is not None
    return Lsn.parse(row[0])


@pytest.mark.postgres(17, 18, 19)
def test_summaries_equal_the_servers_own(make_server: ServerFactory, scratch: Path) -> None:
    settings = {**SETTINGS, "summarize_wal": True, "wal_keep_size": "1GB"}
    server = make_server(initdb_args=INITDB_ARGS, settings=settings)
    workload = Workload(server, scratch)
    workload.prepare()
    repo = scratch / "repo"
    run_eventful_workload(server, repo, workload)

    repository = Repository.open(repo)
    ours = repository.summaries.ranges()
    native = native_summaries(server)
    begin, end = ours[0].end, min(ours[-1].end, max(r.end for r in native))
    compared = sorted(r for r in native if begin <= r.start and r.end <= end)
    assert compared == [r for r in ours if begin <= r.start and r.end <= end]
    assert len(compared) > 10
    assert {r.end for r in native} >= {begin}, "the first summary ends where one of the server's does"
    for summary_range in compared:
        expected = decode_summary(native[summary_range].read_bytes(), "the server's")
        assert repository.summaries.read(summary_range) == expected, str(summary_range)
        assert contents_by_sql(server, summary_range) == rows(expected)

    copies = scratch / "readable"
    shutil.copytree(repo / "summaries", copies)
    give_to_server(copies)
    files = [copies / summary_file_name(summary_range) for summary_range in compared]
    for options in ([], ["-i"]):
        ours_printed = printed(server, files, *options)
        assert ours_printed == printed(server, [native[summary_range] for summary_range in compared], *options)
        assert len(ours_printed) > 100

    # The server reads a file of ours as its own: what pgwal keeps behind the table does not concern it.
    for summary_range in compared:
        path = native[summary_range]
        expected = decode_summary(path.read_bytes(), "the server's")
        path.write_bytes((repo / "summaries" / path.name).read_bytes())
        assert decode_link(path.read_bytes(), path.name) is not None
        assert contents_by_sql(server, summary_range) == rows(expected)
    # And they link to each other, although the receiver began again, and the server crashed.
    for before, after in pairwise(ours):
        earlier, later = repository.summaries.link(before), repository.summaries.link(after)
        assert earlier is not None
        assert later is not None
        assert earlier.last_lsn == later.prev_lsn
        assert later.last_lsn > later.prev_lsn
