"""The backups of a repository: finished ones, and the one that is being taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from pgwal.backup.entry import (
    BackupEntry,
    BackupFile,
    decode_entry,
    decode_file,
    decode_head,
    encode_entry,
    encode_file,
)
from pgwal.errors import FormatError, ObjectNotFound, RepositoryError, RepositoryLocked
from pgwal.repository.layout import (
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
)
from pgwal.repository.local import LocalStore, translated_errors

logger = logging.getLogger(__name__)

_SPOOL_NAME = "files.spool"


class Catalogue:
    """Reads and extends ``backups/`` of a repository."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def entries(self) -> list[BackupEntry]:
        """Return the finished backups, by id and so by time; raises FormatError when an entry is damaged."""
        return [self.entry(backup_id) for backup_id in self.ids()]

    def ids(self) -> list[str]:
        """Return the ids of the finished backups, by time, damaged ones among them."""
        names = self._store.list_directories(BACKUP_DIRECTORY)
        return [name for name in names if not name.endswith(UNFINISHED_SUFFIX)]

    def entry(self, backup_id: str) -> BackupEntry:
        """Return the entry of one backup; raises FormatError when it is damaged or missing."""
        path = self._store.path(self._entry_name(backup_id))
        with _naming_damage(path):
            try:
                with translated_errors("read", path), path.open("rb") as file:
                    entry = decode_head(file.readline())
            except ObjectNotFound as error:
                raise FormatError("it is missing") from error
            if entry.backup_id != backup_id:
                raise FormatError(f"it is the entry of backup {entry.backup_id}")
        return entry

    def files(self, backup_id: str) -> Iterator[BackupFile]:
        """Yield the files of a backup; they are proven right only when the iterator has ended.

        Raises ObjectNotFound, and FormatError or ChecksumMismatch for a damaged entry.
        """
        path = self._store.path(self._entry_name(backup_id))
        if not self._store.exists(self._entry_name(backup_id)):
            raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
        with _naming_damage(path), translated_errors("read", path), path.open("rb") as lines:
            yield from decode_entry(lines)[1]

    def data_path(self, backup_id: str) -> Path:
        """Return the directory with a backup's data."""
        return self._store.path(f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_DATA_DIRECTORY}")

    @contextmanager
    def hold(self, backup_id: str) -> Iterator[None]:
        """Keep a backup from being removed while the context lasts; any number of processes may do so.

        That keeps all that it builds on, for what builds on a backup goes first: a chain may be longer than a process
        may open files.  Raises ObjectNotFound when it is gone, RepositoryLocked when it is being removed.
        """
        with self._store.hold(self._entry_name(backup_id)):
            yield

    def is_held(self, backup_id: str) -> bool:
        """Tell whether some process keeps a backup from being removed."""
        try:
            with self._store.hold(self._entry_name(backup_id), exclusive=True):
                return False
        except RepositoryLocked:
            return True

    def retire(self, backup_id: str) -> None:
        """Make a backup one that does not count, durably; ``clear_unfinished`` removes it.

        Only under the lock for backups, and after those that build on it.  Raises RepositoryLocked while it is held.
        """
        with self._store.hold(self._entry_name(backup_id), exclusive=True):
            name = f"{BACKUP_DIRECTORY}/{backup_id}"
            self._store.rename_directory(name, name + UNFINISHED_SUFFIX)

    def stage(self, backup_id: str) -> StagedBackup:
        """Begin a backup, which does not count until it is published."""
        return StagedBackup(self._store, backup_id)

    def unfinished(self) -> list[str]:
        """Return the names of what abandoned and removed backups left, or the one that is being taken."""
        names = self._store.list_directories(BACKUP_DIRECTORY)
        return [name for name in names if name.endswith(UNFINISHED_SUFFIX)]

    def clear_unfinished(self) -> list[str]:
        """Remove what abandoned backups left, and return their ids; only under the lock for backups."""
        left = [name for name in self._store.list_directories(BACKUP_DIRECTORY) if name.endswith(UNFINISHED_SUFFIX)]
        for name in left:
            self._store.delete_directory(f"{BACKUP_DIRECTORY}/{name}")
        return [name.removesuffix(UNFINISHED_SUFFIX) for name in left]

    def _entry_name(self, backup_id: str) -> str:
        return f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_ENTRY_NAME}"


class StagedBackup:
    """A backup that is being taken; its files are noted on disk, so that a million of them cost no memory.

    As a context manager, removes all of it at the end unless it was published.
    """

    def __init__(self, store: LocalStore, backup_id: str) -> None:
        self.backup_id = backup_id
        self._store = store
        self._name = f"{BACKUP_DIRECTORY}/{backup_id}{UNFINISHED_SUFFIX}"
        store.create_directory(f"{self._name}/{BACKUP_DATA_DIRECTORY}")
        self._spool_path = store.path(f"{self._name}/{_SPOOL_NAME}")
        with translated_errors("write", self._spool_path):
            self._spool = self._spool_path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):  # of what could not be written, which does not matter any more
            self._spool.close()
        if self._store.exists(self._name):
            self._discard()

    @property
    def data_path(self) -> Path:
        """The directory that the backup's data goes to."""
        return self._store.path(f"{self._name}/{BACKUP_DATA_DIRECTORY}")

    def add_file(self, file: BackupFile) -> None:
        """Note a file that has been stored."""
        with translated_errors("write", self._spool_path):
            self._spool.write(encode_file(file) + b"\n")

    def publish(self, entry: BackupEntry) -> None:
        """Make it a backup: its data must be durable, and all its files noted."""
        with translated_errors("write", self._spool_path):
            self._spool.close()
        with translated_errors("read", self._spool_path), self._spool_path.open("rb") as lines:
            files = (decode_file(line.rstrip(b"\n")) for line in lines)
            self._store.write_chunks(f"{self._name}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files))
            self._spool_path.unlink()
        self._store.rename_directory(self._name, self._name.removesuffix(UNFINISHED_SUFFIX))

    def _discard(self) -> None:
        try:
            self._store.delete_directory(self._name)
        except RepositoryError as error:
            # Why the backup failed is what must be seen; the next backup removes what is left.
            logger.warning("%s", error)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Say of a damaged catalogue entry which one it is, and what can be done."""
    try:
        yield
    except FormatError as error:
        message = f"catalogue entry {path} is damaged: {str(error).removeprefix('catalogue entry: ')}"
        hint = error.hint or (
            f"Bring the file back from a copy of the repository. Without one, this backup and those that build on it"
            f" are lost: move {path.parent} away and take a full backup."
        )
        raise type(error)(message, hint=hint) from error
