"""A repository in a directory of a local file system."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.errors import ObjectNotFound, RepositoryError, RepositoryLocked, StorageFull
from pgwal.repository.store import StoredObject

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HINTS = {
    **dict.fromkeys(_FULL, "Free some space; what was reported as received is safe."),
    errno.EROFS: "The repository needs a file system that can be written.",
    errno.EACCES: "Run pgwal as the user that owns the repository.",
    errno.EMFILE: "Use fewer jobs (-j), or raise the limit (ulimit -n).",
}
_CLEAR_SIZE = 1 << 20
_NO_RESERVING = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_TEMPORARY_SUFFIX = ".tmp"
# Whoever looks whether a lock is held has it for an instant.
_LOOK_S = 0.1


@contextlib.contextmanager
def translated_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into ObjectNotFound, StorageFull or RepositoryError, with path and way out."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"cannot {action} {path}: it does not exist") from error
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        kind = StorageFull if error.errno in _FULL else RepositoryError
        raise kind(f"cannot {action} {path}: {os.strerror(error.errno or 0)}", hint=hint) from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _OpenedFile(FileIO):
    """A file to read; its errors are pgwal's, and name it."""

    def read(self, size: int | None = -1, /) -> bytes:
        with translated_errors("read", Path(str(self.name))):
            return super().read(-1 if size is None else size)

    def readinto(self, buffer: Buffer, /) -> int:
        with translated_errors("read", Path(str(self.name))):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with translated_errors("read", Path(str(self.name))):
            return super().readall()


class LocalAppender:
    """A preallocated file; see pgwal.repository.store.Appender."""

    def __init__(self, path: Path, size_bytes: int, *, zeroed: bool) -> None:
        self._path = path
        self._name_is_durable = False
        with translated_errors("open", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            try:
                self._allocate(size_bytes, zeroed=zeroed)
                if zeroed:
                    self._sync()
            except BaseException:
                os.close(self._descriptor)
                raise

    def _allocate(self, size_bytes: int, *, zeroed: bool) -> None:
        """Take all room now, so that no later write fails for want of it, where the file system can promise that."""
        size = os.fstat(self._descriptor).st_size
        if size > size_bytes:
            raise RepositoryError(f"{self._path} has {size} bytes, at most {size_bytes} were expected")
        if size == size_bytes:
            return
        try:
            if zeroed or not self._reserve(size, size_bytes):
                self._fill(size, size_bytes)
        except OSError:
            # Of use to nobody, and in the way of pg_receivewal; what somebody else left there stays.
            if size == 0:
                self._path.unlink()
            raise

    def _reserve(self, position: int, size_bytes: int) -> bool:
        try:
            os.posix_fallocate(self._descriptor, position, size_bytes - position)
        except OSError as error:
            if error.errno in _NO_RESERVING:
                return False
            raise
        return True

    def _fill(self, position: int, size_bytes: int) -> None:
        zeros = bytes(1 << 20)
        while position < size_bytes:
            position += os.pwrite(self._descriptor, zeros[: size_bytes - position], position)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with translated_errors("write", self._path):
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                offset += written
                view = view[written:]

    def clear_behind(self, offset: int) -> None:
        # Not by cutting the file: a crash in between would leave one that has lost its room.
        with translated_errors("clear", self._path):
            while data := os.pread(self._descriptor, _CLEAR_SIZE, offset):
                if any(data):
                    self.write(offset, bytes(len(data)))
                offset += len(data)

    def sync(self) -> None:
        with translated_errors("sync", self._path):
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        # Once, and for a file that was there as well: a receiver that was killed may not have come to this.
        if not self._name_is_durable:
            sync_directory(self._path.parent)
            self._name_is_durable = True

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        with translated_errors("sync", self._path):
            os.fsync(self._descriptor)
        if not is_read_soon and hasattr(os, "posix_fadvise"):
            # Advice that is not taken is no failure.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with translated_errors("rename", self._path):
            self._path.rename(self._path.with_name(name))
            sync_directory(self._path.parent)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_taken(descriptor: int) -> bool:
    """Take the lock of an open file; False when another process keeps it."""
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S / 10)


class LocalStore:
    """A directory; see pgwal.repository.store.Store.  Files are created 0600, directories 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def sync_directory(self, name: str) -> None:
        path = self.path(name)
        with translated_errors("sync", path):
            sync_directory(path)

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

    def open(self, name: str) -> FileIO:
        with translated_errors("open", self.path(name)):
            return _OpenedFile(self.path(name))

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        self.write_chunks(name, (content,), durable=durable)

    def write_chunks(self, name: str, chunks: Iterable[bytes], *, durable: bool = True) -> None:
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
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

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> LocalAppender:
        return LocalAppender(self.path(name), size_bytes, zeroed=zeroed)

    def clear_temporaries(self, directory: str, *, of: str | None = None) -> None:
        prefix = "." if of is None else f".{of}."
        for name, _ in self.list(directory):
            if name.startswith(prefix) and name.endswith(_TEMPORARY_SUFFIX):
                self.delete(f"{directory}/{name}" if directory else name)

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

    def move(self, old: str, new: str) -> None:
        source, target = self.path(old), self.path(new)
        self.create_directory(new.rpartition("/")[0])
        with translated_errors("move", source):
            if target.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(target))
            source.rename(target)
            sync_directory(target.parent)
            sync_directory(source.parent)

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
        if not _is_taken(descriptor):
            other = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise RepositoryLocked(
                f"{path} is held by {other}",
                hint="Only one can work on a repository at a time: wait until that one has ended, or stop it.",
            )
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
