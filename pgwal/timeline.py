"""Timeline histories: which timeline's WAL holds a position that a cluster went through.

Source of the format: src/backend/access/transam/timeline.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from pgwal.errors import FormatError, TimelineMismatch
from pgwal.lsn import Lsn, LsnRange

# As the server's scanf reads it: white space, then a comment, or a timeline and a switch point with anything behind.
_HISTORY_LINE = re.compile(
    rb"[ \t\v\f\r]*(?:\Z|#"
    rb"|(?P<timeline>[0-9]{1,10})[ \t\v\f\r]+(?P<lsn>[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?![0-9A-Fa-f]))"
)


class TimelineSwitch(NamedTuple):
    """An ancestor timeline and the position at which the cluster left it."""

    timeline_id: int
    switch_lsn: Lsn


def history_file_name(timeline_id: int) -> str:
    """Return the name of the history file of a timeline (``00000002.history``)."""
    return f"{timeline_id:08X}.history"


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """A timeline and its ancestors, oldest first.

    ``recorded`` holds the switch points as the history file has them.  They may fall: a server that was recovered to
    before a failover notes its own switch point behind that of the failover.  WAL of an ancestor belongs to this
    history only up to the least of its own and all later switch points; ``switches`` has these.
    """

    timeline_id: int
    recorded: tuple[TimelineSwitch, ...] = ()
    switches: tuple[TimelineSwitch, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        ends = accumulate((switch.switch_lsn for switch in reversed(self.recorded)), min)
        switches = [switch._replace(switch_lsn=end) for switch, end in zip(reversed(self.recorded), ends, strict=True)]
        object.__setattr__(self, "switches", tuple(reversed(switches)))

    @classmethod
    def decode(cls, timeline_id: int, content: bytes) -> TimelineHistory:
        """Parse a history file; only a line feed ends a line, whatever else is in the text behind a switch point.

        Raises FormatError when a line is not one, or timelines do not ascend to below ``timeline_id``.
        """
        switches: list[TimelineSwitch] = []
        name = history_file_name(timeline_id)
        for number, line in enumerate(content.split(b"\n"), 1):
            match = _HISTORY_LINE.match(line)
            if match is None:
                raise FormatError(f"{name} line {number}: expected a timeline and a switch point")
            if match["timeline"] is None:
                continue
            parent = int(match["timeline"])
            if not (switches[-1].timeline_id if switches else 0) < parent < timeline_id:
                raise FormatError(f"{name} line {number}: timeline {parent} is out of order")
            switches.append(TimelineSwitch(parent, Lsn.parse(match["lsn"].decode())))
        return cls(timeline_id, tuple(switches))

    def part_up_to(self, timeline_id: int) -> TimelineHistory | None:
        """Return the history that an ancestor, or this timeline itself, must have; None for a timeline that is none."""
        if timeline_id == self.timeline_id:
            return self
        for index, switch in enumerate(self.recorded):
            if switch.timeline_id == timeline_id:
                return TimelineHistory(timeline_id, self.recorded[:index])
        return None

    def end_of(self, timeline_id: int) -> Lsn | None:
        """Return the position up to which WAL of a timeline belongs to this history, 0 for a timeline that is none.

        None for this history's own timeline: its end is not known.
        """
        if timeline_id == self.timeline_id:
            return None
        return next((lsn for number, lsn in self.switches if number == timeline_id), Lsn(0))

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
        position, begin = start, Lsn(0)
        for timeline_id, switch_lsn in self.switches:
            if timeline_id < start_timeline_id:
                begin = switch_lsn
                continue
            if parts and position == switch_lsn:
                # Left before it began, by a history whose switch points fall.
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
        if start < begin:
            raise TimelineMismatch(
                f"position {start} of timeline {start_timeline_id} is not in the history of timeline"
                f" {self.timeline_id}, which came to timeline {start_timeline_id} at {begin}",
                hint="Take a full backup.",
            )
        return parts
