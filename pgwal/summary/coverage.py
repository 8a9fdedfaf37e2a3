"""Do summaries cover a range of WAL without a hole, and which of them make it up?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pgwal.lsn import Lsn, LsnRange
from pgwal.segment import WalGeometry


class Piece(NamedTuple):
    """A part of a range, in LSN order: one summary that lies in it whole, or what no summary covers (a hole)."""

    range: LsnRange
    summarised: bool


def cover(wanted: LsnRange, summaries: Iterable[LsnRange], geometry: WalGeometry) -> list[Piece]:
    """Split ``wanted`` into summaries that lie in it whole and holes, in LSN order.

    A summary that reaches over either end of the range, or begins before an earlier one ends, is not used: the
    map of a range must be exact, and its records in order.  A hole that is nothing but a page header is none.
    """
    fitting = sorted(
        (
            s
            for s in summaries
            if s.timeline_id == wanted.timeline_id and wanted.start <= s.start < s.end <= wanted.end
        ),
        key=lambda s: (s.start, -s.end),
    )
    pieces: list[Piece] = []
    position = wanted.start
    for summary in fitting:
        if summary.start < position and not _same_place(summary.start, position, geometry):
            continue
        if not _same_place(position, summary.start, geometry):
            pieces.append(Piece(LsnRange(wanted.timeline_id, position, summary.start), summarised=False))
        if summary.end > position:
            pieces.append(Piece(summary, summarised=True))
            position = summary.end
    if position < wanted.end and not _same_place(position, wanted.end, geometry):
        pieces.append(Piece(LsnRange(wanted.timeline_id, position, wanted.end), summarised=False))
    return pieces


def holes(wanted: LsnRange, summaries: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Return the parts of a range that no summary covers."""
    return [piece.range for piece in cover(wanted, summaries, geometry) if not piece.summarised]


def _same_place(left: Lsn, right: Lsn, geometry: WalGeometry) -> bool:
    return geometry.first_record_position(left) == geometry.first_record_position(right)
