"""Recorded WAL by the commands that read it: summarize, map and inspect, of what pg_receivewal and servers leave."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from core.wal_builder import RM_HEAP, RM_XLOG, BlockSpec, RecordSpec, WalBuilder
from differential.test_records import BLOCK, LINE
from fix_servers import ServerFactory, Templates
from pgwal_process import assert_failed, environment, peak_mb, run_pgwal, succeed

import pgwal.engine.recorded
from pgwal.engine.recorded import summarize_wal
from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.repository.local import LocalStore
from pgwal.segment import WalGeometry
from pgwal.summary.codec import decode_summary, parse_summary_file_name
from pgwal.wal import layout
from pgwal.wal.scan import LONG_SCAN_BYTES
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

MB = 1 << 20
SEGMENT = WalGeometry(MB)
FAILED, USAGE, NOT_COVERED = 1, 2, 4
NOOP = 0x20

FORKS = ("main", "fsm", "vm", "init")

with_receivewal = pytest.mark.postgres(15, 17, 18, 19)
"""Versions whose packages have the client tools; 16, which has them too, writes WAL as 15 and 17 do."""

WORK = """
    INSERT INTO t SELECT i, repeat('n', 800) FROM generate_series(1, 750) AS i;
    CHECKPOINT;
    UPDATE t SET filler = 'updated' WHERE id % 7 = 0;
    DELETE FROM t WHERE id > 375;
    VACUUM (TRUNCATE false) t;
    CREATE TABLE brief AS SELECT * FROM t WHERE id % 3 = 0;
    CHECKPOINT;
    INSERT INTO t SELECT i, repeat('m', 1200) FROM generate_series(750, 1125) AS i;
    SELECT pg_logical_emit_message(true, 'test', repeat('longer than two segments ', 100000));
    DROP TABLE brief;
    DROP INDEX IF EXISTS later;
    CREATE INDEX later ON t (filler);
    SELECT pg_switch_wal();
    UPDATE t SET filler = 'again' WHERE id % 5 = 0;
    CHECKPOINT;
    INSERT INTO t SELECT i, repeat('o', 1200) FROM generate_series(1250, 1375) AS i;
"""


def run_sql(server: ThrowawayServer, statements: str) -> None:
    with server.connect() as connection:
        for statement in statements.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())


def query(server: ThrowawayServer, statement: str) -> str:
    with server.connect() as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def insert_lsn(server: ThrowawayServer) -> Lsn:
    return Lsn.parse(query(server, "SELECT pg_current_wal_insert_lsn()"))


def receive(server: ThrowawayServer, directory: Path, end: Lsn, *args: str) -> Path:
    """Have pg_receivewal write WAL up to ``end`` into a directory, from its slot on when that is empty."""
    directory.mkdir(exist_ok=True)
    give_to_server(directory)
    server.run_tool("pg_receivewal", "-D", str(directory), "--no-loop", "--no-sync", "--endpos", str(end), *args)
    return directory


@dataclass(frozen=True)
class Recorded:
    """A server, what pg_receivewal recorded of it in segments of 1 MB, and pgwal's repository of the same."""

    server: ThrowawayServer
    plain: Path
    repo: Path
    end: Lsn
    scratch: Path

    @property
    def start(self) -> Lsn:
        first = min(path.name for path in self.plain.iterdir())
        return SEGMENT.segment_start(SEGMENT.parse_file_name(first[:24])[1])

    def compressed(self, method: str) -> Path:
        """Record the same once more, compressed."""
        directory = self.scratch / method
        if directory.exists():
            return directory
        return receive(self.server, directory, self.end, "--slot", method, f"--compress={method}")


@pytest.fixture(scope="module")
def recorded(installation: ServerInstallation, server_templates: Templates, module_scratch: Path) -> Iterator[Recorded]:
    directory = module_scratch / f"recorded-{installation.major}"
    settings: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB", "max_wal_size": "1GB"}
    if installation.major >= 17:
        settings["summarize_wal"] = True
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=("-k", "--wal-segsize=1"), settings=settings)
        run_sql(server, "CREATE TABLE t (id int, filler text)")
        # Summaries of the server begin where it was started, others at the slot: before all of the work.
        run_sql(server, "CHECKPOINT")
        for slot in ("plain", "gzip", "lz4", "repo"):
            run_sql(server, f"SELECT pg_create_physical_replication_slot('{slot}', true)")
        run_sql(server, WORK)
        run_sql(server, WORK)
        # A message of no transaction, so that the last segment holds something, and is not full.
        end = insert_lsn(server)
        run_sql(server, "SELECT pg_logical_emit_message(false, 'test', 'the end');\nCHECKPOINT")
        plain = receive(server, directory / "plain", end, "--slot", "plain")
        repo = directory / "repo"
        succeed("stream", "--repo", repo, "-d", server.conninfo, "--slot", "repo", "--endpos", str(end))
        yield Recorded(server, plain, repo, end, directory)


def insertion(block_no: int, size: int = 3) -> RecordSpec:
    return RecordSpec(RM_HEAP, blocks=(BlockSpec(0, block_no=block_no),), main_data=bytes(size))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def summarized(wal: Path, output: Path, *args: str) -> dict[str, bytes]:
    """Return the summary files that pgwal writes, and check that it lists them."""
    listed = json.loads(succeed("summarize", wal, "-o", output, "--json", *args))["summaries"]
    found = contents(output)
    assert [entry["name"] for entry in listed] == sorted(found)
    for entry in listed:
        summary_range = parse_summary_file_name(entry["name"])
        assert summary_range is not None
        assert (entry["timeline"], entry["start_lsn"], entry["end_lsn"]) == (
            summary_range.timeline_id,
            str(summary_range.start),
            str(summary_range.end),
        )
        assert entry["block_count"] == decode_summary(found[entry["name"]], "").block_count()
    return found


def summary_ranges(names: Iterable[str]) -> list[LsnRange]:
    ranges = [parse_summary_file_name(name) for name in names]
    return [summary_range for summary_range in ranges if summary_range is not None]


def last_end(files: dict[str, bytes]) -> Lsn:
    summary_range = parse_summary_file_name(max(files))
    assert summary_range is not None
    return summary_range.end


# ---- what pg_waldump says

Line = tuple[int, int, list[tuple[int, int, int, int, int]]]
"""LSN, length, and references as (tablespace, database, relation, fork, block)."""


def parse_line(line: str) -> Line:
    """Return (lsn, length, references) of a line, which has the form of pg_waldump's."""
    head = LINE.match(line)
    assert head is not None, line
    references = [
        (int(b["spc"]), int(b["db"]), int(b["rel"]), FORKS.index(b["fork"] or "main"), int(b["block"]))
        for b in BLOCK.finditer(line)
    ]
    return Lsn.parse(head["lsn"]), int(head["total"]), references


def waldump(server: ThrowawayServer, start: int, end: int, *args: str) -> list[Line]:
    return [parse_line(line) for line in waldump_text(server, start, end, *args)]


def waldump_text(server: ThrowawayServer, start: int, end: int, *args: str) -> list[str]:
    wal = server.data_directory / "pg_wal"
    # It takes the segment size from a file, and without names from one that was made in advance and is empty.
    size = next(path.stat().st_size for path in wal.iterdir() if path.is_file() and len(path.name) == 24)
    geometry = WalGeometry(size)
    names = [geometry.file_name(1, n) for n in (geometry.segment_no(start), geometry.last_segment_no(end))]
    bounds = ["-p", str(wal), "-s", str(Lsn(start)), "-e", str(Lsn(end))]
    output: str = server.run_tool("pg_waldump", *bounds, *args, *names).stdout
    return output.splitlines()


# ---- a directory, however it was written


def zstd_copy(recorded: Recorded, tmp_path: Path) -> Path:
    """Compress what pg_receivewal left uncompressed; its own compression knows no zstd."""
    copy = tmp_path / "zstd"
    copy.mkdir()
    for path in recorded.plain.iterdir():
        name = path.name.removesuffix(".partial") + ".zst" + (".partial" if path.suffix else "")
        # In two frames, as tools with several threads write them.
        content = path.read_bytes()
        frames = [zstandard.compress(part) for part in (content[:500_000], content[500_000:])]
        (copy / name).write_bytes(b"".join(frames))
    return copy


WAYS: dict[str, Callable[[Recorded, Path], Path]] = {
    "gzip": lambda recorded, _: recorded.compressed("gzip"),
    "lz4": lambda recorded, _: recorded.compressed("lz4"),
    "zstd": zstd_copy,
    "repository": lambda recorded, _: recorded.repo / "wal",
}
SUFFIXES = {"gzip": ".gz", "lz4": ".lz4", "zstd": ".zst", "repository": ""}


@with_receivewal
def test_a_directory_of_pg_receivewal_is_summarised_to_its_end(recorded: Recorded, tmp_path: Path) -> None:
    names = sorted(path.name for path in recorded.plain.iterdir())
    assert names[-1].endswith(".partial")
    assert len(names) > 10
    files = summarized(recorded.plain, tmp_path / "summaries")
    ranges = summary_ranges(files)
    place = SEGMENT.first_record_position
    # They begin behind the record that goes on in the first segment.
    assert place(recorded.start) <= ranges[0].start < recorded.start + MB
    assert all(place(left.end) == place(right.start) for left, right in pairwise(ranges))
    assert recorded.end <= ranges[-1].end < recorded.end + 8192
    written = succeed("summarize", recorded.plain, "-o", tmp_path / "again", "-P")
    assert [line.split()[-1] for line in written.splitlines()] == ["FILE", *files]


@with_receivewal
@pytest.mark.parametrize("way", WAYS)
def test_compression_makes_no_difference(recorded: Recorded, tmp_path: Path, way: str) -> None:
    try:
        directory = WAYS[way](recorded, tmp_path)
    except Exception as error:
        if "this build does not support compression" in str(error):
            pytest.skip(str(error).splitlines()[-1])
        raise
    assert any(path.name.endswith(f"{SUFFIXES[way]}.partial") for path in directory.iterdir())
    expected = summarized(recorded.plain, tmp_path / "expected")
    found = summarized(directory, tmp_path / "found")
    # How much follows --endpos in what the server sends last is chance.
    common = {name: content for name, content in expected.items() if last_end({name: b""}) <= recorded.end}
    assert common.items() <= found.items()
    assert len(common) >= 5
    assert last_end(found) >= recorded.end


@with_receivewal
def test_a_compressed_partial_segment_may_be_cut_off_anywhere(recorded: Recorded, tmp_path: Path) -> None:
    """As it is while pg_receivewal runs, or when it was killed."""
    whole = last_end(summarized(recorded.compressed("gzip"), tmp_path / "whole"))
    for number, kept in enumerate((-4, -2000, 30, 5, 0)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(recorded.compressed("gzip"), copy)
        (partial,) = copy.glob("*.gz.partial")
        partial.write_bytes(partial.read_bytes()[:kept])
        files = summarized(copy, tmp_path / f"summaries{number}")
        end = last_end(files)
        last_segment = SEGMENT.segment_start(SEGMENT.parse_file_name(partial.name[:24])[1])
        assert end <= whole
        # A record may begin before it and not be whole.
        assert end > last_segment - 3 * MB
        if kept == -4:
            assert end == whole


@with_receivewal
def test_jobs_and_parts_make_no_difference(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = summarized(recorded.plain, tmp_path / "whole")
    assert summarized(recorded.plain, tmp_path / "threads", "-j", "3") == expected
    for part_bytes in (MB, 4 * MB):
        monkeypatch.setattr(pgwal.engine.recorded, "WAL_PIECE_BYTES", part_bytes)
        for jobs in (1, 3):
            output = tmp_path / f"{part_bytes}-{jobs}"
            progress: list[tuple[int, int]] = []
            summarize_wal(recorded.plain, output, jobs=jobs, on_progress=lambda *now, to=progress: to.append(now))
            assert contents(output) == expected
            assert progress == sorted(progress)
            assert progress[-1][0] == progress[-1][1]


@with_receivewal
def test_a_range_of_it(recorded: Recorded, tmp_path: Path) -> None:
    files = summarized(recorded.plain, tmp_path / "whole")
    begin = SEGMENT.segment_start(SEGMENT.segment_no(recorded.start) + 3) + 4096
    starts = [lsn for lsn in record_starts(recorded) if begin <= lsn <= recorded.end - MB]
    start, end = starts[0], starts[-1]
    found = summarized(recorded.plain, tmp_path / "range", "--from", str(Lsn(start)), "--to", str(Lsn(end)))
    ranges = summary_ranges(found)
    assert (ranges[0].start, ranges[-1].end) == (start, end)
    inner = list(found)[1:-1]
    assert inner
    assert {name: found[name] for name in inner}.items() <= files.items()


@pytest.mark.postgres(13, 18)
def test_what_the_receiver_summarised_is_what_summarize_writes(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("-k", "--wal-segsize=1"), settings={"autovacuum": False})
    repo = scratch / "repo"
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", server.conninfo, "--once", "--slot", "s"]
    succeed(*stream, "--create-slot")
    run_sql(server, "CREATE TABLE t (id int, filler text);\n" + WORK)
    succeed(*stream)
    run_sql(server, WORK)
    succeed(*stream)
    found = summarized(repo / "wal", scratch / "summaries")
    streamed = contents(repo / "summaries")
    assert len(streamed) > 3
    # The first may begin elsewhere: the receiver goes back to where its oldest segment begins.
    expected = by_place(found)
    assert dict(list(by_place(streamed).items())[1:]).items() <= expected.items()


def by_place(files: dict[str, bytes]) -> dict[LsnRange, bytes]:
    """Return summaries by their ranges; where a receiver went on, a name begins behind a page header."""
    place = SEGMENT.first_record_position
    return {
        LsnRange(r.timeline_id, place(r.start), place(r.end)): content
        for r, content in zip(summary_ranges(files), files.values(), strict=True)
    }


@pytest.mark.postgres(15, 18)
@pytest.mark.parametrize("segment_mb", [16, 64])
def test_larger_segments(make_server: ServerFactory, tmp_path: Path, segment_mb: int) -> None:
    server = make_server(initdb_args=("-k", f"--wal-segsize={segment_mb}"), settings={"wal_keep_size": "1GB"})
    start = insert_lsn(server)
    run_sql(server, "CREATE TABLE t (id int, filler text);\n" + WORK)
    end = insert_lsn(server)
    server.stop()
    # A pg_wal itself: with segments behind the end that were made in advance or recycled.
    wal = server.data_directory / "pg_wal"
    newest = max(path for path in wal.iterdir() if len(path.name) == 24)
    shutil.copy(newest, newest.with_name(f"{newest.name[:-2]}3E"))
    newest.with_name(f"{newest.name[:-2]}3F").write_bytes(bytes(segment_mb * MB))
    files = summarized(wal, tmp_path / "summaries", "-j", "2")
    assert last_end(files) >= end
    mapped = map_lines("--wal", wal, "--from", str(start), "--to", str(end))
    assert len(mapped) > 10
    lines = succeed("inspect", wal, "--from", str(start), "--to", str(end)).splitlines()
    assert [parse_line(line) for line in lines] == waldump(server, start, end)


def test_segments_of_1_gb(tmp_path: Path) -> None:
    """Built, and sparse: a segment that is switched from, and one that is being received."""
    gb = 1 << 30
    wal = tmp_path / "wal"
    wal.mkdir()
    builder = WalBuilder(16, segment_size=gb, start_lsn=gb)
    builder.append(insertion(1))
    switch = builder.append(RecordSpec(RM_XLOG, 0x40))
    later = WalBuilder(16, segment_size=gb, start_lsn=2 * gb, prev_lsn=switch.lsn)
    later.append(insertion(2))
    for name, content in {
        "000000010000000000000001": builder.wal(),
        "000000010000000000000002.partial": later.wal(),
    }.items():
        (wal / name).write_bytes(content)
        os.truncate(wal / name, gb)
    files = summarized(wal, tmp_path / "summaries")
    assert list(files) == [
        f"00000001{gb + 40:016X}{2 * gb:016X}.summary",
        f"00000001{2 * gb:016X}{int(later.end_lsn):016X}.summary",
    ]
    text = "TS 1663, DB 5, REL 16384, FORK main: "
    assert map_lines("--wal", wal, "--from", Lsn(gb), "--to", Lsn(2 * gb)) == [f"{text}block 1"]
    assert map_lines("--wal", wal, "--from", Lsn(gb), "--to", later.end_lsn) == [f"{text}blocks 1..2"]


# ---- against the server's summaries


def native_files(server: ThrowawayServer) -> dict[str, Path]:
    files = (server.data_directory / "pg_wal" / "summaries").glob("*.summary")
    return {path.name: path for path in sorted(files) if parse_summary_file_name(path.name) is not None}


@pytest.mark.postgres(17, 18, 19)
def test_summaries_equal_the_servers(recorded: Recorded, tmp_path: Path) -> None:
    ours = summarized(recorded.plain, tmp_path / "ours")
    native = native_files(recorded.server)
    complete = list(ours)[1:-1]
    common = [name for name in complete if name in native]
    # The server's summariser may have been asleep for the last of them.
    assert common == complete[: len(common)]
    assert len(common) >= 3
    for name in common:
        assert decode_summary(ours[name], name) == decode_summary(native[name].read_bytes(), name)


@pytest.mark.postgres(17, 18, 19)
def test_map_prints_what_pg_walsummary_prints(recorded: Recorded, tmp_path: Path) -> None:
    shutil.copytree(recorded.repo / "summaries", tmp_path / "summaries")
    readable = recorded.scratch / "readable"
    shutil.copytree(recorded.repo / "summaries", readable, dirs_exist_ok=True)
    give_to_server(readable)
    printed = 0
    for path in [*readable.iterdir(), *native_files(recorded.server).values()]:
        for options in ([], ["-i"]):
            native = recorded.server.run_tool("pg_walsummary", *options, str(path)).stdout.splitlines()
            assert map_lines(path, *options) == native
            printed += len(native)
    assert printed > 1000


# ---- map


def map_lines(*args: object) -> list[str]:
    return succeed("map", *(arg if isinstance(arg, Path) else str(arg) for arg in args)).splitlines()


Meaning = dict[tuple[object, ...], tuple[int, set[int]]]


def meaning(*args: object) -> Meaning:
    """Return of each fork its limit and the changed blocks below: those behind are changed, named or not."""
    printed = succeed("map", "--json", *(arg if isinstance(arg, Path) else str(arg) for arg in args))
    document = json.loads(printed)["forks"]
    found: Meaning = {}
    for entry in document:
        key = tuple(entry[name] for name in ("tablespace_oid", "database_oid", "relation_number", "fork"))
        limit = INVALID_BLOCK_NUMBER if entry["limit_block_no"] is None else entry["limit_block_no"]
        blocks = {n for first, last in entry["block_ranges"] for n in range(first, last + 1)}
        found[key] = (limit, {block for block in blocks if block < limit})
    return found


def record_starts(recorded: Recorded) -> list[Lsn]:
    return [Lsn(lsn) for lsn, _, _ in waldump(recorded.server, recorded.start, recorded.end)]


@with_receivewal
def test_map_of_any_range_is_what_pg_waldump_names(recorded: Recorded) -> None:
    records = waldump(recorded.server, recorded.start, recorded.end)
    count = len(records)
    bounds = [(0, count - 1), (count // 3, 2 * count // 3), (count // 5, count // 5 + 40), (7, 8), (9, 9)]
    for first, last in bounds:
        start, end = records[first][0], records[last][0]
        named: dict[tuple[object, ...], set[int]] = {}
        for _, _, references in records[first:last]:
            for spc, db, rel, fork, block_no in references:
                named.setdefault((spc, db, rel, FORKS[fork]), set()).add(block_no)
        expected = {key: blocks for key, blocks in named.items() if key[3] != "fsm"}
        mapped = meaning("--wal", recorded.plain, "--from", Lsn(start), "--to", Lsn(end))
        assert (
            {key for key, (limit, _) in mapped.items() if limit == INVALID_BLOCK_NUMBER}
            <= expected.keys()
            <= mapped.keys()
        )
        for key, blocks in expected.items():
            limit, changed = mapped[key]
            assert changed <= blocks
            if limit == INVALID_BLOCK_NUMBER:
                assert changed == blocks


@with_receivewal
def test_map_of_a_repository_is_exact_inside_of_summaries(recorded: Recorded) -> None:
    starts = record_starts(recorded)
    summaries = summary_ranges(contents(recorded.repo / "summaries"))
    assert len(summaries) >= 4
    inside = [next(lsn for lsn in starts if lsn > s.start + (s.end - s.start) // 2) for s in summaries[:4]]
    one_summary = (inside[0], max(lsn for lsn in starts if lsn < summaries[0].end))
    for start, end in [(inside[0], inside[3]), (inside[1], inside[2]), (summaries[1].start, inside[3]), one_summary]:
        bounds = ["--from", start, "--to", end]
        scanned = ["--wal", recorded.plain, *bounds]
        assert meaning("--repo", recorded.repo, *bounds) == meaning(*scanned) != {}
        assert map_lines("--repo", recorded.repo, "--derived", *bounds) == map_lines("--derived", *scanned)
    bounds = ["--from", one_summary[0], "--to", one_summary[1]]
    assert map_lines("--repo", recorded.repo, *bounds) == map_lines("--wal", recorded.plain, *bounds)
    exact = ["--from", summaries[1].start, "--to", summaries[1].end]
    assert map_lines("--repo", recorded.repo, *exact) == map_lines("--wal", recorded.plain, *exact)


@with_receivewal
def test_derived_blocks_are_those_of_visibility_maps(recorded: Recorded) -> None:
    bounds = ["--from", record_starts(recorded)[0], "--to", recorded.end]
    relation = query(recorded.server, "SELECT pg_relation_filenode('t')")
    lines = map_lines("--wal", recorded.plain, "--derived", *bounds)
    # From 19 on records name the map's blocks themselves.
    is_derived = recorded.server.installation.major < 19
    assert any(f"REL {relation}, FORK vm: block 0" in line for line in lines) == is_derived
    assert all("FORK vm: " in line for line in lines)


@with_receivewal
def test_map_of_files_merges_in_the_order_of_positions(recorded: Recorded) -> None:
    files = sorted((recorded.repo / "summaries").iterdir())
    whole = map_lines(*files)
    assert map_lines(*files[::-1]) == whole
    named = summary_ranges(path.name for path in files)
    bounds = ["--from", named[1].start, "--to", named[2].end]
    outcome = run_pgwal("map", *files, *map(str, bounds))
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines() == map_lines(*files[1:3])
    inside = ["--from", Lsn(named[1].start + 8), "--to", Lsn(named[2].end - 8)]
    outcome = run_pgwal("map", *files, *map(str, inside))
    assert outcome.code == 0
    assert outcome.stdout.splitlines() == map_lines(*files[1:3])
    assert outcome.stderr == "pgwal: warning: the summary files reach beyond the range; they are shown whole\n"


# ---- inspect


def inspected(path: Path, *args: str) -> list[Line]:
    return [parse_line(line) for line in succeed("inspect", path, *args).splitlines()]


@with_receivewal
def test_inspect_prints_what_pg_waldump_prints(recorded: Recorded) -> None:
    relation = query(
        recorded.server,
        "SELECT 1663 || '/' || oid || '/' || pg_relation_filenode('t') FROM pg_database"
        " WHERE datname = current_database()",
    )
    starts = record_starts(recorded)
    start, end = starts[len(starts) // 4], starts[-3]
    bounds = ["--from", str(start), "--to", str(end)]
    whole = waldump(recorded.server, start, end)
    assert inspected(recorded.plain, *bounds) == whole
    for ours, native in (
        (["--rmgr", "heap2"], ["--rmgr", "Heap2"]),
        (["--rmgr", "XLOG"], ["--rmgr", "XLOG"]),
        (["--relation", relation], ["--relation", relation]),
        (["--relation", relation, "--block", "3"], ["--relation", relation, "--block", "3"]),
        (["--fork", "vm", "--relation", relation], ["--fork", "vm", "--relation", relation]),
        (["--fork", "vm"], ["--fork", "vm"]),
        (["--relation", relation, "--rmgr", "Heap2"], ["--relation", relation, "--rmgr", "Heap2"]),
    ):
        expected = waldump(recorded.server, start, end, *native)
        assert 0 < len(expected) < len(whole)
        assert inspected(recorded.plain, *bounds, *ours) == expected


@with_receivewal
def test_inspect_one_segment(recorded: Recorded) -> None:
    segment = sorted(recorded.plain.iterdir())[1]
    compressed = recorded.compressed("gzip") / f"{segment.name}.gz"
    begin = SEGMENT.segment_start(SEGMENT.parse_file_name(segment.name)[1])
    expected = waldump(recorded.server, begin, begin + MB)
    assert inspected(segment) == expected
    assert inspected(compressed) == expected
    assert begin < expected[0][0] < expected[-1][0] < begin + MB
    (partial,) = recorded.plain.glob("*.partial")
    outcome = run_pgwal("inspect", partial)
    assert outcome.code == 0
    assert re.fullmatch(r"pgwal: WAL ends at [0-9A-F/]+: .*\n", outcome.stderr)
    assert parse_line(outcome.stdout.splitlines()[-1])[0] >= recorded.end - MB


@with_receivewal
def test_inspect_names_the_file_it_was_given(recorded: Recorded, tmp_path: Path) -> None:
    """A partial segment beside the whole one, as after a promotion, is read itself."""
    segment = sorted(recorded.plain.iterdir())[1]
    shutil.copy(segment, tmp_path)
    partial = tmp_path / f"{segment.name}.partial"
    partial.write_bytes(segment.read_bytes()[: MB // 2] + bytes(MB // 2))
    whole = inspected(tmp_path / segment.name)
    assert inspected(partial) == whole[: len(inspected(partial))]
    assert 0 < len(inspected(partial)) < len(whole)


STATS = re.compile(r"(?P<name>\S+(?: \(info \w+\))?) +(?P<numbers>(?:\d+ +\([ \d.]+\) *){4})$")


@with_receivewal
def test_inspect_sums_as_pg_waldump_does(recorded: Recorded) -> None:
    starts = record_starts(recorded)
    output = waldump_text(recorded.server, starts[0], starts[-1], "--stats=record")
    expected = {}
    for line in output:
        match = STATS.match(line.rstrip())
        if match is not None:
            numbers = [int(n) for n in re.findall(r"(\d+) +\(", match["numbers"])]
            expected[match["name"]] = numbers
    ours: list[str | Path] = ["inspect", recorded.plain, "--from", str(starts[0]), "--to", str(starts[-1]), "--stats"]
    document = json.loads(succeed(*ours, "--json"))["record_types"]
    assert {f"{entry['rmgr']}/{entry['record_type']}": entry["record_count"] for entry in document} == {
        name: n[0] for name, n in expected.items()
    }
    sizes = {
        f"{entry['rmgr']}/{entry['record_type']}": (entry["record_bytes"], entry["image_bytes"]) for entry in document
    }
    assert sizes == {name: (n[1], n[2]) for name, n in expected.items()}
    text = succeed(*ours).splitlines()
    assert text[-1].split()[:2] == ["Total", str(sum(n[0] for n in expected.values()))]
    assert len(text) == len(expected) + 2


@with_receivewal
def test_inspect_json_is_a_record_a_line(recorded: Recorded) -> None:
    starts = record_starts(recorded)
    bounds = ["--from", str(starts[10]), "--to", str(starts[500])]
    documents = [json.loads(line) for line in succeed("inspect", recorded.plain, *bounds, "--json").splitlines()]
    found = [
        (
            Lsn.parse(d["lsn"]),
            d["size_bytes"],
            [
                (b["tablespace_oid"], b["database_oid"], b["relation_number"], FORKS.index(b["fork"]), b["block_no"])
                for b in d["block_references"]
            ],
        )
        for d in documents
    ]
    assert found == inspected(recorded.plain, *bounds)
    assert len(found) == 490


# ---- timelines


@dataclass(frozen=True)
class Promoted:
    """A directory with two timelines, and where the first was left."""

    server: ThrowawayServer
    received: Path
    start: Lsn
    switch: Lsn
    end: Lsn


@pytest.fixture
def promoted(make_server: ServerFactory, scratch: Path) -> Promoted:
    settings: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "autovacuum": False}
    if make_server.installation.major >= 17:
        settings["summarize_wal"] = True
    primary = make_server(initdb_args=("-k", "--wal-segsize=1"), settings=settings)
    standby = make_standby(primary, make_server, scratch)
    start = insert_lsn(primary)
    run_sql(primary, "CREATE TABLE t (id int, filler text);\n" + WORK)
    wait_for_replay(standby, insert_lsn(primary))
    received = scratch / "received"
    received.mkdir()
    switched = SEGMENT.segment_no(insert_lsn(primary))
    for segment_no in range(SEGMENT.segment_no(start), switched):
        shutil.copy(primary.data_directory / "pg_wal" / SEGMENT.file_name(1, segment_no), received)
    primary.kill()
    standby.promote()
    run_sql(standby, WORK)
    end = insert_lsn(standby)
    run_sql(standby, "SELECT pg_logical_emit_message(false, 'test', 'the end');\nCHECKPOINT")
    give_to_server(received)
    receive(standby, received, end)
    history = (standby.data_directory / "pg_wal" / "00000002.history").read_text()
    return Promoted(standby, received, start, Lsn.parse(history.split()[1]), end)


def make_standby(primary: ThrowawayServer, make_server: ServerFactory, scratch: Path) -> ThrowawayServer:
    """Return a running standby of a cold copy of the primary, which is started again."""
    primary.stop()
    copy = scratch / f"standby-of-{primary.port}"
    shutil.copytree(primary.data_directory, copy, symlinks=True)
    primary.start()
    (copy / "standby.signal").touch()
    return make_server(adopt=copy, settings={"primary_conninfo": primary.conninfo, "hot_standby": True})


def wait_for_replay(standby: ThrowawayServer, lsn: Lsn) -> None:
    query_text = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn"
    for _ in range(1200):
        if query(standby, query_text) == "True":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError(standby.log_tail())


@with_receivewal
def test_timelines_are_never_mixed(promoted: Promoted, tmp_path: Path) -> None:
    assert (promoted.received / "00000002.history").exists()
    files = summarized(promoted.received, tmp_path / "summaries", "-j", "2")
    ranges = summary_ranges(files)
    place = SEGMENT.first_record_position
    first, second = ([r for r in ranges if r.timeline_id == number] for number in (1, 2))
    assert place(first[-1].end) == place(promoted.switch) == place(second[0].start)
    assert second[-1].end >= promoted.end
    own = summarized(promoted.server.data_directory / "pg_wal", tmp_path / "own")
    # In a pg_wal all is still there; pg_receivewal's directory begins later and ends elsewhere.
    assert set(list(files)[1:-1]) <= own.keys()
    assert {name: own[name] for name in list(files)[1:-1]} == {name: files[name] for name in list(files)[1:-1]}
    if promoted.server.installation.major >= 17:
        native = native_files(promoted.server)
        common = [name for name in list(files)[1:-1] if name in native]
        assert any(name.startswith("00000001") for name in common)
        for name in common:
            assert decode_summary(files[name], name) == decode_summary(native[name].read_bytes(), name)


@with_receivewal
def test_a_map_follows_the_history(promoted: Promoted, tmp_path: Path) -> None:
    wal, start, switch, end = promoted.received, promoted.start, promoted.switch, promoted.end
    before = meaning("--wal", wal, "--from", start, "--to", switch)
    assert before == meaning("--wal", wal, "--from", start, "--to", switch, "--timeline", "1")
    after = meaning("--wal", wal, "--from", switch, "--to", end, "--timeline", "2")
    across = meaning("--wal", wal, "--from", start, "--to", end)
    assert before != after
    assert across.keys() == before.keys() | after.keys()
    for key, (limit, blocks) in across.items():
        limits = {part[key][0] for part in (before, after) if key in part}
        # A limit beside a switch counts as 0.
        assert limit == (INVALID_BLOCK_NUMBER if limits == {INVALID_BLOCK_NUMBER} else 0)
        assert limit == 0 or blocks == set().union(*(part[key][1] for part in (before, after) if key in part))
    repo = tmp_path / "repo"
    stream_into(repo, promoted)
    inner = next(line[0] for line in inspected(wal, "--timeline", "1") if line[0] > start + 4096)
    for until in (switch, end, inner):
        bounds = ["--from", start, "--to", Lsn(until)]
        assert meaning("--repo", repo, *bounds) == meaning("--wal", wal, *bounds)


def stream_into(repo: Path, promoted: Promoted) -> None:
    """Make a repository that holds the recorded WAL, without summaries."""
    succeed("stream", "--repo", repo, "-d", promoted.server.conninfo, "--once")
    for directory in ("wal", "summaries"):
        shutil.rmtree(repo / directory)
        (repo / directory).mkdir()
    for path in promoted.received.iterdir():
        shutil.copy(path, repo / "wal")


@with_receivewal
def test_timelines_one_by_one(promoted: Promoted, tmp_path: Path) -> None:
    first = inspected(promoted.received, "--timeline", "1", "--to", str(promoted.switch))
    second = inspected(promoted.received, "--from", str(promoted.switch))
    assert first[-1][0] < promoted.switch <= second[0][0]
    assert "END_OF_RECOVERY" in succeed("inspect", promoted.received, "--rmgr", "XLOG")
    assert_failed(run_pgwal("inspect", promoted.received, "--timeline", "7"), FAILED, "holds no WAL of timeline 7")
    copy = tmp_path / "copy"
    shutil.copytree(promoted.received, copy)
    (copy / "00000002.history").unlink()
    cause = "00000002.* begins with WAL of timeline 1, and 00000002.history is not there"
    assert_failed(run_pgwal("summarize", copy, "-o", tmp_path / "out"), NOT_COVERED, cause, "Add 00000002.history")


# ---- what is wrong with a directory


def built_directory(tmp_path: Path, *, major: int = 17, segments: int = 4) -> Path:
    """Return a directory of built WAL: complete segments, each with a cut, and a partial one."""
    wal = tmp_path / "built"
    wal.mkdir()
    builder = WalBuilder(major, segment_size=MB, start_lsn=MB)
    while builder.end_lsn < (segments + 1) * MB:
        builder.append(
            RecordSpec(RM_HEAP, blocks=(BlockSpec(0, block_no=len(builder.records)),), main_data=bytes(5000))
        )
    content = builder.wal() + bytes(-len(builder.wal()) % MB)
    for number in range(segments + 1):
        name = SEGMENT.file_name(1, number + 1) + (".partial" if number == segments else "")
        (wal / name).write_bytes(content[number * MB : (number + 1) * MB])
    return wal


def commands(wal: Path, output: Path, *args: str) -> list[list[str | Path]]:
    """What reads all of a directory."""
    return [["summarize", wal, "-o", output, *args], ["inspect", wal]]


# Without PGWAL_SCAN, as where there was no compiler.
WITHOUT_COMPILER = """
from pgwal.scan_choice import choose_scan
choose_scan("interpreted")
from pgwal_cli.main import main
main()
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_long_scan_without_compiler_is_warned_of_once(tmp_path: Path, jobs: str) -> None:
    wal = tmp_path / "wal"
    wal.mkdir()
    segment = WalGeometry(32 * MB)
    builder = WalBuilder(18, segment_size=segment.segment_size, start_lsn=segment.segment_size)
    while builder.end_lsn < segment.segment_size + LONG_SCAN_BYTES + 8 * MB:
        builder.append(RecordSpec(RM_XLOG, NOOP, main_data=bytes(4 * MB)))
    (wal / segment.file_name(1, 1)).write_bytes(builder.wal_to_segment_end())
    command = ["summarize", wal, "-o", tmp_path / "out", "-j", jobs]
    for variables, count in (({}, 1), ({"PGWAL_SCAN": "interpreted"}, 0)):
        finished = subprocess.run(
            [sys.executable, "-P", "-c", WITHOUT_COMPILER, *command],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stderr.count("pgwal: warning: the WAL scanner is interpreted") == count
        assert len(finished.stderr.splitlines()) == count


def test_directories_that_are_none(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "00000002.history").write_text("1\t0/3000000\tno recovery target specified\n")
    (other / "000000010000000000000001.tmp").write_bytes(bytes(MB))
    (other / "notes").write_text("no WAL")
    for directory in (empty, other):
        for command in commands(directory, tmp_path / "out"):
            assert_failed(
                run_pgwal(*command), FAILED, f"{directory} holds no WAL segments", "directory with files such as"
            )
        outcome = run_pgwal("map", "--wal", directory, "--from", "0/0", "--to", "0/100")
        assert_failed(outcome, FAILED, f"{directory} holds no WAL segments")
    assert_failed(run_pgwal("summarize", tmp_path / "none", "-o", tmp_path / "out"), FAILED, "none does not exist")
    assert_failed(run_pgwal("inspect", other / "notes"), FAILED, "notes is no WAL segment")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suffix", "changed", "cause", "hint"),
    [
        ("", gzip.compress, "is compressed by gzip, which its name does not tell", r"Rename it to \w+01\.gz\."),
        ("", zstandard.compress, "is compressed by zstd, which its name does not tell", r"Rename it to \w+01\.zst\."),
        ("", lz4.frame.compress, "is compressed by lz4, which its name does not tell", r"Rename it to \w+01\.lz4\."),
        ("", lzma.compress, "is compressed by xz, which its name does not tell", "Decompress it"),
        (".xz", lzma.compress, r"is compressed in a form \(.xz\) that pgwal does not read", "Decompress it"),
    ],
    ids=["gzip", "zstd", "lz4", "xz", ".xz"],
)
def test_segments_that_are_compressed_in_a_way_that_is_not_known(
    tmp_path: Path, suffix: str, changed: Callable[[bytes], bytes], cause: str, hint: str
) -> None:
    whole = built_directory(tmp_path)
    wal = tmp_path / "wal"
    wal.mkdir()
    for path in whole.iterdir():
        (wal / f"{path.name}{suffix}").write_bytes(changed(path.read_bytes()))
    for command in commands(wal, tmp_path / "out"):
        assert_failed(run_pgwal(*command), FAILED, f"{SEGMENT.file_name(1, 1)}{suffix} {cause}", hint)
    # One among others.
    path = whole / SEGMENT.file_name(1, 4)
    path.with_name(path.name + suffix).write_bytes(changed(path.read_bytes()))
    if suffix:
        path.unlink()
    (whole / f"{SEGMENT.file_name(1, 5)}.partial").unlink()
    outcome = run_pgwal("summarize", whole, "-o", tmp_path / "out")
    assert outcome.code == 0
    assert re.search(rf"pgwal: warning: .*{path.name}{suffix} {cause}: it is left out", outcome.stderr)


def test_a_segment_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    wal = built_directory(tmp_path)
    path = wal / SEGMENT.file_name(1, 2)
    content = path.read_bytes()
    path.write_bytes(content[:-8192])
    outcome = run_pgwal("summarize", wal, "-o", tmp_path / "out")
    assert outcome.code == NOT_COVERED
    assert f"{path} has {MB - 8192} bytes, a segment has {MB}: it is left out" in outcome.stderr
    # Where another form is there too, both are named, once.
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    outcome = run_pgwal("summarize", wal, "-o", tmp_path / "out")
    assert_failed(outcome, FAILED, f"{path.name} and {path.name}.gz hold different WAL")
    assert "left out" not in outcome.stderr


def test_a_segment_that_is_missing_in_the_middle(tmp_path: Path) -> None:
    wal = built_directory(tmp_path)
    (wal / SEGMENT.file_name(1, 2)).unlink()
    cause = "segments are missing: 0/200000 to 0/300000 on timeline 1"
    assert_failed(run_pgwal("summarize", wal, "-o", tmp_path / "out"), NOT_COVERED, cause, "--from and --to")
    outcome = run_pgwal("inspect", wal)
    assert_failed(outcome, NOT_COVERED, cause)
    assert outcome.stdout.count("\n") > 100
    mapped = run_pgwal("map", "--wal", wal, "--from", "0/100000", "--to", "0/400000")
    # From the record on that is cut off by the gap.
    assert_failed(mapped, NOT_COVERED, r"does not hold WAL 0/1F\w+ to 0/400000 on timeline 1", "Name a range")
    # Where a record begins on the other side is said.
    outcome = run_pgwal("summarize", wal, "-o", tmp_path / "side", "--from", "0/300000")
    assert_failed(outcome, NOT_COVERED, "within a record that begins before 0/300000", r"Name 0/30\w+")
    found = re.search(r"Name (0/30\w+), ", outcome.stderr)
    assert found is not None
    on_one_side = summarized(wal, tmp_path / "side", "--from", found[1])
    assert len(on_one_side) == 1


INTERRUPTED = """
import sys, threading
from pathlib import Path
import pgwal.engine.recorded as recorded
from pgwal.repository import wal_directory
start = threading.Thread.start
def interrupted(thread):
    start(thread)
    raise KeyboardInterrupt
threading.Thread.start = interrupted
wal_directory.PART_BYTES = 8192
try:
    recorded.summarize_wal(Path(sys.argv[1]), Path(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interruption_ends_it_even_before_anything_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, built_directory(tmp_path), tmp_path / "out"]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout == b"interrupted\n"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_segment_that_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    class Unreadable(FileIO):
        def fileno(self) -> int:
            # Of what no disk can read.
            return directory

    directory = os.open(tmp_path, os.O_RDONLY)
    wal = built_directory(tmp_path)
    damaged = wal / SEGMENT.file_name(1, 2)
    opened = LocalStore.open_file

    def open_(store: LocalStore, name: str) -> FileIO:
        return Unreadable(store.path(name)) if name == damaged.name else opened(store, name)

    monkeypatch.setattr(LocalStore, "open_file", open_)
    try:
        with pytest.raises(FormatError, match=f"{damaged.name} cannot be read: .*{os.strerror(errno.EISDIR)}"):
            summarize_wal(wal, tmp_path / "out", jobs=jobs)
    finally:
        os.close(directory)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("major", [16, 17])
def test_a_segment_that_is_damaged_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, major: int
) -> None:
    wal = built_directory(tmp_path, major=major)
    segment = wal / SEGMENT.file_name(1, 2)
    content = bytearray(segment.read_bytes())
    content[MB // 2 + 4000] ^= 0x10
    segment.write_bytes(content)
    cause = r"timeline 1: WAL ends at 0/27\w+: the record's CRC does not match, but there are later segments"
    for command in commands(wal, tmp_path / "out", "-j", str(jobs)):
        assert_failed(run_pgwal(*command), FAILED, cause, "A segment is damaged")
    outcome = run_pgwal("map", "--wal", wal, "--from", "0/100000", "--to", "0/400000")
    assert_failed(outcome, NOT_COVERED, r"does not hold WAL 0/27\w+ to 0/400000 on timeline 1: WAL ends at 0/27")
    monkeypatch.setattr(pgwal.engine.recorded, "WAL_PIECE_BYTES", MB)
    with pytest.raises(Exception, match=cause):
        summarize_wal(wal, tmp_path / "parts", jobs=jobs)
    # Nothing that was written speaks of more than was read.
    for path in (tmp_path / "parts").iterdir():
        assert last_end({path.name: b""}) <= 0x280000


@pytest.mark.parametrize("size", [0, 9000, 300_000])
def test_a_record_that_is_cut_off_in_the_next_segment_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """pg_receivewal was stopped when it had begun a segment: the record that crosses into it is not whole."""
    wal = tmp_path / "wal"
    wal.mkdir()
    builder = WalBuilder(17, segment_size=MB, start_lsn=MB)
    builder.append(insertion(1, 500_000))
    crossing = builder.append(insertion(2, 1_000_000))
    builder.append(insertion(3))
    content = builder.wal()
    (wal / SEGMENT.file_name(1, 1)).write_bytes(content[:MB])
    (wal / f"{SEGMENT.file_name(1, 2)}.partial").write_bytes(content[MB : MB + size] + bytes(MB - size))
    for part_bytes in (64 * MB, MB):
        monkeypatch.setattr(pgwal.engine.recorded, "WAL_PIECE_BYTES", part_bytes)
        (written,) = summarize_wal(wal, tmp_path / str(part_bytes), jobs=2)
        assert written.range.end == crossing.lsn
        assert written.block_count == 1
    assert len(inspected(wal)) == 1


def test_ranges_that_are_not_covered(tmp_path: Path) -> None:
    wal = built_directory(tmp_path)
    inner = str(inspected(wal, "--from", "0/400000")[0][0])
    for start, end in (("0/0", "0/200000"), (inner, "0/900000"), ("0/800000", "0/900000")):
        outcome = run_pgwal("map", "--wal", wal, "--from", start, "--to", end)
        assert_failed(outcome, NOT_COVERED, f"does not hold WAL .*to {end} on timeline 1", "Name a range")
    assert_failed(
        run_pgwal("map", "--wal", wal, "--from", "0/0", "--to", "0/10", "--timeline", "3"), NOT_COVERED, "timeline 3"
    )
    outcome = run_pgwal("summarize", wal, "-o", tmp_path / "out", "--from", "0/800000")
    assert_failed(outcome, NOT_COVERED, "holds no WAL of that range", "Name a range")
    for outside in ("0/800000", "0/10"):
        cause = f"holds WAL 0/100000 to 0/600000 on timeline 1, not of {outside}"
        assert_failed(run_pgwal("inspect", wal, "--from", outside), NOT_COVERED, cause)
    assert_failed(
        run_pgwal("summarize", wal, "-o", tmp_path / "out", "--from", "0/3", "--to", "0/2"), USAGE, "lies after"
    )


def test_summary_files_that_are_none(tmp_path: Path) -> None:
    good = tmp_path / "out"
    (name,) = summarized(built_directory(tmp_path), good)
    content = (good / name).read_bytes()
    bad = tmp_path / "bad.summary"
    for damaged, cause in (
        (b"not a summary at all, but a file of a good length", "magic is 0x"),
        (content[:-1], "CRC"),
        (content[:20], "20 bytes are too few"),
        (b"", "0 bytes are too few"),
        (content[:9] + b"\xff" + content[10:], "CRC"),
    ):
        bad.write_bytes(damaged)
        assert_failed(run_pgwal("map", bad), FAILED, f"{bad}.*{cause}")
    assert_failed(run_pgwal("map", tmp_path / "absent.summary"), FAILED, "absent.summary: it does not exist")
    assert_failed(run_pgwal("map", good / name, "--derived"), USAGE, "hold no derived blocks")
    assert_failed(run_pgwal("map", good / name, "--wal", tmp_path), USAGE, "do not go together")
    assert_failed(run_pgwal("map", "--wal", tmp_path, "--from", "0/1"), USAGE, "--from and --to are needed")


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".lz4": lz4.frame.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_segment_that_is_truncated(tmp_path: Path, suffix: str) -> None:
    wal = built_directory(tmp_path)
    segment = wal / SEGMENT.file_name(1, 2)
    # What does not compress, so that a part of the file is a part of the segment.
    compressed = COMPRESSORS[suffix](segment.read_bytes())
    segment.unlink()
    damaged = segment.with_name(segment.name + suffix)
    damaged.write_bytes(compressed)
    assert len(summarized(wal, tmp_path / "whole")) == 1
    cause = f"{damaged.name} (cannot be decompressed|ends .* bytes before the end of a segment)"
    for kept in (len(compressed) // 2, 3, 0):
        damaged.write_bytes(compressed[:kept])
        for command in commands(wal, tmp_path / "out"):
            assert_failed(run_pgwal(*command), FAILED, cause)
        mapped = run_pgwal("map", "--wal", wal, "--from", "0/100000", "--to", "0/400000")
        assert_failed(mapped, FAILED, cause)
    flipped = bytearray(compressed)
    flipped[len(flipped) // 2] ^= 0xFF
    damaged.write_bytes(flipped)
    outcome = run_pgwal("summarize", wal, "-o", tmp_path / "out")
    # A format without a checksum hands over what it read: then the WAL's own speaks.
    assert_failed(outcome, FAILED, f"{cause}|WAL ends at 0/[12].*but there are later segments")


def test_wal_of_the_level_minimal(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.mkdir()
    builder = WalBuilder(17, segment_size=MB, start_lsn=MB)
    levels = [redo_point(1), insertion(1), redo_point(0), insertion(1), redo_point(1), insertion(1)]
    lsns = [builder.append(spec).lsn for spec in levels]
    (wal / SEGMENT.file_name(1, 1)).write_bytes(builder.wal_to_segment_end())
    files = summarized(wal, tmp_path / "out")
    # The hole says that the range is unusable.
    assert list(files) == [
        f"00000001{int(lsns[0]):016X}{int(lsns[2]):016X}.summary",
        f"00000001{int(lsns[4]):016X}{int(builder.end_lsn):016X}.summary",
    ]
    outcome = run_pgwal("map", "--wal", wal, "--from", str(lsns[0]), "--to", str(builder.end_lsn))
    assert_failed(outcome, NOT_COVERED, f"WAL from {lsns[2]} on timeline 1 was written with wal_level = minimal")
    assert map_lines("--wal", wal, "--from", lsns[4], "--to", builder.end_lsn)


def redo_point(wal_level: int) -> RecordSpec:
    return RecordSpec(
        RM_XLOG, layout.XLOG_CHECKPOINT_REDO, main_data=layout.CheckpointRedo.build({"wal_level": wal_level})
    )


# ---- memory


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Whatever is more than what is read at a time takes no more memory, though each MB fills a map of its own."""
    wal = tmp_path / "wal"
    wal.mkdir()
    bodies = [
        RecordSpec(
            RM_HEAP,
            blocks=tuple(BlockSpec(n, block_no=(number * 33 + n) * 9) for n in range(33)),
            main_data=bytes(3),
        ).encode_body(WalBuilder(17).wal_format)
        for number in range(3000)
    ]
    prev_lsn = 0
    peaks = []
    for segment_no in range(1, 385):
        builder = WalBuilder(17, segment_size=MB, start_lsn=segment_no * MB, prev_lsn=prev_lsn)
        builder.append(redo_point(1))
        for body in bodies:
            builder.append(RecordSpec(RM_HEAP, body=body))
        prev_lsn = builder.append_switch().lsn
        (wal / SEGMENT.file_name(1, segment_no)).write_bytes(builder.wal())
        if segment_no in (128, 384):
            output = tmp_path / f"out{segment_no}"
            peaks.append(peak_mb("summarize", wal, "-o", output))
            assert len(contents(output)) == segment_no
    small, large = peaks
    assert large < small + 10
    assert large < 150
