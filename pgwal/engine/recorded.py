"""Summarise recorded WAL: a directory of segments, whoever received them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pgwal.budget import WAL_PIECE_BYTES
from pgwal.engine.ordered_map import ordered_map
from pgwal.engine.read_ahead import read_ahead
from pgwal.engine.record_chain import Chain, broken_chain, read_range
from pgwal.engine.recorded_ranges import begun_at_record, recorded_ranges, require_last_segment
from pgwal.errors import ObjectNotFound, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.local import LocalStore
from pgwal.repository.local_errors import translated_errors
from pgwal.repository.local_file import read_bounded
from pgwal.repository.recorded_directory import open_wal_directory, unusable_segments
from pgwal.repository.wal_directory import WalDirectory
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import (
    MAX_READ_SUMMARY_BYTES,
    decode_summary,
    encode_summary,
    parse_summary_file_name,
    summary_file_name,
)
from pgwal.summary.link import Link
from pgwal.summary.summarizer import ChangeReader, Summarizer, Summary, join_pieces
from pgwal.summary.timeline_switch import forget_limits_beside_switch
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import EndOfWal, EndReason

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenSummary:
    """A summary file that was written."""

    range: LsnRange
    name: str
    block_count: int


def open_recorded_wal(path: Path) -> tuple[WalDirectory, WalFormat]:
    """Open a directory of segments, or one segment; raises ObjectNotFound, which names it, when there is no WAL."""
    if not path.exists():
        raise ObjectNotFound(f"{path} does not exist")
    only = None if path.is_dir() else path.name
    try:
        return open_wal_directory(LocalStore(path.parent if only else path, follow_links=True), only=only)
    except ObjectNotFound as error:
        kind = "is no WAL segment" if only else "holds no WAL segments"
        raise ObjectNotFound(f"{path} {kind}", hint=error.hint) from error


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
    read it.  Raises ObjectNotFound when there is no WAL, WalGap when segments are missing in between or there is none
    of the range, TimelineMismatch when that does not begin and end where records do, FormatError when WAL is damaged
    before its end; summaries of WAL before that place stay.  Files that are called segments and are none are logged.
    """
    directory, wal_format = open_recorded_wal(wal_path)
    if wal_path.is_dir():
        for name, cause in unusable_segments(LocalStore(wal_path, follow_links=True), directory):
            logger.warning("%s %s: it is left out", wal_path / name, cause)
    ranges = [begun_at_record(directory, wal_format, r, start, end) for r in recorded_ranges(directory, start, end)]
    if not ranges:
        raise WalGap(f"{wal_path} holds no WAL of that range", hint="Name a range that the segments cover.")
    output = LocalStore(output_path)
    output.create_directory("")
    total, done = sum(r.end - r.start for r in ranges), 0
    written = []
    for wal_range in ranges:
        for summary in _summaries(directory, wal_format, wal_range, jobs):
            name = summary_file_name(summary.range)
            output.put(name, encode_summary(summary.block_map, summary.link, name), replace=True)
            written.append(WrittenSummary(summary.range, name, summary.block_map.block_count()))
            if on_progress is not None:
                on_progress(done + summary.range.end - wal_range.start, total)
        done += wal_range.end - wal_range.start
        if on_progress is not None:
            on_progress(done, total)
    return written


def read_recorded_changes(wal_path: Path, timeline_id: int | None, start: Lsn, end: Lsn) -> tuple[BlockMap, BlockMap]:
    """Return the exact map of [start, end) of recorded WAL, and the visibility-map blocks derived beside it.

    A range that lies on several timelines is read along the history of ``timeline_id``, the newest by default.
    Raises ObjectNotFound when there is no WAL, WalGap when it does not cover the range, TimelineMismatch when it is of
    two histories, or the range does not begin and end where records do, WalLevelMinimal when it was written with
    wal_level = minimal.
    """
    directory, wal_format = open_recorded_wal(wal_path)
    if timeline_id is None:
        timeline_id = directory.segments()[-1].timeline_id
    block_map, derived, chain = BlockMap(), BlockMap(), Chain()
    ranges = _history(directory, timeline_id).ranges_between(start, end)
    for wanted in ranges:
        reader = _read_changes(directory, wal_format, wanted)
        chain.go_on(wanted, reader.link, summarised=False)
        forget_limits_beside_switch(reader.block_map, wanted, ranges, directory.geometry)
        block_map.merge(reader.block_map)
        derived.merge(reader.derived)
    return block_map, derived


def _history(directory: WalDirectory, timeline_id: int) -> TimelineHistory:
    try:
        return directory.history(timeline_id)
    except ObjectNotFound:
        return TimelineHistory(timeline_id)


def _read_changes(directory: WalDirectory, wal_format: WalFormat, wanted: LsnRange) -> ChangeReader:
    """Read a range of one timeline."""
    reader = read_range(directory, wal_format, wanted)
    if not reader.complete:
        end_of_wal = reader.end_of_wal
        if end_of_wal is not None:
            broken = broken_chain(directory, wal_format, wanted.timeline_id, end_of_wal)
            if broken is not None:
                raise broken
        missing = wanted._replace(start=max(wanted.start, reader.position))
        why = f": {end_of_wal}" if end_of_wal is not None else ""
        raise WalGap(f"the directory does not hold WAL {missing}{why}", hint="Name a range that the segments cover.")
    return reader


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
        # It may be a pipe, as of <(...): whoever names it wants it read.
        with translated_errors("read", path), path.open("rb", buffering=0) as file:
            content = read_bounded(file, str(path), MAX_READ_SUMMARY_BYTES)
        block_map.merge(decode_summary(content, str(path)))
    return block_map, exceeds_range


def _summaries(directory: WalDirectory, wal_format: WalFormat, whole: LsnRange, jobs: int) -> Iterator[Summary]:
    """Yield the summaries of a range of one timeline, in order; raises FormatError when WAL ends in between."""
    if jobs == 1:
        return _in_one_pass(directory, wal_format, whole)
    pieces = _pieces(directory, wal_format, whole, jobs)
    return join_pieces(pieces, cut_at_joints=not wal_format.has_checkpoint_redo)


def _in_one_pass(directory: WalDirectory, wal_format: WalFormat, whole: LsnRange) -> Iterator[Summary]:
    """Yield the summaries of a range, reading the next WAL while the caller looks at what came before."""
    summarizer = Summarizer(whole.timeline_id, wal_format, directory.geometry, whole.start, stop=whole.end)
    with closing(read_ahead(directory.parts(whole.timeline_id, whole.start))) as parts:
        for part, data in parts:
            summarizer.feed(data)
            yield from summarizer.take_finished()
            if summarizer.complete or summarizer.end_of_wal is not None:
                break
            directory.require_read(part)
    if summarizer.end_of_wal is not None:
        require_last_segment(directory, wal_format, whole.timeline_id, summarizer.end_of_wal, summarizer.feed_lsn)
    summarizer.finish(whole.end if summarizer.complete else summarizer.position)
    yield from summarizer.take_finished()


def _pieces(directory: WalDirectory, wal_format: WalFormat, whole: LsnRange, jobs: int) -> Iterator[list[Summary]]:
    """Yield the pieces of each part of a range, up to where WAL ends."""
    last_lsn = Lsn(0)
    for part in _read_parts(directory, wal_format, _parts(directory, whole), jobs):
        if not part.link.follows(last_lsn):
            # One pass would have found no record there.
            unlinked = EndOfWal(part.first_record_lsn, EndReason.RECORD_PREV_LINK)
            require_last_segment(directory, wal_format, whole.timeline_id, unlinked, part.first_record_lsn + 1)
            return
        last_lsn = part.link.last_lsn or last_lsn
        if part.end_of_wal is not None:
            require_last_segment(directory, wal_format, whole.timeline_id, part.end_of_wal, part.fed_lsn)
        yield part.pieces
        if not part.complete:
            # What begins in later parts comes after a record that is not whole.
            return


def _parts(directory: WalDirectory, whole: LsnRange) -> list[LsnRange]:
    """Split a range at segment borders into what one of several workers reads at a time."""
    step = max(directory.geometry.segment_size, WAL_PIECE_BYTES)
    borders = range((whole.start // step + 1) * step, whole.end, step)
    starts = [whole.start, *map(Lsn, borders)]
    return [LsnRange(whole.timeline_id, a, b) for a, b in zip(starts, [*starts[1:], whole.end], strict=True)]


class _PartResult(NamedTuple):
    """What reading a part gave; ``complete`` when the pieces reach its end, ``fed_lsn`` is up to where it was read."""

    pieces: list[Summary]
    link: Link
    first_record_lsn: Lsn
    complete: bool
    end_of_wal: EndOfWal | None
    fed_lsn: Lsn


def _read_parts(
    directory: WalDirectory, wal_format: WalFormat, parts: list[LsnRange], jobs: int
) -> Iterator[_PartResult]:
    """Read parts with several threads, and yield what they gave in order."""

    def read(numbered: tuple[int, LsnRange]) -> _PartResult:
        number, part = numbered
        return _read_part(directory, wal_format, part, continues=number > 0, is_last=number == len(parts) - 1)

    with ThreadPoolExecutor(jobs) as pool, closing(ordered_map(pool, read, enumerate(parts), ahead=jobs)) as results:
        yield from results


def _read_part(
    directory: WalDirectory, wal_format: WalFormat, part: LsnRange, *, continues: bool, is_last: bool
) -> _PartResult:
    """Read the records that start in a part."""
    summarizer = Summarizer(
        part.timeline_id,
        wal_format,
        directory.geometry,
        part.start,
        stop=part.end,
        # Before 17 the joints are cuts.
        continues=continues and wal_format.has_checkpoint_redo,
    )
    for data in directory.parts(part.timeline_id, part.start):
        summarizer.feed(data)
        if summarizer.complete or summarizer.end_of_wal is not None:
            break
        directory.require_read(data)
    # At a joint as one pass would: behind the last record before it.
    summarizer.finish(part.end if summarizer.complete and is_last else summarizer.position)
    return _PartResult(
        summarizer.take_pieces(),
        summarizer.link,
        summarizer.first_record_lsn,
        summarizer.complete,
        summarizer.end_of_wal,
        summarizer.feed_lsn,
    )
