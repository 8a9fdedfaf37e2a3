"""What changed in a range of WAL: summaries where they lie in it whole, the WAL itself where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pgwal.engine.record_chain import Chain, broken_chain, read_range
from pgwal.errors import ChainError, KeyRequired, ObjectNotFound, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap
from pgwal.summary.coverage import Piece, cover
from pgwal.summary.link import Link
from pgwal.summary.timeline_switch import forget_limits_beside_switch
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major

if TYPE_CHECKING:
    from pgwal.summary.summarizer import ChangeReader
    from pgwal.wal.record import EndOfWal


def window(repository: Repository, start_timeline_id: int, start: Lsn, timeline_id: int, end: Lsn) -> list[LsnRange]:
    """Return the ranges, oldest first, that lead from a position on one timeline to one on another.

    Raises TimelineMismatch when they do not, WalGap when the history file of the later timeline is not there.
    """
    if start_timeline_id == timeline_id:
        return TimelineHistory(timeline_id).ranges(timeline_id, start, end)
    return read_history(repository, timeline_id).ranges(start_timeline_id, start, end)


def read_history(repository: Repository, timeline_id: int) -> TimelineHistory:
    """Return a timeline's history; raises WalGap when the receiver has not fetched its file."""
    try:
        return repository.wal.history(timeline_id)
    except ObjectNotFound as error:
        raise WalGap(
            f"the history of timeline {timeline_id} is not in the repository",
            hint="Run pgwal stream until it follows that timeline, or take a full backup.",
            timeline_id=timeline_id,
        ) from error


def read_changes(repository: Repository, ranges: Sequence[LsnRange], *, from_wal: bool = False) -> BlockMap:
    """Return the exact map of consecutive ranges, one for each timeline, merged strictly in LSN order.

    It is proven that each record in them follows the one before, over all that WAL and summaries are cut into.  With
    ``from_wal``, nothing is taken from summaries.  Where WAL at the beginning cannot be opened without an identity,
    the map has what changed since its summary began, too: from 17 on there is none, as backups start where one does.
    Raises WalGap, which names what is missing, when a part is neither summarised nor in the archive, TimelineMismatch
    when a part does not follow the one before it, or a range does not begin and end where records do, WalLevelMinimal
    when a part was written with wal_level = minimal, FormatError when something is damaged.
    """
    return _read_changes(repository, ranges, to_any_end=False, from_wal=from_wal)[0]


def read_received_changes(repository: Repository, ranges: Sequence[LsnRange]) -> tuple[BlockMap, list[LsnRange]]:
    """Return the map of ranges that end where WAL was received to, which may be within a record, and what it covers.

    Raises as ``read_changes`` does.
    """
    block_map, end = _read_changes(repository, ranges, to_any_end=True)
    return block_map, [*ranges[:-1], ranges[-1]._replace(end=end)]


def _read_changes(
    repository: Repository, ranges: Sequence[LsnRange], *, to_any_end: bool, from_wal: bool = False
) -> tuple[BlockMap, Lsn]:
    block_map, chain = BlockMap(), Chain()
    end = ranges[-1].end
    summaries = [] if from_wal else repository.summaries.ranges_from(ranges[0].timeline_id, ranges[0].start)
    for wanted in ranges:
        for part, summary in _parts(repository, cover(wanted, summaries, repository.geometry)):
            if summary is not None:
                changes, link = summary
            else:
                is_first = wanted is ranges[0] and part.start == wanted.start
                is_last = wanted is ranges[-1] and part.end == wanted.end
                changes, link, stop = _read_part(
                    repository, part, may_widen=is_first, to_any_end=to_any_end and is_last
                )
                if is_last:
                    end = stop
            chain.go_on(part, link, summarised=summary is not None)
            forget_limits_beside_switch(changes, part, ranges, repository.geometry)
            block_map.merge(changes)
    return block_map, end


def _parts(repository: Repository, pieces: Iterable[Piece]) -> Iterator[tuple[LsnRange, tuple[BlockMap, Link] | None]]:
    """Yield the parts of a range with what their summaries say, None where WAL is read.

    That it is, too, where an older pgwal wrote a summary: it does not say which record it goes on behind, and may end
    within one, so what is read around it is one part with it.
    """
    unread: LsnRange | None = None
    for piece, summarised in pieces:
        changes, link = repository.summaries.read_linked(piece) if summarised else (None, None)
        if changes is None or link is None:
            unread = piece if unread is None else unread._replace(end=piece.end)
            continue
        if unread is not None:
            yield unread, None
            unread = None
        yield piece, (changes, link)
    if unread is not None:
        yield unread, None


def _read_part(
    repository: Repository, part: LsnRange, *, may_widen: bool, to_any_end: bool
) -> tuple[BlockMap, Link, Lsn]:
    """Read the WAL of a part, and return up to where; ``may_widen`` where its summary may say more."""
    try:
        reader = _scan(repository, part, to_any_end=to_any_end)
    except KeyRequired:
        wider = _wider_summary(repository, part) if may_widen else None
        if wider is None:
            raise
        return *wider, part.end
    return reader.block_map, reader.link, part.end if reader.complete else reader.position


def _wider_summary(repository: Repository, part: LsnRange) -> tuple[BlockMap, Link] | None:
    """Return the summary that begins before a part and ends where it does, None where there is none.

    For the beginning of a window whose WAL nobody here can open: a backup that is built on says nothing of what it
    holds, so that blocks, and limits, of before it started may count as changed since.  They are stored once more.
    """
    place = repository.geometry.first_record_position
    for found in repository.summaries.ranges():
        if found.timeline_id == part.timeline_id and found.start < part.start and place(found.end) == place(part.end):
            changes, link = repository.summaries.read_linked(found)
            return None if link is None else (changes, link)
    return None


def read_derived_changes(repository: Repository, ranges: Sequence[LsnRange]) -> BlockMap:
    """Return the visibility-map blocks that WAL of consecutive ranges changes without referring to them.

    They are in no summary, so all of the WAL is read.  Raises as ``read_changes``.
    """
    block_map, chain = BlockMap(), Chain()
    for wanted in ranges:
        reader = _scan(repository, wanted)
        chain.go_on(wanted, reader.link, summarised=False)
        block_map.merge(reader.derived)
    return block_map


def _scan(repository: Repository, wanted: LsnRange, *, to_any_end: bool = False) -> ChangeReader:
    """Read the WAL of a range; with ``to_any_end`` it may stop within the last segment."""
    identity = repository.identity
    reader = read_range(
        repository.wal,
        wal_format_of_major(identity.major),
        wanted,
        system_identifier=identity.system_identifier,
        to_any_end=to_any_end,
    )
    if not reader.complete and not (to_any_end and wanted.end - reader.position < identity.segment_size):
        raise wal_gap(repository, LsnRange(wanted.timeline_id, reader.position, wanted.end), reader.end_of_wal)
    return reader


def wal_gap(repository: Repository, unread: LsnRange, end_of_wal: EndOfWal | None = None) -> ChainError:
    """Say what is missing of a range that could not be read, and where it can come from.

    A TimelineMismatch where nothing is missing, but WAL there is of another history, a WalGap else.
    """
    geometry, timeline_id = repository.geometry, unread.timeline_id
    archived = {s.segment_no: s.complete for s in repository.wal.segments() if s.timeline_id == timeline_id}
    # A record that begins in the last segment before the gap is not whole either.
    first, last = geometry.segment_no(unread.start), geometry.last_segment_no(unread.end)
    if end_of_wal is not None and archived.get(first) and (first == last or archived.get(first + 1)):
        wal_format = wal_format_of_major(repository.identity.major)
        broken = broken_chain(repository.wal, wal_format, timeline_id, end_of_wal)
        return broken or WalGap(
            f"WAL is damaged: segment {geometry.file_name(timeline_id, first)} cannot be read on; {end_of_wal}",
            hint="Replace that segment in the repository's wal directory, if another archive holds a whole copy;"
            " else take a full backup.",
            timeline_id=timeline_id,
            lsn=end_of_wal.lsn,
        )
    is_older = _holds_older_summary(repository, unread)
    older = " Summaries that an older pgwal wrote do not count without that WAL." if is_older else ""
    while archived.get(first):
        first += 1
    later = [segment_no for segment_no in archived if segment_no > first]
    if not later:
        return WalGap(
            f"WAL is missing: {unread} is neither summarised nor in the repository",
            hint=f"If the server still has it, pgwal stream will fetch it; else take a full backup.{older}",
            timeline_id=timeline_id,
            lsn=unread.start,
            end_lsn=unread.end,
        )
    missing = unread._replace(end=min(unread.end, geometry.segment_start(min(later))))
    names = [geometry.file_name(timeline_id, number) for number in (first, min(*later, last + 1) - 1)]
    return WalGap(
        f"WAL is missing: {missing} is neither summarised nor in the repository",
        hint=f"Copy segment {' to '.join(dict.fromkeys(names))} into the repository's wal directory,"
        f" if another archive holds it; else take a full backup.{older}",
        timeline_id=timeline_id,
        lsn=missing.start,
        end_lsn=missing.end,
    )


def _holds_older_summary(repository: Repository, unread: LsnRange) -> bool:
    """Tell whether a range has a summary that does not say which record it follows."""
    overlapping = (
        r
        for r in repository.summaries.ranges()
        if r.timeline_id == unread.timeline_id and r.start < unread.end and unread.start < r.end
    )
    return any(repository.summaries.link(r) is None for r in overlapping)
