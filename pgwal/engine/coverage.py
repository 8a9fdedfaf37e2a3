"""What of the WAL a repository holds: ranges, holes, and up to where a backup can be recovered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from pgwal.backup.chain import is_on_history
from pgwal.backup.entry import BackupEntry
from pgwal.engine.kept_wal import KeptWal, read_kept_wal
from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.segment import WalGeometry
from pgwal.summary.link import Link
from pgwal.timeline import TimelineHistory


class TimelineCoverage(NamedTuple):
    """What there is of one timeline, in LSN order; a hole is what is missing between two things that are there.

    A hole in the summaries alone is no loss: the WAL of the range is read instead.  Summaries, and WAL, are one range
    only as far as each summary goes on behind the last record of the one before it.
    """

    timeline_id: int
    wal: list[LsnRange]
    wal_holes: list[LsnRange]
    summaries: list[LsnRange]
    summary_holes: list[LsnRange]


def read_coverage(
    repository: Repository, receiver: ReceiverState | None, kept: KeptWal | None = None, *, with_summaries: bool = True
) -> list[TimelineCoverage]:
    """Return what there is of each timeline, oldest first; what is not ``kept`` on purpose is no hole.

    Without summaries none of them is read, and there are none.
    """
    kept = kept or KeptWal()
    geometry = repository.geometry
    # Of those that an older pgwal wrote, and damaged ones, there is none.
    links = repository.summaries.links() if with_summaries else {}
    summaries, wal = sorted(links), archived_ranges(repository, receiver)
    history = _newest_history(repository, {part.timeline_id for part in (*summaries, *wal)})
    broken = seams(links, geometry)
    found = []
    for timeline_id in sorted({part.timeline_id for part in (*summaries, *wal)}):
        ranges, holes = _split(_ranges_and_holes(timeline_id, wal, history, geometry), broken)
        of_timeline = {part: links[part] for part in summaries if part.timeline_id == timeline_id}
        summary_holes = _ranges_and_holes(timeline_id, summaries, history, geometry)[1]
        summary_ranges = join_linked(of_timeline, geometry)
        found.append(
            TimelineCoverage(timeline_id, ranges, kept.missed(holes), summary_ranges, kept.missed(summary_holes))
        )
    return found


def read_wal_coverage(repository: Repository, entries: Sequence[BackupEntry]) -> list[TimelineCoverage]:
    """Return what there is of each timeline's WAL, with the entries of all backups that can be read.

    What is not kept on purpose is no gap, unless there are others, of which that is not known.
    """
    are_all = len(entries) == len(repository.catalogue.ids())
    kept = read_kept_wal(repository, entries) if are_all else None
    return read_coverage(repository, repository.receiver_state(), kept, with_summaries=False)


def _split(
    ranges_and_holes: tuple[list[LsnRange], list[LsnRange]], broken: Collection[Seam]
) -> tuple[list[LsnRange], list[LsnRange]]:
    """Split ranges where WAL of two histories meets."""
    ranges, holes = ranges_and_holes
    parts: list[LsnRange] = []
    for part in ranges:
        for seam in sorted(broken):
            if seam.timeline_id == part.timeline_id and _is_within(seam.lsn, part):
                parts.append(part._replace(end=seam.lsn))
                part = part._replace(start=seam.lsn)
        parts.append(part)
    return parts, holes


class Seam(NamedTuple):
    """A place where what follows does not go on behind the last record before it: WAL of two histories meets."""

    timeline_id: int
    lsn: Lsn


def seams(links: Mapping[LsnRange, Link], geometry: WalGeometry) -> set[Seam]:
    """Return the places where summaries meet that do not link."""
    place = geometry.first_record_position
    return {
        Seam(after.timeline_id, after.start)
        for before, after in pairwise(sorted(links))
        if before.timeline_id == after.timeline_id
        and place(before.end) == place(after.start)
        and not links[after].follows(links[before].last_lsn)
    }


def archived_ranges(
    repository: Repository, receiver: ReceiverState | None, histories: Sequence[TimelineHistory] | None = None
) -> list[LsnRange]:
    """Return the range of each segment; of one that is not complete, what is known to be valid of it.

    ``histories`` are those of the archive, if they were read.
    A timeline that was begun within a segment begins with a copy of its ancestors' WAL: that is theirs as well.
    """
    geometry = repository.geometry
    if histories is None:
        histories = repository.wal.histories()
    by_id = {history.timeline_id: history for history in histories}
    # A timeline ends where the next one of some history begins, wherever that is in a segment.
    ends: set[tuple[int, Lsn]] = {switch for history in histories for switch in history.switches}
    if receiver is not None:
        ends |= {(receiver.timeline_id, receiver.flushed_lsn)}
    found = []
    for segment in repository.wal.segments():
        start, end = (geometry.segment_start(segment.segment_no + more) for more in (0, 1))
        if not segment.complete:
            known = [lsn for timeline_id, lsn in ends if timeline_id == segment.timeline_id and start < lsn <= end]
            end = max(known, default=start)
        if start < end:
            found.append(LsnRange(segment.timeline_id, start, end))
            if segment.timeline_id in by_id:
                parts = by_id[segment.timeline_id].ranges_between(start, end)
                found += [part for part in parts if part.timeline_id != segment.timeline_id]
    return found


def _newest_history(repository: Repository, timeline_ids: set[int]) -> TimelineHistory:
    """Return the history of the newest timeline, or one that knows no other when its file is not there."""
    newest = max(timeline_ids, default=1)
    try:
        return repository.wal.history(newest)
    except ObjectNotFound:
        return TimelineHistory(newest)


def _ranges_and_holes(
    timeline_id: int, parts: Sequence[LsnRange], history: TimelineHistory, geometry: WalGeometry
) -> tuple[list[LsnRange], list[LsnRange]]:
    """Return the parts of one timeline, joined, and what is missing between the first and the last part of all.

    Parts of earlier and later timelines count where the newest timeline's history goes through them.
    """
    own = join((part for part in parts if part.timeline_id == timeline_id), geometry)
    on_history = [
        part for part in parts if part.timeline_id in {t for t, _ in history.switches} | {history.timeline_id}
    ]
    expected = [LsnRange(timeline_id, own[0].start, own[-1].end)] if own else []
    if any(part.timeline_id == timeline_id for part in on_history):
        first, last = min(part.start for part in on_history), max(part.end for part in on_history)
        expected = [part for part in history.ranges_between(first, last) if part.timeline_id == timeline_id]
    return own, [hole for wanted in expected for hole in subtract(wanted, own, geometry)]


def join(parts: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Join ranges of one timeline that overlap, or have nothing but a page header between them."""
    place = geometry.first_record_position
    joined: list[LsnRange] = []
    for part in sorted(parts):
        if joined and place(part.start) <= place(joined[-1].end):
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, part.end))
        else:
            joined.append(part)
    return joined


def _joined_by_timeline(parts: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    of_timelines = groupby(sorted(parts), key=lambda part: part.timeline_id)
    return [part for _, of_timeline in of_timelines for part in join(of_timeline, geometry)]


def join_linked(parts: Mapping[LsnRange, Link], geometry: WalGeometry) -> list[LsnRange]:
    """Join summaries of one timeline as ``join`` does, but where one does not go on behind the one before it."""
    place = geometry.first_record_position
    joined: list[LsnRange] = []
    last_lsn = Lsn(0)
    for part, link in sorted(parts.items()):
        meets = bool(joined) and place(part.start) == place(joined[-1].end)
        if joined and place(part.start) <= place(joined[-1].end) and (not meets or link.follows(last_lsn)):
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, part.end))
        else:
            joined.append(part)
        if joined[-1].end == part.end:
            last_lsn = link.last_lsn
    return joined


def subtract(wanted: LsnRange, there: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Return the parts of a range that none of some ranges, of any timelines, covers."""
    place = geometry.first_record_position
    missing = []
    position = wanted.start
    for part in join((part for part in there if part.timeline_id == wanted.timeline_id), geometry):
        if place(part.end) <= place(position) or part.start >= wanted.end:
            continue
        if place(position) < place(part.start):
            missing.append(wanted._replace(start=position, end=part.start))
        position = max(position, part.end)
    if place(position) < place(wanted.end):
        missing.append(wanted._replace(start=position))
    return missing


# ---- what can be recovered ----


class RecoverableRange(NamedTuple):
    """Every point from ``start``, where a backup ended, up to ``end`` can be recovered from it."""

    timeline_id: int
    start: Lsn
    end: Lsn
    is_whole: bool
    """Whether that is all WAL of the timeline; if not, WAL behind ``end`` is missing."""
    is_long_term: bool = False
    """Whether the backup keeps its own WAL alone: then ``end`` is where it ended, and the one point there is."""


def recoverable_range(
    entry: BackupEntry,
    wal: Sequence[LsnRange],
    histories: Sequence[TimelineHistory],
    geometry: WalGeometry,
    broken: Collection[Seam] = (),
) -> RecoverableRange | None:
    """Return what can be recovered from a backup along the newest timeline that it leads to.

    ``wal`` is what is in the archive, ``broken`` where WAL of two histories meets in it: recovery ends there.  None
    when WAL is missing before the backup's end: it cannot be used.
    """
    known = {history.timeline_id: history for history in histories}
    candidates = {part.timeline_id for part in wal} | {entry.stop_timeline_id}
    lines = (known.get(timeline_id, TimelineHistory(timeline_id)) for timeline_id in candidates)
    # A timeline that exists leads from the backup if it goes through the backup's end.
    leading = [line for line in lines if is_on_history(entry, line)]
    if not leading:
        return None
    history = max(leading, key=lambda line: line.timeline_id)
    last = max((part.end for part in wal if part.timeline_id == history.timeline_id), default=entry.stop_lsn)
    last = max(last, entry.stop_lsn)
    end = last
    for wanted in history.ranges_between(entry.start_lsn, last):
        ends = [hole.start for hole in subtract(wanted, wal, geometry)[:1]]
        ends += [seam.lsn for seam in broken if seam.timeline_id == wanted.timeline_id and _is_within(seam.lsn, wanted)]
        if ends:
            end = min(ends)
            break
    if end < entry.stop_lsn:
        return None
    return RecoverableRange(history.timeline_at(end - 1), entry.stop_lsn, end, end == last)


def _is_within(lsn: Lsn, wanted: LsnRange) -> bool:
    return wanted.start < lsn < wanted.end


def read_recoverable_ranges(
    repository: Repository, entries: Iterable[BackupEntry]
) -> dict[str, RecoverableRange | None]:
    """Return what can be recovered from each backup, by id; raises FormatError for a damaged history file."""
    entries = list(entries)
    long_term_ids = BackupMarks(repository.store).long_term_ids(entries)
    receiver = repository.receiver_state()
    histories, geometry = repository.wal.histories(), repository.geometry
    # Joined once for all backups: of thousands of segments few ranges are left.
    wal = _joined_by_timeline(archived_ranges(repository, receiver, histories), geometry)
    broken = seams(repository.summaries.links(), geometry)
    found = {entry.backup_id: recoverable_range(entry, wal, histories, geometry, broken) for entry in entries}
    return {
        backup_id: reached._replace(end=reached.start, is_whole=True, is_long_term=True)
        if reached is not None and backup_id in long_term_ids
        else reached
        for backup_id, reached in found.items()
    }
