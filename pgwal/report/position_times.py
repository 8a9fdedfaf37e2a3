"""When the server was at an LSN, as far as what is known of some positions tells."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from pgwal.lsn import Lsn


class KnownTime(NamedTuple):
    """The server was at ``lsn`` at a Unix time: a backup started or ended there, or a transaction."""

    lsn: Lsn
    time_s: float


class PositionTimes:
    """Estimates times between known ones, as if WAL grew evenly there; they never go back as LSNs go on.

    Before the first known position it is the first known time, behind the last one the last.
    """

    def __init__(self, known: Iterable[KnownTime]) -> None:
        ordered = sorted(known)
        self._lsns = [each.lsn for each in ordered]
        # The server's clock may have been set back, and WAL of several timelines goes over the same positions.
        self._times = list(accumulate((each.time_s for each in ordered), max))

    def __bool__(self) -> bool:
        return bool(self._lsns)

    def at(self, lsn: Lsn) -> float | None:
        """Return a Unix time; None when nothing is known at all."""
        if not self._lsns:
            return None
        after = bisect_left(self._lsns, lsn)
        if after == len(self._lsns):
            return self._times[-1]
        if after == 0 or self._lsns[after] == lsn:
            return self._times[after]
        start, end = self._lsns[after - 1], self._lsns[after]
        first, last = self._times[after - 1], self._times[after]
        # Rounding must not lead beyond either end.
        return min(max(first + (last - first) * ((lsn - start) / (end - start)), first), last)

    def is_known(self, lsn: Lsn) -> bool:
        """Tell whether the time of a position is known, and not estimated."""
        return bisect_left(self._lsns, lsn) < bisect_right(self._lsns, lsn)
