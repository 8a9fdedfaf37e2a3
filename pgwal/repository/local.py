"""A repository in a directory of a local file system; nothing in it is reached through a symbolic link."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.errors import ObjectNotFound, RepositoryError, RepositoryLocked, StorageFull
from pgwal.repository.beneath import DIRECTORY_MODE, NO_FILE, Beneath
from pgwal.repository.store import MOST_BYTES_READ, StoredObject, read_bounded

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = {
    errno.ELOOP: "it is a symbolic link, or leads through one",
    NO_FILE: "it is not a regular file",
}
_HINTS = {
    **dict.fromkeys(_FULL, "Free some space; what was reported as received is safe."),
    errno.EROFS: "The repository needs a file system that can be written.",
    errno.EACCES: "Run pgwal as the user that owns the repository.",
    errno.ELOOP: "Links in a repository are not followed: put what it leads to in its place; mount a disk there.",
    NO_FILE: "Move it away.",
    errno.EMFILE: "Use fewer jobs (-j), or raise the limit (ulimit -n).",
}
_CLEAR_SIZE = 1 << 20
_NO_RESERVING = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9]+\.tmp")
# Whoever looks whether a lock is held has it for an instant.
_LOOK_S = 0.1


@contextlib.contextmanager
def translated_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into ObjectNotFound, StorageFull or RepositoryError, with path and way out."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"cannot {action} {path}: it does not exist", path=str(path)) from error
    except OSError as error:
        number = error.errno or 0
        kind = StorageFull if number in _FULL else RepositoryError
        text = _TEXTS.get(number, os.strerror(number))
        raise kind(f"cannot {action} {path}: {text}", hint=_HINTS.get(number), path=str(path)) from error


class _OpenedFile(FileIO):
    """A file to read; its errors are pgwal's, and name it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor)
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        with translated_errors("read", self._path):
            return super().read(-1 if size is None else size)

    def readinto(self, buffer: Buffer, /) -> int:
        with translated_errors("read", self._path):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with translated_errors("read", self._path):
            return super().readall()


class LocalAppender:
    """A preallocated file; see pgwal.repository.store.Appender."""

    def __init__(self, beneath: Beneath, name: str, size_bytes: int, *, zeroed: bool) -> None:
        self._beneath = beneath
        self._name = name
        self._path = beneath.root / name
        self._name_is_durable = False
        with translated_errors("open", self._path):
            self._descriptor = beneath.open(name, os.O_RDWR | os.O_CREAT)
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
                self._beneath.unlink(self._name)
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
            self._beneath.sync_directory(self._directory)
            self._name_is_durable = True

    @property
    def _directory(self) -> str:
        return self._name.rpartition("/")[0]

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        with translated_errors("sync", self._path):
            os.fsync(self._descriptor)
        if not is_read_soon and hasattr(os, "posix_fadvise"):
            # Advice that is not taken is no failure.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with translated_errors("rename", self._path):
            self._beneath.rename(self._name, f"{self._directory}/{name}" if self._directory else name)
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
    """A directory; see pgwal.repository.store.Store.  Files are created 0600, directories 0700.

    Symbolic links in it are no objects, and opening one is an error; with ``follow_links``, which is for directories
    of recorded WAL that are only read, they count as what they lead to.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self.beneath = Beneath(root, follow_links=follow_links)
        self._follow_links = follow_links

    def path(self, name: str) -> Path:
        return self.root / name

    def sync_directory(self, name: str) -> None:
        with translated_errors("sync", self.path(name)):
            self.beneath.sync_directory(name)

    def create_directory(self, name: str) -> None:
        """Make a directory and its parents, durably; it may be there already."""
        with translated_errors("create", self.path(name)):
            missing = [p for p in (self.root, *self.root.parents) if not p.exists()]
            for directory in reversed(missing):
                directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
                Beneath(directory.parent).sync_directory("")
            self.beneath.make_directories(name)

    def read(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        with self.open(name) as file:
            return read_bounded(file, name, most_bytes)

    def open(self, name: str) -> FileIO:
        with translated_errors("open", self.path(name)):
            return _OpenedFile(self.beneath.open(name, os.O_RDONLY), self.path(name))

    def create(self, name: str) -> BufferedWriter:
        """Create an object that is written piece by piece, and not durable; it must not be there yet."""
        with translated_errors("create", self.path(name)):
            return BufferedWriter(FileIO(self.beneath.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w"))

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        self.write_chunks(name, (content,), durable=durable)

    def write_chunks(self, name: str, chunks: Iterable[bytes], *, durable: bool = True) -> None:
        directory, slash, last = name.rpartition("/")
        temporary = f"{directory}{slash}.{last}.{os.getpid()}{_TEMPORARY_SUFFIX}"
        with translated_errors("write", self.path(name)):
            try:
                descriptor = self.beneath.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(chunks)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                self.beneath.rename(temporary, name, durable=durable)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    self.beneath.unlink(temporary)
                raise

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> LocalAppender:
        return LocalAppender(self.beneath, name, size_bytes, zeroed=zeroed)

    def clear_temporaries(self, directory: str, is_own: Callable[[str], bool]) -> None:
        for name, _ in self.list(directory):
            match = _TEMPORARY.fullmatch(name)
            if match is not None and is_own(match[1]):
                self.delete(f"{directory}/{name}" if directory else name)

    def delete(self, name: str) -> None:
        with translated_errors("delete", self.path(name)):
            self.beneath.unlink(name)

    def exists(self, name: str) -> bool:
        with translated_errors("look for", self.path(name)):
            try:
                self.beneath.status(name)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def list(self, directory: str) -> builtins.list[StoredObject]:
        return sorted(
            StoredObject(name, status.st_size) for name, status in self._scan(directory) if stat.S_ISREG(status.st_mode)
        )

    def list_directories(self, directory: str) -> builtins.list[str]:
        return sorted(name for name, status in self._scan(directory) if stat.S_ISDIR(status.st_mode))

    def names(self, directory: str) -> builtins.list[str]:
        """Return all names in a directory, whatever they stand for, in order; an absent directory is empty."""
        return sorted(name for name, _ in self._scan(directory))

    def _scan(self, directory: str) -> builtins.list[tuple[str, os.stat_result]]:
        found = []
        with (
            contextlib.suppress(ObjectNotFound),
            translated_errors("list", self.path(directory)),
            self.beneath.directory(directory) as descriptor,
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                # A file that is gone was renamed since: another process completes segments.
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat(follow_symlinks=self._follow_links)))
        return found

    def rename_directory(self, old: str, new: str) -> None:
        with translated_errors("rename", self.path(old)):
            self.beneath.rename(old, new)

    def move(self, old: str, new: str) -> None:
        self.create_directory(new.rpartition("/")[0])
        with translated_errors("move", self.path(old)):
            if self.exists(new):
                raise FileExistsError(errno.EEXIST, "exists", str(self.path(new)))
            self.beneath.rename(old, new)

    def delete_directory(self, name: str) -> None:
        with translated_errors("delete", self.path(name)), self.beneath.parent(name) as (parent, last):
            # It follows no links, and refuses to begin with one.
            with self.beneath.directory(name):
                pass
            shutil.rmtree(last, dir_fd=parent)

    def remove_empty_directory(self, name: str) -> bool:
        """Remove a directory that is empty; False, with nothing done, when it is not."""
        with translated_errors("delete", self.path(name)), self.beneath.parent(name) as (parent, last):
            try:
                os.rmdir(last, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
        return True

    @contextlib.contextmanager
    def lock(self, name: str, holder: str) -> Iterator[None]:
        path = self.path(name)
        with translated_errors("lock", path):
            descriptor = self.beneath.open(name, os.O_RDWR | os.O_CREAT)
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
                path=str(path),
                holder=other,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, process {os.getpid()}\n".encode(), 0)

    @contextlib.contextmanager
    def hold(self, name: str, *, exclusive: bool = False) -> Iterator[None]:
        path = self.path(name)
        # Over NFS an exclusive lock needs a file that is open for writing; a shared one works on read-only media.
        mode = os.O_RDWR if exclusive else os.O_RDONLY
        with translated_errors("lock", path):
            descriptor = self.beneath.open(name, mode)
        try:
            with translated_errors("lock", path):
                self._take_hold(descriptor, name, exclusive=exclusive)
            yield
        finally:
            os.close(descriptor)

    def _take_hold(self, descriptor: int, name: str, *, exclusive: bool) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            by = "being read by a restore or a verification" if exclusive else "being removed"
            path = self.path(name).parent
            raise RepositoryLocked(
                f"{path} is {by}", hint="Wait until that has ended.", path=str(path), holder="another process"
            ) from None
        except OSError as error:
            # Where there are no locks, nobody can take one to remove it either; a restore must go on.
            if exclusive or error.errno not in _NO_LOCKS:
                raise
        # It may have been removed, or moved away, between the two calls.
        if not os.path.samestat(os.fstat(descriptor), self.beneath.status(name)):
            raise FileNotFoundError(errno.ENOENT, "replaced")

    def is_locked(self, name: str) -> bool:
        try:
            descriptor = self.beneath.open(name, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
