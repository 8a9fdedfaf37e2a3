"""Write a tree of files, durably: the data of a backup, or a restored data directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from pgwal.datadir.copy_method import clone_file, copy_file_range
from pgwal.errors import TargetError, TruncatedInput

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_HOLE_SIZE = 1 << 16
"""What is left out of a file at least: smaller holes would scatter it over the disk once it is filled."""
_ZEROS = bytes(_HOLE_SIZE)
_WRITEBACK_BYTES = 8 << 20
_SYNC_THREADS = 16
"""They wait for the disk, not for a processor; a file system makes several small files durable in one go."""
_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EROFS: "Choose a place on a file system that can be written.",
    errno.EACCES: "Run pgwal as a user who may write there.",
    errno.ENOENT: "Make the directory above it first.",
}


class GrowingFile:
    """A new file that is written piece by piece, through a buffer.

    As a context manager, closes it at the end, without a further complaint when that is because of an error.
    Raises TargetError for what the file system refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(_created(path), "wb")  # noqa: SIM115 (a descriptor, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(TargetError) if kind is not None else nullcontext():
            self.close()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _refused("write", self._path, error) from error

    def close(self) -> None:
        """Write what is in the buffer and close; may be called again."""
        try:
            self._file.close()
        except OSError as error:
            raise _refused("write", self._path, error) from error


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
        if self._end - self._start >= _WRITEBACK_BYTES:
            self._begin()

    def _begin(self) -> None:
        if self._start < self._end and self._is_wanted:
            # Advice that is not taken is no failure.
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, self._start, self._end - self._start, os.POSIX_FADV_DONTNEED)
                self._has_begun = True
        self._start = self._end


class PlacedFile:
    """A new file whose parts are written at their places, in any order; what is not written is a hole of zeros.

    As a context manager, gives it its size at the end and closes it.  Raises TargetError for what the file system
    refuses.
    """

    def __init__(self, path: Path, size_bytes: int, *, durable: bool) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._descriptor = _created(path)
        self._writeback = _Writeback(self._descriptor, is_wanted=durable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.ftruncate(self._descriptor, self._size_bytes)
                self._writeback.finish()
        except OSError as refusal:
            raise _refused("write", self._path, refusal) from refusal
        finally:
            os.close(self._descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset; long runs of zeros become holes."""
        for start, end in _written_parts(data):
            self._write(data[start:end], offset + start)
            self._writeback.wrote(offset + start, end - start)

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise _refused("write", self._path, error) from error

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
    if not any(_is_zero(data, at) for at in range(0, size, _HOLE_SIZE)):
        return ((0, size),)
    parts: list[tuple[int, int]] = []
    for at in range(0, size, _HOLE_SIZE):
        if _is_zero(data, at):
            continue
        end = min(at + _HOLE_SIZE, size)
        if parts and parts[-1][1] == at:
            at, _ = parts.pop()
        parts.append((at, end))
    return parts


def _is_zero(data: memoryview, at: int) -> bool:
    # The first bytes alone tell in almost all cases: no page begins with zeros, unless all of it is.
    end = min(at + _HOLE_SIZE, len(data))
    return data[at : at + 16] == _ZEROS[: min(16, end - at)] and bytes(data[at:end]) == _ZEROS[: end - at]


class TreeWriter:
    """Files and directories below ``root``, created 0600 and 0700; durable when ``sync`` returns.

    Paths are relative to the root.  Files may be written by several threads.  Raises TargetError for what the file
    system refuses.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        """With ``durable``, ``sync`` will be called, and what is written is on its way to the disk before."""
        self.root = root
        self._durable = durable
        self._directories: set[Path] = set()
        """Those with something new in them; a list of files could be a million long."""
        self._names = {root}

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, unless they are there."""
        self._make(self.root / path)

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Create a file from chunks of bytes and return its size; it must not be there yet."""
        target = self.root / path
        self._make(target.parent)
        size_bytes = 0
        try:
            descriptor = os.open(target, _CREATE, _FILE_MODE)
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
                writeback = _Writeback(descriptor, is_wanted=self._durable)
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
                    writeback.wrote(size_bytes, len(chunk))
                    size_bytes += len(chunk)
                writeback.finish()
        except OSError as error:
            raise _refused("write", target, error) from error
        return size_bytes

    def remove(self, path: str) -> None:
        """Remove a file that was written."""
        try:
            (self.root / path).unlink()
        except OSError as error:
            raise _refused("remove", self.root / path, error) from error

    def create(self, path: str) -> GrowingFile:
        """Create a file that is written piece by piece; it must not be there yet, and be closed before ``sync``."""
        target = self.root / path
        self._make(target.parent)
        return GrowingFile(target)

    def place(self, path: str, size_bytes: int) -> PlacedFile:
        """Create a file of a known size whose parts are written at their places; several threads may do so at once."""
        target = self.root / path
        self._make(target.parent)
        return PlacedFile(target, size_bytes, durable=self._durable)

    def link(self, path: str, source: Path) -> None:
        """Make a hard link to a file."""
        target = self.root / path
        self._make(target.parent)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            raise TargetError(
                f'could not create link from "{source}" to "{target}": {os.strerror(error.errno or 0)}',
                hint="Both must be on one file system that has hard links; or use --copy.",
            ) from error

    def replace(self, path: str, content: bytes) -> None:
        """Put other bytes into a small file that was written before, through this writer."""
        try:
            with (self.root / path).open("wb") as file:
                file.write(content)
        except OSError as error:
            raise _refused("write", self.root / path, error) from error
        self._directories.add((self.root / path).parent)

    def rename(self, old: str, new: str) -> None:
        """Give a file that is durable its final name, durably."""
        target = self.root / new
        try:
            (self.root / old).rename(target)
            _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            _sync((self.root / old).parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _refused("rename", self.root / old, error) from error

    def make_tablespace(self, path: str, location: Path) -> None:
        """Make the directory of a tablespace, unless it is there, and a symbolic link to it."""
        location = location.absolute()
        try:
            location.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"cannot create tablespace directory {location}: {os.strerror(error.errno or 0)}",
                hint="Map the tablespace to another place with -T OLD=NEW.",
            ) from error
        self._names.add(location)
        self.symlink(path, location)

    def symlink(self, path: str, location: Path) -> None:
        """Make a symbolic link to an absolute location."""
        target = self.root / path
        self._make(target.parent)
        try:
            target.symlink_to(location)
        except OSError as error:
            raise _refused("link", target, error) from error

    def sync(self) -> None:
        """Make all that was written durable: the files, then the names in each directory."""
        directories = self._directories | {self.root}
        try:
            _sync_files(directories)
            for directory in directories:
                _sync(directory, os.O_RDONLY | os.O_DIRECTORY)
            for directory in self._names:
                # Who may make a directory in another one need not be allowed to open that.
                with suppress(PermissionError):
                    _sync(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _refused("sync", Path(error.filename or self.root), error) from error
        self._directories.clear()

    def _make(self, directory: Path) -> None:
        if directory in self._directories:
            return
        if directory != self.root and self.root in directory.parents:
            self._make(directory.parent)
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise _refused("create", directory, error) from error
        self._directories.add(directory)


def _created(path: Path) -> int:
    """Create a file, which must not be there yet, and return its descriptor."""
    try:
        return os.open(path, _CREATE, _FILE_MODE)
    except OSError as error:
        raise _refused("create", path, error) from error


def _sync_files(directories: Iterable[Path]) -> None:
    """Make the files in some directories durable; no list of them is held."""
    paths, turn = _files_in(directories), Lock()

    def work() -> None:
        while True:
            with turn:
                path = next(paths, None)
            if path is None:
                return
            _sync(path, os.O_RDONLY)

    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for worker in [pool.submit(work) for _ in range(_SYNC_THREADS)]:
            worker.result()


def _files_in(directories: Iterable[Path]) -> Iterator[str]:
    for directory in directories:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield entry.path


def _sync(path: Path | str, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(action: str, path: Path, error: OSError) -> TargetError:
    hint = _HINTS.get(error.errno or 0)
    return TargetError(f"cannot {action} {path}: {os.strerror(error.errno or 0)}", hint=hint)
