"""What a backup reads from: the contract of a source of files and blocks, and the values it gives."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from pgwal.budget import CONTROL_FILE_ATTEMPTS
from pgwal.control_file import ControlFile
from pgwal.errors import ChecksumMismatch
from pgwal.relation import BLOCK_SIZE


class SourceDirectory(NamedTuple):
    """A directory of the data directory; ``path`` is relative to it."""

    path: str


class SourceFile(NamedTuple):
    """A file that belongs into a backup: its path relative to the data directory, and size and time when listed."""

    path: str
    size_bytes: int
    mtime_s: float


class WantedContent(NamedTuple):
    """What is wanted of a file: some of its blocks, or its first ``size_bytes`` where ``block_numbers`` is None.

    Blocks are ascending and counted from the start of the file; ``size_bytes`` is what they come to.  With ``to_end``
    all of the file is wanted, whatever its size has become; ``size_bytes`` is what it was when it was listed.
    """

    path: str
    size_bytes: int
    block_numbers: array[int] | None
    to_end: bool = False

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield what to read: (offset, length) in bytes."""
        return iter([(0, self.size_bytes)]) if self.block_numbers is None else extents(self.block_numbers)


class Unread(Enum):
    """Why a file that is there has not been read."""

    LONGER = "longer than it was when it was listed"


class BlockSource(Protocol):
    """A data directory that can be read while its server runs; what it reads may be torn or newer than listed.

    Raises PgwalError for what cannot be read.
    """

    def list(
        self, emptied: Collection[str] = (), tablespaces: Collection[int] | None = None
    ) -> Iterator[SourceDirectory | SourceFile]:
        """Yield what belongs into a backup, directories before what is in them, sorted by name in each.

        pg_control is not among it: it is read last.  For the arguments see pgwal.backup.walk.walk.
        """

    def names(self, directory: str) -> Sequence[str]:
        """Return the names of what a directory holds, in any order; none when it is gone, or its disk is."""

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        """Yield exactly ``size_bytes`` of a file, zeros from where it has become shorter; None when it is gone.

        That is for relation files, which WAL repairs.  Every item but the last holds whole blocks.
        A source may take a file of which nothing is to be read as being there.
        """

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        """Yield all of a file, to the end that it has when it is opened; None when it is gone.

        That is for all other files: the server, and others, replace them by renames.  What is yielded is of one file,
        not the start of one and the end of its successor.  ``size_bytes`` is what was listed, and no more than a hint.
        Raises FileReplaced, at the latest at its end, where a source has only found out meanwhile that it was not so.
        """

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        """Yield the blocks (ascending, relative to the file), zeros where it has become shorter; None when it is gone.

        Every item holds whole blocks, one or several.  A source may take a file of which nothing is to be read as
        being there.
        """

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        """Return what is wanted of several files, as ``read_wanted`` gives it; None for one that is gone.

        Something is wanted of each, and all of it is in memory at once; so a file that is wanted to its end and has
        become longer than listed may be left to ``read_to_end``.
        """

    def read_control_file(self) -> bytes:
        """Return pg_control, read until its CRC holds."""

    def cut(self) -> None:
        """Have a read end soon, with an error, that another thread waits for; nothing can be read any more."""


def read_each(source: BlockSource, wanted: Iterable[WantedContent]) -> list[bytes | Unread | None]:
    """Do what ``read_small`` does, file by file."""
    return [None if (chunks := read_wanted(source, file)) is None else b"".join(chunks) for file in wanted]


def read_wanted(source: BlockSource, wanted: WantedContent) -> Iterator[bytes] | None:
    """Yield what is wanted of a file, as read_to_end, read_file or read_blocks does; None when it is gone."""
    if wanted.to_end:
        return source.read_to_end(wanted.path, wanted.size_bytes)
    if wanted.block_numbers is None:
        return source.read_file(wanted.path, wanted.size_bytes)
    return source.read_blocks(wanted.path, wanted.block_numbers)


def extents(block_numbers: array[int]) -> Iterator[tuple[int, int]]:
    """Join consecutive blocks to (offset, length) in bytes."""
    start = end = 0
    for block_number in block_numbers:
        if block_number != end:
            if start < end:
                yield start * BLOCK_SIZE, (end - start) * BLOCK_SIZE
            start = block_number
        end = block_number + 1
    if start < end:
        yield start * BLOCK_SIZE, (end - start) * BLOCK_SIZE


def read_until_whole(read: Callable[[], bytes], pause: Callable[[], None]) -> bytes:
    """Read pg_control again until its CRC holds, and return it; ``pause`` is called in between.

    The server may be writing it at this moment; that takes far less than the time of all attempts.  Raises
    ChecksumMismatch when none was whole.
    """
    for _ in range(CONTROL_FILE_ATTEMPTS - 1):
        content = read()
        try:
            ControlFile.decode(content)
        except ChecksumMismatch:
            pause()
        else:
            return content
    content = read()
    ControlFile.decode(content)
    return content
