"""The rule of timeline switches: a limit that is noted beside a switch counts as 0, so that the file goes whole.

docs/safety.md, "Truncation just before a timeline switch", says why.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgwal.lsn import LsnRange
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap


def is_beside_switch(part: LsnRange, window: Sequence[LsnRange], geometry: WalGeometry) -> bool:
    """Tell whether a part of a window begins or ends where the window goes from one timeline to the next.

    ``window`` has one range for each timeline, oldest first.  Its own two ends are no switches.
    """
    # Of positions that a page header parts, a history file names the one and a summary the other.
    place = geometry.first_record_position
    index = [wanted.timeline_id for wanted in window].index(part.timeline_id)
    follows = index > 0 and place(part.start) == place(window[index].start)
    precedes = index < len(window) - 1 and place(part.end) == place(window[index].end)
    return follows or precedes


def forget_limits_beside_switch(
    changes: BlockMap, part: LsnRange, window: Sequence[LsnRange], geometry: WalGeometry
) -> None:
    """Count the limits in ``changes``, which are those of ``part``, as 0 where the part lies beside a switch."""
    if is_beside_switch(part, window, geometry):
        changes.forget_limits()
