"""A repository in a directory of a local file system."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pgwal.errors import ObjectNotFound, RepositoryError, RepositoryLocked
from pgwal.repository.store import StoredObject

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_HINTS = {
    errno.ENOSPC: "Free some space; what was reported as received is safe.",
    errno.EDQUOT: "Free some space; what was reported as received is safe.",
    errno.EROFS: "The repository needs a file system that can be written.",
    errno.EACCES: "Run pgwal as the user that owns the repository.",
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def translated_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into ObjectNotFound or RepositoryError, with the path and a way out."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"cannot {action} {path}: it does not exist") from error
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        raise RepositoryError(f"cannot {action} {path}: {os.strerror(error.errno or 0)}", hint=hint) from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalAppender:
    """A preallocated file; see pgwal.repository.store.Appender."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        with translated_errors("open", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            try:
                self._allocate(size_bytes)
            except BaseException:
                os.close(self._descriptor)
                raise

    def _allocate(self, size_bytes: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size == size_bytes:
            return
        if size > size_bytes:
            raise RepositoryError(f"{self._path} has {size} bytes, at most {size_bytes} were expected")
        # Zeros are written, not only reserved: no later write may fail for want of space, or change metadata.
        zeros = bytes(1 << 20)
        for offset in range(0, size_bytes, len(zeros)):
            if offset + len(zeros) > size:
                start = max(offset, size)
                os.pwrite(self._descriptor, zeros[: min(offset + len(zeros), size_bytes) - start], start)
        os.fsync(self._descriptor)
        sync_directory(self._path.parent)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with translated_errors("write", self._path):
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                offset += written
                view = view[written:]

    def sync(self) -> None:
        with translated_errors("sync", self._path):
            os.fsync(self._descriptor)

    def rename(self, name: str) -> None:
        self.sync()
        with translated_errors("rename", self._path):
            self._path.rename(self._path.with_name(name))
            sync_directory(self._path.parent)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LocalStore:
    """A directory; see pgwal.repository.store.Store.  Files are created 0600, directories 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def create_directory(self, name: str) -> None:
        """Make a directory and its parents, durably; it may be there already."""
        path = self.path(name)
        with translated_errors("create", path):
            missing = [p for p in (path, *path.parents) if not p.exists()]
            for directory in reversed(missing):
                directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
                sync_directory(directory.parent)

    def read(self, name: str) -> bytes:
        with translated_errors("read", self.path(name)):
            return self.path(name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        with translated_errors("open", self.path(name)):
            return self.path(name).open("rb", buffering=0)

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        self.write_chunks(name, (content,), durable=durable)

    def write_chunks(self, name: str, chunks: Iterable[bytes], *, durable: bool = True) -> None:
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with translated_errors("write", path):
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(chunks)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                temporary.rename(path)
                if durable:
                    sync_directory(path.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def preallocate(self, name: str, size_bytes: int) -> LocalAppender:
        return LocalAppender(self.path(name), size_bytes)

    def delete(self, name: str) -> None:
        with translated_errors("delete", self.path(name)):
            self.path(name).unlink()

    def exists(self, name: str) -> bool:
        with translated_errors("look for", self.path(name)):
            return self.path(name).exists()

    def list(self, directory: str) -> builtins.list[StoredObject]:
        found = []
        for entry in self._scan(directory):
            with translated_errors("list", self.path(directory)), contextlib.suppress(FileNotFoundError):
                # A file that is gone was renamed since: another process completes segments.
                if entry.is_file():
                    found.append(StoredObject(entry.name, entry.stat().st_size))
        return sorted(found)

    def list_directories(self, directory: str) -> builtins.list[str]:
        return sorted(entry.name for entry in self._scan(directory) if entry.is_dir())

    def _scan(self, directory: str) -> builtins.list[os.DirEntry[str]]:
        path = self.path(directory)
        try:
            with translated_errors("list", path), os.scandir(path) as entries:
                return list(entries)
        except ObjectNotFound:
            return []

    def rename_directory(self, old: str, new: str) -> None:
        with translated_errors("rename", self.path(old)):
            self.path(old).rename(self.path(new))
            sync_directory(self.path(new).parent)

    def delete_directory(self, name: str) -> None:
        with translated_errors("delete", self.path(name)):
            shutil.rmtree(self.path(name))

    @contextlib.contextmanager
    def lock(self, name: str, holder: str) -> Iterator[None]:
        path = self.path(name)
        with translated_errors("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            with translated_errors("lock", path):
                self._take_lock(descriptor, path, holder)
            yield
        finally:
            os.close(descriptor)

    def _take_lock(self, descriptor: int, path: Path, holder: str) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise RepositoryLocked(
                f"{path} is held by {other}",
                hint="Only one can work on a repository at a time: wait until that one has ended, or stop it.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, process {os.getpid()}\n".encode(), 0)

    @contextlib.contextmanager
    def hold(self, name: str, *, exclusive: bool = False) -> Iterator[None]:
        path = self.path(name)
        # Over NFS an exclusive lock needs a file that is open for writing; a shared one works on read-only media.
        mode = os.O_RDWR if exclusive else os.O_RDONLY
        with translated_errors("lock", path):
            descriptor = os.open(path, mode | os.O_CLOEXEC)
        try:
            with translated_errors("lock", path):
                self._take_hold(descriptor, path, exclusive=exclusive)
            yield
        finally:
            os.close(descriptor)

    def _take_hold(self, descriptor: int, path: Path, *, exclusive: bool) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            by = "being read by a restore or a verification" if exclusive else "being removed"
            raise RepositoryLocked(f"{path.parent} is {by}", hint="Wait until that has ended.") from None
        except OSError as error:
            # Where there are no locks, nobody can take one to remove it either; a restore must go on.
            if exclusive or error.errno not in _NO_LOCKS:
                raise
        # It may have been removed, or moved away, between the two calls.
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced")

    def is_locked(self, name: str) -> bool:
        path = self.path(name)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
