"""The spool of a repository in a local directory: files below it that have no final names yet."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import IO

from pgwal.budget import READ_BYTES
from pgwal.errors import RepositoryError
from pgwal.repository.beneath import Beneath
from pgwal.repository.local_errors import translated_errors
from pgwal.repository.local_file import LocalFile

_NO_RESERVING = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalSpool:
    """See pgwal.repository.spool.Spool.  The final names are those of a LocalStore of the same directory."""

    def __init__(self, root: Path) -> None:
        self._beneath = Beneath(root)

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> LocalAppender:
        return LocalAppender(self._beneath, name, size_bytes, zeroed=zeroed)

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:  # noqa: ARG002
        return False

    def settle(self, folder: str) -> None:
        with translated_errors("sync", self._beneath.root / folder):
            self._beneath.sync_directory(folder)

    def create_notes(self, name: str) -> IO[bytes]:
        path = self._beneath.root / name
        with translated_errors("create", path):
            self._beneath.make_directories(name.rpartition("/")[0])
            descriptor = self._beneath.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        return BufferedRandom(LocalFile(descriptor, path, "r+"))

    def drop_notes(self, name: str) -> None:
        with translated_errors("delete", self._beneath.root / name):
            self._beneath.unlink(name)


class LocalAppender:
    """A preallocated file; see pgwal.repository.spool.Appender."""

    is_held = False

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
        self._size_found = size = os.fstat(self._descriptor).st_size
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
        zeros = bytes(READ_BYTES)
        with translated_errors("clear", self._path):
            while data := os.pread(self._descriptor, min(READ_BYTES, max(0, self._size_found - offset)), offset):
                # Compared as a whole: to ask each byte takes a tenth of a second of an empty segment.
                if data != zeros[: len(data)]:
                    self.write(offset, zeros[: len(data)])
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

    def pieces(self) -> Iterator[bytes]:
        offset = 0
        with translated_errors("read", self._path):
            while data := os.pread(self._descriptor, READ_BYTES, offset):
                offset += len(data)
                yield data

    def discard(self) -> None:
        with translated_errors("delete", self._path):
            self._beneath.unlink(self._name)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
