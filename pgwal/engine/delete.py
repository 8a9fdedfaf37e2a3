"""Delete one backup that somebody names, and what builds on it where that is wanted; WAL stays for expire to judge.

As in an expire, what counts is decided by names: each backup that goes is renamed first, those that build on others
before these.  Wherever this is interrupted, what is still a backup can be restored, and the next expire goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pgwal.backup.backup_id import parse_backup_id
from pgwal.backup.chain import is_superseded, place_of, prior_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.label import BackupLabel
from pgwal.backup.retention import find_chains
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.engine.expire import remove_rest_of_backups, require_unread
from pgwal.engine.expire_plan import label_of_unreadable
from pgwal.errors import ObjectNotFound, RepositoryError
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.catalogue import UnreadableBackup
from pgwal.repository.pack_pool import PackGarbage
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.store import StoredObject

_NAMED = 3
"""How many backups an error lists."""


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Which backup to delete; with ``dry_run`` nothing is changed.

    ``cascade`` is whether those that build on it go, too, ``may_be_last`` whether no restorable one need be left.
    """

    place: Place
    backup_id: str
    cascade: bool = False
    may_be_last: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What was deleted, or would be: none before those that build on it; ``is_last`` when none restorable is left."""

    deleted: list[BackupEntry]
    kept: list[BackupEntry]
    garbage: PackGarbage
    is_last: bool

    @property
    def packs(self) -> list[StoredObject]:
        return self.garbage.packs

    @property
    def size_bytes(self) -> int:
        plain = sum(entry.totals.stored_size_bytes for entry in self.deleted if entry.packed_size_bytes is None)
        return plain + sum(pack.size_bytes for pack in self.packs)


def delete_backup(request: DeleteRequest) -> DeleteReport:
    """Delete a backup, and return what went.

    Raises ObjectNotFound, FormatError for what is no id and for an entry that cannot be read; RepositoryError where the
    backup is pinned, others build on it, or it is the last restorable one, and that was not asked for; RepositoryLocked
    while a backup is taken, or one that is to go is being read; ObjectRetained where the storage keeps one for some
    time.
    """
    repository = Repository.open(request.place)
    parse_backup_id(request.backup_id)
    if request.dry_run:
        # What a backup that is being taken has stored so far looks like something that was abandoned.
        return _plan(repository, request, only_named_packs=repository.backup_is_running())
    with repository.lock_backups(), repository.hold_all_backups(exclusive=True):
        report = _plan(repository, request)
        if report.is_last and not request.may_be_last:
            raise RepositoryError(
                f"without backup {request.backup_id} there is none left that can be restored; nothing was deleted",
                hint="Take another one first, or give --yes.",
            )
        require_unread(repository, report.kept, report.deleted)
        for entry in report.deleted:
            repository.catalogue.retire(entry.backup_id)
        remove_rest_of_backups(repository, report.kept, report.deleted, report.garbage)
    return report


def _plan(repository: Repository, request: DeleteRequest, *, only_named_packs: bool = False) -> DeleteReport:
    entries, unreadable = repository.catalogue.survey()
    by_id = {entry.backup_id: entry for entry in entries}
    named = _named(request.backup_id, by_id, unreadable)
    needing = _needing(named, by_id)
    if needing and not request.cascade:
        raise RepositoryError(
            f"{_texts(needing)} cannot be restored without backup {named.backup_id}",
            hint="Delete what builds on it, too, with --cascade; or make it independent first, with pgwal merge.",
        )
    deleted = [*sorted(needing, key=place_of, reverse=True), named]
    deleted_ids = {entry.backup_id for entry in deleted}
    kept = [entry for entry in entries if entry.backup_id not in deleted_ids]
    _require_unpinned(repository, deleted, {entry.backup_id for entry in kept})
    _require_unneeded(repository, deleted, unreadable)
    restorable_ids = _restorable_ids(repository, entries)
    return DeleteReport(
        deleted,
        kept,
        repository.catalogue.pack_garbage(deleted_ids, only_named=only_named_packs),
        bool(restorable_ids) and restorable_ids <= deleted_ids,
    )


def _named(backup_id: str, by_id: Mapping[str, BackupEntry], unreadable: Iterable[UnreadableBackup]) -> BackupEntry:
    for backup in unreadable:
        if backup.backup_id == backup_id:
            # What it is needed for is not known; the error says what a person can do.
            raise backup.error
    if backup_id not in by_id:
        raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
    return by_id[backup_id]


def _needing(named: BackupEntry, by_id: Mapping[str, BackupEntry]) -> list[BackupEntry]:
    """Return what builds on a backup, and has no whole chain without it: one that was merged may still have its own."""
    without = [entry for entry in by_id.values() if entry is not named]
    lost_ids = {entry.backup_id for entry in find_chains(without)[1]}
    return [entry for entry in without if entry.backup_id in lost_ids and _builds_on(entry, named, by_id)]


def _builds_on(entry: BackupEntry, named: BackupEntry, by_id: Mapping[str, BackupEntry]) -> bool:
    passed = {entry.backup_id}
    while (prior := prior_of(entry, by_id)) is not None and prior.backup_id not in passed:
        if prior is named:
            return True
        passed.add(prior.backup_id)
        entry = prior
    return False


def _require_unpinned(repository: Repository, deleted: Sequence[BackupEntry], kept_ids: Collection[str]) -> None:
    # What was merged into a full backup that stays has handed its pin on.
    asked = [entry for entry in deleted if not is_superseded(entry, kept_ids)]
    pinned_ids = BackupMarks(repository.store).pinned(entry.backup_id for entry in asked)
    if pinned_ids:
        pinned = [entry for entry in asked if entry.backup_id in pinned_ids]
        verb = "is" if len(pinned) == 1 else "are"
        raise RepositoryError(f"{_texts(pinned)} {verb} pinned; nothing was deleted", hint="Unpin first: pgwal unpin.")


def _require_unneeded(
    repository: Repository, deleted: Sequence[BackupEntry], unreadable: Iterable[UnreadableBackup]
) -> None:
    """Refuse what a backup whose entry cannot be read builds on, or may."""
    starts = {entry.start_lsn for entry in deleted}
    for backup in unreadable:
        if backup.is_foreign:
            continue
        label = label_of_unreadable(repository, backup)
        if label is None or (
            isinstance(label, BackupLabel)
            and label.incremental_from is not None
            and label.incremental_from.lsn in starts
        ):
            raise RepositoryError(
                f"backup {backup.backup_id}, whose entry cannot be read, {'may build' if label is None else 'builds'}"
                " on what would be deleted",
                hint=f"Mend that one, or move it away: {backup.error}",
            )


def _restorable_ids(repository: Repository, entries: Sequence[BackupEntry]) -> set[str]:
    broken_ids = {entry.backup_id for entry in find_chains(entries)[1]}
    reached = read_recoverable_ranges(repository, entries)
    return {backup_id for backup_id, found in reached.items() if found is not None} - broken_ids


def _texts(entries: Sequence[BackupEntry]) -> str:
    more = f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
    return f"backup{'s' if len(entries) > 1 else ''} {', '.join(e.backup_id for e in entries[:_NAMED])}{more}"
