"""One new file, which the disk gets while it is written.

Large files go past the page cache (O_DIRECT), where the file system can do that: copying into the cache costs more than
the disk does, and would drive out of it what a server on the same machine needs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from pgwal.aligned_buffer import aligned_buffer
from pgwal.budget import HOLE_BYTES, WRITE_SIZE, WRITEBACK_BYTES
from pgwal.disk.copy_method import clone_file, copy_file_range
from pgwal.disk.direct_writes import DirectWrites
from pgwal.errors import PgwalError, TargetError, TruncatedInput

FILE_MODE = 0o600
GROUP_FILE_MODE = 0o640
"""That of a cluster whose group may read it (initdb --allow-group-access)."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_ZEROS = bytes(HOLE_BYTES)
_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EROFS: "Choose a place on a file system that can be written.",
    errno.EACCES: "Run pgwal as a user who may write there.",
    errno.EMFILE: "Use fewer jobs (-j), or raise the limit (ulimit -n).",
    errno.ENOENT: "Make the directory above it first.",
}

Refusal: TypeAlias = Callable[[str, Path, OSError], PgwalError]
"""Makes the error that says what the file system refused to do with a file."""


def write_buffer() -> memoryview:
    """Return WRITE_SIZE bytes that can be written past the page cache."""
    return aligned_buffer(WRITE_SIZE)


class GrowingFile:
    """A new file that is written piece by piece, through a buffer.

    As a context manager, closes it at the end, without a further complaint when that is because of an error.
    Raises what ``refusal`` makes of what the file system refuses.
    """

    def __init__(self, path: Path, mode: int, refusal: Refusal) -> None:
        self._path = path
        self._refused = refusal
        self._file = open(_created(path, mode, refusal), "wb")  # noqa: SIM115 (a descriptor, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(PgwalError) if kind is not None else nullcontext():
            self.close()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused("write", self._path, error) from error

    def close(self) -> None:
        """Write what is in the buffer and close; may be called again."""
        try:
            self._file.close()
        except OSError as error:
            raise self._refused("write", self._path, error) from error


class _Writeback:
    """Has the disk begin with what is written of a file while more is, so that it is not idle until the sync.

    Of what posix_fadvise is for, that is the side effect: pages that are dirty are not dropped, but on their way.
    """

    def __init__(self, descriptor: int, *, is_wanted: bool) -> None:
        self._descriptor = descriptor
        self._is_wanted = is_wanted and hasattr(os, "posix_fadvise")
        self._start = self._end = 0
        self._has_begun = False

    def finish(self) -> None:
        """Wait for the disk if it has begun: its error may be forgotten once the file is closed."""
        if self._has_begun:
            os.fdatasync(self._descriptor)

    def wrote(self, offset: int, size_bytes: int) -> None:
        if offset != self._end:
            self._begin()
            self._start = offset
        self._end = offset + size_bytes
        if self._end - self._start >= WRITEBACK_BYTES:
            self._begin()

    def _begin(self) -> None:
        if self._start < self._end and self._is_wanted:
            # Advice that is not taken is no failure.
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, self._start, self._end - self._start, os.POSIX_FADV_DONTNEED)
                self._has_begun = True
        self._start = self._end


class NewFile:
    """A new file, open for writing at any place; with ``durable`` it is synced soon, and then the disk is not idle."""

    def __init__(self, path: Path, *, durable: bool, mode: int, refusal: Refusal) -> None:
        self._path = path
        self._refused = refusal
        self._descriptor = _created(path, mode, refusal)
        self._writes = DirectWrites(self._descriptor)
        self._may_go_direct = durable
        self._writeback = _Writeback(self._descriptor, is_wanted=durable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if kind is None:
                    self._finish()
            finally:
                os.close(self._descriptor)
        except OSError as refusal:
            if kind is None:
                raise self._refused("write", self._path, refusal) from refusal

    def _finish(self) -> None:
        self._writeback.finish()

    def go_direct(self) -> None:
        """Write past the page cache from now on, if that is possible; what is written had best be a ``write_buffer``.

        What does not lie or end where the disk's blocks do goes through the cache again, with all that follows.
        """
        if self._may_go_direct:
            self._may_go_direct = False
            self._writes.begin()

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        while data:
            try:
                written = self._writes.write(data, offset)
            except OSError as error:
                raise self._refused("write", self._path, error) from error
            if not self._writes.are_direct:
                self._writeback.wrote(offset, written)
            data, offset = data[written:], offset + written


class PlacedFile(NewFile):
    """A new file whose parts are written at their places, in any order; what is not written is a hole of zeros.

    As a context manager, gives it its size at the end and closes it.  Raises what ``refusal`` makes of what the file
    system refuses.
    """

    def __init__(self, path: Path, size_bytes: int, *, durable: bool, mode: int, refusal: Refusal) -> None:
        super().__init__(path, durable=durable, mode=mode, refusal=refusal)
        self._size_bytes = size_bytes

    def _finish(self) -> None:
        os.ftruncate(self._descriptor, self._size_bytes)
        super()._finish()

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset; long runs of zeros become holes."""
        if self._size_bytes >= WRITE_SIZE:
            self.go_direct()
        for start, end in _written_parts(data):
            super().write(data[start:end], offset + start)

    def clone(self, source: int, source_path: Path) -> None:
        """Share all bytes of an open file, where the file system can do that."""
        try:
            clone_file(source, self._descriptor)
        except OSError as error:
            raise TargetError(
                f'error while cloning file "{source_path}" to "{self._path}": {os.strerror(error.errno or 0)}',
                hint="Both must be on one file system that can share blocks, such as Btrfs or XFS; or use --copy.",
            ) from error

    def copy_range(self, source: int, source_path: Path, source_offset: int, length: int, offset: int) -> None:
        """Have the kernel copy a part of an open file; raises TruncatedInput when that ends before."""
        try:
            copy_file_range(source, self._descriptor, source_offset, length, offset)
        except EOFError as error:
            raise TruncatedInput(f"{source_path} is cut off: {error}", hint="Restore another backup.") from error
        except OSError as error:
            raise TargetError(
                f'error while copying file range from "{source_path}" to "{self._path}":'
                f" {os.strerror(error.errno or 0)}",
                hint="Use --copy.",
            ) from error
        self._writeback.wrote(offset, length)


def _written_parts(data: memoryview) -> Iterable[tuple[int, int]]:
    """Return the ranges of ``data`` that are not long runs of zeros."""
    size = len(data)
    if not any(_is_zero(data, at) for at in range(0, size, HOLE_BYTES)):
        return ((0, size),)
    parts: list[tuple[int, int]] = []
    for at in range(0, size, HOLE_BYTES):
        if _is_zero(data, at):
            continue
        end = min(at + HOLE_BYTES, size)
        if parts and parts[-1][1] == at:
            at, _ = parts.pop()
        parts.append((at, end))
    return parts


def _is_zero(data: memoryview, at: int) -> bool:
    # The first bytes alone tell in almost all cases: no page begins with zeros, unless all of it is.
    end = min(at + HOLE_BYTES, len(data))
    return data[at : at + 16] == _ZEROS[: min(16, end - at)] and bytes(data[at:end]) == _ZEROS[: end - at]


def _created(path: Path, mode: int, refusal: Refusal) -> int:
    """Create a file, which must not be there yet, and return its descriptor."""
    try:
        descriptor = os.open(path, _CREATE, FILE_MODE)
        if mode != FILE_MODE:
            # Whatever the umask leaves of it otherwise.
            os.fchmod(descriptor, mode)
    except OSError as error:
        raise refusal("create", path, error) from error
    return descriptor


def refused(action: str, path: Path, error: OSError) -> TargetError:
    """Return the error that says what the file system refused."""
    number = error.errno or 0
    return TargetError(
        f"cannot {action} {path}: {os.strerror(number)}",
        hint=_HINTS.get(number),
        path=str(path),
        errno=errno.errorcode.get(number, str(number)),
    )
