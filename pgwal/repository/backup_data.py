"""The stored files of one backup: nothing else reads or writes them.

A store whose objects are files has the short ways of ``local_backup_data``; any other has an object for each file, see
``object_backup_data``.  In a repository of that format, they lie in packs: see ``packed_backup_data``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pgwal.backup.pack_table import ContentPart, Extent, PackedContents
from pgwal.budget import READ_BYTES
from pgwal.errors import PgwalError, RepositoryError
from pgwal.repository.layout import BACKUP_DATA_DIRECTORY
from pgwal.repository.local_backup_data import LocalBackupData, LocalBackupDataWriter
from pgwal.repository.place import Place
from pgwal.repository.storage_format import PLAIN_FORMAT, FileFormat, StorageFormat
from pgwal.repository.store import ObjectStore, as_files
from pgwal.repository.written_file import WrittenFile


class StoredContent(Protocol):
    """A stored file that is open."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def descriptor(self) -> int | None:
        """An open file of the operating system to read from, None where there is none."""

    @property
    def is_proven(self) -> bool:
        """Whether each part of it is compared with a digest of what was stored before it is given out."""

    def parts(self) -> Iterator[ContentPart]:
        """Yield, in order, the parts of which a digest is known without reading them; at most 1 MiB each."""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which ranges, by start and end, are going to be read from now on, so that they alone are read ahead."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return what lies at an offset, less than ``length`` bytes at the end alone."""

    def part(self, offset: int, length: int) -> tuple[bytes, int, int]:
        """Return bytes, and where in them lies the start of what is wanted, and how much of it: 0 at the end alone."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill the start of ``target`` with what lies at an offset, and return how much that is: 0 at the end alone."""

    def close(self) -> None: ...


class BackupData(Protocol):
    """What a backup holds, for reading; raises RepositoryError for what the storage refuses."""

    backup_id: str

    def require_places(self) -> None:
        """Raise FormatError where only the entry of the backup tells where its files lie, and that is damaged."""

    def locate(self, path: str) -> str:
        """Return what people call the place of a file, for messages."""

    def directories(self) -> Iterator[str]:
        """Yield the directories, each before those in it; raises ForeignObject."""

    def has_directory(self, path: str) -> bool: ...

    def paths(self, on_error: Callable[[str, RepositoryError], None]) -> Iterator[str]:
        """Yield the paths of all that is no directory; one that cannot be listed is told to ``on_error``."""

    def open(self, path: str) -> StoredContent:
        """Open a file; raises ObjectNotFound, and ForeignObject for what is no file."""

    @property
    def pack_count(self) -> int:
        """In how many packs it is; 0 where files are stored one by one."""

    def damage(self, numbers: range, *, of_unread: bool = False) -> Iterator[tuple[str, PgwalError]]:
        """Yield the names of packs, and what is wrong there, as far as reading all files does not show it.

        It is of packs with these ``numbers``.  With ``of_unread`` no file was read: what can be told without opening
        anything is told of all that is in them.
        """

    @property
    def fetched_bytes(self) -> int | None:
        """How much was fetched out of packs so far, as it is stored, for all backups that were opened together.

        None where files are stored one by one.
        """

    def path(self, path: str) -> Path | None:
        """Return where a file of the operating system holds the content, None where none does."""


class NewContent(Protocol):
    """A file that is stored piece by piece; as a context manager, closes it at the end."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Store what was written, unless that was done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class BackupDataWriter(Protocol):
    """What a backup is to hold; files may be stored by several threads, and each must not be there yet.

    Raises RepositoryError, StorageFull where there is no room.
    """

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, unless they are there."""

    def write(self, path: str, chunks: Iterable[bytes]) -> WrittenFile:
        """Store a file from pieces."""

    def write_small(self, files: Sequence[tuple[str, bytes]]) -> list[WrittenFile]:
        """Store several files, each of these bytes."""

    def carry(self, source: BackupData, path: str, offset: int, length: int) -> tuple[Extent, ...] | None:
        """Take over part of a file that another backup of the repository stores whole, without a look at its bytes.

        Returns where it lies, nothing where it is a file of its own; None, with nothing done, where that is not
        possible, as of less than all of a file that is not in packs, or of nothing there.
        """

    def create(self, path: str) -> NewContent:
        """Store a file piece by piece, which must be closed before ``sync``."""

    def remove(self, path: str) -> None:
        """Remove a file that was stored."""

    def sync(self) -> None:
        """Make all of it durable; nothing can be stored after it."""

    def contents(self) -> PackedContents | None:
        """Return what the entry must tell of packs, None where files are stored one by one; after ``sync``."""

    def abandon(self) -> None:
        """End what is still under way, when nothing comes of it; after ``sync`` there is nothing."""

    def discard(self) -> None:
        """Remove, after ``abandon``, what lies elsewhere than in the folder of the backup."""


def open_backup_data(store: ObjectStore, folder: str, backup_id: str) -> BackupData:
    """Return what lies in the folder of a backup; nothing is looked at."""
    files = as_files(store)
    if files is not None:
        return LocalBackupData(files.path(f"{folder}/{BACKUP_DATA_DIRECTORY}"), backup_id)
    from pgwal.repository.object_backup_data import ObjectBackupData

    return ObjectBackupData(store, folder, backup_id)


def create_backup_data(
    place: Place, folder: str, storage_format: StorageFormat = PLAIN_FORMAT, jobs: int = 1
) -> BackupDataWriter:
    """Return what stores the files of a backup in a folder, which is made, or in packs, made in ``jobs`` threads."""
    data = f"{folder}/{BACKUP_DATA_DIRECTORY}"
    files = as_files(place.store)
    plain: BackupDataWriter
    is_plain = storage_format.files is FileFormat.PLAIN
    if files is None:
        from pgwal.repository.object_backup_data import ObjectBackupDataWriter

        plain = ObjectBackupDataWriter(place, folder, keeps_directories=is_plain)
    else:
        place.make([data])
        plain = LocalBackupDataWriter(files.path(data))
    if is_plain:
        return plain
    from pgwal.repository.packed_backup_writer import PackedBackupDataWriter

    return PackedBackupDataWriter(place.store, plain, storage_format.level, jobs)


def chunks_of(data: BackupData, path: str) -> Iterator[bytes]:
    """Yield a file from front to back; raises as ``open``."""
    with closing(data.open(path)) as content:
        offset = 0
        while chunk := content.read_at(offset, READ_BYTES):
            yield chunk
            offset += len(chunk)


def start_of(data: BackupData, path: str, length: int) -> bytes:
    """Return the first ``length`` bytes of a file, or all of a shorter one; raises as ``open``."""
    with closing(data.open(path)) as content:
        return content.read_at(0, length)
