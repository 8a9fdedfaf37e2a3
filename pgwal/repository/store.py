"""The contract of a place that holds a repository: named objects in a flat tree, durable when a call returns."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from io import BufferedWriter, FileIO
from typing import NamedTuple, Protocol

from pgwal.errors import FormatError

MOST_BYTES_READ = 16 << 20
"""More than histories, labels and documents of pgwal's own have."""


def read_bounded(file: FileIO, name: str, most_bytes: int) -> bytes:
    """Return all that a file holds; raises FormatError, which names it, for more than ``most_bytes``."""
    content = bytearray()
    size_bytes = os.fstat(file.fileno()).st_size
    # What is no regular file, or grows, shows only when it is read that it has more.
    while size_bytes <= most_bytes and (data := file.read(min(MOST_BYTES_READ, most_bytes + 1 - len(content)))):
        content += data
        size_bytes = max(size_bytes, len(content))
    if size_bytes > most_bytes:
        raise FormatError(f"{name} is larger than {most_bytes} bytes, and so not of its kind", hint="Move it away.")
    return bytes(content)


class StoredObject(NamedTuple):
    """An object and its size in bytes."""

    name: str
    size_bytes: int


class Appender(Protocol):
    """An object of fixed size that is written in place, such as a WAL segment that is being received."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at a byte offset; not durable until ``sync``."""

    def clear_behind(self, offset: int) -> None:
        """Write zeros over whatever is not zero from a byte offset on; not durable until ``sync``."""

    def sync(self) -> None:
        """Make all that was written durable."""

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        """Sync, give the object its final name, durably, and close it.

        What is not ``is_read_soon`` need not stay in a cache, where it would take the place of something else.
        """

    def close(self) -> None:
        """Close without syncing or renaming."""


class Store(Protocol):
    """Named objects; names are relative paths with ``/``.

    Every method raises RepositoryError for what the storage itself refuses (full, read-only, not there).
    """

    def read(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        """Return an object's bytes; raises ObjectNotFound, FormatError when there are more than ``most_bytes``."""

    def open(self, name: str) -> FileIO:
        """Open an object for reading, unbuffered; raises ObjectNotFound."""

    def create(self, name: str) -> BufferedWriter:
        """Create an object that is written piece by piece, and not durable; it must not be there yet."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put an object in place of what had its name, whole or not at all; durable unless told otherwise."""

    def write_chunks(self, name: str, chunks: Iterable[bytes], *, durable: bool = True) -> None:
        """As ``write``, from pieces."""

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> Appender:
        """Open an object of ``size_bytes`` zeros, or one of this size that is there already, for writing in place.

        With ``zeroed`` the zeros are really written, so that each later sync is of data alone: worth the double
        writing where somebody waits for each of them.
        """

    def clear_temporaries(self, directory: str, is_own: Callable[[str], bool]) -> None:
        """Remove what a crash left of objects directly in a directory that were being written.

        For whoever alone writes them; ``is_own`` tells of an object's name whether it is one of those.
        """

    def delete(self, name: str) -> None:
        """Remove an object; it may come back after a crash of the machine.  Raises ObjectNotFound."""

    def exists(self, name: str) -> bool:
        """Tell whether there is an object or directory of this name."""

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable, whoever gave them."""

    def list(self, directory: str) -> builtins.list[StoredObject]:
        """Return the objects directly in a directory, by name; an absent directory is empty."""

    def names(self, directory: str) -> builtins.list[str]:
        """Return all names directly in a directory, whatever they stand for, in order; an absent one is empty."""

    def list_directories(self, directory: str) -> builtins.list[str]:
        """Return the names of the directories directly in a directory, in order."""

    def rename_directory(self, old: str, new: str) -> None:
        """Give a directory, whose contents are durable already, its final name, durably."""

    def move(self, old: str, new: str) -> None:
        """Give an object or a directory a new name, in a directory that is made for it; durably, and over nothing."""

    def delete_directory(self, name: str) -> None:
        """Remove a directory with all that is in it."""

    def remove_empty_directory(self, name: str) -> bool:
        """Remove a directory that is empty; False, with nothing done, when it is not."""

    def lock(self, name: str, holder: str) -> AbstractContextManager[None]:
        """Hold an exclusive lock until the context is left or the process dies.

        Raises RepositoryLocked, naming the holder, when another process has it.
        """

    def hold(self, name: str, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Hold an object that exists until the context is left: together with others that read it, or to remove it.

        Never waits.  Raises ObjectNotFound when it is gone, RepositoryLocked when another process stands against it.
        """

    def is_locked(self, name: str) -> bool:
        """Tell whether some process holds the lock."""
