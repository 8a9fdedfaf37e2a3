"""WAL that is missing behind a backup, with more of it archived behind: recovery would end there, read-write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pgwal.lsn import Lsn
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory

_END_OF_LSNS = Lsn((1 << 64) - 1)


class RecoveryGap(NamedTuple):
    """WAL of one timeline that is missing: recovery cannot get beyond ``start``, and WAL goes on at ``end``.

    ``first`` and ``last`` name the segments.  Of the first one something may be there, when it ``is_cut_off``.
    """

    timeline_id: int
    start: Lsn
    end: Lsn
    first: str
    last: str
    is_cut_off: bool

    def __str__(self) -> str:
        if self.is_cut_off:
            return f"WAL segment {self.first} is not whole, though WAL of {self.end} and later is in the repository"
        missing = f"segment {self.first} is" if self.first == self.last else f"segments {self.first} to {self.last} are"
        return f"WAL {missing} missing, though WAL of {self.end} and later is in the repository"

    @property
    def reached(self) -> str:
        """Where recovery ends."""
        return f"within segment {self.first}, behind {self.start}" if self.is_cut_off else f"at {self.start}"


def find_gap(
    segments: Iterable[WalSegmentFile], history: TimelineHistory, geometry: WalGeometry, start: Lsn
) -> RecoveryGap | None:
    """Return the first gap that recovery along ``history`` from ``start`` meets before the end of the archived WAL.

    WAL of a timeline behind the point at which the history left it does not count: nothing leads there.  The segment
    with such a point may be of either timeline up to there, but only that of the next one goes on.
    """
    is_complete = {(segment.timeline_id, segment.segment_no): segment.complete for segment in segments}
    parts = [part for part in history.ranges_between(start, _END_OF_LSNS) if part.start < part.end]
    on_history = {
        number
        for part in parts
        for timeline_id, number in is_complete
        if timeline_id == part.timeline_id
        and geometry.segment_no(part.start) <= number <= geometry.last_segment_no(part.end)
    }
    last_no = max(on_history, default=-1)
    for at, part in enumerate(parts):
        timeline_ids = [later.timeline_id for later in parts[at:]]
        # The last one of all may still be received: nothing is behind it.
        for number in range(geometry.segment_no(part.start), min(geometry.last_segment_no(part.end) + 1, last_no)):
            found = [is_complete[key] for key in ((each, number) for each in timeline_ids) if key in is_complete]
            if any(found):
                continue
            goes_on = min(other for other in on_history if other > number)
            last_timeline_id = history.timeline_at(geometry.segment_start(goes_on) - 1)
            return RecoveryGap(
                part.timeline_id,
                max(part.start, geometry.segment_start(number)),
                geometry.segment_start(goes_on),
                geometry.file_name(part.timeline_id, number),
                geometry.file_name(last_timeline_id, goes_on - 1),
                bool(found),
            )
    return None


def is_in_gap(
    segments: Iterable[WalSegmentFile],
    histories: Iterable[TimelineHistory],
    geometry: WalGeometry,
    timeline_id: int,
    segment_no: int,
) -> bool:
    """Tell whether a segment that is not whole is missed: its timeline holds it, and WAL behind it is in the archive.

    That WAL may be of the same timeline, or of one that went out from it behind the segment.  A server asks for more
    than it misses: it looks for each segment on all timelines of its history, so for some from before a timeline began,
    and for some from behind the point at which its history left one, where the next timeline has WAL.
    """
    newest: dict[int, int] = {}
    for segment in segments:
        newest[segment.timeline_id] = max(segment.segment_no, newest.get(segment.timeline_id, -1))
    left: list[Lsn] = []
    for history in histories:
        if history.timeline_id == timeline_id and history.recorded:
            if segment_no < geometry.segment_no(history.recorded[-1].switch_lsn):
                return False
        elif (end := history.end_of(timeline_id)) and newest.get(history.timeline_id, -1) >= geometry.segment_no(end):
            left.append(end)
    if any(segment_no < geometry.segment_no(end) for end in left):
        return True
    is_left_behind = bool(left) and segment_no > geometry.last_segment_no(max(left))
    return segment_no < newest.get(timeline_id, -1) and not is_left_behind
