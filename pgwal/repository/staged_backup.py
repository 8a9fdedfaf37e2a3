"""A backup that is being taken, and how it comes to count: see also ``backup_folders``.

Where a store renames folders, a backup is staged under another name than it will have, and published by the rename.
Elsewhere a folder is a backup when it has an entry, which is stored last, and removed first.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Self

from pgwal.backup.backup_file import BackupFile, decode_file, encode_file
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import encode_entry
from pgwal.backup.live_frames import LiveFrames
from pgwal.backup.pack_table import PackedContents
from pgwal.budget import ENTRY_IN_MEMORY_BYTES
from pgwal.errors import LeaseLost, ObjectExists, ObjectNotFound, RepositoryError
from pgwal.repository.backup_data import create_backup_data
from pgwal.repository.backup_folders import NOTES_NAME, folder_of, give_up, remove_backup
from pgwal.repository.layout import BACKUP_CLAIM_NAME, BACKUP_ENTRY_NAME, UNFINISHED_SUFFIX
from pgwal.repository.place import Place
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat
from pgwal.repository.store import as_renaming

logger = logging.getLogger(__name__)


class StagedBackup:
    """A backup that is being taken; its files are noted on disk, so that a million of them cost no memory.

    ``data`` stores them.  As a context manager, removes all of it at the end unless it was published.
    """

    def __init__(
        self, place: Place, backup_id: str, storage_format: StorageFormat = PLAIN_FORMAT, jobs: int = 1
    ) -> None:
        self.backup_id = backup_id
        self._store = place.store
        self._leases = place.leases
        self._spool = place.spool
        self._renaming = as_renaming(place.store)
        self._folder = folder_of(backup_id) + ("" if self._renaming is None else UNFINISHED_SUFFIX)
        self._notes_name = f"{self._folder}/{NOTES_NAME}"
        if self._renaming is None:
            # Packs lie elsewhere: nothing else would tell whoever comes after a crash that there may be some.
            claim = json.dumps({"token": secrets.token_hex(16)}).encode() + b"\n"
            self._store.put(f"{self._folder}/{BACKUP_CLAIM_NAME}", claim)
        self.data = create_backup_data(place, self._folder, storage_format, jobs)
        self._notes = place.spool.create_notes(self._notes_name)
        self._is_published = self._is_entry_sent = False
        self._live: LiveFrames | None = None
        self._left: PackedContents | None = None

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

    def without_dead_frames(self) -> PackedContents | None:
        """Leave frames out in which nothing of any file lies, and return what is left; all files must be noted.

        A backup that refers to packs of others needs it.  None where files are stored one by one.
        """
        contents = self.data.contents()
        if contents is None:
            return None
        live = LiveFrames(contents.packs)
        for line in self._noted():
            live.use(decode_file(line).extents)
        self._live, self._left = live, PackedContents(live.packs(), contents.directories)
        return self._left

    def _noted(self) -> Iterator[bytes]:
        self._notes.seek(0)
        return (line.rstrip(b"\n") for line in self._notes)

    def _renumbered(self, live: LiveFrames) -> Iterator[bytes]:
        for line in self._noted():
            file = decode_file(line)
            yield encode_file(file._replace(extents=live.renumbered(file.extents)))

    def publish(self, entry: BackupEntry) -> None:
        """Make it a backup: its data must be durable, and all its files noted."""
        files = self._noted() if self._live is None else self._renumbered(self._live)
        contents = self._left or self.data.contents()
        if self._renaming is None:
            self._publish_by_entry(encode_entry(entry, files, contents))
            return
        self._store.put(f"{self._folder}/{BACKUP_ENTRY_NAME}", encode_entry(entry, files, contents))
        self._spool.drop_notes(self._notes_name)
        self._renaming.rename(self._folder, folder_of(self.backup_id))
        self._is_published = True

    def _publish_by_entry(self, lines: Iterable[bytes]) -> None:
        """Store the entry, which makes it a backup, unless another has given that up: see ``backup_folders``."""
        content = at_once(lines)
        self._leases.confirm()
        self._is_entry_sent = True
        try:
            self._store.put(f"{self._folder}/{BACKUP_ENTRY_NAME}", content)
        except ObjectExists:
            raise LeaseLost(
                f"backup {self.backup_id} cannot be finished: another process took it for abandoned, and removed it",
                hint="This process stood still for too long. Take another backup.",
                backup_id=self.backup_id,
            ) from None
        if not isinstance(content, bytes):
            # It went in parts, over anything: who has lost its leases meanwhile must not call that a backup.
            self._leases.confirm()
        self._is_published = True
        self._spool.drop_notes(self._notes_name)
        with suppress(RepositoryError):  # of a store where nothing may be deleted
            self._store.delete(f"{self._folder}/{BACKUP_CLAIM_NAME}")

    def _discard(self) -> None:
        self.data.abandon()
        try:
            # What was renamed counts, whatever failed then: it needs its packs.
            if self._renaming is not None and not self._store.exists(self._folder):
                return
            # The entry goes before the packs that it names: it may be there although storing it failed.
            if not self._take_back_entry():
                logger.warning("backup %s is there all the same: the store took its entry later", self.backup_id)
                return
            self.data.discard()
            if self._store.exists(self._folder):
                remove_backup(self._store, self._folder)
        except RepositoryError as error:
            # Why the backup failed is what must be seen; the next backup removes what is left.
            logger.warning("%s", error)

    def _take_back_entry(self) -> bool:
        """Remove the entry, and keep one that is still on its way from being stored; False when it has come since."""
        name = f"{self._folder}/{BACKUP_ENTRY_NAME}"
        with suppress(ObjectNotFound):
            # One that is empty keeps the place for whoever took this backup for abandoned.
            if self._renaming is not None or self._store.size(name) > 0:
                self._store.delete(name)
        return not self._is_entry_sent or give_up(self._store, self._folder)


def at_once(lines: Iterable[bytes]) -> bytes | Iterable[bytes]:
    """Return what a store can put in one request, which alone keeps it from being put over something."""
    first, size_bytes, rest = [], 0, iter(lines)
    for line in rest:
        first.append(line)
        size_bytes += len(line)
        if size_bytes > ENTRY_IN_MEMORY_BYTES:
            return chain(first, rest)
    return b"".join(first)
