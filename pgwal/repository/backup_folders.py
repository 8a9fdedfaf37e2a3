"""Which folders of a repository are backups, which are what is left of one, and how the latter go.

Where a store renames folders, an unfinished backup has another name than it will have.  Elsewhere a folder is a backup
when it has an entry, which is stored last, and removed first.

There, whoever takes a backup may stand still before it stores the entry, and go on when another has removed what it had
stored as that of an abandoned backup.  So that one stores an empty entry first, which is none: it keeps the place, for
nothing is stored over it.  Whoever took the backup does so as well when it failed, for what a store was asked it may do
when nobody waits for it any more.  The empty entry stays, and is needed only where a backup has said that it begins,
and not that it ended.

A backup that comes from another repository is not given up: it can be finished by whoever copies it again, see
``arriving_backup``, and until then no pack goes.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from pgwal.backup.backup_id import is_backup_id
from pgwal.errors import ObjectExists
from pgwal.repository.layout import (
    BACKUP_ARRIVAL_DIRECTORY,
    BACKUP_CLAIM_NAME,
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORIES_NAME,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
)
from pgwal.repository.store import ObjectStore, as_renaming, folders_in, names_in, objects_in

logger = logging.getLogger(__name__)

NOTES_NAME = "files.spool"


class BackupFolders(NamedTuple):
    """Names of folders in ``backups/``, in order: the ids of backups, damaged ones among them, and what is left of
    abandoned and removed ones, or of the one that is being taken; ``names`` are all that are taken there, and
    ``arriving`` what comes from another repository, and is not all there."""

    finished: list[str]
    unfinished: list[str]
    names: list[str]
    arriving: list[str]


def find_backup_folders(store: ObjectStore) -> BackupFolders:
    """Look at the names alone; what is there besides, under names that no backup has, is passed over."""
    if as_renaming(store) is not None:
        names = names_in(store, BACKUP_DIRECTORY)
        unfinished = [name for name in folders_in(store, BACKUP_DIRECTORY) if _is_unfinished(name)]
        arriving = [name for name in unfinished if store.exists(f"{folder_of(name)}/{BACKUP_ARRIVAL_DIRECTORY}")]
        finished = [name for name in names if is_backup_id(name)]
        return BackupFolders(finished, [name for name in unfinished if name not in arriving], names, arriving)
    finished_ids, others, taken, arriving_ids = set[str](), set[str](), set[str](), set[str]()
    # All at once: a request for each backup takes longer.
    for name, size_bytes in store.list(f"{BACKUP_DIRECTORY}/"):
        backup_id, _, rest = name.removeprefix(f"{BACKUP_DIRECTORY}/").partition("/")
        taken.add(backup_id)
        if is_backup_id(backup_id) and rest:
            if rest != BACKUP_ENTRY_NAME:
                others.add(backup_id)
            elif size_bytes:
                finished_ids.add(backup_id)
            if rest.startswith(f"{BACKUP_ARRIVAL_DIRECTORY}/"):
                arriving_ids.add(backup_id)
    arriving_ids -= finished_ids
    others -= finished_ids | arriving_ids
    return BackupFolders(sorted(finished_ids), sorted(others), sorted(taken), sorted(arriving_ids))


def folder_of(backup_id: str) -> str:
    """Return the folder of a backup."""
    return f"{BACKUP_DIRECTORY}/{backup_id}"


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED_SUFFIX) and is_backup_id(name.removesuffix(UNFINISHED_SUFFIX))


def give_up(store: ObjectStore, folder: str) -> bool:
    """Keep a backup that is not finished from being finished by whoever began it; False when it is by now."""
    if as_renaming(store) is not None or not store.exists(f"{folder}/{BACKUP_CLAIM_NAME}"):
        return True
    try:
        store.put(f"{folder}/{BACKUP_ENTRY_NAME}", b"")
    except ObjectExists:
        return store.size(f"{folder}/{BACKUP_ENTRY_NAME}") == 0
    return True


def remove_backup(store: ObjectStore, folder: str) -> bool:
    """Remove what pgwal puts into a backup's folder, and the folder if nothing else is in it."""
    for name in {BACKUP_DATA_DIRECTORY, BACKUP_ARRIVAL_DIRECTORY}.intersection(folders_in(store, folder)):
        store.delete_all(f"{folder}/{name}")
    store.recover(folder, BACKUP_ENTRY_NAME.__eq__)
    is_keeping_place = as_renaming(store) is None
    others = []
    # What says that it began goes last.
    for name, size_bytes in objects_in(store, folder):
        if name == BACKUP_ENTRY_NAME and size_bytes == 0 and is_keeping_place:
            continue
        if name in (BACKUP_ENTRY_NAME, BACKUP_DIRECTORIES_NAME, NOTES_NAME, BACKUP_CLAIM_NAME):
            store.delete(f"{folder}/{name}")
        else:
            others.append(name)
    is_removed = not others if is_keeping_place else store.remove_folder(folder)
    if not is_removed:
        others = others or names_in(store, folder) or ["something"]
        logger.warning("%s stays: it holds %s, which is not pgwal's", store.locate(folder), others[0])
    return is_removed
