"""What a receiver counts while it works, for whoever shows it; knows nothing of how it is shown."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from pgwal.lsn import Lsn

_NOWHERE = Lsn(0)


@dataclass(slots=True)
class LatencyHistogram:
    """How long something took: ``counts[i]`` is how often at most ``BOUNDS_S[i]``, the last one how often longer."""

    BOUNDS_S: ClassVar[tuple[float, ...]] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

    counts: list[int] = field(default_factory=lambda: [0] * (len(LatencyHistogram.BOUNDS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass(slots=True)
class ReceiverMetrics:
    """Where a receiver is and what it has done since it was made.

    The receiver's thread alone writes; others may read at any time, and find each value right by itself.
    ``level_at`` is the Unix time at which everything was here that the server had told of.  ``spooled_bytes`` is how
    much waits on this machine, None for a repository in a directory, where nothing does.
    """

    streaming: bool = False
    timeline_id: int = 0
    written_lsn: Lsn = _NOWHERE
    flushed_lsn: Lsn = _NOWHERE
    summarised_lsn: Lsn = _NOWHERE
    server_lsn: Lsn = _NOWHERE
    level_at: float | None = None
    bytes_received: int = 0
    segments_completed: int = 0
    segments_compressed: int = 0
    segments_uncompressed: int = 0
    spooled_bytes: int | None = None
    segments_uploaded: int = 0
    segments_waiting: int = 0
    store_is_away: bool = False
    spool_is_full: bool = False
    summaries_written: int = 0
    reconnects: int = 0
    errors: Counter[str] = field(
        default_factory=lambda: Counter({"stream": 0, "storage": 0, "summary": 0, "compression": 0})
    )
    sync: LatencyHistogram = field(default_factory=LatencyHistogram)
