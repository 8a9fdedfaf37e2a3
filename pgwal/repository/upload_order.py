"""In which order what waits in a spool is stored: that of the WAL, one thing after the other.

So the store never has a hole that a crash has made, whenever that comes: a receiver elsewhere goes on where the stored
WAL ends.  A summary follows the WAL that it speaks of.  Histories come first, for they say which WAL belongs together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pgwal.lsn import Lsn
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import WalGeometry, is_history_name, is_segment_name
from pgwal.summary.codec import parse_summary_file_name

_HISTORY, _SEGMENT, _SUMMARY = range(3)


class Upload(NamedTuple):
    """What is to be stored next: a file of the spool by its path; of a segment that is not whole, up to ``end``."""

    name: str
    end: Lsn | None = None


class _Waiting(NamedTuple):
    """A file with its place in the order: histories by timeline, then WAL, each summary behind the WAL of its range."""

    is_no_history: bool
    timeline_id: int
    segment_no: int
    kind: int
    end: Lsn
    name: str


def next_upload(
    names: Iterable[str],
    geometry: WalGeometry,
    *,
    proven: tuple[int, Lsn],
    streamed_timeline_id: int,
    growing: tuple[int, int] | None,
    ends: Mapping[tuple[int, int], Lsn],
    stored: Mapping[tuple[int, int], Lsn],
    is_due: bool,
) -> Upload | None:
    """Return what to store next of the files in a spool, None when nothing is to be stored now.

    ``names`` are paths of the spool.  Only what lies before ``proven``, a timeline and a position, is known to be the
    server's.  ``growing`` is the segment that is being received, by timeline and number, which is stored when
    ``is_due``; others of the timeline that is streamed are going to be, those of earlier ones are left as they are.
    ``ends`` is up to where segments that are not whole count, ``stored`` up to where those are stored.
    """
    open_segments = set[tuple[int, int]]()
    for waiting in sorted(_placed(names, geometry)):
        key = waiting.timeline_id, waiting.segment_no
        if waiting.kind == _HISTORY:
            if waiting.timeline_id <= proven[0]:
                return Upload(waiting.name)
            continue
        if (waiting.timeline_id, waiting.end) > proven:
            return None
        if waiting.kind == _SUMMARY:
            # All before it is stored; its own segment is whole there, or as far as that was stored last.
            if key not in open_segments or waiting.end <= stored.get(key, Lsn(0)):
                return Upload(waiting.name)
            continue
        if is_segment_name(waiting.name.rpartition("/")[2]):
            return Upload(waiting.name)
        open_segments.add(key)
        start = geometry.segment_start(waiting.segment_no)
        end = ends.get(key, start)
        if waiting.timeline_id == proven[0]:
            end = min(end, proven[1])
        is_left = waiting.timeline_id < min(streamed_timeline_id, proven[0])
        if is_left or (key == growing and is_due and end > stored.get(key, start)):
            return Upload(waiting.name, end)
    return None


def _placed(names: Iterable[str], geometry: WalGeometry) -> Iterable[_Waiting]:
    for path in names:
        folder, _, name = path.partition("/")
        if folder == SUMMARY_DIRECTORY:
            part = parse_summary_file_name(name)
            if part is not None:
                yield _Waiting(True, part.timeline_id, geometry.last_segment_no(part.end), _SUMMARY, part.end, path)
        elif folder == WAL_DIRECTORY and is_history_name(name):
            yield _Waiting(False, int(name[:8], 16), 0, _HISTORY, Lsn(0), path)
        elif folder == WAL_DIRECTORY and is_segment_name(split_segment_name(name)[0]):
            timeline_id, segment_no = geometry.parse_file_name(split_segment_name(name)[0])
            # Of one that is not whole as much counts as is proven.
            end = geometry.segment_start(segment_no + is_segment_name(name))
            yield _Waiting(True, timeline_id, segment_no, _SEGMENT, end, path)
