"""The backups of a repository: finished ones, and the one that is being taken."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.chain import place_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import decode_contents, decode_entry, decode_head, decode_packs
from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.backup.pack_table import Frame, Pack, PackedContents
from pgwal.backup.pack_use import PackUsers
from pgwal.errors import (
    FormatError,
    ObjectNotFound,
    ObjectRetained,
    PgwalError,
    RepositoryError,
    RepositoryLocked,
    StoreUnavailable,
    WrongCluster,
)
from pgwal.repository.backup_data import BackupData, open_backup_data
from pgwal.repository.backup_folders import BackupFolders, find_backup_folders, folder_of, give_up, remove_backup
from pgwal.repository.frame_tables import FrameTables
from pgwal.repository.layout import (
    BACKUP_ARRIVAL_DIRECTORY,
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
    SET_ASIDE_DIRECTORY,
    UNFINISHED_SUFFIX,
    RepositoryIdentity,
)
from pgwal.repository.object_reader import open_buffered
from pgwal.repository.pack_pool import NO_GARBAGE, PackGarbage, list_packs, remove_packs
from pgwal.repository.place import Place
from pgwal.repository.sealing import format_for_new_files
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal.repository.store import as_renaming, folders_in
from pgwal.repository.waiting_threads import ask_for_each

logger = logging.getLogger(__name__)

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

    def __init__(self, place: Place, identity: RepositoryIdentity | None = None) -> None:
        """``identity`` is of the cluster whose backups count; those of all do when it is None."""
        self._place = place
        self._store = place.store
        self._identity = identity

    def survey(self, ids: Sequence[str] | None = None) -> Survey:
        """Read the entries of all backups, whose ``ids`` may be known; one that cannot be read does not keep the others
        from being so."""
        found = list(ask_for_each(self._store, self._read, self.ids() if ids is None else ids))
        entries = [entry for entry in found if isinstance(entry, BackupEntry)]
        return Survey(sorted(entries, key=place_of), [each for each in found if isinstance(each, UnreadableBackup)])

    def _read(self, backup_id: str) -> BackupEntry | UnreadableBackup:
        try:
            return self.entry(backup_id)
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError) as error:
            return UnreadableBackup(backup_id, error, isinstance(error, WrongCluster))

    def entries(self, wanted: str | None = None, *, ids: Sequence[str] | None = None) -> list[BackupEntry]:
        """Return the finished backups, oldest first; those that cannot be read are left out, with a warning for each.

        Raises the FormatError or RepositoryError of the one that is ``wanted``.
        """
        found = self.survey(ids)
        for backup in found.unreadable:
            if backup.backup_id == wanted:
                raise backup.error
            logger.warning("backup %s is left out: %s", backup.backup_id, backup.error)
        return found.entries

    def folders(self) -> BackupFolders:
        """Return what there is by names alone; only whoever has the lock for backups adds to it."""
        return find_backup_folders(self._store)

    def ids(self) -> list[str]:
        """Return the ids of the finished backups, in order, damaged ones among them."""
        return self.folders().finished

    def entry(self, backup_id: str) -> BackupEntry:
        """Return the entry of one backup.

        Raises FormatError when it is damaged or missing, WrongCluster when it is another's, RepositoryError.
        """
        with self._naming_damage(folder_of(backup_id)):
            try:
                with open_buffered(self._store, self._entry_name(backup_id)) as file:
                    line = file.readline(_MAX_LINE_BYTES)
                if len(line) == _MAX_LINE_BYTES:
                    raise FormatError("its first line is too long")
                entry = decode_head(line)
            except ObjectNotFound as error:
                raise FormatError("it is missing") from error
            if entry.backup_id != backup_id:
                raise FormatError(f"it is the entry of backup {entry.backup_id}")
        self._require_own_cluster(entry, backup_id)
        return entry

    def _require_own_cluster(self, entry: BackupEntry, backup_id: str) -> None:
        mine = self._identity
        if mine is None:
            return
        if (entry.system_identifier, entry.major, entry.wal_segment_size) != (
            mine.system_identifier,
            mine.major,
            mine.segment_size,
        ):
            raise WrongCluster(
                f"{self._store.locate(self._entry_name(backup_id))} is of the cluster with system identifier"
                f" {entry.system_identifier}, PostgreSQL {entry.major}; the repository is of {mine.system_identifier},"
                f" PostgreSQL {mine.major}",
                hint=f"Move {self._store.locate(folder_of(backup_id))} back to the repository that it comes from.",
            )

    def files(self, backup_id: str) -> Generator[BackupFile]:
        """Yield the files of a backup; they are proven right only when the iterator has ended.

        Raises ObjectNotFound, and FormatError or ChecksumMismatch for a damaged entry.
        """
        try:
            with self._lines(folder_of(backup_id)) as lines:
                yield from decode_entry(lines)[1]
        except ObjectNotFound:
            raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.") from None

    @contextmanager
    def _lines(self, folder: str, *, are_all_read: bool = True) -> Iterator[Iterator[bytes]]:
        """Give the lines of an entry; what is found wrong with them within the context says which one it is."""
        name = f"{folder}/{BACKUP_ENTRY_NAME}"
        with self._naming_damage(folder), open_buffered(self._store, name, is_read_whole=are_all_read) as file:
            # A longer line comes in pieces, of which none is one.
            yield iter(partial(file.readline, _MAX_LINE_BYTES), b"")

    def entry_sha256(self, backup_id: str) -> str:
        """Return the SHA-256 digest of an entry, which has the digest of every file: it stands for all of a backup."""
        digest = sha256()
        with self._lines(folder_of(backup_id)) as lines:
            for line in lines:
                digest.update(line)
        return digest.hexdigest()

    def label(self, backup_id: str) -> bytes | None:
        """Return the backup_label of a backup, as it lies there; None where there are no data that it could be of.

        Raises RepositoryError, ObjectNotFound where there are data without one.
        """
        data = f"{folder_of(backup_id)}/{BACKUP_DATA_DIRECTORY}"
        if not any(True for _ in self._store.children(data)):
            return None
        return self._store.get(f"{data}/{BACKUP_LABEL_NAME}")

    def data(self, *backup_ids: str, jobs: int = 1) -> list[BackupData]:
        """Return what backups hold, to be read; where an entry cannot tell, the repository's format does.

        What is packed is read ahead in ``jobs`` threads, which all of them share, as they do what is kept in memory.
        """
        found = [open_backup_data(self._store, folder_of(backup_id), backup_id) for backup_id in backup_ids]
        packed = [number for number, backup_id in enumerate(backup_ids) if self._is_packed(backup_id)]
        if packed:
            from pgwal.repository.frame_reader import FrameReader
            from pgwal.repository.packed_backup_data import PackedBackupData

            frames = FrameReader(self._store, jobs)
            for number in packed:
                backup_id = backup_ids[number]
                lines = partial(self._lines, folder_of(backup_id))
                found[number] = PackedBackupData(self._store, found[number], backup_id, lines, frames)
        return found

    def _is_packed(self, backup_id: str) -> bool:
        try:
            return self.entry(backup_id).packed_size_bytes is not None
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError):
            return self._format_is_packed()

    def _format_is_packed(self) -> bool:
        """Tell what the repository's format is, as far as that can be read: a plain one may have none written."""
        try:
            return StorageFormat.of(self._store).files is FileFormat.PACKED
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError):
            return True

    def pack_garbage(self, expired: Collection[str] = (), *, only_named: bool = False) -> PackGarbage:
        """Return what no backup needs of the packs but those ``expired``; nothing while an entry cannot be read.

        What a backup needs that was set aside is kept: it may be brought back.
        Those of a backup that is being taken are among them unless ``only_named``, which are those that an expired one
        names: only under the lock for backups they may be removed.  None at all while a backup comes from another
        repository: whoever copies it may have found here what it needs.
        """
        packs, tables = list(list_packs(self._store)), FrameTables(self._store)
        if not packs and not tables.names():
            return NO_GARBAGE
        folders = self.folders()
        if folders.arriving:
            logger.warning(
                "no pack is removed, for %s has not arrived whole: run pgwal copy to its end, or remove that directory",
                self._store.locate(folder_of(folders.arriving[0])),
            )
            return NO_GARBAGE
        ids = set(folders.finished)
        try:
            moves = tables.read()
            if tables.damage is not None:
                raise tables.damage
            users = PackUsers({pack.name: pack.size_bytes for pack in packs}, moves)
            kept = [*map(folder_of, ids.difference(expired)), *self._set_aside()]
            for of_backup in self._packs(kept):
                users.see(of_backup)
            doubtful = users.doubtful()
            for of_backup in self._packs(kept if doubtful else ()):
                users.see_frames(of_backup, doubtful)
            going = self._packs(map(folder_of, ids.intersection(expired))) if only_named else ()
            named = {pack.name for of_backup in going for pack in of_backup}
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError) as error:
            logger.warning("no pack is removed, for it is not known which ones are needed: %s", error)
            return NO_GARBAGE
        use = users.use()
        unneeded = [pack for pack in packs if pack.name not in use.needed]
        return PackGarbage(
            [pack for pack in unneeded if not only_named or pack.name in named],
            [name for name in tables.names() if name not in use.needed_tables],
            use,
        )

    def _packs(self, folders: Iterable[str]) -> Iterator[list[Pack]]:
        for folder in folders:
            with self._lines(folder) as lines:
                yield decode_packs(lines)

    def frames_named(self, names: AbstractSet[str]) -> dict[str, Pack]:
        """Return some packs with all of their frames that any backup names, or one that was set aside.

        Raises FormatError where an entry cannot be read.
        """
        found: dict[str, dict[int, Frame]] = {}
        packs: dict[str, Pack] = {}
        for of_backup in self._packs([*map(folder_of, self.ids()), *self._set_aside()]):
            for pack in of_backup:
                if pack.name in names:
                    packs[pack.name] = pack
                    found.setdefault(pack.name, {}).update((frame.offset, frame) for frame in pack)
        return {name: pack.with_frames(found[name].values()) for name, pack in packs.items()}

    def contents(self, backup_id: str) -> PackedContents:
        """Return what the entry of a packed backup tells besides its files; raises FormatError for a damaged one."""
        with self._lines(folder_of(backup_id)) as lines:
            _, contents, files = decode_contents(lines)
            for _ in files:
                pass
        return contents

    def document(self, backup_id: str, *, are_all_read: bool = True) -> AbstractContextManager[Iterator[bytes]]:
        """Give the lines of the entry of a backup as they are; where not ``are_all_read``, less is asked for ahead."""
        return self._lines(folder_of(backup_id), are_all_read=are_all_read)

    def _set_aside(self) -> Iterator[str]:
        """Yield the folders of the backups that were moved out of the way with a history that was lost."""
        for place in folders_in(self._store, SET_ASIDE_DIRECTORY):
            folder = f"{SET_ASIDE_DIRECTORY}/{place}/{BACKUP_DIRECTORY}"
            yield from (f"{folder}/{name}" for name in folders_in(self._store, folder))

    @contextmanager
    def hold(self, backup_id: str) -> Iterator[None]:
        """Keep a backup from being removed while the context lasts; any number of processes may do so.

        That keeps all that it builds on, for what builds on a backup goes first: a chain may be longer than a process
        may open files.  Raises ObjectNotFound when it is gone, RepositoryLocked when it is being removed.
        """
        with self._place.leases.hold(self._entry_name(backup_id)):
            yield

    def is_held(self, backup_id: str) -> bool:
        """Tell whether some process keeps a backup from being removed."""
        try:
            with self._place.leases.hold(self._entry_name(backup_id), exclusive=True):
                return False
        except RepositoryLocked:
            return True

    def retire(self, backup_id: str) -> None:
        """Make a backup one that does not count, durably; ``clear_unfinished`` removes it.

        Only under the lock for backups, and after those that build on it.  Raises RepositoryLocked while it is held.
        """
        with self._place.leases.hold(self._entry_name(backup_id), exclusive=True):
            # Left by a copy that died when all was there: it would be taken for one that is arriving.
            self._store.delete_all(f"{folder_of(backup_id)}/{BACKUP_ARRIVAL_DIRECTORY}")
            renaming = as_renaming(self._store)
            if renaming is None:
                self._place.leases.confirm()
                self._store.delete(self._entry_name(backup_id))
            else:
                renaming.rename(folder_of(backup_id), folder_of(backup_id) + UNFINISHED_SUFFIX)

    def remove_packs(self, names: Iterable[str], tables: Iterable[str] = ()) -> None:
        """Remove packs and tables of such, and what killed writers left; only under the lock for backups."""
        self._place.leases.confirm()
        remove_packs(self._store, names, tables)

    def stage(self, backup_id: str, jobs: int = 1) -> StagedBackup:
        """Begin a backup, which does not count until it is published; what is packed is so in ``jobs`` threads.

        Raises FormatError for a damaged format.json, WrongKey for one that was exchanged.
        """
        return StagedBackup(self._place, backup_id, format_for_new_files(self._store), jobs)

    def unfinished(self) -> list[str]:
        """Return the folders of what abandoned and removed backups left, or of the one that is being taken."""
        return self.folders().unfinished

    def give_up_unfinished(self) -> list[str]:
        """Return what ``unfinished`` does, once none of these backups can be finished any more.

        Only under the lock for backups.
        """
        return [name for name in self.unfinished() if give_up(self._store, f"{BACKUP_DIRECTORY}/{name}")]

    def clear_unfinished(self) -> list[str]:
        """Remove what abandoned backups left, and return their ids; only under the lock for backups.

        What pgwal does not put into a backup's directory stays, with a warning.
        """
        unfinished = self.give_up_unfinished()
        if unfinished:
            # Before the folders, which tell that there may be some.
            garbage = self.pack_garbage()
            self.remove_packs([pack.name for pack in garbage.packs], garbage.tables)
        return [name.removesuffix(UNFINISHED_SUFFIX) for name in unfinished if self._remove(name)]

    def _remove(self, name: str) -> bool:
        try:
            return remove_backup(self._store, f"{BACKUP_DIRECTORY}/{name}")
        except ObjectRetained as error:
            logger.warning("the rest of %s stays until its retention is over: %s", name, error)
            return False

    def _entry_name(self, backup_id: str) -> str:
        return f"{folder_of(backup_id)}/{BACKUP_ENTRY_NAME}"

    @contextmanager
    def _naming_damage(self, folder: str) -> Iterator[None]:
        """Say of a damaged catalogue entry which one it is, and what can be done."""
        try:
            yield
        except FormatError as error:
            place = self._store.locate(f"{folder}/{BACKUP_ENTRY_NAME}")
            message = f"catalogue entry {place} is damaged: {str(error).removeprefix('catalogue entry: ')}"
            hint = error.hint or (
                f"Bring the file back from a copy of the repository. Without one, this backup and those that build on"
                f" it are lost: move {self._store.locate(folder)} away and take a full backup."
            )
            error.restate(message, hint=hint, path=place)
            raise
