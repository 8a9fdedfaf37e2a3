"""One file that is there already, and is made into another one where it lies."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pgwal.disk.new_file import Refusal
from pgwal.errors import PgwalError

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Unreadable(PgwalError):
    """The disk does not give back what was written to a file: it is to be written anew, elsewhere on the disk."""


class PresentFile:
    """A regular file with one name, open for reading and writing at any place, of the mode that it is to have.

    Raises what ``refusal`` makes of what the file system refuses.
    """

    def __init__(self, descriptor: int, path: Path, refusal: Refusal) -> None:
        self._descriptor = descriptor
        self._path = path
        self._refused = refusal
        self.size_bytes = os.fstat(descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill the start of ``target`` with what lies at an offset, and return how much that is: less at the end.

        Raises Unreadable.
        """
        done = 0
        try:
            while done < len(target):
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            if error.errno == errno.EIO:
                raise Unreadable(f"{self._path} cannot be read") from error
            raise self._refused("read", self._path, error) from error
        return done

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        try:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise self._refused("write", self._path, error) from error

    def truncate(self, size_bytes: int) -> None:
        """Give it a size; what it did not have are zeros."""
        if size_bytes == self.size_bytes and size_bytes == os.fstat(self._descriptor).st_size:
            return
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            raise self._refused("write", self._path, error) from error


def look_at(path: Path, refusal: Refusal) -> PresentFile | None:
    """Open a file that is there for reading alone, and change nothing; None where ``open_present`` would remove it.

    One that only a change of its mode would open is taken for none.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    return PresentFile(descriptor, path, refusal)


def open_present(path: Path, mode: int, refusal: Refusal) -> PresentFile | None:
    """Open a file that is there, and give it its mode; None where there is none, or none that may be written to.

    What has another name as well is the file of that name too, in a repository perhaps: it is removed from here, as is
    what cannot be opened.
    """
    try:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if status.st_nlink > 1:
            path.unlink()
            return None
        if status.st_mode & 0o600 != 0o600:
            with suppress(OSError):
                path.chmod(mode)
        try:
            descriptor = os.open(path, _OPEN)
        except OSError:
            path.unlink()
            return None
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
                os.fchmod(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise
        return PresentFile(descriptor, path, refusal)
    except OSError as error:
        raise refusal("write", path, error) from error
