"""Timeline histories: which timeline's WAL holds a position that a cluster went through.

Source of the format: src/backend/access/transam/timeline.c, PostgreSQL 13 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pgwal.errors import FormatError, TimelineMismatch
from pgwal.lsn import Lsn, LsnRange


class TimelineSwitch(NamedTuple):
    """An ancestor timeline and the position at which the cluster left it."""

    timeline_id: int
    switch_lsn: Lsn


def history_file_name(timeline_id: int) -> str:
    """Return the name of the history file of a timeline (``00000002.history``)."""
    return f"{timeline_id:08X}.history"


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """A timeline and its ancestors, oldest first."""

    timeline_id: int
    switches: tuple[TimelineSwitch, ...] = ()

    @classmethod
    def decode(cls, timeline_id: int, content: bytes) -> TimelineHistory:
        """Parse a history file.

        Raises FormatError when a line is not one, or timelines do not ascend to below ``timeline_id``.
        """
        switches: list[TimelineSwitch] = []
        name = history_file_name(timeline_id)
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            fields = line.split(None, 2)
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) < 2 or not fields[0].isascii() or not fields[0].isdigit():
                raise FormatError(f"{name} line {number}: expected a timeline and a switch point")
            parent = int(fields[0])
            if not (switches[-1].timeline_id if switches else 0) < parent < timeline_id:
                raise FormatError(f"{name} line {number}: timeline {parent} is out of order")
            switches.append(TimelineSwitch(parent, Lsn.parse(fields[1])))
        return cls(timeline_id, tuple(switches))

    def timeline_at(self, lsn: int) -> int:
        """Return the timeline of this history on which the byte at ``lsn`` was written."""
        for timeline_id, switch_lsn in self.switches:
            if lsn < switch_lsn:
                return timeline_id
        return self.timeline_id

    def ranges_between(self, start: Lsn, end: Lsn) -> list[LsnRange]:
        """Split [start, end), wherever on this history, into one range for each timeline, oldest first."""
        parts: list[LsnRange] = []
        for timeline_id, switch_lsn in self.switches:
            if start < switch_lsn:
                parts.append(LsnRange(timeline_id, start, min(switch_lsn, end)))
                start = switch_lsn
            if end <= switch_lsn:
                return parts
        parts.append(LsnRange(self.timeline_id, start, end))
        return parts

    def ranges(self, start_timeline_id: int, start: Lsn, end: Lsn) -> list[LsnRange]:
        """Split [start, end) into one range for each timeline, oldest first.

        ``start`` must lie on ``start_timeline_id``, and ``end`` on this history's own timeline.
        Raises TimelineMismatch when the start is not on this history.
        """
        parts: list[LsnRange] = []
        position = start
        for timeline_id, switch_lsn in self.switches:
            if timeline_id < start_timeline_id:
                continue
            if timeline_id == start_timeline_id and not parts and start > switch_lsn:
                raise TimelineMismatch(
                    f"position {start} of timeline {timeline_id} is not in the history of timeline"
                    f" {self.timeline_id}, which left timeline {timeline_id} at {switch_lsn}",
                    hint="Take a full backup.",
                )
            parts.append(LsnRange(timeline_id, position, switch_lsn))
            position = switch_lsn
        parts.append(LsnRange(self.timeline_id, position, end))
        if parts[0].timeline_id != start_timeline_id:
            raise TimelineMismatch(
                f"timeline {start_timeline_id} is not in the history of timeline {self.timeline_id}",
                hint="Take a full backup.",
            )
        return parts
