"""Ranges of recorded WAL: what a directory of segments holds of each timeline, and where it must go on or may end."""

from __future__ import annotations

from itertools import pairwise

from pgwal.engine.record_chain import broken_chain, next_record_position
from pgwal.errors import FormatError, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.wal_directory import WalDirectory, WalSegmentFile
from pgwal.timeline import history_file_name
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import EndOfWal


def recorded_ranges(directory: WalDirectory, start: Lsn | None, end: Lsn | None) -> list[LsnRange]:
    """Return what to read of each timeline, oldest first; the end is that of the last segment if nothing is before."""
    geometry = directory.geometry
    segments: dict[int, list[WalSegmentFile]] = {}
    for segment in directory.written_segments():
        before = start is not None and geometry.segment_start(segment.segment_no + 1) <= start
        behind = end is not None and geometry.segment_start(segment.segment_no) >= end
        if not before and not behind:
            segments.setdefault(segment.timeline_id, []).append(segment)
    begins, lefts = timeline_switches(directory)
    ranges = []
    for timeline_id, own in segments.items():
        require_contiguous(directory, own)
        if timeline_id not in begins:
            _require_own_wal(directory, own[0])
        first, last = geometry.segment_start(own[0].segment_no), geometry.segment_start(own[-1].segment_no + 1)
        begin = max(first, begins.get(timeline_id, first), first if start is None else start)
        stop = min(last, lefts.get(timeline_id, last), last if end is None else end)
        if begin < stop:
            ranges.append(LsnRange(timeline_id, begin, stop))
    return ranges


def begun_at_record(
    directory: WalDirectory, wal_format: WalFormat, wal_range: LsnRange, start: Lsn | None, end: Lsn | None
) -> LsnRange:
    """Return a range from where its first record can start; raises TimelineMismatch if an end named is in a record."""
    timeline_id = wal_range.timeline_id
    if wal_range.start == start:
        wal_range = wal_range._replace(start=next_record_position(directory, wal_format, timeline_id, start))
    if wal_range.end == end:
        next_record_position(directory, wal_format, timeline_id, end)
    return wal_range


def timeline_switches(directory: WalDirectory) -> tuple[dict[int, Lsn], dict[int, Lsn]]:
    """Return where each timeline begins and where it was left, as far as there are history files."""
    begins: dict[int, Lsn] = {}
    lefts: dict[int, Lsn] = {}
    for history in directory.histories():
        followers = [*(s.timeline_id for s in history.switches[1:]), history.timeline_id]
        for (timeline_id, switch_lsn), follower in zip(history.switches, followers, strict=True):
            begins[follower] = switch_lsn
            # A timeline may have been left several times; the last one to leave it went furthest.
            lefts[timeline_id] = max(switch_lsn, lefts.get(timeline_id, switch_lsn))
    return begins, lefts


def require_contiguous(directory: WalDirectory, segments: list[WalSegmentFile]) -> None:
    """Raise WalGap, which names what is missing, unless segments of one timeline follow each other."""
    for before, after in pairwise(segments):
        if after.segment_no != before.segment_no + 1:
            missing = LsnRange(
                before.timeline_id,
                directory.geometry.segment_start(before.segment_no + 1),
                directory.geometry.segment_start(after.segment_no),
            )
            raise WalGap(
                f"segments are missing: {missing}", hint="Add them, or name a range on one side with --from and --to."
            )


def _require_own_wal(directory: WalDirectory, segment: WalSegmentFile) -> None:
    """Refuse a timeline whose WAL begins with that of an older one, when nothing tells up to where."""
    named = directory.first_page_timeline(segment)
    if named is not None and named != segment.timeline_id:
        name = history_file_name(segment.timeline_id)
        raise WalGap(
            f"{segment.name} begins with WAL of timeline {named}, and {name} is not there to tell where that ends",
            hint=f"Add {name}; pg_receivewal and archives keep it beside the segments.",
        )


def require_last_segment(
    directory: WalDirectory, wal_format: WalFormat, timeline_id: int, end_of_wal: EndOfWal, fed_lsn: int
) -> None:
    """Raise FormatError for WAL that ends before its last segment; ``fed_lsn`` is up to where it was read.

    A record may well begin in one segment and be cut off in the next.  Raises TimelineMismatch where WAL of another
    history goes on.
    """
    last = max(s.segment_no for s in directory.written_segments() if s.timeline_id == timeline_id)
    if directory.geometry.last_segment_no(fed_lsn) < last:
        broken = broken_chain(directory, wal_format, timeline_id, end_of_wal)
        raise broken or FormatError(
            f"timeline {timeline_id}: {end_of_wal}, but there are later segments",
            hint="A segment is damaged: replace it, if another archive holds a whole copy.",
        )
