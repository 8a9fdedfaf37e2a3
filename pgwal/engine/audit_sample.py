"""Which blocks an audit reads: a share of those that a backup leaves out, drawn from a seed."""

from __future__ import annotations

import random
from array import array
from typing import NamedTuple

from pyroaring import BitMap

from pgwal.backup.plan import IncrementalFile
from pgwal.engine.copied_file import Item, PlannedFile
from pgwal.relation import BLOCK_SIZE

_ALL_PERCENT = 100


class AuditSample(NamedTuple):
    """``percent`` of the blocks, above 0 and up to 100; with one seed, the same ones of the same prior backup."""

    percent: float
    seed: int

    @classmethod
    def drawn(cls, percent: float) -> AuditSample:
        """Return a sample that nobody has drawn before."""
        return cls(percent, random.SystemRandom().getrandbits(32))

    def blocks(self, item: Item, planned: PlannedFile) -> array[int]:
        """Return what is read of a file: blocks that are not copied, ascending and counted from the file's start."""
        plan = planned.plan
        if not isinstance(plan, IncrementalFile):
            return array("I")
        kept = plan.truncation_block_length
        if self.percent < _ALL_PERCENT:
            drawn = self._drawn(item)
            drawn.remove_range(kept, 1 << 32)
        else:
            drawn = BitMap(range(kept))
        return array("I", (drawn - BitMap(plan.block_numbers)).to_array())

    def expected_bytes(self, planned: PlannedFile) -> int:
        """Return about how much is read of a file."""
        return int(unchanged_block_count(planned) * BLOCK_SIZE * self.percent / _ALL_PERCENT)

    def _drawn(self, item: Item) -> BitMap:
        """Draw from all blocks that the prior backup holds: that does not depend on what has changed since."""
        count = (item.prior_size_bytes or 0) // BLOCK_SIZE
        chance = random.Random(f"{self.seed} {item.file.path}")
        # Of a share of a block, one block by as much chance: else of small files none would ever be read, or all.
        wanted = min(count, int(count * self.percent / _ALL_PERCENT + chance.random()))
        return BitMap(chance.sample(range(count), wanted))


def unchanged_block_count(planned: PlannedFile) -> int:
    """Return how many blocks of a file are not copied."""
    plan = planned.plan
    if not isinstance(plan, IncrementalFile):
        return 0
    # What is copied behind the truncation block length is among the block numbers, too.
    behind = planned.file.size_bytes // BLOCK_SIZE - plan.truncation_block_length
    return plan.truncation_block_length - (len(plan.block_numbers) - behind)
