"""Write a tree of files, durably: the data of a backup, or a restored data directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pgwal.errors import TargetError

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
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
        try:
            self._file = open(os.open(path, _CREATE, _FILE_MODE), "wb")  # noqa: PTH123, SIM115 (a descriptor, kept)
        except OSError as error:
            raise _refused("create", path, error) from error

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


class TreeWriter:
    """Files and directories below ``root``, created 0600 and 0700; durable when ``sync`` returns.

    Paths are relative to the root.  Files may be written by several threads.  Raises TargetError for what the file
    system refuses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories: set[Path] = set()
        """Those with something new in them; a list of files could be a million long."""

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
                for chunk in chunks:
                    size_bytes += len(chunk)
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
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
        try:
            for directory in self._directories | {self.root}:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_file(follow_symlinks=False):
                            _sync(entry.path, os.O_RDONLY)
            for directory in self._directories | {self.root}:
                _sync(directory, os.O_RDONLY | os.O_DIRECTORY)
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


def _sync(path: Path | str, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(action: str, path: Path, error: OSError) -> TargetError:
    hint = _HINTS.get(error.errno or 0)
    return TargetError(f"cannot {action} {path}: {os.strerror(error.errno or 0)}", hint=hint)
