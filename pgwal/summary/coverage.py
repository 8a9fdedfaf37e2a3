"""Do summaries cover a range of WAL without a hole, and which of them make it up?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pgwal.lsn import LsnRange
from pgwal.segment import WalGeometry


class Piece(NamedTuple):
    """A part of a range, in LSN order: one summary that lies in it whole, or what no summary covers (a hole)."""

    range: LsnRange
    summarised: bool


def cover(wanted: LsnRange, summaries: Iterable[LsnRange], geometry: WalGeometry) -> list[Piece]:
    """Split ``wanted`` into summaries that lie in it whole and holes, in LSN order.

    A summary that reaches over either end of the range, or begins before an earlier one ends, is not used: the
    map of a range must be exact, and its records in order.  Positions with nothing but a page header between them
    are the same place: they make neither a hole nor a summary reach over an end.
    """
    place = geometry.first_record_position
    fitting = sorted(
        (
            s
            for s in summaries
            if s.timeline_id == wanted.timeline_id
            and place(wanted.start) <= place(s.start) < place(s.end) <= place(wanted.end)
        ),
        key=lambda s: (place(s.start), -place(s.end)),
    )
    pieces: list[Piece] = []
    position = wanted.start
    for summary in fitting:
        if place(summary.start) < place(position):
            continue
        if place(position) < place(summary.start):
            pieces.append(Piece(LsnRange(wanted.timeline_id, position, summary.start), summarised=False))
        pieces.append(Piece(summary, summarised=True))
        position = summary.end
    if place(position) < place(wanted.end):
        pieces.append(Piece(LsnRange(wanted.timeline_id, position, wanted.end), summarised=False))
    return pieces


def holes(wanted: LsnRange, summaries: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Return the parts of a range that no summary covers."""
    return [piece.range for piece in cover(wanted, summaries, geometry) if not piece.summarised]
