"""Which points in time can be recovered from the backups of each chain, and which from none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pgwal.lsn import Lsn


class Reach(NamedTuple):
    """What one backup of a chain reaches: every point from ``start`` to ``end``, or ``start`` alone when they equal.

    ``is_long_term`` is one whose later WAL is left out on purpose.  ``is_left`` is one whose timeline the cluster has
    left before the backup ended: it leads to no point of today's history.  ``chain_id`` is the id of the chain's full
    backup.
    """

    chain_id: str
    backup_id: str
    start: Lsn
    end: Lsn
    is_long_term: bool = False
    is_left: bool = False


class Span(NamedTuple):
    start: Lsn
    end: Lsn


@dataclass(slots=True)
class ChainWindow:
    """A chain: its backups that can be used, in order, what can be recovered from them, and what behind that from none.

    ``holes`` lie between this chain's end and what the next backup reaches, or the end of all WAL.
    """

    chain_id: str
    backup_ids: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    holes: list[Span] = field(default_factory=list)


def recovery_windows(reaches: Iterable[Reach], newest_lsn: Lsn) -> list[ChainWindow]:
    """Return the windows of chains, by where they begin; ``newest_lsn`` is where the WAL of the newest timeline ends.

    The points behind the end of a chain up to the next backup are holes: unless a long-term backup is the last thing
    before them, for which WAL was let go on purpose.
    """
    ordered = sorted(reaches, key=lambda reach: (reach.start, reach.end, reach.backup_id))
    windows: dict[str, ChainWindow] = {}
    for reach in ordered:
        window = windows.setdefault(reach.chain_id, ChainWindow(reach.chain_id))
        window.backup_ids.append(reach.backup_id)
        _extend(window.spans, Span(reach.start, reach.end))
    for reach, hole in _holes([reach for reach in ordered if not reach.is_left], newest_lsn):
        windows[reach.chain_id].holes.append(hole)
    return list(windows.values())


def _extend(spans: list[Span], span: Span) -> None:
    if spans and span.start <= spans[-1].end:
        spans[-1] = Span(spans[-1].start, max(spans[-1].end, span.end))
    else:
        spans.append(span)


def _holes(ordered: Sequence[Reach], newest_lsn: Lsn) -> Iterable[tuple[Reach, Span]]:
    """Yield what no backup reaches, with what reaches up to it."""
    furthest: Reach | None = None
    for reach in ordered:
        if furthest is not None and reach.start > furthest.end and not furthest.is_long_term:
            yield furthest, Span(furthest.end, reach.start)
        # Of several that end alike it is behind the newest that nothing more comes.
        if furthest is None or (reach.end, not reach.is_long_term) >= (furthest.end, not furthest.is_long_term):
            furthest = reach
    if furthest is not None and newest_lsn > furthest.end and not furthest.is_long_term:
        yield furthest, Span(furthest.end, newest_lsn)
