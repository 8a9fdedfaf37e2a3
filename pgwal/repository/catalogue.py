"""The backups of a repository: finished ones, and the one that is being taken."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple, Self

from pgwal.backup.chain import place_of
from pgwal.backup.entry import (
    BackupEntry,
    BackupFile,
    decode_entry,
    decode_file,
    decode_head,
    encode_entry,
    encode_file,
    is_backup_id,
)
from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.errors import (
    FormatError,
    ObjectNotFound,
    PgwalError,
    RepositoryError,
    RepositoryLocked,
    WrongCluster,
)
from pgwal.repository.layout import (
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
    RepositoryIdentity,
)
from pgwal.repository.local import LocalStore, translated_errors

logger = logging.getLogger(__name__)

_SPOOL_NAME = "files.spool"
_MAX_LINE_BYTES = 16 << 20


class UnreadableBackup(NamedTuple):
    """A backup whose entry cannot be read, and why; ``is_foreign`` when it is another cluster's."""

    backup_id: str
    error: PgwalError
    is_foreign: bool


class Survey(NamedTuple):
    """The finished backups: those whose entries can be read, in the order of ``place_of``, and the others, by id."""

    entries: list[BackupEntry]
    unreadable: list[UnreadableBackup]


class Catalogue:
    """Reads and extends ``backups/`` of a repository.

    What is there besides, under names that no backup has, is left alone and passed over.
    """

    def __init__(self, store: LocalStore, identity: RepositoryIdentity | None = None) -> None:
        """``identity`` is of the cluster whose backups count; those of all do when it is None."""
        self._store = store
        self._identity = identity

    def survey(self) -> Survey:
        """Read the entries of all backups; one that cannot be read does not keep the others from being so."""
        entries, unreadable = [], []
        for backup_id in self.ids():
            try:
                entries.append(self.entry(backup_id))
            except (FormatError, RepositoryError) as error:
                unreadable.append(UnreadableBackup(backup_id, error, isinstance(error, WrongCluster)))
        return Survey(sorted(entries, key=place_of), unreadable)

    def entries(self, wanted: str | None = None) -> list[BackupEntry]:
        """Return the finished backups, oldest first; those that cannot be read are left out, with a warning for each.

        Raises the FormatError or RepositoryError of the one that is ``wanted``.
        """
        found = self.survey()
        for backup in found.unreadable:
            if backup.backup_id == wanted:
                raise backup.error
            logger.warning("backup %s is left out: %s", backup.backup_id, backup.error)
        return found.entries

    def ids(self) -> list[str]:
        """Return the ids of the finished backups, in order, damaged ones among them."""
        return [name for name in self._store.names(BACKUP_DIRECTORY) if is_backup_id(name)]

    def entry(self, backup_id: str) -> BackupEntry:
        """Return the entry of one backup.

        Raises FormatError when it is damaged or missing, WrongCluster when it is another's, RepositoryError.
        """
        path = self._store.path(self._entry_name(backup_id))
        with _naming_damage(path):
            try:
                with self._opened(backup_id) as file:
                    line = file.readline(_MAX_LINE_BYTES)
                if len(line) == _MAX_LINE_BYTES:
                    raise FormatError("its first line is too long")
                entry = decode_head(line)
            except ObjectNotFound as error:
                raise FormatError("it is missing") from error
            if entry.backup_id != backup_id:
                raise FormatError(f"it is the entry of backup {entry.backup_id}")
        self._require_own_cluster(entry, path)
        return entry

    @contextmanager
    def _opened(self, backup_id: str) -> Iterator[IO[bytes]]:
        name = self._entry_name(backup_id)
        with BufferedReader(self._store.open(name)) as file, translated_errors("read", self._store.path(name)):
            yield file

    def _require_own_cluster(self, entry: BackupEntry, path: Path) -> None:
        mine = self._identity
        if mine is None:
            return
        if (entry.system_identifier, entry.major, entry.wal_segment_size) != (
            mine.system_identifier,
            mine.major,
            mine.segment_size,
        ):
            raise WrongCluster(
                f"{path} is of the cluster with system identifier {entry.system_identifier}, PostgreSQL {entry.major};"
                f" the repository is of {mine.system_identifier}, PostgreSQL {mine.major}",
                hint=f"Move {path.parent} back to the repository that it comes from.",
            )

    def files(self, backup_id: str) -> Generator[BackupFile]:
        """Yield the files of a backup; they are proven right only when the iterator has ended.

        Raises ObjectNotFound, and FormatError or ChecksumMismatch for a damaged entry.
        """
        if not self._store.exists(self._entry_name(backup_id)):
            raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
        with _naming_damage(self._store.path(self._entry_name(backup_id))), self._opened(backup_id) as file:
            # A longer line comes in pieces, of which none is one.
            lines = iter(partial(file.readline, _MAX_LINE_BYTES), b"")
            yield from decode_entry(lines)[1]

    def label(self, backup_id: str) -> bytes | None:
        """Return the backup_label of a backup, as it lies there; None where there are no data that it could be of.

        Raises RepositoryError, ObjectNotFound where there are data without one.
        """
        data = f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_DATA_DIRECTORY}"
        if not self._store.names(data):
            return None
        return self._store.read(f"{data}/{BACKUP_LABEL_NAME}")

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
        return list(filter(_is_unfinished, self._store.list_directories(BACKUP_DIRECTORY)))

    def clear_unfinished(self) -> list[str]:
        """Remove what abandoned backups left, and return their ids; only under the lock for backups.

        What pgwal does not put into a backup's directory stays, with a warning.
        """
        return [
            name.removesuffix(UNFINISHED_SUFFIX)
            for name in self.unfinished()
            if _remove_backup(self._store, f"{BACKUP_DIRECTORY}/{name}")
        ]

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
        self._spool_name = f"{self._name}/{_SPOOL_NAME}"
        self._spool_path = store.path(self._spool_name)
        store.create_directory(f"{self._name}/{BACKUP_DATA_DIRECTORY}")
        self._spool = store.create(self._spool_name)

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
        with translated_errors("read", self._spool_path), BufferedReader(self._store.open(self._spool_name)) as lines:
            files = (decode_file(line.rstrip(b"\n")) for line in lines)
            self._store.write_chunks(f"{self._name}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files))
            self._store.delete(self._spool_name)
        self._store.rename_directory(self._name, self._name.removesuffix(UNFINISHED_SUFFIX))

    def _discard(self) -> None:
        try:
            _remove_backup(self._store, self._name)
        except RepositoryError as error:
            # Why the backup failed is what must be seen; the next backup removes what is left.
            logger.warning("%s", error)


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED_SUFFIX) and is_backup_id(name.removesuffix(UNFINISHED_SUFFIX))


def _remove_backup(store: LocalStore, name: str) -> bool:
    """Remove what pgwal puts into a backup's directory, and the directory if nothing else is in it."""
    if BACKUP_DATA_DIRECTORY in store.list_directories(name):
        store.delete_directory(f"{name}/{BACKUP_DATA_DIRECTORY}")
    store.clear_temporaries(name, BACKUP_ENTRY_NAME.__eq__)
    for file, _ in store.list(name):
        if file in (BACKUP_ENTRY_NAME, _SPOOL_NAME):
            store.delete(f"{name}/{file}")
    is_removed = store.remove_empty_directory(name)
    if not is_removed:
        logger.warning("%s stays: it holds %s, which is not pgwal's", store.path(name), store.names(name)[0])
    return is_removed


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
        error.restate(message, hint=hint, path=str(path))
        raise
