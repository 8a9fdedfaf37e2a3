"""Pin a backup, so that it is never expired, and unpin it."""

from __future__ import annotations

from pgwal.backup.backup_id import parse_backup_id
from pgwal.errors import ObjectNotFound
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository


def pin_backup(place: Place, backup_id: str) -> bool:
    """Keep a backup, with what it builds on, from being expired; False when it was pinned already.

    Raises ObjectNotFound, FormatError for what is no id, RepositoryLocked while an expire runs: it may have decided
    already that the backup goes.
    """
    repository = Repository.open(place)
    place.require_own()
    parse_backup_id(backup_id)
    with repository.hold_all_backups():
        _require_there(repository, backup_id)
        is_new = BackupMarks(repository.store).pin(backup_id)
        # Whoever stood still here for long has to know whether an expire began meanwhile, which did not see the pin.
        place.leases.confirm()
    return is_new


def unpin_backup(place: Place, backup_id: str) -> bool:
    """Let a backup be expired again; False when it was not pinned.

    Raises ObjectNotFound, FormatError for what is no id, ObjectRetained where the storage keeps the pin for some time.
    """
    repository = Repository.open(place)
    place.require_own()
    parse_backup_id(backup_id)
    if BackupMarks(repository.store).unpin(backup_id):
        return True
    _require_there(repository, backup_id)
    return False


def _require_there(repository: Repository, backup_id: str) -> None:
    if backup_id not in repository.catalogue.ids():
        raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
