"""A backup that comes from another repository, under the id that it has there, and how it comes to count.

It counts when it has an entry, as every other one.  Until then its folder says that it is arriving: what is there of
it, and the packs that it needs, stay for whoever goes on, for it can have no other id.  So it is not given up, see
``backup_folders``, and a process that stood still, and comes late, puts the entry of what is there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from pgwal.backup.entry_document import decode_entry
from pgwal.checksum import content_digest
from pgwal.errors import ObjectExists, ObjectNotFound, ObjectRetained, RepositoryError
from pgwal.repository.backup_data import BackupDataWriter, create_backup_data
from pgwal.repository.backup_folders import folder_of, remove_backup
from pgwal.repository.layout import (
    BACKUP_ARRIVAL_DIRECTORY,
    BACKUP_DATA_DIRECTORY,
    BACKUP_ENTRY_NAME,
    UNFINISHED_SUFFIX,
)
from pgwal.repository.object_reader import open_buffered
from pgwal.repository.packed_backup_writer import AS_THEY_ARE
from pgwal.repository.place import Place
from pgwal.repository.staged_backup import at_once
from pgwal.repository.storage_format import StorageFormat
from pgwal.repository.store import as_renaming, names_in, objects_in
from pgwal.repository.written_file import WrittenFile

_BEGUN_NAME = "begun.json"
_PART = "part-"
_MAX_LINE_BYTES = 16 << 20


class ArrivingBackup:
    """One such backup; only under the lock for backups.

    Parts are documents of the form of an entry, each of some of its files, whose data are durable: what is noted in
    them need not be copied again.
    """

    def __init__(self, place: Place, backup_id: str) -> None:
        self._place = place
        self._store = place.store
        self._backup_id = backup_id
        self._renaming = as_renaming(place.store)
        self._folder = folder_of(backup_id) + ("" if self._renaming is None else UNFINISHED_SUFFIX)
        self._arrival = f"{self._folder}/{BACKUP_ARRIVAL_DIRECTORY}"
        self._was_begun = False

    def begin(self, source: str) -> None:
        """Say that it is arriving from a repository, if that was not said before.

        Raises ObjectExists where its id is taken by one that was given up.
        """
        self._require_free()
        document = {"pgwal-arriving": 1, "from": source, "token": secrets.token_hex(16)}
        content = json.dumps(document).encode() + b"\n"
        try:
            self._store.put(f"{self._arrival}/{_BEGUN_NAME}", content)
            self._was_begun = bool(names_in(self._store, f"{self._folder}/{BACKUP_DATA_DIRECTORY}"))
        except ObjectExists:
            self._was_begun = True

    def _require_free(self) -> None:
        if self._renaming is not None:
            return
        with suppress(ObjectNotFound):
            if self._store.size(f"{self._folder}/{BACKUP_ENTRY_NAME}") == 0:
                raise ObjectExists(
                    f"backup {self._backup_id} cannot be stored in {self._place}: one of this id was begun there, and"
                    " given up, and nothing is ever stored in its place",
                    hint="Copy another backup, or copy this one into another repository.",
                    backup_id=self._backup_id,
                )

    def comes_from(self, source: str) -> bool:
        """Tell whether it was from this repository that it was begun."""
        try:
            found = json.loads(self._store.get(f"{self._arrival}/{_BEGUN_NAME}"))
        except (ObjectNotFound, ValueError):
            return False
        return isinstance(found, dict) and found.get("from") == source

    def give_up(self) -> None:
        """Remove what is there of it, as of one that never comes, unless it is a backup by now.

        In an object store its id is taken for good then.
        """
        if self._renaming is None:
            name = f"{self._folder}/{BACKUP_ENTRY_NAME}"
            try:
                self._store.put(name, b"")
            except ObjectExists:
                if self._store.size(name):
                    return
        remove_backup(self._store, self._folder)

    # -- data --------------------------------------------------------------------------------------------------

    def writer(self, storage_format: StorageFormat, jobs: int) -> BackupDataWriter:
        """Return what stores some of its files, which are durable when that has been synced."""
        return create_backup_data(self._place, self._folder, storage_format, jobs)

    def write(self, writer: BackupDataWriter, path: str, pieces: Callable[[], Iterable[bytes]]) -> WrittenFile:
        """Store a file in the place of what an earlier call may have left there, which nobody noted."""
        name = f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}"
        # Elsewhere files may be many, each look takes a request, and what is stored twice may be if it is the same.
        if self._was_begun and (self._renaming is not None or path in AS_THEY_ARE) and self._store.exists(name):
            try:
                writer.remove(path)
            except ObjectRetained:
                content = b"".join(pieces())
                if self._store.get(name, most_bytes=len(content)) != content:
                    raise
                return WrittenFile(len(content), content_digest(content))
        return writer.write(path, pieces())

    # -- parts -------------------------------------------------------------------------------------------------

    def part_numbers(self) -> list[int]:
        names = (name for name, _ in objects_in(self._store, self._arrival) if name.startswith(_PART))
        return sorted(int(name.removeprefix(_PART)) for name in names)

    def add_part(self, number: int, lines: Iterable[bytes]) -> None:
        """Note what is there, durably, in the place of what was noted under that number."""
        self._store.put(self._part_name(number), at_once(lines), replace=True)

    def drop_part(self, number: int) -> None:
        self._store.delete(self._part_name(number))

    @contextmanager
    def part_lines(self, number: int) -> Iterator[Iterator[bytes]]:
        with open_buffered(self._store, self._part_name(number), is_read_whole=True) as file:
            yield iter(partial(file.readline, _MAX_LINE_BYTES), b"")

    def _part_name(self, number: int) -> str:
        return f"{self._arrival}/{_PART}{number:06}"

    # -- the end -----------------------------------------------------------------------------------------------

    def publish(self, lines: Iterable[bytes]) -> None:
        """Make it a backup, with the entry that these lines are; what they raise is passed on, and it is none.

        Raises ObjectExists where its id is taken by one that was given up.
        """
        name = f"{self._folder}/{BACKUP_ENTRY_NAME}"
        content = at_once(_proven(lines))
        self._place.leases.confirm()
        if self._renaming is not None:
            self._store.put(name, content, replace=True)
            self._renaming.rename(self._folder, folder_of(self._backup_id))
            self._arrival = f"{folder_of(self._backup_id)}/{BACKUP_ARRIVAL_DIRECTORY}"
        else:
            self._put_entry(name, content)
            if not isinstance(content, bytes):
                # It went in parts: who has lost its leases meanwhile must not call that a backup.
                self._place.leases.confirm()
        with suppress(RepositoryError):  # of a store where nothing may be deleted
            self._store.delete_all(self._arrival)

    def _put_entry(self, name: str, content: bytes | Iterable[bytes]) -> None:
        try:
            self._store.put(name, content)
        except ObjectExists:
            self._require_free()
            # A process that stood still has put what it had found there.


def _proven(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of an entry in pieces, the last of them when all are proven to be one; raises FormatError."""
    pieces: list[bytes] = []

    def passing() -> Iterator[bytes]:
        for line in lines:
            pieces.append(line)
            yield line

    for _ in decode_entry(passing())[1]:
        yield b"".join(pieces)
        pieces.clear()
    yield b"".join(pieces)
