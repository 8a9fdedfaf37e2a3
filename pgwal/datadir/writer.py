"""Write a tree of files, durably: the data of a backup, or a restored data directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pgwal.errors import TargetError

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class TreeWriter:
    """Files and directories below ``root``, created 0600 and 0700; durable when ``sync`` returns.

    Paths are relative to the root.  Raises TargetError for what the file system refuses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories: set[Path] = set()
        self._unsynced: list[str] = []

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, unless they are there."""
        self._make(self.root / path)

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Create a file from chunks of bytes and return its size; it must not be there yet."""
        target = self.root / path
        self._make(target.parent)
        size_bytes = 0
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
                for chunk in chunks:
                    size_bytes += len(chunk)
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
        except OSError as error:
            raise _refused("write", target, error) from error
        self._unsynced.append(path)
        return size_bytes

    def add_unsynced(self, path: str) -> None:
        """Have ``sync`` take care of a file that was written by other means."""
        self._unsynced.append(path)

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
            for path in self._unsynced:
                _sync(self.root / path, os.O_RDONLY)
            for directory in self._directories:
                _sync(directory, os.O_RDONLY | os.O_DIRECTORY)
            _sync(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _refused("sync", Path(error.filename or self.root), error) from error
        self._unsynced.clear()
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


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(action: str, path: Path, error: OSError) -> TargetError:
    return TargetError(f"cannot {action} {path}: {os.strerror(error.errno or 0)}")
