"""Which WAL, and which summaries, backups need: pure decisions for expire."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pgwal.backup.chain import is_on_history, place_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention import Chain, end_times, newest_backups, reaching_back
from pgwal.backup.retention_rules import RetentionRules
from pgwal.lsn import Lsn, LsnRange
from pgwal.timeline import TimelineHistory


def with_all_wal(
    kept: Sequence[BackupEntry],
    histories: Mapping[int, TimelineHistory],
    current_timeline_ids: Collection[int],
    rules: RetentionRules,
    *,
    unusable_ids: Collection[str] = (),
    long_term_ids: Collection[str] = (),
) -> list[BackupEntry]:
    """Return the backups for which all WAL since they started is kept, so that every later point can be reached.

    Those are the newest ``keep_wal_for``, and those that reach every point since ``keep_wal_since``; all where neither
    is given.  Always, the ``newest_backups`` are, and what started no earlier than one of these.  Backups that are
    ``long_term_ids`` are not: the WAL behind them may be gone.  Of the others, the ``unusable_ids`` do not stand in for
    any.
    """
    candidates = sorted((entry for entry in kept if entry.backup_id not in long_term_ids), key=place_of)
    if not rules.limits_wal:
        return candidates
    ended = end_times(candidates)
    found: set[str] = set()
    for unusable in (set[str](), unusable_ids):
        units = [Chain(entry, [entry]) for entry in candidates if entry.backup_id not in unusable]
        found |= newest_backups(units, histories, current_timeline_ids)
        if rules.keep_wal_for is not None:
            found |= {unit.full.backup_id for unit in units[-rules.keep_wal_for :]}
        if rules.keep_wal_since is not None:
            found |= reaching_back(units, histories, current_timeline_ids, rules.keep_wal_since, ended)
    first = min((entry.start_lsn for entry in candidates if entry.backup_id in found), default=Lsn(0))
    return [entry for entry in candidates if entry.start_lsn >= first]


class WalRetention:
    """Which WAL, and which summaries, the backups that are kept need: what ends after the first of them started.

    That holds on every timeline, so that each point which any of them leads to stays reachable.  A current timeline
    that none of them leads to is left alone: its receiver goes on there.  Of long-term backups, that is their own WAL
    alone, from start to stop.
    """

    def __init__(
        self,
        kept: Iterable[BackupEntry],
        histories: Mapping[int, TimelineHistory],
        current_timeline_ids: Collection[int],
        also_from: Iterable[Lsn] = (),
        long_term: Iterable[BackupEntry] = (),
    ) -> None:
        """``also_from`` are positions from which others need WAL, of which no more is known."""
        self._kept = list(kept)
        self._also_from = list(also_from)
        self._own = [(entry.start_lsn, entry.stop_lsn) for entry in long_term]
        self._untouched = {
            timeline_id
            for timeline_id in current_timeline_ids
            if not any(is_on_history(e, histories.get(timeline_id, TimelineHistory(timeline_id))) for e in self._kept)
        }

    @property
    def needed_from(self) -> Lsn:
        """The position from which on all is needed; 0 when no backup is kept with it."""
        return min((*(entry.start_lsn for entry in self._kept), *self._also_from), default=Lsn(0))

    def needs(self, part: LsnRange) -> bool:
        if part.end > self.needed_from or part.timeline_id in self._untouched:
            return True
        return any(part.start < stop and start < part.end for start, stop in self._own)
