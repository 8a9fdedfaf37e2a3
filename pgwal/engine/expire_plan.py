"""What expire is to do: which backups, WAL, summaries and packs are not to be kept; nothing is changed here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pgwal.backup.backup_id import merged_ids
from pgwal.backup.entry import BackupEntry
from pgwal.backup.label import BackupLabel
from pgwal.backup.merge_plan import plan_merges, with_merged
from pgwal.backup.pack_use import WornPack
from pgwal.backup.retention import Retention, decide_retention
from pgwal.backup.retention_rules import OF_UNREADABLE, RETAINED, Reason, RetentionRules
from pgwal.backup.wal_retention import WalRetention, with_all_wal
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.errors import FormatError, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.catalogue import UnreadableBackup
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.pack_pool import NO_GARBAGE, PackGarbage
from pgwal.repository.repository import Repository
from pgwal.repository.store import StoredObject, objects_in
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import is_backup_history_name, is_segment_name
from pgwal.summary.codec import parse_summary_file_name
from pgwal.timeline import TimelineHistory


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What was removed, or would be: backups in order, WAL and summary files and packs with their sizes in bytes.

    ``reasons`` are why each backup is kept, by id.  ``merged`` were made full ones, or would be.  ``long_term`` are
    those of the kept that keep their own WAL alone.  ``garbage`` is what no backup needs any more of packs, or a
    backup left which was abandoned; ``rewritten`` are packs of which little is needed, and that was stored anew, or
    would be; ``waiting`` those that were too many for one run.  ``wal_needed_from`` is where the WAL begins that is
    kept, None when there is no backup.
    """

    kept: list[BackupEntry]
    expired: list[BackupEntry]
    broken: list[BackupEntry]
    unreadable: list[UnreadableBackup]
    unfinished: list[str]
    wal_needed_from: Lsn | None
    reasons: Mapping[str, Sequence[Reason]] = field(default_factory=dict)
    merged: list[BackupEntry] = field(default_factory=list)
    long_term: list[BackupEntry] = field(default_factory=list)
    wal: list[StoredObject] = field(default_factory=list)
    summaries: list[StoredObject] = field(default_factory=list)
    garbage: PackGarbage = NO_GARBAGE
    rewritten: Sequence[WornPack] = ()
    waiting: Sequence[WornPack] = ()

    @property
    def packs(self) -> list[StoredObject]:
        return self.garbage.packs

    @property
    def backup_bytes(self) -> int:
        plain = sum(entry.totals.stored_size_bytes for entry in self.expired if entry.packed_size_bytes is None)
        return plain + sum(pack.size_bytes for pack in self.packs)

    @property
    def wal_bytes(self) -> int:
        return sum(file.size_bytes for file in self.wal)

    @property
    def summary_bytes(self) -> int:
        return sum(file.size_bytes for file in self.summaries)


class ExpirePlanner:
    """Decides by the rules what is to go from a repository; ``merging`` is as of ``decide_retention``.

    At most ``max_rewrite_bytes`` of worn packs are to be stored anew.
    """

    def __init__(
        self, repository: Repository, rules: RetentionRules, *, merging: bool = False, max_rewrite_bytes: int = 0
    ) -> None:
        self._repository = repository
        self._rules = rules
        self._max_rewrite_bytes = max_rewrite_bytes
        self._merging = merging
        self._marks = BackupMarks(repository.store)

    def merges(self) -> list[BackupEntry]:
        """Return the backups that are to be merged into full ones first, oldest first."""
        if not self._merging:
            return []
        known = _Known.read(self._repository, ())
        return plan_merges(self._decide(known, known.entries)) if known.is_judged else []

    def decide(self) -> ExpireReport:
        """Return what the rules say of the backups alone."""
        known = _Known.read(self._repository, ())
        found = self._decide(known, known.entries)
        return ExpireReport(found.kept, found.expired, found.broken, known.unreadable, [], None, found.reasons)

    def plan(
        self,
        unfinished: list[str],
        *,
        only_named_packs: bool = False,
        retained: Collection[BackupEntry] = (),
        foreseen: Collection[BackupEntry] = (),
    ) -> ExpireReport:
        """Return what is to go; the storage does not let go the ``retained`` ones, nor what these need.

        Where merges are ``foreseen``, which packs will be needed then is not known, and none is said to go.
        """
        repository = self._repository
        known = _Known.read(repository, retained)
        retention = self._decide(known, with_merged(known.entries, foreseen))
        kept = retention.kept
        long_term_ids = self._marks.long_term_ids(kept)
        rules = self._rules if known.is_judged else RetentionRules()
        full = with_all_wal(
            kept, known.histories, known.current, rules, unusable_ids=known.unusable_ids, long_term_ids=long_term_ids
        )
        full_ids = {entry.backup_id for entry in full}
        long_term = [entry for entry in kept if entry.backup_id not in full_ids]
        wal_retention = WalRetention(
            full, known.histories, known.current, [label.start_lsn for label in known.labels], long_term
        )
        report = ExpireReport(
            kept,
            retention.expired,
            retention.broken,
            known.unreadable,
            unfinished,
            wal_retention.needed_from if kept else None,
            retention.reasons,
            list(foreseen),
            long_term,
        )
        if kept and not foreseen:
            expired_ids = {entry.backup_id for entry in retention.expired}
            garbage = repository.catalogue.pack_garbage(expired_ids, only_named=only_named_packs)
            rewritten = garbage.use.rewritten(self._max_rewrite_bytes)
            waiting = garbage.use.worn[len(rewritten) :]
            report = replace(report, garbage=garbage, rewritten=rewritten, waiting=waiting)
        if kept and known.is_judged:
            report.wal.extend(_unneeded_wal(repository, wal_retention, known.histories))
            report.summaries.extend(_unneeded_summaries(repository, wal_retention))
        return report

    def _decide(self, known: _Known, entries: Sequence[BackupEntry]) -> Retention:
        # All is kept where it is not known what cannot be spared.
        rules = self._rules if known.is_judged else RetentionRules()
        return decide_retention(
            entries,
            known.histories,
            known.current,
            rules,
            pinned_ids=self._marks.pinned(entry.backup_id for entry in entries),
            unusable_ids=known.unusable_ids | {merged_ids(backup_id)[0] for backup_id in known.unusable_ids},
            built_on=known.built_on,
            merging=self._merging,
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a repository: ``is_judged`` is whether that is all that there must be known to remove any."""

    histories: dict[int, TimelineHistory]
    current: set[int]
    entries: list[BackupEntry]
    unreadable: list[UnreadableBackup]
    labels: list[BackupLabel]
    is_judged: bool
    unusable_ids: set[str]
    built_on: dict[Lsn, Reason]

    @classmethod
    def read(cls, repository: Repository, retained: Iterable[BackupEntry]) -> _Known:
        histories = {history.timeline_id: history for history in repository.wal.histories()}
        entries, unreadable = repository.catalogue.survey()
        labels = [label_of_unreadable(repository, backup) for backup in unreadable if not backup.is_foreign]
        known = [label for label in labels if isinstance(label, BackupLabel)]
        recoverable = read_recoverable_ranges(repository, entries)
        built_on = {entry.start_lsn: RETAINED for entry in retained}
        for label in known:
            if label.incremental_from is not None:
                built_on[label.incremental_from.lsn] = OF_UNREADABLE
        return cls(
            histories,
            _current_timelines(repository),
            entries,
            unreadable,
            known,
            None not in labels,
            {backup_id for backup_id, found in recoverable.items() if found is None},
            built_on,
        )


def label_of_unreadable(repository: Repository, backup: UnreadableBackup) -> BackupLabel | Literal["nothing"] | None:
    """Return the label of a backup whose entry cannot be read, None where that is not known either.

    Where there are no data, nothing is needed for them.
    """
    try:
        content = repository.catalogue.label(backup.backup_id)
        return "nothing" if content is None else BackupLabel.decode(content)
    except StoreUnavailable:
        raise
    except (FormatError, RepositoryError):
        return None


def _current_timelines(repository: Repository) -> set[int]:
    """Return the timelines on which a receiver may go on: its own, and that of the newest WAL."""
    found = set()
    state, resume_point = repository.receiver_state(), repository.wal.resume_point()
    if state is not None:
        found.add(state.timeline_id)
    if resume_point is not None:
        found.add(resume_point[0])
        found.add(max(segment.timeline_id for segment in repository.wal.segments()))
    return found


def _unneeded_wal(
    repository: Repository, retention: WalRetention, histories: dict[int, TimelineHistory]
) -> list[StoredObject]:
    """Return the segment files that nothing needs, oldest first; of each timeline that goes on, never the newest."""
    geometry = repository.geometry
    found: list[tuple[int, int, StoredObject]] = []
    newest: dict[int, int] = {}
    for file in objects_in(repository.store, WAL_DIRECTORY):
        base, _, _ = split_segment_name(file.name)
        # What tells of a backup goes with the segment in which that began.
        is_told = is_backup_history_name(base)
        base = base[:24] if is_told else base
        if not is_segment_name(base):
            continue
        try:
            timeline_id, number = geometry.parse_file_name(base)
        except FormatError:
            continue
        found.append((number, timeline_id, file))
        if is_told:
            continue
        newest[timeline_id] = max(number, newest.get(timeline_id, 0))
    left = {switch.timeline_id for history in histories.values() for switch in history.switches}
    return [
        file
        for number, timeline_id, file in sorted(found)
        if not retention.needs(LsnRange(timeline_id, *map(geometry.segment_start, (number, number + 1))))
        and (timeline_id in left or number < newest.get(timeline_id, 0))
    ]


def _unneeded_summaries(repository: Repository, retention: WalRetention) -> list[StoredObject]:
    named = ((parse_summary_file_name(file.name), file) for file in objects_in(repository.store, SUMMARY_DIRECTORY))
    unneeded = [(part, file) for part, file in named if part is not None and not retention.needs(part)]
    return [file for _, file in sorted(unneeded)]
