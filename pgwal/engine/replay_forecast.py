"""What recovery from a backup will replay, and where it will end, by the WAL that is in the repository."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import RecoveryTarget, TargetAction
from pgwal.engine.recovery_gap import RecoveryGap
from pgwal.engine.recovery_window import (
    first_gap,
    is_reached_before,
    last_transaction_end,
    passes_time,
    sought_record,
    target_history,
)
from pgwal.engine.replayed_wal import ReplayedWal, transaction_ends
from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.repository import Repository
from pgwal.timeline import TimelineHistory

if TYPE_CHECKING:
    from pgwal.wal.record import WalRecord

_END_OF_LSNS = Lsn((1 << 64) - 1)


class ReplayForecast(NamedTuple):
    """The WAL of [start_lsn, end_lsn) along a history, of which that ends on ``timeline_id``.

    It has ``size_bytes``, in segments of the names ``first`` to ``last``.  ``last_transaction_at`` is when the last
    transaction ended of those that are replayed; None where there is none.  Without a target, recovery ends at ``gap``
    when there is one.
    """

    history: TimelineHistory
    start_lsn: Lsn
    end_lsn: Lsn
    first: str
    last: str
    segment_count: int
    last_transaction_at: datetime | None
    gap: RecoveryGap | None

    @property
    def timeline_id(self) -> int:
        return self.history.timeline_at(self.end_lsn - 1)

    @property
    def size_bytes(self) -> int:
        return self.end_lsn - self.start_lsn


def forecast_replay(
    repository: Repository, entry: BackupEntry, target: RecoveryTarget, replayed: ReplayedWal
) -> ReplayForecast:
    """Tell what recovery from a backup to a target replays; it has been proven to lead there (choose_backup).

    ``replayed`` is the WAL that is there.  Without a target its end is that of what has been received so far.
    """
    history = target_history(repository, target.timeline, entry)
    gap = None if target.is_set else first_gap(repository, history, entry.start_lsn)
    if gap is not None and is_reached_before(repository, entry, history, target, gap.start):
        gap = None
    # A backup's end belongs to what is replayed, whatever else is there.
    end = max(_end_of_replay(repository, history, entry, target, replayed), entry.stop_lsn)
    geometry = repository.geometry
    first_no, last_no = geometry.segment_no(entry.start_lsn), geometry.last_segment_no(end)
    return ReplayForecast(
        history=history,
        start_lsn=entry.start_lsn,
        end_lsn=end,
        first=geometry.file_name(history.timeline_at(entry.start_lsn), first_no),
        last=geometry.file_name(history.timeline_at(end - 1), last_no),
        segment_count=last_no - first_no + 1,
        last_transaction_at=last_transaction_end(repository, history, entry.start_lsn, end),
        gap=gap,
    )


def first_record_from(repository: Repository, history: TimelineHistory, lsn: Lsn) -> WalRecord | None:
    """Return the first record of a history that starts at or behind a position: recovery to it stops there.

    None where none has been received, or the WAL there cannot be read.
    """
    # Late: a restore to the end of WAL need not decode any.
    from pgwal.wal.record_search import decode_records

    for part in history.ranges_between(lsn, _END_OF_LSNS):
        read = partial(repository.wal.read, part.timeline_id)
        with suppress(FormatError):
            if (found := next(decode_records(read, part, repository.geometry.segment_size), None)) is not None:
                return found
    return None


def end_of_wal_target(entry: BackupEntry, replayed: ReplayedWal, timeline: int) -> RecoveryTarget:
    """Return a target at the last record that is there now, where the server is promoted.

    What is received later was not looked at, and is not replayed.
    """
    if replayed.last_record_lsn < entry.stop_lsn:
        # No record starts behind the backup yet, at which recovery could stop.
        return RecoveryTarget(immediate=True, timeline=timeline, action=TargetAction.PROMOTE)
    return RecoveryTarget(lsn=replayed.last_record_lsn, timeline=timeline, action=TargetAction.PROMOTE)


def _end_of_replay(
    repository: Repository, history: TimelineHistory, entry: BackupEntry, target: RecoveryTarget, replayed: ReplayedWal
) -> Lsn:
    """Return the end of the last record that is replayed, or where the first one starts that is not."""
    if not target.is_set:
        return replayed.end_lsn
    if target.immediate:
        return entry.stop_lsn
    if target.lsn is not None:
        record = first_record_from(repository, history, target.lsn)
        return replayed.end_lsn if record is None else _stop_at(record, target)
    for part in history.ranges_between(entry.stop_lsn, _END_OF_LSNS):
        found = _stop_in(repository, part, target)
        if found is not None:
            return found
    return replayed.end_lsn


def _stop_in(repository: Repository, part: LsnRange, target: RecoveryTarget) -> Lsn | None:
    """Return where recovery stops in a part of one timeline's WAL; None when it goes on behind it.

    PostgreSQL, recoveryStopsBefore and recoveryStopsAfter of src/backend/access/transam/xlogrecovery.c (13, 14:
    xlog.c): before the first end of a transaction that is later than a time, behind the record of a restore point,
    before or behind any other target's.
    """
    if target.time is not None:
        ends = transaction_ends(repository, part)
        return next((lsn for lsn, ended_at in ends if passes_time(ended_at, target)), None)
    # Late, as above.
    from pgwal.wal.record_search import find_record

    read, segment_size = partial(repository.wal.read, part.timeline_id), repository.geometry.segment_size
    record = find_record(read, part, segment_size, sought_record(repository, target))
    return None if record is None else _stop_at(record, target)


def _stop_at(record: WalRecord, target: RecoveryTarget) -> Lsn:
    return record.lsn if target.exclusive else record.end_lsn
