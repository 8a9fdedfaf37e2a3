"""The stored files of a backup in a local directory, with all short ways there: see ``backup_data``.

They are reached by paths, one call for each: a backup has a million of them.  Directories are looked at once, that
none is a link; nobody but the owner of the repository can exchange them (see ``ownership``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.checksum import ContentDigest, content_digest
from pgwal.disk.new_file import GrowingFile
from pgwal.disk.tree_writer import TreeWriter
from pgwal.errors import ForeignObject, FormatError, ObjectNotFound, RepositoryError, TargetError
from pgwal.repository.local_errors import refused
from pgwal.repository.written_file import WrittenFile

if TYPE_CHECKING:
    from pgwal.backup.pack_table import ContentPart, Extent
    from pgwal.repository.backup_data import BackupData


class LocalBackupData:
    """See pgwal.repository.backup_data.BackupData."""

    def __init__(self, root: Path, backup_id: str) -> None:
        self.backup_id = backup_id
        self._root = root
        self._real_directories = {""}

    def path(self, path: str) -> Path:
        return self._root / path

    def require_places(self) -> None:
        pass

    def locate(self, path: str) -> str:
        return str(self.path(path))

    def directories(self) -> Iterator[str]:
        for parent, names, _ in os.walk(self._root, onerror=_refuse_to_list):
            for name in names:
                path = os.path.relpath(Path(parent) / name, self._root)
                self._require_real_directory(path)
                yield path

    def has_directory(self, path: str) -> bool:
        with suppress(ObjectNotFound, ForeignObject):
            self._require_real_directory(path)
            return True
        return False

    def paths(self, on_error: Callable[[str, RepositoryError], None]) -> Iterator[str]:
        def told(error: OSError) -> None:
            place = Path(os.fsdecode(error.filename))
            on_error(os.path.relpath(place, self._root), _refused("list", place, error))

        for parent, directories, names in os.walk(self._root, onerror=told):
            directories.sort()
            links = [name for name in directories if (Path(parent) / name).is_symlink()]
            for name in sorted((*names, *links)):
                yield os.path.relpath(os.path.join(parent, name), self._root)  # noqa: PTH118 (a million of them)

    @property
    def fetched_bytes(self) -> None:
        return None

    @property
    def pack_count(self) -> int:
        return 0

    def damage(self, numbers: range, *, of_unread: bool = False) -> Iterator[tuple[str, FormatError]]:  # noqa: ARG002
        yield from ()

    def open(self, path: str) -> LocalContent:
        self._require_real_directory(path.rpartition("/")[0])
        try:
            # Without waiting for the other end of what is no file.
            descriptor = os.open(self.path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ObjectNotFound(f"{self.path(path)} is missing") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._foreign(path) from error
            raise _refused("open", self.path(path), error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._foreign(path)
        except BaseException:
            os.close(descriptor)
            raise
        return LocalContent(descriptor, status.st_size, self.path(path))

    def _require_real_directory(self, path: str) -> None:
        if path in self._real_directories:
            return
        self._require_real_directory(path.rpartition("/")[0])
        try:
            if not stat.S_ISDIR(self.path(path).lstat().st_mode):
                raise self._foreign(path)
        except FileNotFoundError as error:
            raise ObjectNotFound(f"{self.path(path)} is missing") from error
        except NotADirectoryError as error:
            raise self._foreign(path) from error
        except OSError as error:
            raise _refused("open", self.path(path), error) from error
        self._real_directories.add(path)

    def _foreign(self, path: str) -> ForeignObject:
        return ForeignObject(f"{self.path(path)} is not what pgwal stores: a link, or neither file nor directory")


class LocalContent:
    """See pgwal.repository.backup_data.StoredContent."""

    is_proven = False

    def __init__(self, descriptor: int, size_bytes: int, path: Path) -> None:
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self._path = path

    def parts(self) -> Iterator[ContentPart]:
        yield from ()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        pass

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self.descriptor, length, offset)
            wanted = min(length, self.size_bytes - offset)
            while len(content) < wanted and (
                more := os.pread(self.descriptor, wanted - len(content), offset + len(content))
            ):
                content += more
        except OSError as error:
            raise _refused("read", self._path, error) from error
        return content

    def part(self, offset: int, length: int) -> tuple[bytes, int, int]:
        found = self.read_at(offset, length)
        return found, 0, len(found)

    def read_into(self, offset: int, target: memoryview) -> int:
        try:
            return os.preadv(self.descriptor, [target], offset)
        except OSError as error:
            raise _refused("read", self._path, error) from error

    def close(self) -> None:
        os.close(self.descriptor)


class LocalBackupDataWriter:
    """See pgwal.repository.backup_data.BackupDataWriter."""

    def __init__(self, root: Path) -> None:
        self._tree = TreeWriter(root, refusal=refused)

    def make_directory(self, path: str) -> None:
        self._tree.make_directory(path)

    def write(self, path: str, chunks: Iterable[bytes]) -> WrittenFile:
        digest = ContentDigest()
        return WrittenFile(self._tree.write(path, _passing(chunks, digest)), digest.hexdigest())

    def write_small(self, files: Sequence[tuple[str, bytes]]) -> list[WrittenFile]:
        self._tree.write_small(files)
        return [WrittenFile(len(content), content_digest(content)) for _, content in files]

    def carry(self, source: BackupData, path: str, offset: int, length: int) -> tuple[Extent, ...] | None:
        """Make a hard link: what a repository stores does not change, and has its file system to itself."""
        if not isinstance(source, LocalBackupData):
            return None
        with closing(source.open(path)) as content:
            if offset or not length or length != content.size_bytes:
                return None
        try:
            self._tree.link(path, source.path(path))
        except TargetError:
            # Of a file system that has none, or no more of this file.
            return None
        return ()

    def create(self, path: str) -> GrowingFile:
        return self._tree.create(path)

    def remove(self, path: str) -> None:
        self._tree.remove(path)

    def sync(self) -> None:
        self._tree.sync()

    def contents(self) -> None:
        return None

    def abandon(self) -> None:
        pass

    def discard(self) -> None:
        pass


def _passing(chunks: Iterable[bytes], digest: ContentDigest) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _refuse_to_list(error: OSError) -> None:
    raise _refused("list", Path(os.fsdecode(error.filename)), error) from error


def _refused(action: str, path: Path, error: OSError) -> RepositoryError:
    found = refused(action, path, error)
    if error.errno == errno.EIO:
        found.hint = "Restore another backup."
    return found
