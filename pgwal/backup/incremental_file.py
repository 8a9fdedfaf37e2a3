"""INCREMENTAL files: the changed blocks of one relation file, and how much of the prior copy still counts.

Source of the format: src/backend/backup/basebackup_incremental.c and src/bin/pg_combinebackup/reconstruct.c,
PostgreSQL 17 to 19; pgwal writes the same for 13 to 16.

| offset | type | field |
|---|---|---|
| 0 | u32 | magic, 0xD3AE1F0D |
| 4 | u32 | number of blocks |
| 8 | u32 | truncation block length |
| 12 | u32 each | block numbers within the relation file |
| 12 + 4n | zeros | up to a multiple of 8192, only when n > 0 |
| then | 8192 each | the blocks, in the same order |
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from pgwal.errors import FormatError, TruncatedInput
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, parse_database_directory

INCREMENTAL_MAGIC = 0xD3AE1F0D
INCREMENTAL_PREFIX = "INCREMENTAL."
FIXED_SIZE = 12

_FIXED = struct.Struct("<III")


def incremental_name(path: str) -> str:
    """Return the path under which a backup holds the incremental copy of relation file ``path``."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}{INCREMENTAL_PREFIX}{name}"


def original_name(path: str) -> str:
    """Return the path of the relation file whose incremental copy is at ``path``.

    Raises FormatError when the name is not that of an incremental copy.
    """
    directory, slash, name = path.rpartition("/")
    original = name.removeprefix(INCREMENTAL_PREFIX)
    if original in ("", name):
        raise FormatError(f"{path!r} is not the name of an incremental file")
    return f"{directory}{slash}{original}"


def is_incremental_name(path: str) -> bool:
    """Tell whether ``path`` is an incremental copy: the name counts only where relation files live."""
    directory, _, name = path.rpartition("/")
    return (
        name.startswith(INCREMENTAL_PREFIX)
        and name != INCREMENTAL_PREFIX
        and parse_database_directory(directory) is not None
    )


def incremental_header_size(block_count: int) -> int:
    """Return how many bytes precede the first block of an incremental file with ``block_count`` blocks."""
    if block_count == 0:
        return FIXED_SIZE
    return -(-(FIXED_SIZE + 4 * block_count) // BLOCK_SIZE) * BLOCK_SIZE


def incremental_file_size(block_count: int) -> int:
    """Return the size in bytes of an incremental file with ``block_count`` blocks."""
    return incremental_header_size(block_count) + block_count * BLOCK_SIZE


class IncrementalPrefix(NamedTuple):
    """The first twelve bytes of an incremental file, which say how long its header is."""

    block_count: int
    truncation_block_length: int

    @property
    def header_size(self) -> int:
        return incremental_header_size(self.block_count)

    @property
    def file_size(self) -> int:
        return incremental_file_size(self.block_count)


@dataclass(frozen=True, slots=True)
class IncrementalHeader:
    """Which blocks of a relation file an incremental file holds, in the order in which it holds them.

    The first ``truncation_block_length`` blocks that are not held are those of the prior backup; blocks from there
    on that are not held are zero.  Raises FormatError for values that no relation file can have.
    """

    truncation_block_length: int
    block_numbers: array[int]

    def __post_init__(self) -> None:
        blocks = self.block_numbers
        _check_prefix(len(blocks), self.truncation_block_length)
        if len(blocks) and max(blocks) >= BLOCKS_PER_FILE:
            raise FormatError(f"incremental file: block {max(blocks)} is beyond the end of any relation file")
        if len(set(blocks)) != len(blocks):
            raise FormatError("incremental file: a block number is listed twice")

    @property
    def header_size(self) -> int:
        return incremental_header_size(len(self.block_numbers))

    @property
    def file_size(self) -> int:
        return incremental_file_size(len(self.block_numbers))

    @property
    def reconstructed_block_count(self) -> int:
        """The length in blocks of the relation file that this copy stands for."""
        return max(self.truncation_block_length, max(self.block_numbers, default=-1) + 1)

    def encode(self) -> bytes:
        """Return the header with its padding; the blocks themselves follow it."""
        count = len(self.block_numbers)
        fixed = _FIXED.pack(INCREMENTAL_MAGIC, count, self.truncation_block_length)
        return (fixed + struct.pack(f"<{count}I", *self.block_numbers)).ljust(self.header_size, b"\0")

    @staticmethod
    def decode_prefix(content: bytes) -> IncrementalPrefix:
        """Parse the first twelve bytes, from which the size of the rest of the header follows.

        Raises FormatError for another magic or impossible counts, TruncatedInput when there are fewer bytes.
        """
        if len(content) < FIXED_SIZE:
            raise TruncatedInput(f"incremental file: {len(content)} bytes, at least {FIXED_SIZE} are needed")
        magic, block_count, truncation_block_length = _FIXED.unpack_from(content)
        if magic != INCREMENTAL_MAGIC:
            raise FormatError(f"incremental file: magic {magic:#010x} instead of {INCREMENTAL_MAGIC:#010x}")
        _check_prefix(block_count, truncation_block_length)
        return IncrementalPrefix(block_count, truncation_block_length)

    @classmethod
    def decode(cls, content: bytes, file_size: int) -> IncrementalHeader:
        """Parse and check the header of an incremental file of ``file_size`` bytes.

        ``content`` is the beginning of the file, at least its header.  Raises FormatError when header and size do
        not describe an incremental file, TruncatedInput when bytes of the header are missing.
        """
        prefix = cls.decode_prefix(content)
        if len(content) < prefix.header_size:
            raise TruncatedInput(
                f"incremental file: {len(content)} bytes of a header of {prefix.header_size}, for"
                f" {prefix.block_count} blocks"
            )
        if file_size != prefix.file_size:
            raise FormatError(
                f"incremental file: {file_size} bytes long, but its {prefix.block_count} blocks make {prefix.file_size}"
            )
        numbers_end = FIXED_SIZE + 4 * prefix.block_count
        if any(content[numbers_end : prefix.header_size]):
            raise FormatError("incremental file: the padding of the header is not zero")
        numbers = struct.unpack_from(f"<{prefix.block_count}I", content, FIXED_SIZE)
        return cls(prefix.truncation_block_length, array("I", numbers))


def _check_prefix(block_count: int, truncation_block_length: int) -> None:
    if block_count > BLOCKS_PER_FILE:
        raise FormatError(f"incremental file: {block_count} blocks are more than a relation file has")
    if not 0 <= truncation_block_length <= BLOCKS_PER_FILE:
        raise FormatError(
            f"incremental file: truncation block length {truncation_block_length} is more than a relation file has"
        )
