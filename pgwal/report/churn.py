"""How much of each relation changed, when, and in which of its blocks: counted over summaries, one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from operator import add
from typing import TYPE_CHECKING

from pgwal.budget import CHURN_RELATIONS
from pgwal.relation import Fork, RelFileLocator

if TYPE_CHECKING:
    from pyroaring import BitMap

    from pgwal.summary.block_map import BlockMap

HEAT_COLUMNS = 64
_FEW_BLOCKS = 4 * HEAT_COLUMNS


class BlockHeat:
    """How often blocks of a fork changed, by ranges of them: columns of ``width`` blocks, which grow with the fork."""

    __slots__ = ("counts", "width")

    def __init__(self) -> None:
        self.width = 1
        self.counts = array("Q")

    def add(self, blocks: BitMap) -> None:
        """Count blocks that changed once more."""
        last = blocks.max()
        while last >= self.width * HEAT_COLUMNS:
            self._widen()
        wanted = last // self.width + 1
        self.counts.extend([0] * max(0, wanted - len(self.counts)))
        if len(blocks) <= _FEW_BLOCKS:
            for block_no in blocks:
                self.counts[block_no // self.width] += 1
            return
        for column in range(blocks.min() // self.width, wanted):
            start = column * self.width
            self.counts[column] += blocks.range_cardinality(start, start + self.width)

    def _widen(self) -> None:
        if len(self.counts) % 2:
            self.counts.append(0)
        self.counts = array("Q", map(add, self.counts[::2], self.counts[1::2]))
        self.width *= 2


class RelationChurn:
    """What changed of one relation: block changes over all its forks, each block once a summary, by time.

    ``by_bucket`` has how many in each part of the time; ``heat`` is of the main fork.
    """

    __slots__ = ("block_count", "by_bucket", "heat", "last_bucket", "locator")

    def __init__(self, locator: RelFileLocator, bucket_count: int) -> None:
        self.locator = locator
        self.block_count = 0
        self.by_bucket = array("Q", bytes(8 * bucket_count))
        self.last_bucket = 0
        self.heat = BlockHeat()

    def add(self, bucket: int, fork: int, blocks: BitMap) -> None:
        count = len(blocks)
        self.block_count += count
        self.by_bucket[bucket] += count
        self.last_bucket = max(self.last_bucket, bucket)
        if fork == Fork.MAIN:
            self.heat.add(blocks)


class Churn:
    """Counts over summaries, fed in any order; ``total`` has all blocks, of whatever relation.

    When there are too many relations, those that changed least are no longer told apart.
    """

    def __init__(self, bucket_count: int, most_relations: int = CHURN_RELATIONS) -> None:
        self._bucket_count = bucket_count
        self._most_relations = most_relations
        self._relations: dict[RelFileLocator, RelationChurn] = {}
        self.total = array("Q", bytes(8 * bucket_count))
        self.summary_count = 0
        self.dropped_count = 0
        """Relations whose counts were let go."""

    def add(self, bucket: int, changes: BlockMap) -> None:
        """Count the map of a summary, whose WAL is of one part of the time."""
        self.summary_count += 1
        for key, fork_changes in changes.entries():
            blocks = fork_changes.blocks
            if not blocks:
                continue
            locator = RelFileLocator(key.spc_oid, key.db_oid, key.rel_number)
            relation = self._relations.get(locator)
            if relation is None:
                relation = self._relations[locator] = RelationChurn(locator, self._bucket_count)
            relation.add(bucket, key.fork, blocks)
            self.total[bucket] += len(blocks)
        if len(self._relations) > 2 * self._most_relations:
            kept = list(self.relations())[: self._most_relations]
            self.dropped_count += len(self._relations) - len(kept)
            self._relations = {relation.locator: relation for relation in kept}

    def relations(self) -> Iterator[RelationChurn]:
        """Yield relations, the one that changed most first."""
        yield from sorted(self._relations.values(), key=lambda each: (-each.block_count, each.locator))
