"""Where each part of a file lies in a chain of backups, and that chains restore what was there."""

import random
import time
from array import array

import page_history
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_history import Step, StoredFile, TakenBackup, small_files, steps

from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.plan import WholeFile, WholeReason, plan_file
from pgwal.backup.reconstruct import Reconstruction, Run, StoredWhole, reconstruct_file
from pgwal.errors import ChainError, MissingPriorBackup
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE


def incremental(kept: int, *blocks: int) -> IncrementalHeader:
    return IncrementalHeader(kept, array("I", blocks))


def whole(block_count: int) -> StoredWhole:
    return StoredWhole(block_count * BLOCK_SIZE)


def in_blocks(result: Reconstruction) -> list[tuple[int, int, int | None, int]]:
    """Return runs as (first block, blocks, source, source offset in blocks)."""
    assert all(number % BLOCK_SIZE == 0 for run in result.runs for number in (run.offset, run.length))
    return [(run.offset // 8192, run.length // 8192, run.source, run.source_offset // 8192) for run in result.runs]


@pytest.mark.parametrize("size", [1, 3, 8192, 8193])
def test_a_whole_copy_is_one_run_whatever_lies_below_it(size: int) -> None:
    expected = Reconstruction(size, (Run(0, size, 0, 0),))
    assert reconstruct_file([StoredWhole(size)]) == expected
    assert reconstruct_file([StoredWhole(size), incremental(3), whole(1)]) == expected


def test_an_empty_file_has_no_runs() -> None:
    assert reconstruct_file([StoredWhole(0)]) == Reconstruction(0, ())
    assert reconstruct_file([incremental(0), whole(3)]) == Reconstruction(0, ())


def test_blocks_come_from_the_newest_backup_that_holds_them() -> None:
    result = reconstruct_file([incremental(6, 1, 2, 5), incremental(6, 0, 1), whole(6)])
    assert in_blocks(result) == [(0, 1, 1, 1), (1, 2, 0, 1), (3, 2, 2, 3), (5, 1, 0, 3)]


def test_a_large_header_moves_the_blocks() -> None:
    blocks = range(0, 6000, 2)
    result = reconstruct_file([incremental(6000, *blocks), whole(6000)])
    assert result.runs[0] == Run(0, BLOCK_SIZE, 0, 2 * BLOCK_SIZE)
    assert result.runs[1] == Run(BLOCK_SIZE, BLOCK_SIZE, 1, BLOCK_SIZE)


def test_blocks_beyond_the_whole_copy_are_zero() -> None:
    assert in_blocks(reconstruct_file([incremental(5), whole(2)])) == [(0, 2, 1, 0), (2, 3, None, 0)]


def test_blocks_from_an_older_truncation_on_are_zero_and_not_those_of_a_still_older_backup() -> None:
    result = reconstruct_file([incremental(5), incremental(2, 3), whole(9)])
    assert in_blocks(result) == [(0, 2, 2, 0), (2, 1, None, 0), (3, 1, 1, 1), (4, 1, None, 0)]


def test_blocks_may_be_stored_in_any_order() -> None:
    result = reconstruct_file([incremental(4, 3, 1, 0), whole(4)])
    assert in_blocks(result) == [(0, 1, 0, 3), (1, 1, 0, 2), (2, 1, 1, 2), (3, 1, 0, 1)]


def test_a_chain_needs_a_whole_copy() -> None:
    for sources in ([], [incremental(3)], [incremental(3), incremental(2)]):
        with pytest.raises(MissingPriorBackup):
            reconstruct_file(sources)


def test_incremental_copies_cannot_build_on_part_of_a_block() -> None:
    with pytest.raises(ChainError):
        reconstruct_file([incremental(3), StoredWhole(8193)])


HEADERS = st.builds(
    lambda kept, blocks: IncrementalHeader(kept, array("I", blocks)),
    st.integers(0, 40),
    st.lists(st.integers(0, 40), unique=True) | st.sets(st.integers(0, 40)).map(sorted),
)


def page_of(sources: list[IncrementalHeader | StoredWhole], block: int) -> tuple[int | None, int]:
    """Return (source, offset in blocks) of one block, by the definition."""
    for number, source in enumerate(sources):
        if isinstance(source, StoredWhole):
            return (number, block) if block * BLOCK_SIZE < source.size_bytes else (None, 0)
        if block in source.block_numbers:
            return number, source.header_size // BLOCK_SIZE + source.block_numbers.index(block)
        if block >= source.truncation_block_length:
            return None, 0
    raise AssertionError


@given(st.lists(HEADERS, min_size=1, max_size=5), st.integers(0, 40))
def test_runs_say_what_the_definition_says_block_by_block(headers: list[IncrementalHeader], below: int) -> None:
    sources: list[IncrementalHeader | StoredWhole] = [*headers, whole(below)]
    found: list[tuple[int | None, int]] = []
    for first, count, source, offset in in_blocks(reconstruct_file(sources)):
        assert first == len(found)
        found += [(source, offset + at if source is not None else 0) for at in range(count)]
    assert found == [page_of(sources, block) for block in range(headers[0].reconstructed_block_count)]


def test_a_full_file_takes_well_under_a_second() -> None:
    everything = BLOCKS_PER_FILE
    chain = [incremental(everything, *range(start, everything, 16)) for start in range(15)]
    began = time.process_time()
    result = reconstruct_file([*chain, whole(everything)])
    assert time.process_time() - began < 2
    assert len(result.runs) == everything
    assert in_blocks(reconstruct_file([incremental(everything), whole(everything)])) == [(0, everything, 1, 0)]


# -- chains of random histories --------------------------------------------------------------------------------------


EXAMPLES = 400


def exact_points(length: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.integers(2, length), min_size=3, max_size=6).map(
        lambda points: [(point, point) for point in sorted(points)]
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps(), st.data())
def test_a_chain_restores_exactly_what_was_there(history: list[Step], data: st.DataObject) -> None:
    points = data.draw(exact_points(len(history)))
    with small_files():
        backups, _ = page_history.take_backups(history, points)
    for newest in range(1, len(backups) + 1):
        assert page_history.reconstruct(backups[:newest]) == backups[newest - 1].truth


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps(), st.data())
def test_pg_combinebackup_restores_the_same(history: list[Step], data: st.DataObject) -> None:
    points = data.draw(exact_points(len(history)))
    with small_files():
        backups, _ = page_history.take_backups(history, points)
    for path, pages in backups[-1].truth.items():
        assert page_history.combine_as_server(page_history.chain_of(backups, path)) == pages


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps(), st.data())
def test_a_chain_of_backups_taken_while_the_server_works_recovers(history: list[Step], data: st.DataObject) -> None:
    # Files are read some time after the start, when more has happened; WAL from the start on is replayed.
    starts = data.draw(st.lists(st.integers(0, len(history)), min_size=2, max_size=6).map(sorted))
    limits = [*starts[1:], len(history)]
    points = [(start, data.draw(st.integers(start, limit))) for start, limit in zip(starts, limits, strict=True)]
    with small_files():
        backups, wal = page_history.take_backups(history, points)
    start, copy = points[-1]
    recovered = page_history.replay(page_history.reconstruct(backups), wal[start:copy])
    assert recovered == page_history.replay(backups[-1].truth, [])


def restored_rows(history: list[Step], points: list[int], *, as_server: bool) -> tuple[tuple[int, ...], ...]:
    """Return the pages of the first file as restored, and as they were."""
    plan = page_history.plan_as_server if as_server else plan_file
    with small_files():
        backups, _ = page_history.take_backups(history, [(point, point) for point in points], plan)
    return combine(backups, as_server=as_server), backups[-1].truth[page_history.PATH]


def combine(backups: list[TakenBackup], *, as_server: bool) -> tuple[int, ...]:
    chain = page_history.chain_of(backups, page_history.PATH)
    return page_history.combine_as_server(chain) if as_server else page_history.reconstruct_stored(chain)


EXTEND_6 = Step("extend", 6)
EXTEND_4_UNLOGGED = Step("extend unlogged", 4)
TRUNCATE_TO_2 = Step("truncate", 2)


def test_the_rule_of_the_server_brings_truncated_rows_back_and_ours_does_not() -> None:
    # A truncation, then zero pages of an extension that is not logged: T = max(size, limit) says they are old.
    history = [EXTEND_6, TRUNCATE_TO_2, EXTEND_4_UNLOGGED]
    restored, truth = restored_rows(history, [1, 3], as_server=True)
    assert truth == (1, 2, 0, 0, 0, 0)
    assert restored == (1, 2, 3, 4, 5, 6)
    assert restored_rows(history, [1, 3], as_server=False) == (truth, truth)


def test_the_rule_of_the_server_reaches_past_a_truncation_in_a_chain_and_ours_does_not() -> None:
    # The truncation is in the first window, the unlogged extension in the second.
    history = [EXTEND_6, TRUNCATE_TO_2, EXTEND_4_UNLOGGED]
    restored, truth = restored_rows(history, [1, 2, 3], as_server=True)
    assert restored == (1, 2, 3, 4, 5, 6)
    assert restored_rows(history, [1, 2, 3], as_server=False) == (truth, truth)


def test_random_histories_find_the_fault_of_the_rule_of_the_server() -> None:
    # The same search that finds nothing wrong with ours: the property has teeth.
    source = random.Random(20261122)
    kinds = ("write", "write", "extend", "extend", "extend unlogged", "truncate", "drop", "create")
    wrong = {True: 0, False: 0}
    for _ in range(400):
        history = [EXTEND_6, *(Step(source.choice(kinds), source.randrange(31)) for _ in range(12)), EXTEND_6]
        points = [*sorted(source.randrange(len(history)) for _ in range(3)), len(history)]
        for as_server in (True, False):
            restored, truth = restored_rows(history, points, as_server=as_server)
            wrong[as_server] += restored != truth
    assert wrong[True] > 0
    assert wrong[False] == 0


def test_a_chain_of_whole_copies_is_a_chain() -> None:
    stored = StoredFile(WholeFile(WholeReason.FULL_BACKUP), (1, 2), 2)
    assert page_history.reconstruct_stored([stored]) == (1, 2)
