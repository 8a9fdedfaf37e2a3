"""The backups of a repository: finished ones, and the one that is being taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgwal.backup.entry import BackupEntry, BackupFile, decode_entry, decode_file, decode_head, encode_entry, encode_file
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.layout import (
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
)
from pgwal.repository.local import LocalStore

_SPOOL_NAME = "files.spool"


class Catalogue:
    """Reads and extends ``backups/`` of a repository."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def entries(self) -> list[BackupEntry]:
        """Return the finished backups, by id and so by time; raises FormatError when an entry is damaged."""
        found = []
        for backup_id in self._store.list_directories(BACKUP_DIRECTORY):
            if not backup_id.endswith(UNFINISHED_SUFFIX):
                with self._store.path(self._entry_name(backup_id)).open("rb") as file:
                    try:
                        entry = decode_head(file.readline())
                    except FormatError as error:
                        raise FormatError(f"{self._entry_name(backup_id)}: {error}", hint=error.hint) from error
                if entry.backup_id != backup_id:
                    raise FormatError(f"{self._entry_name(backup_id)} is the entry of backup {entry.backup_id}")
                found.append(entry)
        return found

    def files(self, backup_id: str) -> Iterator[BackupFile]:
        """Yield the files of a backup; they are proven right only when the iterator has ended.

        Raises ObjectNotFound, and FormatError or ChecksumMismatch for a damaged entry.
        """
        path = self._store.path(self._entry_name(backup_id))
        if not path.is_file():
            raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
        with path.open("rb") as lines:
            yield from decode_entry(lines)[1]

    def data_path(self, backup_id: str) -> Path:
        """Return the directory with a backup's data."""
        return self._store.path(f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_DATA_DIRECTORY}")

    def stage(self, backup_id: str) -> StagedBackup:
        """Begin a backup, which does not count until it is published."""
        return StagedBackup(self._store, backup_id)

    def clear_unfinished(self) -> list[str]:
        """Remove what abandoned backups left, and return their ids; only under the lock for backups."""
        left = [
            name for name in self._store.list_directories(BACKUP_DIRECTORY) if name.endswith(UNFINISHED_SUFFIX)
        ]
        for name in left:
            self._store.delete_directory(f"{BACKUP_DIRECTORY}/{name}")
        return [name.removesuffix(UNFINISHED_SUFFIX) for name in left]

    def _entry_name(self, backup_id: str) -> str:
        return f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_ENTRY_NAME}"


class StagedBackup:
    """A backup that is being taken; its files are noted on disk, so that a million of them cost no memory."""

    def __init__(self, store: LocalStore, backup_id: str) -> None:
        self.backup_id = backup_id
        self._store = store
        self._name = f"{BACKUP_DIRECTORY}/{backup_id}{UNFINISHED_SUFFIX}"
        store.create_directory(f"{self._name}/{BACKUP_DATA_DIRECTORY}")
        self._spool = store.path(f"{self._name}/{_SPOOL_NAME}").open("wb")

    @property
    def data_path(self) -> Path:
        """The directory that the backup's data goes to."""
        return self._store.path(f"{self._name}/{BACKUP_DATA_DIRECTORY}")

    def add_file(self, file: BackupFile) -> None:
        """Note a file that has been stored."""
        self._spool.write(encode_file(file) + b"\n")

    def publish(self, entry: BackupEntry) -> None:
        """Make it a backup: its data must be durable, and all its files noted."""
        self._spool.close()
        spool_path = self._store.path(f"{self._name}/{_SPOOL_NAME}")
        with spool_path.open("rb") as lines:
            files = (decode_file(line.rstrip(b"\n")) for line in lines)
            self._store.write_chunks(f"{self._name}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files))
        spool_path.unlink()
        self._store.rename_directory(self._name, self._name.removesuffix(UNFINISHED_SUFFIX))

    def discard(self) -> None:
        """Remove all of it."""
        self._spool.close()
        self._store.delete_directory(self._name)
