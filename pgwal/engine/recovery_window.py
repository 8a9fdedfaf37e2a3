"""Which backup can reach a recovery target, and whether the WAL for that has been received."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pgwal.backup.chain import by_end, latest_timeline, off_history
from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import CURRENT_TIMELINE, LATEST_TIMELINE, RecoveryTarget, time_text
from pgwal.backup.stored_path import encode_path
from pgwal.engine.recovery_gap import RecoveryGap, find_gap
from pgwal.engine.replayed_wal import latest_transaction_end
from pgwal.errors import ObjectNotFound, RecoveryTargetError, TimelineMismatch, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.repository import Repository
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major

if TYPE_CHECKING:
    from pgwal.wal.record_search import SoughtRecord

logger = logging.getLogger(__name__)

_END_OF_LSNS = Lsn((1 << 64) - 1)


def choose_backup(
    repository: Repository,
    entries: Sequence[BackupEntry],
    target: RecoveryTarget,
    backup_id: str | None,
    *,
    wal_is_here: bool = True,
    to_gap: bool = False,
) -> BackupEntry:
    """Return the backup that is to be restored: ``backup_id``, or the newest one from which the target can be reached.

    Unless ``wal_is_here``, what WAL the repository holds tells nothing, and only positions and times are compared.

    Raises ObjectNotFound when there is none, RecoveryTargetError when the target lies before a backup's end or is not
    in the WAL received, TimelineMismatch when the backup is not on the target's timeline, WalGap when WAL is missing
    between its start and the target.  Without a target, that is the end of all WAL; with ``to_gap``, recovery may end
    before.
    """
    candidates = [entry for entry in entries if backup_id in (None, entry.backup_id)]
    if not candidates and backup_id is not None:
        raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
    if not candidates:
        raise ObjectNotFound("there is no backup yet", hint="Take one with pgwal full.")
    if backup_id is not None and wal_is_here:
        # First: of WAL that is not kept on purpose, nothing else that can be said is of use.
        _require_own_end(repository, candidates[0], target)
    newest_first = sorted(candidates, key=by_end, reverse=True)
    on_history = _on_history(repository, newest_first, target)
    if not wal_is_here and (target.name is not None or target.xid is not None):
        return on_history[0].entry
    chosen, history = _newest_before(repository, on_history, target, wal_is_here=wal_is_here)
    if wal_is_here:
        _require_own_end(repository, chosen, target)
        end = _require_target(repository, chosen, history, target)
        _require_wal(repository, history, chosen.start_lsn, end)
        _require_no_gap(repository, chosen, history, target, to_gap=to_gap)
        if target.time is not None:
            _require_later_transaction(repository, chosen, history, target)
    return chosen


def _require_own_end(repository: Repository, entry: BackupEntry, target: RecoveryTarget) -> None:
    """Raise RecoveryTargetError for a long-term backup, unless the target is where it ended: there is no more WAL."""
    if target.immediate or not BackupMarks(repository.store).long_term_ids([entry]):
        return
    aim = str(target) if target.is_set else "the end of WAL"
    raise RecoveryTargetError(
        f"{aim} cannot be reached from backup {entry.backup_id}: it is a long-term backup, whose WAL is kept up to its"
        f" end at {entry.stop_lsn} ({entry.finished_at}), and no further",
        hint="Restore it to that point with --target-immediate, or choose another backup: pgwal list says which points"
        " each can be restored to.",
        backup_id=entry.backup_id,
    )


class _Candidate(NamedTuple):
    entry: BackupEntry
    history: TimelineHistory


def _on_history(repository: Repository, entries: list[BackupEntry], target: RecoveryTarget) -> list[_Candidate]:
    """Return the backups that lie on the timeline that recovery is to follow, with its history."""
    found, problem = [], None
    for entry in entries:
        history = target_history(repository, target.timeline, entry)
        problem_here = off_history(entry, history)
        if problem_here is None:
            found.append(_Candidate(entry, history))
        else:
            problem = problem or f"backup {entry.backup_id} {problem_here}"
    if not found:
        raise TimelineMismatch(str(problem), hint="Choose another backup, or another timeline with --target-timeline.")
    return found


def target_history(repository: Repository, timeline: int | str, entry: BackupEntry) -> TimelineHistory:
    """Return the history that recovery from a backup follows; raises TimelineMismatch for an unknown timeline."""
    if timeline == CURRENT_TIMELINE:
        timeline = entry.stop_timeline_id
    elif timeline == LATEST_TIMELINE:
        timeline = latest_timeline(entry, repository.wal.has_history)
    assert isinstance(timeline, int)
    try:
        return repository.wal.history(timeline)
    except ObjectNotFound as error:
        if timeline == entry.stop_timeline_id:
            return TimelineHistory(timeline)
        known = sorted({1, *(history.timeline_id for history in repository.wal.histories())})
        raise TimelineMismatch(
            f"timeline {timeline} is unknown: the repository has no history file of it",
            hint=f"The timelines known are: {', '.join(map(str, known))}.",
        ) from error


def _newest_before(
    repository: Repository, candidates: list[_Candidate], target: RecoveryTarget, *, wal_is_here: bool
) -> _Candidate:
    """Return the newest backup that ended before the target; raises RecoveryTargetError."""
    if target.lsn is not None:
        lsn = target.lsn
        return _first(candidates, lambda candidate: candidate.entry.stop_lsn <= lsn, target)
    if target.time is not None:
        time = target.time
        return _first(
            candidates,
            lambda candidate: (
                _finished_at(candidate.entry) <= time
                and not (wal_is_here and _holds_later(repository, candidate, target))
            ),
            target,
        )
    if target.name is not None or target.xid is not None:
        return _before_record(repository, candidates, target)
    return candidates[0]


def _finished_at(entry: BackupEntry) -> datetime:
    """Return when a backup had ended for certain: entries leave fractions of the second away."""
    return datetime.fromisoformat(entry.finished_at) + timedelta(seconds=1)


def _holds_later(repository: Repository, candidate: _Candidate, target: RecoveryTarget) -> bool:
    """Tell whether WAL says that a backup holds a transaction later than a time.

    The server's clock at its end does not tell that for certain: it may have been set back, or be a standby's.
    """
    last = last_transaction_end(repository, candidate.history, Lsn(0), candidate.entry.stop_lsn)
    return last is not None and passes_time(last, target)


def _first(candidates: list[_Candidate], reaches: Callable[[_Candidate], bool], target: RecoveryTarget) -> _Candidate:
    for candidate in candidates:
        if reaches(candidate):
            return candidate
    raise _too_early(candidates[-1].entry, target)


def _too_early(oldest: BackupEntry, target: RecoveryTarget) -> RecoveryTargetError:
    return RecoveryTargetError(
        f"{target} lies before the end of backup {oldest.backup_id}, which is at {oldest.stop_lsn}"
        f" ({oldest.finished_at}): a server is consistent only from there on",
        hint="Choose an older backup, or a later target.",
    )


def _before_record(repository: Repository, candidates: list[_Candidate], target: RecoveryTarget) -> _Candidate:
    """Look for the record that ends recovery: in WAL since the newest backup, then since the one before it, and so on.

    Each part of WAL is read at most once.
    """
    end = _END_OF_LSNS
    for candidate in candidates:
        stop = candidate.entry.stop_lsn
        if _finds(repository, candidate.history, stop, end, target):
            return candidate
        end = stop
    oldest = candidates[-1].entry
    raise RecoveryTargetError(
        f"{target} is not in the WAL received since backup {oldest.backup_id} ended at {oldest.stop_lsn}",
        hint="A receiver must have got that far, and the backup be older; pgwal status shows what was received.",
    )


# ---- positions


def _require_target(
    repository: Repository, chosen: BackupEntry, history: TimelineHistory, target: RecoveryTarget
) -> Lsn:
    """Return up to where WAL is needed at least; raises RecoveryTargetError when that has not been received."""
    if target.lsn is None:
        return chosen.stop_lsn
    _require_wal(repository, history, chosen.start_lsn, chosen.stop_lsn)
    if not _record_follows(repository, history, target.lsn):
        state = repository.receiver_state()
        received = "" if state is None else f"; up to {state.flushed_lsn} of timeline {state.timeline_id} is"
        raise RecoveryTargetError(
            f"{target} has not been received{received}",
            hint="Choose an earlier one, or replay all WAL by giving no target.",
        )
    return target.lsn


def _require_later_transaction(
    repository: Repository, chosen: BackupEntry, history: TimelineHistory, target: RecoveryTarget
) -> None:
    """Raise RecoveryTargetError unless a transaction later than a time has ended: only at one does recovery stop."""
    last = last_transaction_end(repository, history, chosen.stop_lsn, _END_OF_LSNS)
    if last is not None and passes_time(last, target):
        return
    ended = "no transaction has ended" if last is None else f"the last transaction ended at {time_text(last)}"
    raise RecoveryTargetError(
        f"{target} is not in the WAL received: {ended} in the WAL since backup {chosen.backup_id}",
        hint="Choose an earlier one, or replay all WAL by giving no target.",
    )


def _record_follows(repository: Repository, history: TimelineHistory, lsn: Lsn) -> bool:
    """Tell whether a record starts at or after a position: only then does recovery stop there."""
    # Late, as below.
    from pgwal.wal.record_search import decode_records

    segment_size = repository.geometry.segment_size
    return any(
        next(decode_records(partial(repository.wal.read, part.timeline_id), part, segment_size), None) is not None
        for part in history.ranges_between(lsn, _END_OF_LSNS)
    )


def _require_wal(repository: Repository, history: TimelineHistory, start: Lsn, end: Lsn) -> None:
    """Raise WalGap unless there are segments of all of [start, end); that of a switch may be of either timeline."""
    geometry = repository.geometry
    there = {(segment.timeline_id, segment.segment_no) for segment in repository.wal.segments()}
    timelines = [switch.timeline_id for switch in history.switches] + [history.timeline_id]
    for part in history.ranges_between(start, end):
        if part.start >= part.end:
            continue
        later = timelines[timelines.index(part.timeline_id) :]
        for number in range(geometry.segment_no(part.start), geometry.last_segment_no(part.end) + 1):
            if not any((timeline_id, number) in there for timeline_id in later):
                name = geometry.file_name(part.timeline_id, number)
                raise WalGap(
                    f"WAL segment {name} is missing, which recovery needs: it runs from {start} to {end} at least",
                    hint="Restore another backup, or bring the segment back; pgwal combine needs no WAL.",
                )


# ---- gaps


def _require_no_gap(
    repository: Repository, chosen: BackupEntry, history: TimelineHistory, target: RecoveryTarget, *, to_gap: bool
) -> None:
    """Raise WalGap when recovery would meet a gap before its target, or before the end of WAL unless ``to_gap``."""
    gap = first_gap(repository, history, chosen.start_lsn)
    if gap is None or is_reached_before(repository, chosen, history, target, gap.start):
        return
    if target.is_set:
        raise WalGap(
            f"{target} cannot be reached from backup {chosen.backup_id}: {gap}",
            hint=f"Bring the segments back, or choose a target that is reached before {gap.start}.",
        )
    if not to_gap:
        raise WalGap(
            f"recovery from backup {chosen.backup_id} would end {gap.reached}: {gap}",
            hint="Bring the segments back from another archive, or choose a target before them. With --to-gap, recovery"
            " ends there.",
        )
    logger.warning("recovery will end %s: %s", gap.reached, gap)


def first_gap(repository: Repository, history: TimelineHistory, start: Lsn) -> RecoveryGap | None:
    """Return the first gap that recovery along a history meets, if it goes that far."""
    # Twice: what a receiver completes during the first look may be missing in it.
    for _ in range(2):
        gap = find_gap(repository.wal.segments(), history, repository.geometry, start)
        if gap is None:
            return None
    return gap


def is_reached_before(
    repository: Repository, chosen: BackupEntry, history: TimelineHistory, target: RecoveryTarget, end: Lsn
) -> bool:
    """Tell whether recovery from a backup comes to its target before ``end``."""
    if target.lsn is not None:
        return target.lsn < end
    if target.time is not None:
        return _timepasses_time(repository, history, chosen.stop_lsn, end, target)
    if target.name is not None or target.xid is not None:
        return _finds(repository, history, chosen.stop_lsn, end, target)
    return target.immediate


def _timepasses_time(
    repository: Repository, history: TimelineHistory, start: Lsn, end: Lsn, target: RecoveryTarget
) -> bool:
    """Tell whether a transaction that ended in [start, end) did so later than the target: only there recovery stops.

    The segments with the last ones tell; decoding all would take long.
    """
    last = last_transaction_end(repository, history, start, end)
    return last is not None and passes_time(last, target)


def passes_time(time: datetime, target: RecoveryTarget) -> bool:
    """Tell whether recovery stops at a transaction that ended at this time."""
    assert target.time is not None
    return time > target.time or (target.exclusive and time == target.time)


def last_transaction_end(repository: Repository, history: TimelineHistory, start: Lsn, end: Lsn) -> datetime | None:
    """Return the latest time in the last segment of [start, end) in which a transaction ended; None when none did."""
    geometry = repository.geometry
    there = [(segment.timeline_id, segment.segment_no) for segment in repository.wal.segments()]
    for part in reversed(history.ranges_between(start, end)):
        first, last = geometry.segment_no(part.start), geometry.last_segment_no(part.end)
        numbers = {number for timeline_id, number in there if timeline_id == part.timeline_id}
        for number in sorted((number for number in numbers if first <= number <= last), reverse=True):
            begin = max(part.start, geometry.segment_start(number))
            segment = LsnRange(part.timeline_id, begin, min(part.end, geometry.segment_start(number + 1)))
            latest = latest_transaction_end(repository, segment)
            if latest is not None:
                return latest
    return None


# ---- the record that a name or a transaction stands for


def _finds(repository: Repository, history: TimelineHistory, start: Lsn, end: Lsn, target: RecoveryTarget) -> bool:
    """Tell whether a record that ends recovery at the target starts in [start, end)."""
    # Late: a restore to the end of WAL need not decode any.
    from pgwal.wal.record_search import find_record

    sought = sought_record(repository, target)
    segment_size = repository.geometry.segment_size
    return any(
        find_record(partial(repository.wal.read, part.timeline_id), part, segment_size, sought) is not None
        for part in history.ranges_between(start, end)
    )


def sought_record(repository: Repository, target: RecoveryTarget) -> SoughtRecord:
    """Return what tells the record that a restore point's name or a transaction stands for."""
    from pgwal.wal.record_search import restore_point, transaction_end

    if target.name is not None:
        return restore_point(encode_path(target.name))
    return transaction_end(target.short_xid, wal_format_of_major(repository.identity.major))
