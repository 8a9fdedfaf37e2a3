"""Tablespaces that recovery creates itself, at the places that WAL names: on the machine of the source, its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import RecoveryTarget
from pgwal.engine.recovery_window import is_reached_before, target_history
from pgwal.engine.replayed_wal import CreatedTablespace, ReplayedWal
from pgwal.errors import RecoveryTargetError
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)

# PostgreSQL, create_tablespace_directories of src/backend/commands/tablespace.c: replaying CREATE TABLESPACE makes a
# link in pg_tblspc to the path in the record, in place of one that is there (13 and 14 empty what is found at the
# path before).  No setting changes that path.


def require_own_tablespaces(
    repository: Repository,
    entry: BackupEntry,
    target: RecoveryTarget,
    replayed: ReplayedWal,
    mapping: Mapping[str, str],
) -> list[CreatedTablespace]:
    """Return the tablespaces that recovery up to a target creates outside of what is restored, and warn of each.

    Raises RecoveryTargetError for one that ``mapping`` would have elsewhere.
    """
    found = list(_created(repository, entry, target, replayed))
    for created in found:
        if created.path in mapping:
            raise RecoveryTargetError(
                f"-T cannot move {created}: PostgreSQL replays its creation with that very path",
                hint=_way_out(created, entry, f" and no -T for it; or make {created.path} a link to the place wanted"),
            )
    kept = [created for created in found if entry.tablespaces.get(created.oid) != created.path]
    for created in kept:
        logger.warning(
            "WAL behind backup %s creates %s: that directory must be there, empty and the server's, when the server is"
            " started; on the machine of the source it may be in use. %s",
            entry.backup_id,
            created,
            _way_out(created, entry),
        )
    return kept


def _created(
    repository: Repository, entry: BackupEntry, target: RecoveryTarget, replayed: ReplayedWal
) -> Iterator[CreatedTablespace]:
    if not replayed.tablespaces:
        return
    history = target_history(repository, target.timeline, entry)
    for created in replayed.tablespaces:
        is_before_end = created.lsn < entry.stop_lsn
        if target.lsn is not None and not is_before_end:
            # Nothing was read behind the record that recovery stops at.
            ends_before = target.exclusive and created.lsn >= target.lsn
        else:
            ends_before = (
                target.is_set
                and not is_before_end
                and is_reached_before(repository, entry, history, target, created.lsn)
            )
        if not ends_before:
            yield created


def _way_out(created: CreatedTablespace, entry: BackupEntry, other: str = "") -> str:
    if created.lsn < entry.stop_lsn:
        return f"Restore another backup{other}."
    return f"Recovery ends before that with --target-lsn {created.lsn} --target-exclusive{other}."
