"""Recorded WAL of every version, read in each way that pgwal has, equals what is written down beside it.

The fixtures, and what is expected of them, are made by fixtures/make_fixtures.py: the records by pg_waldump, the
summaries by the servers from 17 on and, for all versions, by a plain model.  The damaged ones say themselves what
reading them must give.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from typer.testing import CliRunner

from pgwal import errors
from pgwal.backup.entry_document import decode_entry
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.manifest_reader import read_manifest
from pgwal.engine import recorded
from pgwal.engine.inspect import RecordedWal, RecordFilter
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres_version import VERSIONS
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry, is_segment_name
from pgwal.summary.codec import decode_summary, encode_summary, parse_summary_file_name, summary_file_name
from pgwal.summary.summarizer import Summarizer
from pgwal.timeline import TimelineHistory
from pgwal.wal.decoder import NEED_DATA, WalDecoder, decode_main_data
from pgwal.wal.layout import LongPageHeader
from pgwal.wal.names import record_name, rmgr_name
from pgwal.wal.page_magic import WalFormat, wal_format_of_magic
from pgwal.wal.record import EndOfWal, EndReason, WalRecord
from pgwal.wal.scan import END_OF_WAL, SPECIAL, WalScanner
from pgwal.wal.scan import NEED_DATA as SCAN_NEEDS_DATA
from pgwal_cli.main import make_app

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
MAJORS = tuple(version.major for version in VERSIONS)
DAMAGED = sorted(path.name for path in (FIXTURES / "damaged").glob("*"))
# Construct reads some thousand records a second, so of each timeline it reads one in so many pages.
SAMPLED_PAGES = 8
# So that records and page headers lie across the pieces in all ways.
PIECE_BYTES = 5003


# ---- what the fixtures hold


@dataclass(frozen=True)
class RecordedTimeline:
    """The WAL of one timeline in a directory of fixtures: from ``start`` to ``stop``, or to the end of WAL."""

    directory: Path
    timeline_id: int
    geometry: WalGeometry
    wal_format: WalFormat
    start: Lsn
    stop: Lsn | None

    def expected(self, kind: str) -> Path:
        return self.directory / "expected" / f"{kind}.{self.timeline_id}.txt.zst"

    def lines(self, kind: str) -> list[str]:
        return decompressed(self.expected(kind)).decode().splitlines()

    def wal_from(self, lsn: int) -> bytes:
        """The WAL from the start of the page that holds ``lsn`` to the end of the last segment."""
        page = lsn - lsn % WAL_PAGE_SIZE
        return whole_wal(self.directory, self.timeline_id)[page - self._first_byte() :]

    def _first_byte(self) -> Lsn:
        return self.geometry.segment_start(self.geometry.segment_no(self.start))


def decompressed(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompress(path.read_bytes())


@cache
def whole_wal(directory: Path, timeline_id: int) -> bytes:
    return b"".join(map(decompressed, sorted(directory.glob(f"{timeline_id:08X}????????????????.zst"))))


def timelines(directory: Path) -> list[RecordedTimeline]:
    """Return the timelines in a directory: each starts where the one before was left."""
    history = TimelineHistory.decode(2, (directory / "00000002.history").read_bytes())
    (switch,) = history.switches
    first = min(path.name.removesuffix(".zst") for path in directory.glob("*.zst"))
    assert is_segment_name(first)
    header = LongPageHeader.parse(whole_wal(directory, 1))
    geometry, wal_format = WalGeometry(header.segment_size), wal_format_of_magic(header.magic, first)
    return [
        RecordedTimeline(directory, 1, geometry, wal_format, Lsn(header.page_lsn), switch.switch_lsn),
        RecordedTimeline(directory, 2, geometry, wal_format, switch.switch_lsn, None),
    ]


def listed(record: WalRecord) -> str:
    """Return a record as the lists of records show it."""
    blocks = (
        f"{block.block_id}:{'/'.join(map(str, block.locator))}/{block.fork.value}/{block.block_no}"
        + ("!" if block.has_image else "")
        for block in record.blocks
    )
    return " ".join([str(record.lsn), rmgr_name(record.rmid), str(record.total_length), str(record.xid), *blocks])


@dataclass(frozen=True)
class ListedRecord:
    """What a list says of a record: blocks as (tablespace, database, relation, fork, block)."""

    lsn: Lsn
    rmgr: str
    blocks: tuple[tuple[int, ...], ...]


def listed_records(timeline: RecordedTimeline) -> tuple[list[ListedRecord], EndOfWal]:
    *lines, end = timeline.lines("records")
    records = []
    for line in lines:
        lsn, rmgr, _, _, *blocks = line.split()
        numbers = (tuple(map(int, block.rstrip("!").split(":")[1].split("/"))) for block in blocks)
        records.append(ListedRecord(Lsn.parse(lsn), rmgr, tuple(numbers)))
    _, lsn, reason = end.split()
    return records, EndOfWal(Lsn.parse(lsn), EndReason[reason])


@pytest.fixture(params=MAJORS, ids=lambda major: f"pg{major}")
def directory(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / "wal" / f"pg{request.param}"


def summary_files(directory: Path) -> dict[LsnRange, bytes]:
    named = ((parse_summary_file_name(path.name), path) for path in directory.glob("*"))
    return {summary_range: path.read_bytes() for summary_range, path in named if summary_range is not None}


# ---- records


def test_the_scanner_finds_the_listed_records(directory: Path) -> None:
    for timeline in timelines(directory):
        expected, end = listed_records(timeline)
        scanner = WalScanner(timeline.geometry.segment_size, timeline.start)
        scanner.feed(timeline.wal_from(timeline.start))
        specials = []
        while (event := scanner.scan()) == SPECIAL:
            specials.append(Lsn(scanner.special_lsn))
        assert event == END_OF_WAL
        assert EndOfWal(Lsn(scanner.position), EndReason(scanner.end_reason or 0)) == end
        assert scanner.magic == timeline.wal_format.magic
        assert scanner.timeline_id == timeline.timeline_id
        assert scanner.record_count == len(expected)
        assert scanner.last_record_lsn == expected[-1].lsn
        assert scanner.block_reference_count == sum(len(record.blocks) for record in expected)
        found = {(*key, block_no) for key, block_nos in scanner.take_blocks() for block_no in block_nos}
        assert found == {block for record in expected for block in record.blocks}
        handed_over = {"XLOG", "Transaction", "Storage", "Database"}
        assert set(specials) <= {record.lsn for record in expected if record.rmgr in handed_over}
        assert set(specials) >= {record.lsn for record in expected if record.rmgr in ("Storage", "Database")}


def test_construct_reads_the_listed_records(directory: Path) -> None:
    for timeline in timelines(directory):
        *expected, end = timeline.lines("records")
        lsns = [Lsn.parse(line.split()[0]) for line in expected]
        last = Lsn.parse(end.split()[1])
        for start in range(timeline.start, last, SAMPLED_PAGES * WAL_PAGE_SIZE):
            stop = min(last, start + WAL_PAGE_SIZE)
            found = [listed(record) for record in records_between(timeline, start, stop)]
            assert found == [line for line, lsn in zip(expected, lsns, strict=True) if start <= lsn < stop]
        wal = timeline.wal_from(lsns[-1])
        *_, reason = decoded(wal, WalDecoder(timeline.geometry.segment_size, lsns[-1]))
        assert f"end {reason.lsn} {reason.reason.name}" == end  # type: ignore[union-attr]


def records_between(timeline: RecordedTimeline, start: int, stop: int) -> Iterator[WalRecord]:
    decoder = WalDecoder(timeline.geometry.segment_size, start)
    for item in decoded(timeline.wal_from(start), decoder):
        if not isinstance(item, WalRecord) or item.lsn >= stop:
            return
        yield item


def decoded(wal: bytes, decoder: WalDecoder) -> Iterator[WalRecord | EndOfWal]:
    """Yield the records, and the end of WAL where it comes."""
    # Page by page: the decoder takes from the front of what it was fed, which costs time by the length.
    for at in range(0, len(wal), WAL_PAGE_SIZE):
        decoder.feed(wal[at : at + WAL_PAGE_SIZE])
        while (item := decoder.next_record()) is not NEED_DATA:
            yield item  # type: ignore[misc]
            if isinstance(item, EndOfWal):
                return


def test_the_recordings_hold_every_kind_that_is_special(directory: Path) -> None:
    found, lengths = set[str](), []
    for timeline in timelines(directory):
        found |= special_kinds(timeline)
        lengths += [int(line.split()[2]) for line in timeline.lines("records")[:-1] if " LogicalMessage " in line]
    wal_format = timelines(directory)[0].wal_format
    databases = {"CREATE", "DROP"} if wal_format.major < 15 else {"CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"}
    assert found >= {f"Database {name}" for name in databases}
    assert found >= {f"Transaction {name} drops" for name in ("COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED")}
    assert found >= {"Storage CREATE", "Storage TRUNCATE 7"}
    checkpoints = {"CHECKPOINT_SHUTDOWN", "CHECKPOINT_ONLINE", "PARAMETER_CHANGE", "END_OF_RECOVERY"}
    assert found >= {f"XLOG {name}" for name in checkpoints}
    assert ("XLOG CHECKPOINT_REDO" in found) == wal_format.has_checkpoint_redo
    assert max(lengths) > 2 * timelines(directory)[0].geometry.segment_size


def special_kinds(timeline: RecordedTimeline) -> set[str]:
    """Return the kinds of the records that the scanner hands over."""
    found = set()
    scanner = WalScanner(timeline.geometry.segment_size, timeline.start)
    scanner.feed(timeline.wal_from(timeline.start))
    while scanner.scan() == SPECIAL:
        rmid, info = scanner.special_rmid, scanner.special_info
        kind = f"{rmgr_name(rmid)} {record_name(timeline.wal_format, rmid, info)}"
        payload = decode_main_data(timeline.wal_format, scanner.special_lsn, rmid, info, scanner.special_main)
        if kind == "Storage TRUNCATE":
            kind += f" {payload.flags}"
        found.add(f"{kind} drops" if payload.get("dropped") else kind)
    return found


# ---- summaries


def test_summaries_equal_the_expected_bytes(directory: Path) -> None:
    found: dict[LsnRange, bytes] = {}
    for timeline in timelines(directory):
        summarizer = Summarizer(
            timeline.timeline_id, timeline.wal_format, timeline.geometry, timeline.start, stop=timeline.stop
        )
        wal = timeline.wal_from(timeline.start)
        for at in range(0, len(wal), PIECE_BYTES):
            summarizer.feed(wal[at : at + PIECE_BYTES])
        summarizer.finish(summarizer.position)
        found.update(
            {summary.range: encode_summary(summary.block_map, summary.link) for summary in summarizer.take_finished()}
        )
    assert found == summary_files(directory / "summaries")


@pytest.mark.parametrize("jobs", [1, 2])
def test_summarize_wal_writes_the_expected_files(
    directory: Path, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a worker reads at a time is far more than these segments.
    monkeypatch.setattr(recorded, "WAL_PIECE_BYTES", 1)
    written = recorded.summarize_wal(directory, tmp_path, jobs=jobs)
    expected = summary_files(directory / "summaries")
    assert summary_files(tmp_path) == expected
    assert sorted(summary.range for summary in written) == sorted(expected)


@pytest.mark.parametrize("major", [17, 18, 19])
def test_summaries_equal_the_servers_own(major: int) -> None:
    directory = FIXTURES / "wal" / f"pg{major}"
    ours, native = (summary_files(directory / name) for name in ("summaries", "server_summaries"))
    assert len(native) > 10
    assert {summary_range.timeline_id for summary_range in native} == {1, 2}
    # The server had not summarised the last of each timeline yet when it was stopped.
    for timeline_id in (1, 2):
        ends = [summary_range.end for summary_range in native if summary_range.timeline_id == timeline_id]
        within = {r for r in ours if r.timeline_id == timeline_id and r.end <= max(ends)}
        assert within == {r for r in native if r.timeline_id == timeline_id}
    for summary_range, content in native.items():
        name = summary_file_name(summary_range)
        assert decode_summary(ours[summary_range], name) == decode_summary(content, "the server's"), name


def test_wal_level_minimal_leaves_a_hole(directory: Path) -> None:
    timeline = timelines(directory)[0]
    ranges = sorted(r for r in summary_files(directory / "summaries") if r.timeline_id == 1)
    holes = [(str(before.end), str(after.start)) for before, after in pairwise(ranges) if before.end != after.start]
    assert holes == [(start, stop) for kind, start, stop, _ in expected_maps(timeline) if kind == "minimal"]


# ---- maps


def test_pgwal_map_prints_the_expected_text(directory: Path) -> None:
    for timeline in timelines(directory):
        for kind, start, stop, expected in expected_maps(timeline):
            options = ["--timeline", str(timeline.timeline_id), "--from", start, "--to", stop]
            result = CliRunner().invoke(make_app(), ["map", "--wal", str(directory), *options])
            if kind == "minimal":
                assert isinstance(result.exception, errors.WalLevelMinimal)
            else:
                assert result.exception is None
                assert result.stdout.splitlines() == expected


def expected_maps(timeline: RecordedTimeline) -> list[tuple[str, str, str, list[str]]]:
    """Return (kind, start, stop, text) of the ranges that a timeline's maps are written down for.

    The kind is ``range``, or ``minimal`` for what was written with wal_level = minimal, which has no map.
    """
    found: list[tuple[str, str, str, list[str]]] = []
    for line in timeline.lines("maps"):
        if line.startswith("TS "):
            found[-1][3].append(line)
        else:
            kind, start, stop = line.split()
            found.append((kind, start, stop, []))
    assert [kind for kind, *_ in found].count("minimal") == (timeline.timeline_id == 1)
    return found


# ---- damage


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_gives_what_it_should(name: str) -> None:
    directory = FIXTURES / "damaged" / name
    expected = json.loads((directory / "expected.json").read_text())
    READERS[expected["kind"]](directory, expected)


def test_no_damage_is_forgotten() -> None:
    assert len(DAMAGED) >= 15


def read_damaged_wal(directory: Path, expected: dict[str, Any]) -> None:
    end = EndOfWal(Lsn.parse(expected["lsn"]), EndReason[expected["reason"]])
    (path,) = directory.glob("*.zst")
    wal = decompressed(path)
    start = LongPageHeader.parse(wal).page_lsn
    *records, found = decoded(wal, WalDecoder(len(wal), start))
    assert (len(records), found) == (expected["records"], end)
    scanner = WalScanner(len(wal), start)
    scanner.feed(wal)
    while (event := scanner.scan()) == SPECIAL:
        pass
    assert (event, Lsn(scanner.position), scanner.end_reason) == (END_OF_WAL, end.lsn, end.reason)
    assert scanner.record_count == expected["records"]


def read_cut_off_wal(directory: Path, expected: dict[str, Any]) -> None:
    (path,) = directory.glob("*.zst")
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    header = LongPageHeader.parse(content)
    scanner = WalScanner(header.segment_size, header.page_lsn)
    scanner.feed(content)
    while (event := scanner.scan()) == SPECIAL:
        pass
    assert (event, scanner.record_count) == (SCAN_NEEDS_DATA, expected["records"])
    must_fail(expected, lambda: list(RecordedWal(directory).records(RecordFilter())))


def read_file(parse: Callable[[bytes], object]) -> Callable[[Path, dict[str, Any]], None]:
    def read(directory: Path, expected: dict[str, Any]) -> None:
        content = (directory / expected["file"]).read_bytes()
        must_fail(expected, lambda: parse(content))

    return read


def must_fail(expected: dict[str, Any], read: Callable[[], object]) -> None:
    with pytest.raises(errors.FormatError) as caught:
        read()
    assert type(caught.value).__name__ == expected["error"]
    assert expected["message"] in str(caught.value)


READERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "wal": read_damaged_wal,
    "cut-off wal": read_cut_off_wal,
    "summary": read_file(lambda content: decode_summary(content, "the damaged one")),
    "incremental": read_file(lambda content: IncrementalHeader.decode(content, len(content))),
    "entry": read_file(lambda content: list(decode_entry(io.BytesIO(content))[1])),
    "manifest": read_file(read_manifest),
}
