"""A server is put back to an earlier state of its own, as after a snapshot, and stays on its timeline.

What it writes then comes in where the archive of its first life ends: names, timeline and system identifier are right.
Only the records tell: the first one of the second life does not name the last one of the first.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import prepare, run_load

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.segment import WalGeometry
from pgwal_cli.exit_codes import CHAIN_BROKEN, VERIFICATION_FAILED
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

SEGMENT = WalGeometry(1 << 20)


def write_segments(server: ThrowawayServer, label: str, count: int) -> Lsn:
    """Write some segments of WAL and return where the last one ends."""
    with server.connect() as connection:
        for number in range(count):
            connection.execute("SELECT pg_logical_emit_message(false, 'life', %s)", [f"{label} {number}" * 100])
            connection.execute("SELECT pg_switch_wal()")
        row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0])


@dataclass(frozen=True)
class Spliced:
    """A repository with WAL of two lives, of which the second one begins with segment ``seam``."""

    repo: Path
    source: list[str | Path]
    full_start: Lsn
    incremental: str
    seam: int
    end: Lsn


@pytest.fixture
def spliced(make_server: ServerFactory, scratch: Path) -> Spliced:
    settings: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "autovacuum": False}
    server = make_server(initdb_args=("-k", "--wal-segsize=1"), settings=settings)
    prepare(server)
    repo = scratch / "repo"
    source: list[str | Path] = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"]
    stream = ["stream", "--repo", repo, "-d", server.conninfo, "--once", "--compress", "none"]
    full = json.loads(succeed("full", *source))
    server.stop()
    shutil.copytree(server.data_directory, scratch / "snapshot", symlinks=True)
    server.start()

    run_load(server, 1)
    seam = SEGMENT.segment_no(write_segments(server, "first", 3))
    write_segments(server, "first", 3)
    incremental = json.loads(succeed("incremental", *source))
    succeed(*stream)

    server.stop()
    shutil.rmtree(server.data_directory)
    shutil.copytree(scratch / "snapshot", server.data_directory, symlinks=True)
    give_to_server(server.data_directory)
    server.start()
    run_load(server, 2)
    while SEGMENT.segment_no(end := write_segments(server, "second life", 1)) < seam + 3:
        pass
    _take_over(repo, server.data_directory / "pg_wal", seam, SEGMENT.segment_no(end))
    return Spliced(repo, source, Lsn.parse(full["start_lsn"]), incremental["id"], seam, end)


def _take_over(repo: Path, second_life: Path, seam: int, end: int) -> None:
    """Have the archive's WAL and summaries of the first life end where the second one's begin."""
    for path in (repo / "wal").iterdir():
        if path.name[:24] >= SEGMENT.file_name(1, seam):
            path.unlink()
    summaries = Repository.open(repo).summaries
    for summary_range in summaries.ranges():
        if summary_range.end > SEGMENT.segment_start(seam):
            summaries.delete(summary_range)
    for number in range(seam, end):
        shutil.copy(second_life / SEGMENT.file_name(1, number), repo / "wal")


@pytest.mark.postgres(13, 16)
def test_wal_of_two_lives_is_refused(spliced: Spliced, tmp_path: Path) -> None:
    repo, start = spliced.repo, SEGMENT.segment_start(spliced.seam)
    window = ["--from", str(spliced.full_start), "--to", str(spliced.end)]
    broken = rf"does not go on at {Lsn(start + 40)}"
    outcome = run_pgwal("map", "--repo", repo, *window)
    # Up to there summaries are read.
    unlinked = rf"WAL of {start} to .* follows a record at \w+/\w+, but the last one before it is at \w+/\w+"
    assert_failed(outcome, CHAIN_BROKEN, unlinked, "two histories")
    assert_failed(run_pgwal("map", "--wal", repo / "wal", *window), CHAIN_BROKEN, broken, "two histories")
    outcome = run_pgwal("summarize", repo / "wal", "-o", tmp_path / "all")
    assert_failed(outcome, CHAIN_BROKEN, broken, "two histories")
    # The server is seen to have another first life before its own WAL is joined to that of the archive.
    assert_failed(run_pgwal("incremental", *spliced.source), CHAIN_BROKEN, "they part at", "full backup")

    verified = run_pgwal("verify", spliced.incremental, "--repo", repo, "--json")
    assert verified.code == VERIFICATION_FAILED
    problems = json.loads(verified.stdout)["problems"]
    (found,) = [p for p in problems if p["path"] == f"wal/{SEGMENT.file_name(1, spliced.seam)}"]
    assert re.search(broken, found["message"])

    # The summaries of both lives by themselves: nothing but their links tells.
    second = tmp_path / "second"
    succeed("summarize", repo / "wal", "-o", second, "--from", str(start))
    for path in second.iterdir():
        shutil.copy(path, repo / "summaries")
    shutil.rmtree(repo / "wal")
    (repo / "wal").mkdir()
    outcome = run_pgwal("map", "--repo", repo, "--timeline", "1", *window)
    assert_failed(
        outcome, CHAIN_BROKEN, r"the summary of .* follows a record at \w+/\w+, but the last one", "histories"
    )
    status = json.loads(run_pgwal("status", "--repo", repo, "--json").stdout)
    (timeline,) = status["coverage"]
    ranges = [(Lsn.parse(part["start_lsn"]), Lsn.parse(part["end_lsn"])) for part in timeline["summary_ranges"]]
    assert start in {begin for begin, _ in ranges} or Lsn(start + 40) in {begin for begin, _ in ranges}
    assert timeline["summary_gaps"] == []
