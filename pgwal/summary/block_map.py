"""Which blocks of which relation forks changed: the block map (the server's "block reference table").

Semantics are those of src/common/blkreftable.c, PostgreSQL 17 to 19.  Block sets are roaring bitmaps, which cost
at most 8 KiB for 65536 consecutive blocks (512 MiB of relation) and two bytes for a lonely block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pyroaring import BitMap

from pgwal.errors import BrokenInvariant
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork

_ALL_BLOCKS = 1 << 32


class RelationFork(NamedTuple):
    """The key of an entry; ``rel_number`` 0 with the main fork stands for a whole database directory."""

    spc_oid: int
    db_oid: int
    rel_number: int
    fork: int


class ForkChanges:
    """What changed in one fork.

    ``limit_block`` is the shortest length in blocks that the fork had (0: created, dropped or rewritten;
    INVALID_BLOCK_NUMBER: never shortened).  ``blocks`` are those that changed after the last shortening below them.
    """

    __slots__ = ("_blocks", "forgotten", "limit_block")

    def __init__(self, limit_block: int = INVALID_BLOCK_NUMBER, *, keep_forgotten: bool = False) -> None:
        self.limit_block = limit_block
        # Of what was dropped, there is seldom more than a limit.
        self._blocks: BitMap | None = None
        self.forgotten: list[tuple[int, BitMap]] | None = [] if keep_forgotten else None
        """Each shortening, with the blocks that it made void; kept only where the range may yet be appended."""

    @property
    def blocks(self) -> BitMap:
        if self._blocks is None:
            self._blocks = BitMap()
        return self._blocks

    @blocks.setter
    def blocks(self, blocks: BitMap) -> None:
        self._blocks = blocks

    @property
    def has_blocks(self) -> bool:
        return bool(self._blocks)

    def mark(self, block_numbers: Iterable[int]) -> None:
        if self._blocks is None:
            self._blocks = BitMap(block_numbers)
        else:
            self._blocks.update(block_numbers)

    def set_limit(self, limit_block: int) -> None:
        if limit_block < self.limit_block:
            if self.forgotten is not None:
                gone = BitMap(self.blocks)
                gone.remove_range(0, limit_block)
                self.forgotten.append((limit_block, gone))
            self.limit_block = limit_block
            if self._blocks is not None:
                self._blocks.remove_range(limit_block, _ALL_BLOCKS)

    def append(self, later: ForkChanges) -> None:
        """Append what changed in a range that follows this one in LSN order."""
        for limit_block, gone in later.forgotten or [(later.limit_block, BitMap())]:
            # Blocks that a shortening made void in the later range alone stay, if the fork was shorter before.
            self.blocks |= gone
            self.set_limit(limit_block)
        self.blocks |= later.blocks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ForkChanges):
            return NotImplemented
        return self.limit_block == other.limit_block and self.blocks == other.blocks

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ForkChanges(limit_block={self.limit_block}, blocks={self.blocks!r})"


class BlockMap:
    """The changes of a range of WAL, by relation fork; build it strictly in LSN order.

    With ``keep_forgotten``, merging it into an earlier map gives, entry for entry, what one pass over both ranges
    would have given; without, it gives what means the same.
    """

    def __init__(self, *, keep_forgotten: bool = False) -> None:
        self._entries: dict[RelationFork, ForkChanges] = {}
        self._keep_forgotten = keep_forgotten

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return self._entries == other._entries if isinstance(other, BlockMap) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BlockMap({self._entries!r})"

    def entries(self) -> Iterator[tuple[RelationFork, ForkChanges]]:
        """Yield the entries in the order of summary files: tablespace, database, relation, fork."""
        entries = self._entries
        for key in sorted(entries):
            yield key, entries[key]

    def block_sets(self) -> list[BitMap]:
        """Return the changed blocks of each fork that has any, in no order; they stay the map's own.

        To ask each entry for its blocks would make a bitmap for all that only have a limit.
        """
        return [changes._blocks for changes in self._entries.values() if changes._blocks]

    def get(self, key: RelationFork) -> ForkChanges | None:
        return self._entries.get(key)

    def set_limit(self, key: RelationFork, limit_block: int) -> None:
        """Record that the fork was shortened to ``limit_block`` blocks: what was known of later blocks is void."""
        self._entry(key).set_limit(limit_block)

    def mark(self, key: RelationFork, block_numbers: Iterable[int]) -> None:
        """Record that blocks of the fork changed."""
        self._entry(key).mark(block_numbers)

    def apply(self, changes: Iterable[tuple[tuple[int, int, int, int], int, Sequence[int]]]) -> None:
        """Record in bulk what happened to forks: each was shortened to its limit, and then its blocks changed.

        Without blocks or with INVALID_BLOCK_NUMBER for a limit, that did not happen.  A fork may come again.
        """
        entries, keep_forgotten = self._entries, self._keep_forgotten
        new = tuple.__new__
        for key, limit_block, block_numbers in changes:
            entry = entries.get(key)  # type: ignore[call-overload]
            if entry is None:
                # RelationFork(*key) takes three times as long.
                entry = ForkChanges(keep_forgotten=True) if keep_forgotten else ForkChanges(limit_block)
                entries[new(RelationFork, key)] = entry
            if limit_block < entry.limit_block:
                entry.set_limit(limit_block)
            if block_numbers:
                entry.mark(block_numbers)

    def put(self, key: RelationFork, limit_block: int, blocks: BitMap) -> None:
        """Set the entry of a fork, which must not have one; ``blocks`` belongs to the map from now on."""
        if key in self._entries:
            raise BrokenInvariant("a relation fork is in the map twice")
        entry = self._entry(key)
        entry.limit_block, entry.blocks = limit_block, blocks

    def merge(self, later: BlockMap) -> None:
        """Append the changes of a range that follows this one in LSN order; ``later`` gives them up and is empty then.

        They are not copied, which would cost as much as reading them where they are sparse.
        """
        entries, later._entries = later._entries, {}
        for key, changes in entries.items():
            if key in self._entries or self._keep_forgotten:
                self._entry(key).append(changes)
            else:
                changes.forgotten = None
                self._entries[key] = changes

    def forget_limits(self) -> None:
        """Count every limit as 0, so that forks which were shortened are copied whole.

        For ranges that touch a timeline switch, where a truncation may not have happened in this history.
        """
        for changes in self._entries.values():
            if changes.limit_block != INVALID_BLOCK_NUMBER:
                changes.limit_block = 0

    def block_count(self) -> int:
        """Return how many changed blocks the map holds."""
        return sum(map(len, self.block_sets()))

    # -- what the plan of a backup asks (pgwal.backup.plan.ChangedBlocks) --------------------------------------------

    def limit_block(self, spc_oid: int, db_oid: int, rel_number: int, fork: int) -> int:
        changes = self._entries.get(RelationFork(spc_oid, db_oid, rel_number, fork))
        return INVALID_BLOCK_NUMBER if changes is None else changes.limit_block

    def blocks_between(
        self, spc_oid: int, db_oid: int, rel_number: int, fork: int, start: int, stop: int
    ) -> array[int]:
        """Return the changed blocks from ``start`` up to but not including ``stop``, ascending."""
        changes = self._entries.get(RelationFork(spc_oid, db_oid, rel_number, fork))
        if changes is None or stop <= start:
            return array("I")
        return array("I", (changes.blocks & BitMap(range(start, stop))).to_array())

    def database_copied(self, spc_oid: int, db_oid: int) -> bool:
        """Tell whether the whole directory of a database in a tablespace was created or dropped."""
        return RelationFork(spc_oid, db_oid, 0, Fork.MAIN) in self._entries

    def _entry(self, key: RelationFork) -> ForkChanges:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = ForkChanges(keep_forgotten=self._keep_forgotten)
        return entry
