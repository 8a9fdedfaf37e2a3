"""What a backup reads from: the contract of a source of files and blocks, and the values it gives."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple, Protocol


class SourceDirectory(NamedTuple):
    """A directory of the data directory; ``path`` is relative to it."""

    path: str


class SourceFile(NamedTuple):
    """A file that belongs into a backup: its path relative to the data directory, and size and time when listed."""

    path: str
    size_bytes: int
    mtime_s: float


class BlockSource(Protocol):
    """A data directory that can be read while its server runs; what it reads may be torn or newer than listed.

    Raises PgwalError for what cannot be read.
    """

    def list(self) -> Iterator[SourceDirectory | SourceFile]:
        """Yield what belongs into a backup, directories before what is in them, sorted by name in each.

        pg_control is not among it: it is read last.
        """

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        """Yield exactly ``size_bytes`` of a file, zeros from where it has become shorter; None when it is gone."""

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        """Yield the blocks (ascending, relative to the file), zeros where it has become shorter; None when it is gone.

        One item may hold several blocks.
        """

    def read_control_file(self) -> bytes:
        """Return pg_control, read until its CRC holds."""
