"""WAL that is missing with more of it behind: recovery never ends there without a word."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import PGWAL, assert_failed, run_pgwal, succeed
from test_main_job import wait_until_promoted

from pgwal.engine.recovery_gap import RecoveryGap, find_gap, is_in_gap
from pgwal.errors import ServerError
from pgwal.lsn import Lsn
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory, TimelineSwitch
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

MB = 1 << 20
GEOMETRY = WalGeometry(MB)

Wal = dict[int, str]
"""By timeline, the numbers of its segments; a star follows one that is not whole."""


def segments(wal: Wal) -> list[WalSegmentFile]:
    found = []
    for timeline_id, words in wal.items():
        for word in words.split():
            number, complete = int(word.rstrip("*")), not word.endswith("*")
            found.append(WalSegmentFile(timeline_id, number, complete, GEOMETRY.file_name(timeline_id, number)))
    return found


def history(timeline_id: int, *switches: tuple[int, float]) -> TimelineHistory:
    """Return a history; switch points are in segments."""
    recorded = tuple(TimelineSwitch(parent, Lsn(int(at * MB))) for parent, at in switches)
    return TimelineHistory(timeline_id, recorded)


ONE = history(1)
TWO = history(2, (1, 5.5))
AT_BORDER = history(2, (1, 5))
THREE = history(3, (1, 5.25), (2, 5.5))
FALLING = history(3, (1, 6.5), (2, 5.5))


@pytest.mark.parametrize(
    ("line", "wal", "expected"),
    [
        (ONE, {1: "3 4 5*"}, None),
        (ONE, {1: "2 3 4"}, None),
        (ONE, {1: "3 4 6"}, (1, 5, 6, False)),
        (ONE, {1: "3 6* 7*"}, (1, 4, 6, False)),
        (ONE, {1: "3 4* 5"}, (1, 4, 5, True)),
        (ONE, {1: "4 5"}, (1, 3, 4, False)),
        (ONE, {}, None),
        # What the old primary wrote after the switch does not count, nor what is missing of it.
        (TWO, {1: "3 4 5*", 2: "5 6*"}, None),
        (TWO, {1: "3 4", 2: "5 6 7"}, None),
        (TWO, {1: "3 4 5 6 9", 2: "5 6"}, None),
        (TWO, {1: "3 4 5 7 9"}, None),
        (TWO, {1: "3 4 5", 2: "6"}, (2, 5.5, 6, False)),
        (TWO, {1: "3 4 5", 2: "5* 6"}, (2, 5.5, 6, True)),
        (TWO, {1: "3", 2: "5"}, (1, 4, 5, False)),
        (TWO, {1: "3 4*", 2: "5"}, (1, 4, 5, True)),
        (TWO, {1: "3 4 5", 2: "5 8"}, (2, 6, 8, False)),
        (AT_BORDER, {1: "3 4", 2: "5"}, None),
        (AT_BORDER, {1: "3 4 5", 2: "6"}, (2, 5, 6, False)),
        (THREE, {1: "3 4 5*", 3: "5 6"}, None),
        (THREE, {1: "3 4 5*", 2: "5*", 3: "6"}, (1, 5, 6, True)),
        (FALLING, {1: "3 4 5", 3: "5 6"}, None),
        (FALLING, {1: "3 4 5 6 7", 2: "6 8", 3: "5 7"}, (3, 6, 7, False)),
    ],
)
def test_gaps_on_a_history(line: TimelineHistory, wal: Wal, expected: tuple[int, float, float, bool] | None) -> None:
    gap = find_gap(segments(wal), line, GEOMETRY, Lsn(3 * MB + 40))
    found = None if gap is None else (gap.timeline_id, gap.start / MB, gap.end / MB, gap.is_cut_off)
    if found is not None and expected is not None and expected[1] == 3:
        found = (found[0], 3, *found[2:])
    assert found == expected


def test_a_gap_names_its_segments() -> None:
    gap = find_gap(segments({1: "3 6"}), ONE, GEOMETRY, Lsn(3 * MB))
    assert gap == RecoveryGap(1, Lsn(4 * MB), Lsn(6 * MB), GEOMETRY.file_name(1, 4), GEOMETRY.file_name(1, 5), False)
    assert (gap.reached, str(gap)) == (
        "at 0/400000",
        "WAL segments 000000010000000000000004 to 000000010000000000000005 are missing, though WAL of 0/600000 and"
        " later is in the repository",
    )


@pytest.mark.parametrize(
    ("wanted", "histories", "wal", "expected"),
    [
        ((1, 5), [], {1: "3 4 6"}, True),
        ((1, 5), [], {1: "3 4 5* 6"}, True),
        ((1, 7), [], {1: "3 4 6"}, False),
        ((1, 5), [], {1: "3 4 5*"}, False),
        # From before a timeline began, and what only the next one has.
        ((2, 4), [TWO], {1: "3", 2: "5 6"}, False),
        ((2, 5), [TWO], {1: "3 4 5", 2: "6"}, True),
        ((2, 6), [TWO], {2: "5 7"}, True),
        ((2, 7), [TWO], {1: "9", 2: "5 6"}, False),
        ((1, 4), [TWO], {1: "3", 2: "5"}, True),
        ((1, 5), [TWO], {1: "3 4", 2: "5"}, False),
        # What a switch left behind.
        ((1, 6), [TWO], {1: "3 4 5 7", 2: "5"}, False),
        ((1, 5), [AT_BORDER], {1: "3 4 7", 2: "5"}, False),
        ((1, 4), [AT_BORDER], {1: "3 7", 2: "5"}, True),
        # A timeline of which nothing is there left nothing behind.
        ((1, 6), [TWO], {1: "3 4 5 7"}, True),
        ((1, 6), [TWO, history(4, (1, 8.5))], {1: "3 4 5 7", 2: "5", 4: "8"}, True),
        ((2, 5), [THREE], {1: "4", 3: "5 6"}, False),
        ((2, 7), [FALLING, history(2, (1, 6.5))], {1: "7", 2: "6 8", 3: "5 6"}, False),
    ],
)
def test_segments_that_are_missed(
    wanted: tuple[int, int], histories: list[TimelineHistory], wal: Wal, expected: bool
) -> None:
    assert is_in_gap(segments(wal), histories, GEOMETRY, *wanted) == expected


@st.composite
def archives(draw: st.DrawFn) -> tuple[list[TimelineHistory], Wal]:
    """Draw histories of a line of timelines, each left at a random place, and segments of each."""
    count = draw(st.integers(1, 4))
    switches = tuple((number, draw(st.integers(6, 20)) / 2) for number in range(1, count))
    histories = [history(number, *switches[: number - 1]) for number in range(2, count + 1)]
    wal = {}
    for number in range(1, count + 1):
        begin = int(switches[number - 2][1]) if number > 1 else 3
        numbers = draw(st.sets(st.integers(begin, begin + 5)))
        wal[number] = " ".join(f"{each}{draw(st.sampled_from(['', '', '', '*']))}" for each in sorted(numbers))
    return histories, wal


def recover(line: TimelineHistory, histories: Sequence[TimelineHistory], wal: Wal) -> tuple[int, bool]:
    """Ask for segments as a server does; return the last number that is whole, and whether an error ended it."""
    there = {(segment.timeline_id, segment.segment_no): segment.complete for segment in segments(wal)}
    begins = [0, *(switch.switch_lsn // MB for switch in line.recorded)]
    newest_first = sorted(zip([*(s.timeline_id for s in line.recorded), line.timeline_id], begins, strict=True))[::-1]
    current, number = 0, 3
    while True:
        for timeline_id, begin in newest_first:
            if timeline_id < current:
                return number - 1, False
            if number < begin:
                continue
            key = (timeline_id, number)
            if not there.get(key) and is_in_gap(segments(wal), histories, GEOMETRY, *key):
                return number - 1, True
            if key in there:
                current = timeline_id
                break
        else:
            return number - 1, False
        if not there[current, number]:
            return number - 1, False
        number += 1


@given(archives())
def test_a_server_that_asks_gets_to_the_end_or_fails(archive: tuple[list[TimelineHistory], Wal]) -> None:
    """What restore accepts is recovered without an error; what it refuses does not end in silence."""
    histories, wal = archive
    line = histories[-1] if histories else ONE
    gap = find_gap(segments(wal), line, GEOMETRY, Lsn(3 * MB))
    reached, failed = recover(line, histories, wal)
    if gap is None:
        ends = [switch.switch_lsn for switch in line.switches] + [Lsn(1 << 62)]
        begins = [Lsn(0), *ends]
        timeline_ids = [*(switch.timeline_id for switch in line.switches), line.timeline_id]
        on_line = [
            segment.segment_no
            for segment in segments(wal)
            for timeline_id, begin, end in zip(timeline_ids, begins, ends, strict=False)
            if segment.timeline_id == timeline_id
            and begin < end
            and begin // MB <= segment.segment_no <= (end - 1) // MB
        ]
        # The last one may still be received.  An error comes there at the earliest: about what a timeline goes on with
        # behind its switch, when nothing of the next one is there.
        assert reached >= max((number for number in on_line if number >= 3), default=3) - 1
    else:
        assert failed
        assert reached * MB < gap.end


# ---- servers


@dataclass
class Archive:
    """A full backup, and five rows in as many segments behind it; where, when and under which name each came."""

    repo: Path
    factory: ServerFactory
    segments: dict[int, str] = field(default_factory=dict)
    lsns: dict[int, str] = field(default_factory=dict)
    times: dict[int, str] = field(default_factory=dict)

    def without(self, row: int, scratch: Path) -> Path:
        """Return a copy of the repository that lacks the segment with a row."""
        repo = scratch / "repo"
        shutil.copytree(self.repo, repo)
        self.remove(repo, row)
        return repo

    def remove(self, repo: Path, row: int) -> None:
        (path,) = (repo / "wal").glob(f"{self.segments[row]}*")
        path.unlink()

    @contextmanager
    def adopted(self, repo: Path, data_directory: Path) -> Iterator[ThrowawayServer]:
        """Give a server on restored files that gets its WAL as restore says, and is not yet started."""
        settings = data_directory / "postgresql.auto.conf"
        flags = ["--to-gap"] if "--to-gap" in settings.read_text() else []
        command = [*PGWAL, "fetch-wal", "--repo", str(repo), *flags]
        with RestoreCommandRelay(command, repo.parent / "relay") as relay:
            with settings.open("a") as file:
                file.write(f"restore_command = '{relay.restore_command}'\n")
            server = self.factory(adopt=data_directory, start=False)
            try:
                yield server
            finally:
                server.kill()


@pytest.fixture(scope="module")
def archive(installation: ServerInstallation, server_templates: Templates, module_scratch: Path) -> Iterator[Archive]:
    directory = module_scratch / f"gap-{installation.major}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=("--wal-segsize=1",), settings={"autovacuum": False})
        archive = Archive(directory / "repo", factory)
        with server.connect(autocommit=True) as connection:
            connection.execute("CREATE TABLE t (id int)")
            source = ["--repo", archive.repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]
            succeed("full", *source)
            # The ends of backups are noted in whole seconds.
            time.sleep(2.1)
            for row in range(1, 6):
                connection.execute("INSERT INTO t VALUES (%s)", [row])
                found = connection.execute(
                    "SELECT pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn()::text,"
                    " clock_timestamp()"
                ).fetchone()
                assert found is not None
                archive.segments[row], archive.lsns[row] = found[:2]
                archive.times[row] = found[2].astimezone(UTC).isoformat()
                connection.execute("SELECT pg_create_restore_point(%s)", [f"after {row}"])
                connection.execute("SELECT pg_switch_wal()")
                time.sleep(0.01)
        succeed("stream", "--once", "--repo", archive.repo, "-d", server.conninfo)
        server.kill()
        yield archive
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.postgres(13, 18)
def test_a_gap_is_refused_unless_it_is_accepted(archive: Archive, scratch: Path) -> None:
    repo = archive.without(4, scratch)
    restore = ("restore", "--repo", repo, "-D", scratch / "data", "-N")
    outcome = run_pgwal(*restore)
    start = Lsn(Lsn.parse(archive.lsns[4]) // MB * MB)
    cause = f"would end at {start}: WAL segment {archive.segments[4]} is missing"
    assert_failed(outcome, 4, cause, "--to-gap")
    assert not (scratch / "data").exists()
    outcome = run_pgwal(*restore, "--to-gap")
    assert outcome.code == 0, outcome.stderr
    assert f"pgwal: warning: recovery will end at {start}: WAL segment {archive.segments[4]}" in outcome.stderr
    with archive.adopted(repo, scratch / "data") as server:
        server.start()
        wait_until_promoted(server)
        with server.connect() as connection:
            assert connection.execute("SELECT id FROM t ORDER BY id").fetchall() == [(1,), (2,), (3,)]


@pytest.mark.postgres(13, 18)
def test_a_gap_that_comes_later_stops_recovery(archive: Archive, scratch: Path) -> None:
    repo = scratch / "repo"
    shutil.copytree(archive.repo, repo)
    succeed("restore", "--repo", repo, "-D", scratch / "data", "-N")
    archive.remove(repo, 4)
    with archive.adopted(repo, scratch / "data") as server:
        # It may accept read-only sessions first.
        with suppress(ServerError):
            server.start()
        deadline = time.monotonic() + 60
        while server.is_running:
            assert time.monotonic() < deadline, server.log_tail()
            time.sleep(0.05)
        assert f'FATAL:  could not restore file "{archive.segments[4]}" from archive' in server.log_tail(200)
        assert "selected new timeline ID" not in server.log_tail(200)
    assert "is missing or not whole" in (repo.parent / "relay" / "relay.log").read_text()


@pytest.mark.postgres(18)
def test_targets_before_and_behind_a_gap(archive: Archive, scratch: Path) -> None:
    repo = archive.without(4, scratch)

    def restore(*target: str) -> tuple[str | Path, ...]:
        return ("restore", "--repo", repo, "-D", scratch / "data", "-N", *target)

    before = (["--target-lsn", archive.lsns[3]], ["--target-time", archive.times[2]], ["--target-name", "after 3"])
    for target in (*before, ["--target-immediate"]):
        printed = json.loads(succeed(*restore(*target, "--json")))
        assert printed["recovery"]
        # A segment that is not whole may hold the target.
        assert "--to-gap" in (scratch / "data" / "postgresql.auto.conf").read_text()
        shutil.rmtree(scratch / "data")
    for flags in ([], ["--to-gap"]):
        # Only a transaction that ended later than a time ends recovery there.
        for time_behind in (archive.times[3], archive.times[5]):
            outcome = run_pgwal(*restore("--target-time", time_behind, *flags))
            assert_failed(outcome, 4, f"cannot be reached from backup .*{archive.segments[4]} is missing", "before")
        assert_failed(run_pgwal(*restore("--target-lsn", archive.lsns[5], *flags)), 4, archive.segments[4])
        assert_failed(run_pgwal(*restore("--target-name", "after 5", *flags)), 1, "is not in the WAL received")
    # Where WAL comes from elsewhere, that is no matter.
    succeed(*restore("--restore-command", "false"))
