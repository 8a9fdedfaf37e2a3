"""Summarise recorded WAL: a directory of segments, whoever received them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pgwal.errors import FormatError, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.local import LocalStore
from pgwal.repository.wal_directory import WalDirectory, open_wal_directory
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import decode_summary, encode_summary, parse_summary_file_name, summary_file_name
from pgwal.summary.summarizer import ChangeReader, Summarizer, Summary, join_pieces
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import EndOfWal

_PART_BYTES = 256 << 20
"""What one worker reads at a time; with it, and the number of workers, memory is bounded."""


@dataclass(frozen=True, slots=True)
class WrittenSummary:
    """A summary file that was written."""

    range: LsnRange
    name: str
    block_count: int


def summarize_wal(
    wal_path: Path,
    output_path: Path,
    *,
    start: Lsn | None = None,
    end: Lsn | None = None,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[WrittenSummary]:
    """Write summary files of all WAL in a directory, or of what starts in [start, end), and return what was written.

    Each timeline is summarised up to where the history files in the directory say that it was left.  ``jobs`` threads
    read it.  Raises ObjectNotFound when there is no WAL, WalGap when segments are missing in between, FormatError
    when WAL is damaged before its end.
    """
    directory, wal_format = open_wal_directory(LocalStore(wal_path))
    output = LocalStore(output_path)
    output.create_directory("")
    ranges = _ranges(directory, start, end)
    total, done = sum(r.end - r.start for r in ranges), 0
    written = []
    for wal_range in ranges:
        for summary in _summaries(directory, wal_format, wal_range, jobs):
            name = summary_file_name(summary.range)
            output.write(name, encode_summary(summary.block_map))
            written.append(WrittenSummary(summary.range, name, summary.block_map.block_count()))
        done += wal_range.end - wal_range.start
        if on_progress is not None:
            on_progress(done, total)
    return written


def read_recorded_changes(wal_path: Path, timeline_id: int | None, start: Lsn, end: Lsn) -> tuple[BlockMap, BlockMap]:
    """Return the exact map of [start, end) of recorded WAL, and the visibility-map blocks derived beside it.

    Raises ObjectNotFound when there is no WAL, WalGap when it does not cover the range.
    """
    directory, wal_format = open_wal_directory(LocalStore(wal_path))
    if timeline_id is None:
        timeline_id = directory.segments()[-1].timeline_id
    reader = ChangeReader(wal_format, directory.geometry, start, end)
    for data in directory.read(timeline_id, start):
        reader.feed(data)
        if reader.complete or reader.end_of_wal is not None:
            break
    if not reader.complete:
        missing = LsnRange(timeline_id, reader.position, end)
        why = f": {reader.end_of_wal}" if reader.end_of_wal is not None else ""
        raise WalGap(f"{wal_path} does not hold WAL {missing}{why}", hint="Name a range that the segments cover.")
    return reader.block_map, reader.derived


def read_summary_files(paths: list[Path], start: Lsn | None, end: Lsn | None) -> tuple[BlockMap, bool]:
    """Merge summary files, those that overlap [start, end), and tell whether they reach beyond it.

    They are merged in LSN order; files whose names tell no range keep their place before the others.  Raises
    ObjectNotFound or FormatError.
    """
    named = [(parse_summary_file_name(path.name), path) for path in paths]
    unnamed = [path for summary_range, path in named if summary_range is None]
    ranged = sorted((summary_range, path) for summary_range, path in named if summary_range is not None)
    overlapping = [
        (summary_range, path)
        for summary_range, path in ranged
        if (start is None or summary_range.end > start) and (end is None or summary_range.start < end)
    ]
    exceeds_range = any(
        (start is not None and summary_range.start < start) or (end is not None and summary_range.end > end)
        for summary_range, _ in overlapping
    )
    block_map = BlockMap()
    for path in [*unnamed, *(path for _, path in overlapping)]:
        content = LocalStore(path.parent).read(path.name)
        block_map.merge(decode_summary(content, str(path)))
    return block_map, exceeds_range


def _ranges(directory: WalDirectory, start: Lsn | None, end: Lsn | None) -> list[LsnRange]:
    """Return what to read of each timeline, oldest first; the end is that of the last segment if nothing is before."""
    numbers: dict[int, list[int]] = {}
    for segment in directory.segments():
        numbers.setdefault(segment.timeline_id, []).append(segment.segment_no)
    begins, lefts = _switches(directory)
    ranges = []
    for timeline_id, segment_nos in numbers.items():
        _require_contiguous(directory, timeline_id, segment_nos)
        first = directory.geometry.segment_start(segment_nos[0])
        last = directory.geometry.segment_start(segment_nos[-1] + 1)
        begin = max(first, begins.get(timeline_id, first), first if start is None else start)
        stop = min(last, lefts.get(timeline_id, last), last if end is None else end)
        if begin < stop:
            ranges.append(LsnRange(timeline_id, Lsn(begin), Lsn(stop)))
    return ranges


def _switches(directory: WalDirectory) -> tuple[dict[int, Lsn], dict[int, Lsn]]:
    """Return where each timeline begins and where it was left, as far as there are history files."""
    begins: dict[int, Lsn] = {}
    lefts: dict[int, Lsn] = {}
    for history in directory.histories():
        if history.switches:
            begins[history.timeline_id] = history.switches[-1].switch_lsn
            # A timeline may have been left several times; the last one to leave it went furthest.
            for timeline_id, switch_lsn in history.switches:
                lefts[timeline_id] = max(switch_lsn, lefts.get(timeline_id, switch_lsn))
    return begins, lefts


def _require_contiguous(directory: WalDirectory, timeline_id: int, segment_nos: list[int]) -> None:
    for before, after in pairwise(segment_nos):
        if after != before + 1:
            missing = LsnRange(
                timeline_id, directory.geometry.segment_start(before + 1), directory.geometry.segment_start(after)
            )
            raise WalGap(
                f"segments are missing: {missing}", hint="Add them, or name a range on one side with --from and --to."
            )


def _summaries(directory: WalDirectory, wal_format: WalFormat, whole: LsnRange, jobs: int) -> list[Summary]:
    """Return the summaries of a range of one timeline, in order; raises FormatError when WAL ends in between."""
    parts = _parts(directory, whole)
    results = []
    for part, (pieces, end) in zip(parts, _read_parts(directory, wal_format, parts, jobs), strict=True):
        if end is not None and directory.geometry.segment_no(end.lsn) < directory.geometry.last_segment_no(whole.end):
            raise FormatError(f"timeline {part.timeline_id}: {end}, but there are later segments")
        results.append(pieces)
    return join_pieces(results, cut_at_joints=not wal_format.has_checkpoint_redo)


def _parts(directory: WalDirectory, whole: LsnRange) -> list[LsnRange]:
    """Split a range at segment borders into what one worker reads at a time."""
    step = max(directory.geometry.segment_size, _PART_BYTES)
    borders = range((whole.start // step + 1) * step, whole.end, step)
    starts = [whole.start, *map(Lsn, borders)]
    return [LsnRange(whole.timeline_id, a, b) for a, b in zip(starts, [*starts[1:], whole.end], strict=True)]


def _read_parts(
    directory: WalDirectory, wal_format: WalFormat, parts: list[LsnRange], jobs: int
) -> Iterator[tuple[list[Summary], EndOfWal | None]]:
    """Read parts with several threads, and yield what they gave in order."""
    pending: deque[Future[tuple[list[Summary], EndOfWal | None]]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        for number, part in enumerate(parts):
            pending.append(pool.submit(_read_part, directory, wal_format, part, continues=number > 0))
            if len(pending) > jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _read_part(
    directory: WalDirectory, wal_format: WalFormat, part: LsnRange, *, continues: bool
) -> tuple[list[Summary], EndOfWal | None]:
    """Return the pieces of the records that start in a part, and why they ended before it did."""
    summarizer = Summarizer(
        part.timeline_id, wal_format, directory.geometry, part.start, stop=part.end, continues=continues
    )
    for data in directory.read(part.timeline_id, part.start):
        summarizer.feed(data)
        if summarizer.complete or summarizer.end_of_wal is not None:
            break
    summarizer.finish(part.end if summarizer.complete else summarizer.position)
    return summarizer.take_pieces(), summarizer.end_of_wal
