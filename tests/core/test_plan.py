"""What a backup copies of each file."""

from array import array
from itertools import pairwise

import page_history
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_history import Logged, Step, WindowChanges, small_files, steps

from pgwal.backup.plan import IncrementalFile, WholeFile, WholeReason, plan_file
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, Fork
from pgwal.summary.block_map import BlockMap, RelationFork

HEAP = "base/5/16384"
HEAP_FORK = RelationFork(1663, 5, 16384, Fork.MAIN)


def heap_map(*blocks: int, limit: int | None = None) -> BlockMap:
    changes = BlockMap()
    if limit is not None:
        changes.set_limit(HEAP_FORK, limit)
    changes.mark(HEAP_FORK, blocks)
    return changes


def plan_blocks(size: int, prior: int | None, changes: BlockMap, path: str = HEAP) -> WholeFile | tuple[int, list[int]]:
    decision = plan_file(path, size * BLOCK_SIZE, None if prior is None else prior * BLOCK_SIZE, changes)
    if isinstance(decision, WholeFile):
        return decision
    assert decision.block_numbers.typecode == "I"
    return decision.truncation_block_length, list(decision.block_numbers)


@pytest.mark.parametrize(
    ("path", "size", "prior", "reason"),
    [
        ("PG_VERSION", 3, 3, WholeReason.NOT_A_RELATION_FILE),
        ("global/pg_control", 8192, 8192, WholeReason.NOT_A_RELATION_FILE),
        ("base/5/pg_filenode.map", 8192, 8192, WholeReason.NOT_A_RELATION_FILE),
        ("base/5/t3_16384", 8192, 8192, WholeReason.NOT_A_RELATION_FILE),
        ("base/5/16384.40000", 8192, 8192, WholeReason.NOT_A_RELATION_FILE),
        ("base/5/16384_fsm", 24576, 24576, WholeReason.FREE_SPACE_MAP),
        ("base/5/16384_vm", 8192, 8192, WholeReason.VISIBILITY_MAP),
        (HEAP, 0, 0, WholeReason.EMPTY),
        (HEAP, 8193, 8192, WholeReason.NOT_BLOCK_ALIGNED),
        (HEAP, (BLOCKS_PER_FILE + 1) * 8192, 8192, WholeReason.TOO_LARGE),
        (HEAP, 8192, None, WholeReason.NEW),
        (HEAP, 8192, 8191, WholeReason.PRIOR_UNUSABLE),
        (HEAP, 8192, (BLOCKS_PER_FILE + 1) * 8192, WholeReason.PRIOR_UNUSABLE),
    ],
)
def test_whole_for_what_the_file_is(path: str, size: int, prior: int | None, reason: WholeReason) -> None:
    assert plan_file(path, size, prior, BlockMap()) == WholeFile(reason)


def test_every_file_of_a_full_backup_is_whole() -> None:
    assert plan_file(HEAP, 8192, 8192, None) == WholeFile(WholeReason.FULL_BACKUP)


@pytest.mark.parametrize("path", [HEAP, "base/5/16384_init", "global/1262", "pg_tblspc/16400/PG_17_202406281/5/9.3"])
def test_an_unchanged_file_is_incremental_without_blocks(path: str) -> None:
    assert plan_blocks(20, 20, BlockMap(), path) == (20, [])


def test_the_blocks_of_a_fork_of_another_place_do_not_count() -> None:
    changes = BlockMap()
    changes.mark(RelationFork(1664, 0, 1262, Fork.MAIN), [1])
    changes.mark(RelationFork(16400, 5, 16384, Fork.MAIN), [2])
    changes.mark(RelationFork(1663, 5, 16384, Fork.INIT), [3])
    assert plan_blocks(20, 20, changes) == (20, [])
    assert plan_blocks(20, 20, changes, "global/1262") == (20, [1])
    assert plan_blocks(20, 20, changes, "pg_tblspc/16400/PG_17_202406281/5/16384") == (20, [2])
    assert plan_blocks(20, 20, changes, "base/5/16384_init") == (20, [3])


def test_changed_blocks_are_counted_from_the_start_of_the_file() -> None:
    changes = heap_map(7, BLOCKS_PER_FILE - 1, BLOCKS_PER_FILE, BLOCKS_PER_FILE + 19, BLOCKS_PER_FILE + 20)
    assert plan_blocks(BLOCKS_PER_FILE, BLOCKS_PER_FILE, changes) == (BLOCKS_PER_FILE, [7, BLOCKS_PER_FILE - 1])
    assert plan_blocks(20, 20, changes, f"{HEAP}.1") == (20, [0, 19])


def test_blocks_that_the_prior_backup_does_not_hold_are_copied_though_not_listed() -> None:
    # Zero pages of an extension that was not logged.
    assert plan_blocks(30, 20, heap_map(3, 25)) == (20, [3, *range(20, 30)])


def test_a_file_shorter_than_before_keeps_its_own_length() -> None:
    # Without a limit the truncation came after the start; recovery repeats it.
    assert plan_blocks(20, 30, heap_map(3, 25)) == (20, [3])


def test_blocks_from_the_limit_on_are_copied_though_the_prior_backup_has_them() -> None:
    assert plan_blocks(20, 20, heap_map(3, 12, limit=10)) == (10, [3, *range(10, 20)])
    assert plan_blocks(20, 20, heap_map(3, limit=BLOCKS_PER_FILE)) == (20, [3])


def test_a_limit_counts_in_the_file_that_it_falls_into() -> None:
    changes = heap_map(limit=BLOCKS_PER_FILE + 15)
    assert plan_blocks(20, 20, changes, f"{HEAP}.1") == (15, list(range(15, 20)))
    assert plan_blocks(BLOCKS_PER_FILE, BLOCKS_PER_FILE, changes) == (BLOCKS_PER_FILE, [])
    assert plan_blocks(20, 20, changes, f"{HEAP}.2") == WholeFile(WholeReason.TRUNCATED)


@pytest.mark.parametrize(("path", "limit"), [(HEAP, 0), (f"{HEAP}.1", BLOCKS_PER_FILE), (f"{HEAP}.1", 3)])
def test_a_file_truncated_to_its_start_or_before_is_whole(path: str, limit: int) -> None:
    assert plan_blocks(20, 20, heap_map(limit=limit), path) == WholeFile(WholeReason.TRUNCATED)


@pytest.mark.parametrize(("spc_oid", "db_oid", "copied"), [(1663, 5, True), (1663, 6, False), (1664, 5, False)])
def test_all_of_a_database_that_was_created_is_whole(spc_oid: int, db_oid: int, copied: bool) -> None:
    changes = BlockMap()
    changes.set_limit(RelationFork(spc_oid, db_oid, 0, Fork.MAIN), 0)
    assert plan_blocks(20, 20, changes) == (WholeFile(WholeReason.DATABASE_COPIED) if copied else (20, []))


def test_more_than_nine_tenths_is_all() -> None:
    assert plan_blocks(20, 20, heap_map(*range(18))) == (20, list(range(18)))
    assert plan_blocks(20, 20, heap_map(*range(19))) == WholeFile(WholeReason.MOSTLY_CHANGED)
    assert plan_blocks(20, 1, heap_map()) == WholeFile(WholeReason.MOSTLY_CHANGED)


def test_a_plan_owns_its_blocks() -> None:
    class OneList(WindowChanges):
        listed = array("I", [1, 2])

        def blocks_between(self, *_: int) -> "array[int]":
            return self.listed

    changes = OneList()
    plan_file(HEAP, 20 * BLOCK_SIZE, 10 * BLOCK_SIZE, changes)
    assert changes.listed.tolist() == [1, 2]


def test_the_model_and_the_block_map_agree() -> None:
    logged = [Logged(1, 1), Logged(9, 2), Logged(5), Logged(7, 3), Logged(6)]
    model, real = WindowChanges(logged), BlockMap()
    for block, page in logged:
        if page is None:
            real.set_limit(HEAP_FORK, block)
        else:
            real.mark(HEAP_FORK, [block])
    assert model.limit == real.limit_block(*HEAP_FORK)
    assert model.blocks_between(*HEAP_FORK, 0, 20) == real.blocks_between(*HEAP_FORK, 0, 20)


def window_points(length: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, length), min_size=2, max_size=5).map(sorted)


@settings(max_examples=400, deadline=None)
@given(steps(), st.data())
def test_every_block_that_is_not_copied_was_in_the_prior_backup_unchanged(
    history: list[Step], data: st.DataObject
) -> None:
    points = data.draw(window_points(len(history)))
    with small_files():
        backups, _ = page_history.take_backups(history, [(point, point) for point in points])
    for prior, backup in pairwise(backups):
        for path, stored in backup.stored.items():
            if isinstance(stored.plan, IncrementalFile):
                pages, prior_pages = backup.truth[path], prior.truth[path]
                kept, blocks = stored.plan.truncation_block_length, stored.plan.block_numbers
                assert list(blocks) == sorted(set(blocks))
                assert set(range(kept, len(pages))) <= set(blocks) <= set(range(len(pages)))
                assert kept <= min(len(pages), len(prior_pages))
                left_out = set(range(len(pages))) - set(blocks)
                assert all(pages[block] == prior_pages[block] for block in left_out)
