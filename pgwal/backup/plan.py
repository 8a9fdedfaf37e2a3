"""What a backup copies of each file: pure decisions from the file's size, its prior size and the block map.

The vital property: every block that is not copied existed, unchanged, in the prior backup as that backup
reconstructs.  An extra block costs 8 KiB, a missing one is silent data loss.

The decisions follow src/backend/backup/basebackup_incremental.c, PostgreSQL 17 to 19, but for the truncation
block length, where the server's rule brings truncated rows back, and the visibility map, which older servers
change without saying so in WAL.
"""

from __future__ import annotations

from array import array
from enum import StrEnum
from typing import NamedTuple, Protocol

from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, INVALID_BLOCK_NUMBER, Fork, RelationFile, parse_relation_path


class ChangedBlocks(Protocol):
    """What a plan asks of the block map of the window; pgwal.summary.block_map answers it."""

    def limit_block(self, spc_oid: int, db_oid: int, rel_number: int, fork: int, /) -> int:
        """Return the shortest length in blocks that the fork had, INVALID_BLOCK_NUMBER when never shortened."""
        ...

    def blocks_between(
        self, spc_oid: int, db_oid: int, rel_number: int, fork: int, start: int, stop: int, /
    ) -> array[int]:
        """Return the changed blocks from ``start`` up to but not including ``stop``, ascending."""
        ...

    def database_copied(self, spc_oid: int, db_oid: int, /) -> bool:
        """Tell whether the database's directory in a tablespace was created or dropped as a whole."""
        ...


class WholeReason(StrEnum):
    """Why a file is copied whole."""

    FULL_BACKUP = "full backup"
    NOT_A_RELATION_FILE = "not a relation file"
    FREE_SPACE_MAP = "free space map, whose changes are not logged"
    VISIBILITY_MAP = "visibility map, whose changes are not all logged"
    EMPTY = "empty"
    NOT_BLOCK_ALIGNED = "size is not a whole number of blocks"
    TOO_LARGE = "larger than a relation file can be"
    NEW = "not in the prior backup"
    PRIOR_UNUSABLE = "size in the prior backup is not that of a relation file"
    DATABASE_COPIED = "its database was created or moved"
    TRUNCATED = "created, or truncated to where the file starts or before"
    MOSTLY_CHANGED = "more than nine tenths of it changed"


class WholeFile(NamedTuple):
    """Copy all of the file."""

    reason: WholeReason


class IncrementalFile(NamedTuple):
    """Copy these blocks of the file, ascending and counted from the start of the file.

    All blocks from ``truncation_block_length`` on are among them.
    """

    truncation_block_length: int
    block_numbers: array[int]


def plan_file(
    path: str, size_bytes: int, prior_size_bytes: int | None, changes: ChangedBlocks | None
) -> WholeFile | IncrementalFile:
    """Decide what to copy of one file.

    ``prior_size_bytes`` is the file's length as the prior backup reconstructs it, None when that does not hold the
    file.  ``changes`` is the block map of the exact window between the two starts, None for a full backup.
    """
    if changes is None:
        return WholeFile(WholeReason.FULL_BACKUP)
    relation_file = parse_relation_path(path)
    if relation_file is None or relation_file.first_block >= INVALID_BLOCK_NUMBER:
        return WholeFile(WholeReason.NOT_A_RELATION_FILE)
    reason = _reason_in_kind_and_sizes(relation_file, size_bytes, prior_size_bytes)
    if reason is not None:
        return WholeFile(reason)
    assert prior_size_bytes is not None
    return _plan_blocks(relation_file, size_bytes // BLOCK_SIZE, prior_size_bytes // BLOCK_SIZE, changes)


def _reason_in_kind_and_sizes(
    relation_file: RelationFile, size_bytes: int, prior_size_bytes: int | None
) -> WholeReason | None:
    if relation_file.fork == Fork.FSM:
        return WholeReason.FREE_SPACE_MAP
    if relation_file.fork == Fork.VM:
        return WholeReason.VISIBILITY_MAP
    if size_bytes == 0:
        return WholeReason.EMPTY
    if size_bytes % BLOCK_SIZE:
        return WholeReason.NOT_BLOCK_ALIGNED
    if size_bytes > BLOCKS_PER_FILE * BLOCK_SIZE:
        return WholeReason.TOO_LARGE
    if prior_size_bytes is None:
        return WholeReason.NEW
    if prior_size_bytes % BLOCK_SIZE or prior_size_bytes > BLOCKS_PER_FILE * BLOCK_SIZE:
        return WholeReason.PRIOR_UNUSABLE
    return None


def _plan_blocks(
    relation_file: RelationFile, block_count: int, prior_block_count: int, changes: ChangedBlocks
) -> WholeFile | IncrementalFile:
    spc_oid, db_oid, rel_number = relation_file.locator
    fork, first_block = relation_file.fork, relation_file.first_block
    if changes.database_copied(spc_oid, db_oid):
        return WholeFile(WholeReason.DATABASE_COPIED)
    limit_block = changes.limit_block(spc_oid, db_oid, rel_number, fork)
    if limit_block <= first_block:
        return WholeFile(WholeReason.TRUNCATED)
    # The leading blocks that the prior backup holds and that were there throughout the window.  An absent limit is
    # larger than any length.  The server takes the maximum of size and limit instead: blocks that were truncated
    # away and came back by unlogged extension then get their old contents back.
    kept = min(block_count, limit_block - first_block, prior_block_count)
    changed = changes.blocks_between(spc_oid, db_oid, rel_number, fork, first_block, first_block + kept)
    if (len(changed) + block_count - kept) * 10 > block_count * 9:
        return WholeFile(WholeReason.MOSTLY_CHANGED)
    blocks = array("I", [block - first_block for block in changed]) if first_block else array("I", changed)
    # Blocks beyond may be zero pages that were never logged, so the map need not list them; they are copied all.
    blocks.extend(range(kept, block_count))
    return IncrementalFile(kept, blocks)
