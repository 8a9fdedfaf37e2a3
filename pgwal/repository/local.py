"""The objects of a repository in a directory of a local file system; nothing is reached through a symbolic link."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from itertools import count
from pathlib import Path

from pgwal.disk.written_pieces import write_pieces
from pgwal.repository.beneath import DIRECTORY_MODE, Beneath
from pgwal.repository.local_errors import translated_errors
from pgwal.repository.local_file import LocalFile, read_bounded
from pgwal.repository.store import MOST_BYTES_READ, ByteRange, Child, StoredObject, StoreFeature

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9]+(-[0-9]+)?\.tmp")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStore:
    """A directory; see pgwal.repository.store.FileStore.  Files are created 0600, directories 0700.

    Symbolic links in it are no objects, and opening one is an error; with ``follow_links``, which is for directories
    of recorded WAL that are only read, they count as what they lead to.
    """

    features = frozenset((StoreFeature.FILES, StoreFeature.RENAMES))

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self.beneath = Beneath(root, follow_links=follow_links)
        self._follow_links = follow_links
        self._number = count()

    def path(self, name: str) -> Path:
        return self.root / name

    def locate(self, name: str) -> str:
        return str(self.path(name))

    def create_directory(self, name: str) -> None:
        """Make a directory and its parents, durably; it may be there already."""
        with translated_errors("create", self.path(name)):
            missing = [p for p in (self.root, *self.root.parents) if not p.exists()]
            for directory in reversed(missing):
                directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
                Beneath(directory.parent).sync_directory("")
            self.beneath.make_directories(name)

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        with self.open_file(name) as file:
            return read_bounded(file, name, most_bytes)

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        with translated_errors("read", self.path(name)), FileIO(self.beneath.open(name, os.O_RDONLY)) as file:
            size = os.fstat(file.fileno()).st_size
            return [_read_range(file.fileno(), *slice(start, end).indices(size)[:2]) for start, end in ranges]

    def open_file(self, name: str) -> FileIO:
        with translated_errors("open", self.path(name)):
            return LocalFile(self.beneath.open(name, os.O_RDONLY), self.path(name))

    def size(self, name: str) -> int:
        with self.open_file(name) as file:
            return os.fstat(file.fileno()).st_size

    def exists(self, name: str) -> bool:
        with translated_errors("look for", self.path(name)):
            try:
                self.beneath.status(name)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        folder, slash, _ = prefix.rpartition("/")
        for child in self.children(folder):
            name = f"{folder}{slash}{child.name}"
            if child.size_bytes is not None and name.startswith(prefix) and name > after:
                yield StoredObject(name, child.size_bytes)
            elif child.is_folder and name.startswith(prefix):
                yield from self.list(f"{name}/", after=after)

    def children(self, folder: str = "") -> Iterator[Child]:
        path = self.path(folder)
        with contextlib.ExitStack() as opened:
            with translated_errors("list", path):
                try:
                    descriptor = opened.enter_context(self.beneath.directory(folder))
                except FileNotFoundError:
                    return
                entries = opened.enter_context(os.scandir(descriptor))
            while True:
                with translated_errors("list", path):
                    entry = next(entries, None)
                    child = None if entry is None else self._child(entry)
                if entry is None:
                    return
                if child is not None:
                    yield child

    def _child(self, entry: os.DirEntry[str]) -> Child | None:
        """Return what an entry of a directory is; None for what is being stored, or was renamed since it was listed."""
        if _TEMPORARY.fullmatch(entry.name):
            return None
        try:
            status = entry.stat(follow_symlinks=self._follow_links)
        except FileNotFoundError:
            return None
        return Child(entry.name, status.st_size if stat.S_ISREG(status.st_mode) else None, stat.S_ISDIR(status.st_mode))

    # -- writing -----------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        folder, slash, last = name.rpartition("/")
        temporary = f"{folder}{slash}.{last}.{os.getpid()}-{next(self._number)}{_TEMPORARY_SUFFIX}"
        chunks = (content,) if isinstance(content, bytes) else content
        with translated_errors("write", self.path(name)):
            if not replace and self.exists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            try:
                with FileIO(self._created(temporary, folder), "wb") as file:
                    write_pieces(file.fileno(), chunks)
                    if durable:
                        os.fsync(file.fileno())
                if replace:
                    self.beneath.rename(temporary, name, durable=durable)
                else:
                    self._name_first(temporary, name, durable=durable)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    self.beneath.unlink(temporary)
                raise

    def _created(self, temporary: str, folder: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return self.beneath.open(temporary, flags)
        except FileNotFoundError:
            self.beneath.make_directories(folder)
            return self.beneath.open(temporary, flags)

    def _name_first(self, temporary: str, name: str, *, durable: bool) -> None:
        """Give a file a name that nothing has, whoever else does so at the same time."""
        try:
            self.beneath.link(temporary, name)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Where there are no hard links, a lease is what keeps others away.
            self.beneath.rename(temporary, name, durable=durable)
            return
        self.beneath.unlink(temporary)
        if durable:
            self.beneath.sync_directory(name.rpartition("/")[0])

    def rename(self, old: str, new: str) -> None:
        with translated_errors("move", self.path(old)):
            self.beneath.make_directories(new.rpartition("/")[0])
            if self.exists(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.beneath.rename(old, new)

    def delete(self, name: str) -> None:
        with translated_errors("delete", self.path(name)):
            self.beneath.unlink(name)

    def delete_all(self, folder: str) -> None:
        with (
            translated_errors("delete", self.path(folder)),
            contextlib.suppress(FileNotFoundError),
            self.beneath.parent(folder) as (parent, last),
            # It follows no links, and refuses to begin with one.
            self.beneath.directory(folder),
        ):
            shutil.rmtree(last, dir_fd=parent)

    def remove_folder(self, folder: str) -> bool:
        with translated_errors("delete", self.path(folder)), self.beneath.parent(folder) as (parent, last):
            try:
                os.rmdir(last, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
        return True

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        with translated_errors("list", self.path(folder)):
            try:
                with self.beneath.directory(folder) as descriptor:
                    names = os.listdir(descriptor)  # noqa: PTH208 (a descriptor)
            except FileNotFoundError:
                return
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match is not None and is_own(match[1]):
                self.delete(f"{folder}/{name}" if folder else name)
        with translated_errors("sync", self.path(folder)):
            self.beneath.sync_directory(folder)


def _read_range(descriptor: int, start: int, end: int) -> bytes:
    pieces = []
    while start < end and (piece := os.pread(descriptor, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)
