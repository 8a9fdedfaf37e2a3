"""A backup that is being taken, how it comes to count, and how what does not count is removed.

Where a store renames folders, a backup is staged under another name than it will have, and published by the rename.
Elsewhere a folder is a backup when it has an entry, which is stored last, and removed first.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Self

from pgwal.backup.backup_file import BackupFile, encode_file
from pgwal.backup.backup_id import is_backup_id
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import encode_entry
from pgwal.errors import ObjectNotFound, RepositoryError
from pgwal.repository.backup_data import create_backup_data
from pgwal.repository.layout import (
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORIES_NAME,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
)
from pgwal.repository.place import Place
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat
from pgwal.repository.store import ObjectStore, as_renaming, folders_in, names_in, objects_in

logger = logging.getLogger(__name__)

_NOTES_NAME = "files.spool"


class StagedBackup:
    """A backup that is being taken; its files are noted on disk, so that a million of them cost no memory.

    ``data`` stores them.  As a context manager, removes all of it at the end unless it was published.
    """

    def __init__(
        self, place: Place, backup_id: str, storage_format: StorageFormat = PLAIN_FORMAT, jobs: int = 1
    ) -> None:
        self.backup_id = backup_id
        self._store = place.store
        self._spool = place.spool
        self._renaming = as_renaming(place.store)
        self._folder = folder_of(backup_id) + ("" if self._renaming is None else UNFINISHED_SUFFIX)
        self._notes_name = f"{self._folder}/{_NOTES_NAME}"
        self.data = create_backup_data(place, self._folder, storage_format, jobs)
        self._notes = place.spool.create_notes(self._notes_name)
        self._is_published = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(RepositoryError):  # of what could not be written, which does not matter any more
            self._notes.close()
        if not self._is_published:
            self._discard()

    def add_file(self, file: BackupFile) -> None:
        """Note a file that has been stored."""
        self._notes.write(encode_file(file) + b"\n")

    def publish(self, entry: BackupEntry) -> None:
        """Make it a backup: its data must be durable, and all its files noted."""
        self._notes.seek(0)
        files = (line.rstrip(b"\n") for line in self._notes)
        contents = self.data.contents()
        if self._renaming is None:
            self._store.put(f"{self._folder}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files, contents))
            self._is_published = True
            self._spool.drop_notes(self._notes_name)
            return
        self._store.put(f"{self._folder}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files, contents))
        self._spool.drop_notes(self._notes_name)
        self._renaming.rename(self._folder, folder_of(self.backup_id))
        self._is_published = True

    def _discard(self) -> None:
        self.data.abandon()
        try:
            # What was renamed counts, whatever failed then: it needs its packs.
            if self._renaming is not None and not self._store.exists(self._folder):
                return
            # The entry goes before the packs that it names: it may be there although storing it failed.
            with suppress(ObjectNotFound):
                self._store.delete(f"{self._folder}/{BACKUP_ENTRY_NAME}")
            self.data.discard()
            if self._store.exists(self._folder):
                remove_backup(self._store, self._folder)
        except RepositoryError as error:
            # Why the backup failed is what must be seen; the next backup removes what is left.
            logger.warning("%s", error)


def folder_of(backup_id: str) -> str:
    """Return the folder of a backup."""
    return f"{BACKUP_DIRECTORY}/{backup_id}"


def is_unfinished(name: str) -> bool:
    """Tell whether a folder's name is that of a backup under another name than it had, or will have."""
    return name.endswith(UNFINISHED_SUFFIX) and is_backup_id(name.removesuffix(UNFINISHED_SUFFIX))


def remove_backup(store: ObjectStore, folder: str) -> bool:
    """Remove what pgwal puts into a backup's folder, and the folder if nothing else is in it."""
    if BACKUP_DATA_DIRECTORY in folders_in(store, folder):
        store.delete_all(f"{folder}/{BACKUP_DATA_DIRECTORY}")
    store.recover(folder, BACKUP_ENTRY_NAME.__eq__)
    for name, _ in objects_in(store, folder):
        if name in (BACKUP_ENTRY_NAME, BACKUP_DIRECTORIES_NAME, _NOTES_NAME):
            store.delete(f"{folder}/{name}")
    is_removed = store.remove_folder(folder)
    if not is_removed:
        others = ", ".join(names_in(store, folder)[:1]) or "something"
        logger.warning("%s stays: it holds %s, which is not pgwal's", store.locate(folder), others)
    return is_removed
