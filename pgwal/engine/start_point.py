"""Where a receiver goes on: decided from what the archive holds and what the server says, nothing else.

Two timelines of one number are the same only where their histories are; and a timeline's WAL in the archive counts
only up to where the server's history leaves it.  What is received again before anything is written is chosen here;
``pgwal.engine.archive_comparison`` holds it against the archive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pgwal.errors import HistoryMismatch, OlderTimeline, TimelineMismatch
from pgwal.lsn import Lsn
from pgwal.postgres.replication_answer import SlotPosition
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory, history_file_name

NEW_HISTORY_HINT = (
    "Keep this repository as it is, and take a full backup into another one; or let pgwal stream --accept-new-history"
    " move what this server no longer has aside, which ends the chains of backups that need it."
)


class StreamStart(NamedTuple):
    """A place to receive from: the start of a segment, and the timeline to ask for."""

    timeline_id: int
    lsn: Lsn


def agreed_history(
    timeline_id: int, content: bytes, stored: Mapping[int, bytes], segments: Iterable[WalSegmentFile]
) -> TimelineHistory:
    """Return the history of the server's timeline, after a look at whether the archive knows the same one.

    ``content`` is the server's history file, ``stored`` those of the archive, by timeline.  Raises OlderTimeline when
    the archive has a newer timeline, HistoryMismatch when it has another history of the same number.
    """
    newest = max((*stored, *(segment.timeline_id for segment in segments)), default=timeline_id)
    if newest > timeline_id:
        raise OlderTimeline(
            f"the repository holds WAL of timeline {newest}, this server is still on timeline {timeline_id}",
            timeline_id=newest,
            hint="It looks like the primary from before a failover, or a standby that lags behind: connect to the"
            " present primary, or use another repository.",
        )
    history = TimelineHistory.decode(timeline_id, content)
    require_one_history(history, content, stored)
    return history


def require_one_history(history: TimelineHistory, content: bytes, stored: Mapping[int, bytes]) -> None:
    """Raise HistoryMismatch unless a timeline's history, which is ``content``, is that of the archive, as far as it
    tells: ``stored`` are the history files there, of the timeline itself, its ancestors, and others.
    """
    if stored.get(history.timeline_id, content) != content:
        raise _other_history(history.timeline_id)
    for timeline_id in sorted(stored):
        other = TimelineHistory.decode(timeline_id, stored[timeline_id])
        part, of_other = history.part_up_to(timeline_id), other.part_up_to(history.timeline_id)
        if part is not None and part.recorded != other.recorded:
            raise _other_history(timeline_id)
        if of_other is not None and of_other.recorded != history.recorded:
            raise _other_history(history.timeline_id)


def _other_history(timeline_id: int) -> HistoryMismatch:
    return HistoryMismatch(
        f"timeline {timeline_id} of this server is not the timeline {timeline_id} that the repository holds:"
        f" {history_file_name(timeline_id)} differs, so that two servers were promoted to the same number",
        timeline_id=timeline_id,
        lsn=0,
        hint=NEW_HISTORY_HINT,
    )


def stream_starts(
    segments: Sequence[WalSegmentFile], history: TimelineHistory, geometry: WalGeometry, server_flush_lsn: Lsn
) -> list[StreamStart]:
    """Return where to receive from, the best place first; another one is for a server that lacks WAL for those before.

    The first begins with the last whole segment of the archive, which the server must be shown to have too; and where
    the server is behind that, with the segment before the one that it is at.  Empty when the archive holds no WAL.
    Raises TimelineMismatch when none of what it holds is on the history.
    """
    if not segments:
        return []
    on_history = [segment for segment in segments if _is_on(history, segment, geometry)]
    if not on_history:
        raise TimelineMismatch(
            f"none of the WAL in the repository is in the history of timeline {history.timeline_id}, which this server"
            " is on",
            hint="Check the connection; if it is the right server, use another repository for it, and take a full"
            " backup.",
        )
    resume = _resume(max(on_history, key=lambda s: (s.timeline_id, s.segment_no, s.complete)), history, geometry)
    number = geometry.segment_no(resume.lsn)
    before = min(number, geometry.segment_no(server_flush_lsn)) - 1
    first = segment_before(on_history, history, geometry, resume.timeline_id, before)
    return [*([] if first is None else [first]), *starts_in_segment(resume, history, geometry)]


def abandoned_wal(
    segments: Iterable[WalSegmentFile], history: TimelineHistory, geometry: WalGeometry
) -> WalSegmentFile | None:
    """Return the archive's newest segment when it lies beyond where the server's history leaves its timeline."""
    newest = max(segments, key=lambda s: (s.timeline_id, s.segment_no, s.complete), default=None)
    if newest is None:
        return None
    end = history.end_of(newest.timeline_id)
    is_beyond = end is not None and geometry.segment_start(newest.segment_no + newest.complete) > end
    return newest if is_beyond else None


def starts_in_segment(start: StreamStart, history: TimelineHistory, geometry: WalGeometry) -> list[StreamStart]:
    """Return a place to receive from, and the newest timeline that has the WAL of this segment too, if there is one.

    Where a timeline was left within the segment its own file may be gone: the next timeline begins with a copy of it.
    """
    last = history.timeline_at(geometry.segment_start(geometry.segment_no(start.lsn) + 1) - 1)
    return [start] if last <= start.timeline_id else [start, StreamStart(last, start.lsn)]


def new_start(
    history: TimelineHistory, geometry: WalGeometry, server_flush_lsn: Lsn, slot: SlotPosition | None
) -> StreamStart:
    """Return where to begin when nothing goes on: at ``slot``, the one that counts, else where the server is."""
    timeline_id, lsn = history.timeline_id, server_flush_lsn
    if slot is not None and slot.restart_lsn is not None:
        timeline_id = slot.restart_timeline_id or timeline_id
        lsn = slot.restart_lsn
    return StreamStart(timeline_id, segment_start(geometry, lsn))


def starts_behind(
    timeline_id: int,
    end: Lsn,
    history: TimelineHistory,
    geometry: WalGeometry,
    ended: Collection[tuple[int, Lsn]] = (),
) -> list[StreamStart]:
    """Return where to receive from when the server has ended a timeline, the best place first.

    ``ended`` are the timelines that it has ended before over the same connection, with where.  Raises TimelineMismatch
    when its history, asked for again, does not go on there with a later timeline.
    """
    following = history.timeline_at(end)
    if following <= timeline_id or (timeline_id, end) in ended:
        raise TimelineMismatch(
            f"the server says that timeline {timeline_id} ends at {end}, but its history goes on with timeline"
            f" {following} there",
            hint="Look at the server's timeline history files.",
        )
    return starts_in_segment(StreamStart(following, segment_start(geometry, end)), history, geometry)


def segment_start(geometry: WalGeometry, lsn: Lsn) -> Lsn:
    return geometry.segment_start(geometry.segment_no(lsn))


def _resume(newest: WalSegmentFile, history: TimelineHistory, geometry: WalGeometry) -> StreamStart:
    """Return the start of the first segment that is to be written."""
    start = geometry.segment_start(newest.segment_no + newest.complete)
    end = history.end_of(newest.timeline_id)
    if end is not None and start > end:
        # Whole, with the switch in it: the next timeline begins with a copy of it up to there.
        return StreamStart(history.timeline_at(end), geometry.segment_start(geometry.segment_no(end)))
    return StreamStart(newest.timeline_id, start)


def _is_on(history: TimelineHistory, segment: WalSegmentFile, geometry: WalGeometry) -> bool:
    """Tell whether a history goes through the start of a segment."""
    end = history.end_of(segment.timeline_id)
    return end is None or geometry.segment_start(segment.segment_no) < end


def segment_before(
    segments: Iterable[WalSegmentFile],
    history: TimelineHistory,
    geometry: WalGeometry,
    timeline_id: int,
    segment_no: int,
) -> StreamStart | None:
    """Return the start of a whole segment of a timeline or an ancestor's, on the history; None when there is none."""
    found = [
        segment
        for segment in segments
        if segment.segment_no == segment_no
        and segment.complete
        and segment.timeline_id <= timeline_id
        and _is_on(history, segment, geometry)
    ]
    if not found:
        return None
    newest = max(found, key=lambda segment: segment.timeline_id)
    return StreamStart(newest.timeline_id, geometry.segment_start(segment_no))
