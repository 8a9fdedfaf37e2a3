"""Remove the backups that are not to be kept, and then the WAL and the summaries that nothing needs any more.

What a backup is until the end is decided by names alone: each one that goes is renamed first, those that build on
others before these, and WAL goes only when no backup that needs it is left.  Wherever this is interrupted, every backup
that is still one can be restored, and the next run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from pgwal.backup.entry import BackupEntry
from pgwal.backup.label import BackupLabel
from pgwal.backup.retention import WalRetention, decide_retention
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.errors import FormatError, ObjectRetained, RepositoryError, RepositoryLocked, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.catalogue import UnreadableBackup
from pgwal.repository.deletion import delete_what_can_go
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.store import StoredObject, objects_in
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import is_segment_name
from pgwal.summary.codec import parse_summary_file_name
from pgwal.timeline import TimelineHistory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpireRequest:
    """What to keep, as of ``decide_retention``; with ``dry_run`` nothing is changed."""

    place: Place
    keep_full: int | None = None
    keep_since: datetime | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What was removed, or would be: backups in order, WAL and summary files and packs with their sizes in bytes.

    ``packs`` are those that no backup needs any more, or that a backup left which was abandoned.
    ``wal_needed_from`` is where the WAL begins that is kept, None when there is no backup.
    """

    kept: list[BackupEntry]
    expired: list[BackupEntry]
    broken: list[BackupEntry]
    unreadable: list[UnreadableBackup]
    unfinished: list[str]
    wal_needed_from: Lsn | None
    wal: list[StoredObject] = field(default_factory=list)
    summaries: list[StoredObject] = field(default_factory=list)
    packs: list[StoredObject] = field(default_factory=list)

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


def expire(request: ExpireRequest, on_progress: Callable[[int, int], None] | None = None) -> ExpireReport:
    """Remove what is not to be kept, and return what that was.

    What cannot be judged is kept, with all that it may need: for a backup whose entry is damaged, its backup_label says
    what that is; nothing at all is removed where that cannot be read either.
    Raises RepositoryLocked when a backup is being taken, or one that is to go is being read; FormatError when a history
    file is damaged, because what is needed cannot be known then.
    """
    repository = Repository.open(request.place)
    if request.dry_run:
        if not repository.backup_is_running():
            return _plan(repository, request, repository.catalogue.unfinished())
        # What that one has stored so far looks like something that was abandoned.
        return _plan(repository, request, [], only_named_packs=True)
    with repository.lock_backups(), repository.hold_all_backups(exclusive=True):
        unfinished = repository.catalogue.give_up_unfinished()
        removed, retained = list[BackupEntry](), list[BackupEntry]()
        report = _plan(repository, request, unfinished)
        _require_unread(repository, report.expired)
        while (entry := _retire(repository, report.expired, removed)) is not None:
            # It stays, and with it what it builds on, and the WAL that it needs.
            retained.append(entry)
            report = _plan(repository, request, unfinished, retained=retained)
        report = replace(report, expired=removed)
        _remove_unneeded(repository, report, on_progress)
    return report


def _require_unread(repository: Repository, entries: Iterable[BackupEntry]) -> None:
    for entry in entries:
        if repository.catalogue.is_held(entry.backup_id):
            raise RepositoryLocked(
                f"backup {entry.backup_id} is being read by a restore or a verification; nothing was removed",
                hint="Run pgwal expire again when that has ended.",
                backup_id=entry.backup_id,
                holder="a restore or a verification",
            )


def _retire(repository: Repository, entries: Iterable[BackupEntry], removed: list[BackupEntry]) -> BackupEntry | None:
    """Have backups count no more, and note them; return one that the storage has to keep for some time, or None."""
    for entry in entries:
        try:
            repository.catalogue.retire(entry.backup_id)
        except ObjectRetained as error:
            logger.warning("backup %s stays until its retention is over: %s", entry.backup_id, error)
            return entry
        removed.append(entry)
    return None


def _plan(
    repository: Repository,
    request: ExpireRequest,
    unfinished: list[str],
    *,
    only_named_packs: bool = False,
    retained: Collection[BackupEntry] = (),
) -> ExpireReport:
    histories = {history.timeline_id: history for history in repository.wal.histories()}
    current = _current_timelines(repository)
    entries, unreadable = repository.catalogue.survey()
    labels = [_label(repository, backup) for backup in unreadable if not backup.is_foreign]
    judged = None not in labels
    known = [label for label in labels if isinstance(label, BackupLabel)]
    recoverable = read_recoverable_ranges(repository, entries)
    retention = decide_retention(
        entries,
        histories,
        current,
        keep_full=request.keep_full if judged else None,
        keep_since=request.keep_since if judged else None,
        unusable_ids={backup_id for backup_id, found in recoverable.items() if found is None},
        built_on={
            *(label.incremental_from.lsn for label in known if label.incremental_from is not None),
            *(entry.start_lsn for entry in retained),
        },
    )
    wal_retention = WalRetention(retention.kept, histories, current, [label.start_lsn for label in known])
    report = ExpireReport(
        retention.kept,
        retention.expired,
        retention.broken,
        unreadable,
        unfinished,
        wal_retention.needed_from if retention.kept else None,
    )
    if retention.kept:
        expired_ids = {entry.backup_id for entry in retention.expired}
        report.packs.extend(repository.catalogue.unneeded_packs(expired_ids, only_named=only_named_packs))
    if retention.kept and judged:
        report.wal.extend(_unneeded_wal(repository, wal_retention, histories))
        report.summaries.extend(_unneeded_summaries(repository, wal_retention))
    return report


def _label(repository: Repository, backup: UnreadableBackup) -> BackupLabel | Literal["nothing"] | None:
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
        if not is_segment_name(base):
            continue
        try:
            timeline_id, number = geometry.parse_file_name(base)
        except FormatError:
            continue
        found.append((number, timeline_id, file))
        newest[timeline_id] = max(number, newest.get(timeline_id, 0))
    left = {switch.timeline_id for history in histories.values() for switch in history.switches}
    return [
        file
        for number, timeline_id, file in sorted(found)
        if not retention.needs(LsnRange(timeline_id, *map(geometry.segment_start, (number, number + 1))))
        and (timeline_id in left or number < newest[timeline_id])
    ]


def _unneeded_summaries(repository: Repository, retention: WalRetention) -> list[StoredObject]:
    named = ((parse_summary_file_name(file.name), file) for file in objects_in(repository.store, SUMMARY_DIRECTORY))
    unneeded = [(part, file) for part, file in named if part is not None and not retention.needs(part)]
    return [file for _, file in sorted(unneeded)]


def _remove_unneeded(
    repository: Repository, report: ExpireReport, on_progress: Callable[[int, int], None] | None
) -> None:
    # Before the rest of what is unfinished: that tells, after a crash, that there may be some.
    repository.catalogue.remove_packs(report.packs)
    repository.catalogue.clear_unfinished()
    total = report.backup_bytes + report.wal_bytes + report.summary_bytes
    done = report.backup_bytes
    sizes = {f"{SUMMARY_DIRECTORY}/{file.name}": file.size_bytes for file in report.summaries}
    sizes |= {f"{WAL_DIRECTORY}/{file.name}": file.size_bytes for file in report.wal}

    def on_done(name: str) -> None:
        nonlocal done
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total)

    repository.place.leases.confirm()
    delete_what_can_go(repository.store, sizes, on_done)
