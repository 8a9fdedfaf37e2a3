"""BlockMap against plain sets: a fork's entry means every block from its limit on, and those that changed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from copy import deepcopy
from functools import reduce

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal.summary.block_map import BlockMap, ForkChanges, RelationFork

TABLE = RelationFork(1663, 5, 16384, Fork.MAIN)
TABLE_VM = RelationFork(1663, 5, 16384, Fork.VM)
DATABASE = RelationFork(1663, 5, 0, Fork.MAIN)
KEYS = (TABLE, TABLE_VM, DATABASE)

# Around the ends of what a chunk, a container and a segment file hold, and the last block that there can be.
BLOCKS = (0, 1, 2, 3, 65535, 65536, 65537, 131071, 131072, 0xFFFFFFFD, 0xFFFFFFFE)

keys = st.sampled_from(KEYS)
blocks = st.sampled_from(BLOCKS)


def meaning(block_map: BlockMap, key: RelationFork) -> set[int]:
    changes = block_map.get(key)
    if changes is None:
        return set()
    return {block for block in BLOCKS if block >= changes.limit_block or block in changes.blocks}


def merged(maps: Iterable[BlockMap]) -> BlockMap:
    whole = BlockMap()
    for each in maps:
        whole.merge(deepcopy(each))
    return whole


def same_meaning(left: BlockMap, right: BlockMap) -> bool:
    return all(
        (left.get(key) is None) == (right.get(key) is None)
        and left.limit_block(*key) == right.limit_block(*key)
        and meaning(left, key) == meaning(right, key)
        for key in KEYS
    )


class WalInParts(RuleBasedStateMachine):
    """WAL is summarised into one map and, in parts, into several; plain sets say what both must mean."""

    @initialize()
    def start(self) -> None:
        self.whole = BlockMap()
        self.parts = [BlockMap()]
        self.sets: dict[RelationFork, set[int]] = {}
        self.limits: dict[RelationFork, int] = {}

    @rule(key=keys, limit=blocks)
    def shorten(self, key: RelationFork, limit: int) -> None:
        self.whole.set_limit(key, limit)
        self.parts[-1].set_limit(key, limit)
        self.sets.setdefault(key, set()).update(block for block in BLOCKS if block >= limit)
        self.limits[key] = min(limit, self.limits.get(key, INVALID_BLOCK_NUMBER))

    @rule(key=keys, changed=st.lists(blocks, max_size=4))
    def change(self, key: RelationFork, changed: list[int]) -> None:
        # An array with repetitions, as the scanner gives it.
        self.whole.mark(key, array("I", changed + changed[:1]))
        self.parts[-1].mark(key, array("I", changed))
        self.sets.setdefault(key, set()).update(changed)

    @rule(key=keys, limit=blocks, changed=st.lists(blocks, max_size=4))
    def shorten_and_change(self, key: RelationFork, limit: int, changed: list[int]) -> None:
        self.whole.apply([(key, limit, array("I", changed))])
        self.parts[-1].apply([(tuple(key), limit, array("I")), (tuple(key), INVALID_BLOCK_NUMBER, array("I", changed))])
        self.sets.setdefault(key, set()).update(changed, (block for block in BLOCKS if block >= limit))
        self.limits[key] = min(limit, self.limits.get(key, INVALID_BLOCK_NUMBER))

    @rule()
    def begin_next_part(self) -> None:
        self.parts.append(BlockMap())

    @rule()
    def forget_limits_of_all(self) -> None:
        self.whole.forget_limits()
        for part in self.parts:
            part.forget_limits()
        for key in self.limits:
            self.limits[key] = 0
            self.sets[key] = set(BLOCKS)

    @invariant()
    def the_whole_means_the_sets(self) -> None:
        assert {key for key, _ in self.whole.entries()} == self.sets.keys()
        for key, expected in self.sets.items():
            assert meaning(self.whole, key) == expected
            assert self.whole.limit_block(*key) == self.limits.get(key, INVALID_BLOCK_NUMBER)

    @invariant()
    def merged_parts_mean_the_same(self) -> None:
        assert same_meaning(merged(self.parts), self.whole)

    @invariant()
    def merging_is_associative(self) -> None:
        for cut in range(len(self.parts)):
            left, right = merged(self.parts[:cut]), merged(self.parts[cut:])
            assert same_meaning(merged([left, right]), self.whole)

    @invariant()
    def merging_leaves_the_later_map_alone(self) -> None:
        copies = [merged([part]) for part in self.parts]
        merged(self.parts)
        assert copies == self.parts

    @invariant()
    def the_plan_is_told_the_blocks_of_a_file(self) -> None:
        for key in KEYS:
            for start, stop in ((0, 131072), (131072, 262144), (2, 65536), (3, 3), (4, 1)):
                between = self.whole.blocks_between(*key, start, stop)
                changes = self.whole.get(key) or ForkChanges()
                assert list(between) == [b for b in BLOCKS if start <= b < stop and b in changes.blocks]
        assert self.whole.database_copied(1663, 5) == (DATABASE in self.sets)
        assert not self.whole.database_copied(1663, 6)


TestWalInParts = WalInParts.TestCase


def test_a_shortening_voids_later_blocks_that_were_known_before_it() -> None:
    block_map = BlockMap()
    block_map.mark(TABLE, [1, 5, 9])
    block_map.set_limit(TABLE, 5)
    block_map.mark(TABLE, [7])
    block_map.set_limit(TABLE, 6)
    changes = block_map.get(TABLE)
    assert changes is not None
    assert (changes.limit_block, list(changes.blocks)) == (5, [1, 7])
    assert block_map.block_count() == 2


def test_merging_out_of_order_would_lose_blocks() -> None:
    """What the server does when it reads summaries in directory order (formats 4.5)."""
    shortened, regrown = BlockMap(), BlockMap()
    shortened.set_limit(TABLE, 100)
    regrown.mark(TABLE, [100, 101])
    assert list(merged([shortened, regrown]).blocks_between(*TABLE, 0, 200)) == [100, 101]
    assert list(merged([regrown, shortened]).blocks_between(*TABLE, 0, 200)) == []


def test_only_forks_that_were_shortened_lose_their_limit() -> None:
    block_map = BlockMap()
    block_map.set_limit(TABLE, 100)
    block_map.mark(TABLE_VM, [0])
    block_map.forget_limits()
    assert block_map.limit_block(*TABLE) == 0
    assert block_map.limit_block(*TABLE_VM) == INVALID_BLOCK_NUMBER


def test_entries_come_in_the_order_of_summary_files() -> None:
    shuffled = [RelationFork(*numbers) for numbers in [(9, 1, 1, 0), (1, 9, 9, 2), (1, 9, 9, 0), (1, 2, 90, 3)]]
    block_map = reduce(lambda found, key: (found.mark(key, [1]), found)[1], shuffled, BlockMap())
    assert [key for key, _ in block_map.entries()] == sorted(shuffled)
    assert len(block_map) == 4


def test_equality() -> None:
    left, right = BlockMap(), BlockMap()
    left.mark(TABLE, [1])
    assert left != right
    right.mark(TABLE, [1])
    assert left == right
    right.set_limit(TABLE, 1000)
    assert left != right
    assert left != "a map"
    assert "limit_block=1000" in repr(right)


def test_what_has_only_a_limit_is_counted_without_a_bitmap() -> None:
    block_map = BlockMap()
    block_map.apply([(TABLE, 0, array("I")), (TABLE_VM, INVALID_BLOCK_NUMBER, array("I", [3, 9])), (DATABASE, 0, [])])
    block_map.set_limit(TABLE_VM, 4)
    assert [list(blocks) for blocks in block_map.block_sets()] == [[3]]
    assert block_map.block_count() == 1
    block_map.set_limit(TABLE_VM, 0)
    assert block_map.block_sets() == []
    assert block_map.block_count() == 0
    assert len(block_map) == 3
