"""``pgwal status``: positions, lag, slot, and holes, with a server and without."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_nothing_raw, run_pgwal, succeed
from support.terminal import on_terminal, plain, widest
from test_main_job import prepare, run_load, streaming

from pgwal.backup.backup_file import BackupTotals
from pgwal.backup.backup_id import BackupKind, format_backup_id
from pgwal.backup.entry import BackupEntry
from pgwal.engine.coverage import (
    RecoverableRange,
    Seam,
    TimelineCoverage,
    join,
    read_coverage,
    read_recoverable_ranges,
    recoverable_range,
    subtract,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap
from pgwal.summary.link import Link
from pgwal_cli.exit_codes import FAILED, NO_CONNECTION
from pgwal_cli.throwaway_server import ThrowawayServer

SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
MB = 1 << 20
GEOMETRY = WalGeometry(MB)


# ---- coverage, without a server


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open_or_create(tmp_path / "repo", RepositoryIdentity(1, MB, 18))


def put_segments(repository: Repository, timeline_id: int, *segments: str) -> None:
    """Put segments by number, as ``5`` or ``5.partial``, into the archive."""
    for segment in segments:
        number, dot, partial = segment.partition(".")
        name = GEOMETRY.file_name(timeline_id, int(number)) + dot + partial
        (repository.store.root / "wal" / name).write_bytes(bytes(MB))


def part(timeline_id: int, start: float, end: float) -> LsnRange:
    """Return a range that is given in segments."""
    return LsnRange(timeline_id, Lsn(int(start * MB)), Lsn(int(end * MB)))


def state(timeline_id: int, segments: float) -> ReceiverState:
    lsn = Lsn(int(segments * MB))
    return ReceiverState(timeline_id, lsn, lsn, lsn, None)


def backup_at(start: float) -> BackupEntry:
    """Return a full backup of one segment's length that starts at a position given in segments."""
    return BackupEntry(
        backup_id=format_backup_id(1_800_000_000 + int(start * 1000), BackupKind.FULL),
        kind=BackupKind.FULL,
        prior_id=None,
        system_identifier=1,
        major=18,
        start_lsn=Lsn(int(start * MB)),
        start_timeline_id=1,
        stop_lsn=Lsn(int((start + 1) * MB)),
        stop_timeline_id=1,
        label="",
        started_at="2026-11-29T08:00:00+00:00",
        finished_at="2026-11-29T08:00:01+00:00",
        wal_segment_size=MB,
        data_checksums=True,
        tablespaces={},
        totals=BackupTotals(),
    )


def test_what_can_be_recovered_is_found_out_once_for_all_backups(repository: Repository) -> None:
    """Segments are as many as an archive of years has, and so are backups: neither is looked through for each other."""
    for number in range(1, 3000):
        with (repository.store.root / "wal" / GEOMETRY.file_name(1, number)).open("wb") as file:
            file.truncate(MB)
    entries = [backup_at(2 + number / 300) for number in range(600)]

    def time_of(count: int) -> float:
        began = time.process_time()
        found = read_recoverable_ranges(repository, entries[:count])
        assert len(found) == count
        assert all(each is not None and each.end == 3000 * MB and each.is_whole for each in found.values())
        return time.process_time() - began

    few = min(time_of(1) for _ in range(3))
    assert min(time_of(600) for _ in range(3)) < 10 * few


def test_parts_are_joined_over_a_page_header() -> None:
    header = Lsn(2 * MB + 40)
    assert join([part(1, 1, 2), LsnRange(1, header, Lsn(3 * MB))], GEOMETRY) == [part(1, 1, 3)]
    assert join([part(1, 1, 2), part(1, 2.5, 3)], GEOMETRY) == [part(1, 1, 2), part(1, 2.5, 3)]
    assert join([part(1, 1, 4), part(1, 2, 3)], GEOMETRY) == [part(1, 1, 4)]


def test_what_is_not_there_is_left_over() -> None:
    there = [part(1, 2, 3), part(1, 5, 6), part(2, 3, 5)]
    assert subtract(part(1, 1, 7), there, GEOMETRY) == [part(1, 1, 2), part(1, 3, 5), part(1, 6, 7)]
    assert subtract(part(1, 2, 3), there, GEOMETRY) == []
    assert subtract(part(1, 2.25, 5.5), there, GEOMETRY) == [part(1, 3, 5)]
    assert subtract(part(3, 1, 2), there, GEOMETRY) == [part(3, 1, 2)]


def test_a_hole_in_the_archive_is_named(repository: Repository) -> None:
    put_segments(repository, 1, "3", "4", "7", "8.partial")
    repository.summaries.write(part(1, 3, 4), BlockMap(), Link(Lsn(0), Lsn(4 * MB - 32)))
    repository.summaries.write(part(1, 7, 8), BlockMap(), Link(Lsn(7 * MB - 32), Lsn(8 * MB - 32)))
    assert read_coverage(repository, state(1, 8.5)) == [
        TimelineCoverage(
            1,
            wal=[part(1, 3, 5), part(1, 7, 8.5)],
            wal_holes=[part(1, 5, 7)],
            summaries=[part(1, 3, 4), part(1, 7, 8)],
            summary_holes=[part(1, 4, 7)],
        )
    ]


def test_summaries_are_one_range_as_far_as_they_link(repository: Repository) -> None:
    lsns = [Lsn(number * MB - 32) for number in range(10)]
    links = {3: Link(lsns[3], lsns[4]), 4: Link(lsns[4], lsns[5]), 5: Link(lsns[4], lsns[6]), 6: Link(lsns[6], lsns[6])}
    for number, link in {**links, 7: Link(lsns[6], lsns[8])}.items():
        repository.summaries.write(part(1, number, number + 1), BlockMap(), link)
    # What an older pgwal wrote does not count, and what is damaged does not either.
    repository.summaries.write(part(1, 2, 3), BlockMap(), None)
    repository.summaries.write(part(1, 8, 9), BlockMap(), Link(lsns[8], lsns[9]))
    damaged = max((repository.store.root / "summaries").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    (timeline,) = read_coverage(repository, None)
    assert timeline.summaries == [part(1, 3, 5), part(1, 5, 8)]
    assert timeline.summary_holes == []
    # Nor is WAL one range over such a seam.
    put_segments(repository, 1, "3", "4", "5", "6", "7")
    (timeline,) = read_coverage(repository, None)
    assert timeline.wal == [part(1, 3, 5), part(1, 5, 8)]
    assert timeline.wal_holes == []


def test_nothing_is_recovered_over_a_seam() -> None:
    wal = [part(1, 3, 9)]
    entry = backup_at(4)
    found = recoverable_range(entry, wal, [], GEOMETRY, {Seam(1, Lsn(7 * MB)), Seam(2, Lsn(6 * MB))})
    assert found == RecoverableRange(1, Lsn(5 * MB), Lsn(7 * MB), is_whole=False)
    assert recoverable_range(entry, wal, [], GEOMETRY, {Seam(1, Lsn(int(4.5 * MB)))}) is None
    whole = recoverable_range(entry, wal, [], GEOMETRY, {Seam(1, Lsn(3 * MB)), Seam(1, Lsn(9 * MB))})
    assert whole is not None
    assert whole.is_whole


def test_a_partial_segment_counts_as_far_as_is_known(repository: Repository) -> None:
    put_segments(repository, 1, "3", "4.partial")
    for receiver in (None, state(1, 9), state(2, 4.5)):
        assert [timeline.wal for timeline in read_coverage(repository, receiver)] == [[part(1, 3, 4)]]


def test_a_hole_beside_a_switch_is_named(repository: Repository) -> None:
    """The end of the old timeline is missing, and the beginning of the new one."""
    put_segments(repository, 1, "3", "4")
    put_segments(repository, 2, "8")
    (repository.store.root / "wal" / "00000002.history").write_text(f"1\t{Lsn(int(6.5 * MB))}\tno recovery target\n")
    old, new = read_coverage(repository, state(2, 9))
    assert old.wal_holes == [part(1, 5, 6.5)]
    assert new.wal_holes == [part(2, 6.5, 8)]


def test_a_switch_in_a_segment_is_no_hole(repository: Repository) -> None:
    put_segments(repository, 1, "3", "4.partial")
    put_segments(repository, 2, "4", "5")
    (repository.store.root / "wal" / "00000002.history").write_text(f"1\t{Lsn(int(4.5 * MB))}\tno recovery target\n")
    old, new = read_coverage(repository, state(2, 6))
    assert (old.wal, old.wal_holes) == ([part(1, 3, 4.5)], [])
    assert (new.wal, new.wal_holes) == ([part(2, 4, 6)], [])


def test_the_state_of_an_earlier_pgwal_is_read() -> None:
    content = b'{"timeline_id": 1, "written_lsn": "0/2", "flushed_lsn": "0/1", "summarised_lsn": "0/1", "slot": "s"}'
    found = ReceiverState.decode(content)
    assert (found.updated_at, found.level_at, found.slot) == (None, None, "s")
    assert ReceiverState.decode(found.encode()) == found


# ---- with servers


def status_of(server: ThrowawayServer, repo: Path) -> dict[str, Any]:
    found = json.loads(succeed("status", "--repo", repo, "-d", server.conninfo, "--json"))
    assert isinstance(found, dict)
    return found


def wait_until_level(server: ThrowawayServer, repo: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (found := status_of(server, repo))["lag"] != {"wal_bytes": 0, "seconds": 0.0}:
        assert time.monotonic() < deadline, found
    return found


def holes(found: dict[str, Any]) -> list[Any]:
    return [gap for timeline in found["coverage"] for gap in timeline["wal_gaps"] + timeline["summary_gaps"]]


def start_time(repo: Path, backup_id: str) -> str:
    return Repository.open(repo).catalogue.entry(backup_id).started_at


@pytest.mark.postgres(15, 18)
def test_status_follows_the_receiver(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(initdb_args=("--wal-segsize=1",), settings={"wal_keep_size": "1GB"}), scratch / "repo"
    prepare(server)
    with streaming(server, repo, *SLOT):
        full = json.loads(
            succeed(
                "full", "--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"
            )
        )
        for step in range(3):
            run_load(server, step)
        found = wait_until_level(server, repo)
        text = succeed("status", "--repo", repo, "-d", server.conninfo)
        shown = on_terminal(80, "status", "--repo", repo, "-d", server.conninfo)
    assert found["receiver"]["running"]
    assert widest(shown) <= 80
    assert re.search(r"received +[0-9A-F/]+ on timeline 1, \d{4}-\d\d-\d\d [\d:]+Z, \d+ s +ago", plain(shown))
    # Rows were changed until now: the last of that can be recovered, and it is said of which time it is.
    of_backup = plain(on_terminal(80, "show", full["id"], "--repo", repo))
    (last,) = re.findall(r"last transaction +(\d{4}-\d\d-\d\d [\d:]+)Z, \d+ (?:s|min) ago", of_backup)
    assert datetime.fromisoformat(f"{last}+00:00") >= datetime.fromisoformat(start_time(repo, full["id"]))
    assert re.search(r"to   [0-9A-F/]+\s+\d+ (s|min) ago", plain(on_terminal(80, "list", "--repo", repo)))
    assert found["receiver"]["flushed_lsn"] == found["server"]["flush_lsn"]
    assert Lsn.parse(found["receiver"]["summarized_lsn"]) > Lsn.parse(full["stop_lsn"])
    assert time.time() - datetime.fromisoformat(found["receiver"]["updated_at"]).timestamp() < 60
    slot = found["server"]["replication_slot"]
    assert (slot["slot"], slot["exists"], slot["active"], slot["wal_status"]) == ("pgwal", True, True, "reserved")
    assert found["newest_backup"]["id"] == full["id"]
    assert found["newest_backup"]["window_gaps"] == []
    assert holes(found) == []
    (timeline,) = found["coverage"]
    assert timeline["wal_ranges"][-1]["end_lsn"] == found["receiver"]["flushed_lsn"]
    for line in (
        "receiver         running, last heard of",
        "lag              ",
        "slot             pgwal: active, holds back",
    ):
        assert line in text
    assert "missing" not in text


@pytest.mark.postgres(15, 18)
def test_status_without_a_receiver_and_without_a_server(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo"
    prepare(server)
    with streaming(server, repo, *SLOT):
        level = wait_until_level(server, repo)
    for step in range(2):
        run_load(server, step)
    found = status_of(server, repo)
    assert not found["receiver"]["running"]
    assert found["receiver"]["flushed_lsn"] >= level["receiver"]["flushed_lsn"]
    assert found["lag"]["wal_bytes"] > 0
    assert 0 < found["lag"]["seconds"] < 60
    assert not found["server"]["replication_slot"]["active"]
    assert found["server"]["replication_slot"]["retained_bytes"] >= found["lag"]["wal_bytes"]

    server.stop()
    for form in ("--json",), ():
        outcome = run_pgwal("status", "--repo", repo, "-d", server.conninfo, *form)
        assert outcome.code == NO_CONNECTION
        assert_nothing_raw(outcome)
        assert len(outcome.errors) == 1
        if form:
            alone = json.loads(outcome.stdout)
            assert alone["server"] is None
            assert alone["server_error"] == outcome.errors[0]
            assert alone["coverage"] == found["coverage"]
        else:
            assert "server           not reached" in outcome.stdout


@pytest.mark.postgres(15, 18)
def test_status_names_a_segment_that_is_missing(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo"
    prepare(server)
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]
    with streaming(server, repo, *SLOT):
        succeed("full", *source)
        for step in range(3):
            run_load(server, step)
        wait_until_level(server, repo)
    repository = Repository.open(repo)
    lost = [segment for segment in repository.wal.segments() if segment.complete][-2]
    (repo / "wal" / lost.name).unlink()
    start, end = (repository.geometry.segment_start(lost.segment_no + more) for more in (0, 1))
    found = status_of(server, repo)
    assert found["coverage"][0]["wal_gaps"] == [{"timeline": 1, "start_lsn": str(start), "end_lsn": str(end)}]
    assert f"WAL missing    {start} to {end}" in succeed("status", "--repo", repo, "-d", server.conninfo)
    # Summaries stand for WAL; where they are missing too, an incremental is not possible.
    for path in (repo / "summaries").iterdir():
        path.unlink()
    found = status_of(server, repo)
    assert found["newest_backup"]["window_gaps"] == [{"timeline": 1, "start_lsn": str(start), "end_lsn": str(end)}]
    text = succeed("status", "--repo", repo, "-d", server.conninfo)
    assert f"WAL is missing for an incremental: {start} to {end} on timeline 1" in text


@pytest.mark.postgres(18)
def test_status_of_another_server_and_slot(make_server: ServerFactory, scratch: Path) -> None:
    server, other, repo = make_server(), make_server(own_system_identifier=True), scratch / "repo"
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", *SLOT)
    outcome = run_pgwal("status", "--repo", repo, "-d", other.conninfo)
    assert outcome.code == FAILED
    assert "the repository belongs to the cluster" in outcome.errors[0]
    assert "slot             gone does not exist" in succeed(
        "status", "--repo", repo, "-d", server.conninfo, "--slot", "gone"
    )
