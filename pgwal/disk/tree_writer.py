"""Write a tree of files, durably: the data of a backup, or a restored data directory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Lock, local

from pgwal.budget import SYNC_FILES, SYNC_THREADS, WRITE_THREADS
from pgwal.disk.new_file import (
    FILE_MODE,
    GROUP_FILE_MODE,
    GrowingFile,
    NewFile,
    PlacedFile,
    Refusal,
    refused,
    write_buffer,
)
from pgwal.disk.present_file import PresentFile, look_at, open_present
from pgwal.disk.small_files import FileNotCreated, sync_files, write_small_files
from pgwal.disk.write_behind import WriteBehind
from pgwal.errors import TargetError

_DIRECTORY_MODE = 0o700
_GROUP_DIRECTORY_MODE = 0o750
_NEW_SUFFIX = ".new"


class TreeWriter:
    """Files and directories below ``root``, created 0600 and 0700, with ``group_access`` 0640 and 0750; durable when
    ``sync`` returns.

    Paths are relative to the root.  Files may be written by several threads.  Raises TargetError, or
    what another ``refusal`` makes of it, for what the file system refuses.
    """

    def __init__(
        self, root: Path, *, durable: bool = True, group_access: bool = False, refusal: Refusal = refused
    ) -> None:
        """With ``durable``, ``sync`` will be called, and what is written is on its way to the disk before."""
        self.root = root
        self._durable = durable
        self._refused = refusal
        self._file_mode = GROUP_FILE_MODE if group_access else FILE_MODE
        self.directory_mode = _GROUP_DIRECTORY_MODE if group_access else _DIRECTORY_MODE
        self._directories: set[Path] = set()
        """Those with something new in them; a list of files could be a million long."""
        self._names = {root}
        self._local = local()
        self._pool = ThreadPoolExecutor(WRITE_THREADS, "pgwal-write")
        """Its threads are made when they are needed, and end with it."""

    def make_root(self) -> None:
        """Make the root unless it is there, and give it the mode without which a server does not start there."""
        self._make(self.root)
        self._set_mode(self.root)

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, unless they are there."""
        self._make(self.root / path)

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Create a file from chunks of bytes and return its size; it must not be there yet."""
        target = self.root / path
        self._make(target.parent)
        if not hasattr(self._local, "write_behind"):
            self._local.write_behind = WriteBehind(self.buffer(), self._pool)
        write_behind: WriteBehind = self._local.write_behind
        with NewFile(target, durable=self._durable, mode=self._file_mode, refusal=self._refused) as file:
            return write_behind.write(file, chunks)

    def write_small(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Create several files, each of these bytes; they must not be there yet."""
        root = f"{self.root}/"
        for directory in {path.rpartition("/")[0] for path, _ in files}:
            self._make(self.root / directory)
        try:
            write_small_files([root + path for path, _ in files], [content for _, content in files], self._file_mode)
        except OSError as error:
            action = "create" if isinstance(error, FileNotCreated) else "write"
            raise self._refused(action, Path(error.filename), error) from error

    def buffer(self) -> memoryview:
        """Return this thread's ``write_buffer``, for what goes to a placed file; ``write`` uses it too."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = write_buffer()
        buffer: memoryview = self._local.buffer
        return buffer

    def remove(self, path: str) -> None:
        """Remove a file that was written."""
        try:
            (self.root / path).unlink()
        except OSError as error:
            raise self._refused("remove", self.root / path, error) from error

    def create(self, path: str) -> GrowingFile:
        """Create a file that is written piece by piece; it must not be there yet, and be closed before ``sync``."""
        target = self.root / path
        self._make(target.parent)
        return GrowingFile(target, self._file_mode, self._refused)

    def place(self, path: str, size_bytes: int) -> PlacedFile:
        """Create a file of a known size whose parts are written at their places, by one thread."""
        target = self.root / path
        self._make(target.parent)
        return PlacedFile(target, size_bytes, durable=self._durable, mode=self._file_mode, refusal=self._refused)

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

    def present(self, path: str) -> PresentFile | None:
        """Open a file that is there, to make another one of it; None where there is none that can be used."""
        return open_present(self.root / path, self._file_mode, self._refused)

    def look_at(self, place: Path) -> PresentFile | None:
        """Open a file for reading, at its own place; None where there is none that ``present`` would open."""
        return look_at(place, self._refused)

    def replace(self, path: str, content: bytes) -> None:
        """Put a small file in the place of one that may be there: it is all the one or all the other at any time."""
        target = self.root / path
        new = target.with_name(f"{target.name}{_NEW_SUFFIX}") if os.path.lexists(target) else target
        try:
            if new != target:
                new.unlink(missing_ok=True)
            with NewFile(new, durable=self._durable, mode=self._file_mode, refusal=self._refused) as file:
                file.write(memoryview(content), 0)
            if self._durable:
                _sync(new, os.O_RDONLY)
            new.rename(target)
            if self._durable:
                _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._refused("write", target, error) from error
        self._directories.add(target.parent)

    def rename(self, old: str, new: str) -> None:
        """Give a file that is durable its final name, durably."""
        target = self.root / new
        try:
            (self.root / old).rename(target)
            _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            _sync((self.root / old).parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._refused("rename", self.root / old, error) from error

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
        self._set_mode(location)
        self._names.add(location)
        self.symlink(path, location)

    def symlink(self, path: str, location: Path) -> None:
        """Make a symbolic link to an absolute location, unless it is there."""
        target = self.root / path
        self._make(target.parent)
        try:
            if not (target.is_symlink() and target.readlink() == location):
                target.symlink_to(location)
        except OSError as error:
            raise self._refused("link", target, error) from error

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
            raise self._refused("sync", Path(error.filename or self.root), error) from error
        self._directories.clear()

    def _make(self, directory: Path) -> None:
        if directory in self._directories:
            return
        if directory != self.root and self.root in directory.parents:
            self._make(directory.parent)
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            if self.directory_mode != _DIRECTORY_MODE:
                directory.chmod(self.directory_mode)
        except OSError as error:
            raise self._refused("create", directory, error) from error
        self._directories.add(directory)

    def _set_mode(self, directory: Path) -> None:
        try:
            directory.chmod(self.directory_mode)
        except OSError as error:
            raise self._refused("set the mode of", directory, error) from error


def _sync_files(directories: Iterable[Path]) -> None:
    """Make the files in some directories durable; no list of them is held."""
    paths, turn = _files_in(directories), Lock()

    def work() -> None:
        while True:
            with turn:
                some = list(islice(paths, SYNC_FILES))
            if not some:
                return
            sync_files(some)

    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        workers: list[Future[None]] = []
        # Where the system refuses another thread, fewer do, and what was submitted last may be done by any.
        with suppress(RuntimeError):
            while len(workers) < SYNC_THREADS:
                workers.append(pool.submit(work))
        work()
        for worker in workers:
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
