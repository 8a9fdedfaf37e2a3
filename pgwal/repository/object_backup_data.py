"""The stored files of a backup where each is an object: see ``backup_data``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pgwal.budget import READ_BYTES
from pgwal.checksum import ContentDigest, content_digest
from pgwal.errors import FormatError, ObjectNotFound, RepositoryError, StoreUnavailable
from pgwal.repository.layout import BACKUP_DATA_DIRECTORY, BACKUP_DIRECTORIES_NAME
from pgwal.repository.place import Place
from pgwal.repository.spool import Spool
from pgwal.repository.store import ByteRange, ObjectStore
from pgwal.repository.written_file import WrittenFile

if TYPE_CHECKING:
    from pgwal.backup.pack_table import ContentPart, Extent
    from pgwal.repository.backup_data import BackupData


class ObjectBackupData:
    """See pgwal.repository.backup_data.BackupData."""

    def __init__(self, store: ObjectStore, folder: str, backup_id: str) -> None:
        self.backup_id = backup_id
        self._store = store
        self._folder = folder

    def _name(self, path: str) -> str:
        return f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}"

    def require_places(self) -> None:
        pass

    def locate(self, path: str) -> str:
        return self._store.locate(self._name(path))

    def directories(self) -> Iterator[str]:
        name = f"{self._folder}/{BACKUP_DIRECTORIES_NAME}"
        try:
            found = json.loads(self._store.get(name))
            if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
                raise ValueError("no list of paths")
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self._store.locate(name)} cannot be read: {error}") from error
        yield from sorted(found)

    def has_directory(self, path: str) -> bool:
        try:
            return path in set(self.directories())
        except ObjectNotFound:
            return False

    def paths(self, on_error: Callable[[str, RepositoryError], None]) -> Iterator[str]:
        above = self._name("")
        try:
            for name, _ in self._store.list(above):
                yield name.removeprefix(above)
        except StoreUnavailable:
            raise
        except RepositoryError as error:
            on_error("", error)

    @property
    def fetched_bytes(self) -> None:
        return None

    @property
    def pack_count(self) -> int:
        return 0

    def damage(self, numbers: range, *, of_unread: bool = False) -> Iterator[tuple[str, FormatError]]:  # noqa: ARG002
        yield from ()

    def open(self, path: str) -> _ObjectContent:
        return _ObjectContent(self._store, self._name(path))

    def path(self, path: str) -> None:  # noqa: ARG002
        return None


class _ObjectContent:
    descriptor = None
    is_proven = False

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.size_bytes = store.size(name)
        self._store = store
        self._name = name

    def parts(self) -> Iterator[ContentPart]:
        yield from ()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        pass

    def read_at(self, offset: int, length: int) -> bytes:
        (found,) = self._store.get_ranges(self._name, [ByteRange(offset, offset + length)])
        return found

    def part(self, offset: int, length: int) -> tuple[bytes, int, int]:
        found = self.read_at(offset, length)
        return found, 0, len(found)

    def read_into(self, offset: int, target: memoryview) -> int:
        found = self.read_at(offset, len(target))
        target[: len(found)] = found
        return len(found)

    def close(self) -> None:
        pass


class ObjectBackupDataWriter:
    """See pgwal.repository.backup_data.BackupDataWriter."""

    def __init__(self, place: Place, folder: str, *, keeps_directories: bool = True) -> None:
        """Without ``keeps_directories``, the entry of the backup tells of them."""
        self._place = place
        self._store = place.store
        self._folder = folder
        self._keeps_directories = keeps_directories
        self._directories = set[str]()

    def _name(self, path: str) -> str:
        self._add_directory(path.rpartition("/")[0])
        return f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}"

    def _add_directory(self, path: str) -> None:
        while path:
            self._directories.add(path)
            path = path.rpartition("/")[0]

    def make_directory(self, path: str) -> None:
        self._add_directory(path)

    def write(self, path: str, chunks: Iterable[bytes]) -> WrittenFile:
        digest, size_bytes = ContentDigest(), 0

        def passing() -> Iterator[bytes]:
            nonlocal size_bytes
            for chunk in chunks:
                digest.update(chunk)
                size_bytes += len(chunk)
                yield chunk

        self._store.put(self._name(path), passing())
        return WrittenFile(size_bytes, digest.hexdigest())

    def write_small(self, files: Sequence[tuple[str, bytes]]) -> list[WrittenFile]:
        for path, content in files:
            self._store.put(self._name(path), content)
        return [WrittenFile(len(content), content_digest(content)) for _, content in files]

    def carry(self, source: BackupData, path: str, offset: int, length: int) -> tuple[Extent, ...] | None:  # noqa: ARG002
        """Say that it cannot be done: an object has one name."""
        return None

    def create(self, path: str) -> _SpooledContent:
        return _SpooledContent(self._store, self._place.spool, self._name(path))

    def remove(self, path: str) -> None:
        self._store.delete(self._name(path))

    def sync(self) -> None:
        """Store the directories, too: an empty one is no part of any name, and not everywhere a folder."""
        self._place.make(f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}" for path in sorted(self._directories))
        if self._keeps_directories:
            content = json.dumps(sorted(self._directories)).encode()
            self._store.put(f"{self._folder}/{BACKUP_DIRECTORIES_NAME}", content, replace=True)

    def contents(self) -> None:
        return None

    def abandon(self) -> None:
        pass

    def discard(self) -> None:
        pass


class _SpooledContent:
    """An object is put whole: until then, what was written of it waits in the spool."""

    def __init__(self, store: ObjectStore, spool: Spool, name: str) -> None:
        self._store = store
        self._spool = spool
        self._name = name
        self._notes = spool.create_notes(f"{name}.spool")
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is None:
            self.close()
        elif not self._is_closed:
            self._notes.close()

    def write(self, data: bytes) -> None:
        self._notes.write(data)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with self._notes:
            self._notes.seek(0)
            self._store.put(self._name, iter(lambda: self._notes.read(READ_BYTES), b""))
        self._spool.drop_notes(f"{self._name}.spool")
