"""A timeline read in parts and joined gives, entry for entry, the summaries of one pass, wherever it was cut.

From 17 on a part may begin anywhere, and what it has before its first cut goes on with the part before; before 17
parts begin at segment ends, which are cuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from core.wal_builder import RM_HEAP, RM_SMGR, RM_XLOG, BlockSpec, RecordSpec, WalBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwal.lsn import Lsn
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import encode_summary
from pgwal.summary.summarizer import Summarizer, Summary, join_pieces
from pgwal.wal import layout

MB = 1 << 20
GEOMETRY = WalGeometry(MB)
MINIMAL, REPLICA = 0, 1

relations = st.sampled_from([16384, 16385])
# Around each other, so that shortenings hit and miss what is marked, in their own part and in those before.
block_numbers = st.integers(0, 12)

many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def mark(relation: int, block_nos: list[int]) -> RecordSpec:
    blocks = tuple(
        BlockSpec(number, (1663, 5, relation), block_no=block_no) for number, block_no in enumerate(block_nos)
    )
    return RecordSpec(RM_HEAP, 0x00, blocks=blocks, main_data=bytes(3))


def shorten(relation: int, block_no: int) -> RecordSpec:
    locator = {"spc_oid": 1663, "db_oid": 5, "rel_number": relation}
    payload = layout.SmgrTruncate.build({"block_no": block_no, "locator": locator, "flags": layout.TRUNCATE_HEAP})
    return RecordSpec(RM_SMGR, layout.SMGR_TRUNCATE | layout.INFO_SPECIAL_REL_UPDATE, main_data=payload)


def redo_point(wal_level: int) -> RecordSpec:
    payload = layout.CheckpointRedo.build({"wal_level": wal_level})
    return RecordSpec(RM_XLOG, layout.XLOG_CHECKPOINT_REDO, main_data=payload)


def parameter_change(wal_level: int) -> RecordSpec:
    numbers = dict.fromkeys(("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts"), 8)
    payload = layout.ParameterChange.build(
        {**numbers, "max_locks_per_xact": 64, "wal_level": wal_level, "wal_log_hints": 0, "track_commit_timestamp": 0}
    )
    return RecordSpec(RM_XLOG, layout.XLOG_PARAMETER_CHANGE, main_data=payload + bytes(2))


def long_record(size: int) -> RecordSpec:
    return RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=7),), main_data=bytes(size))


SWITCH = RecordSpec(RM_XLOG, 0x40)


def events(major: int) -> st.SearchStrategy[RecordSpec]:
    """Records that mean something to a summary, and some that move on to other pages and segments."""
    levels = st.sampled_from([REPLICA, REPLICA, MINIMAL])
    found = [
        st.builds(mark, relations, st.lists(block_numbers, min_size=1, max_size=4)),
        st.builds(mark, relations, st.lists(block_numbers, min_size=1, max_size=4)),
        st.builds(shorten, relations, block_numbers),
        st.builds(parameter_change, levels),
        st.just(SWITCH),
        st.builds(long_record, st.sampled_from([8000, 2 * 8192, MB + 9000])),
    ]
    return st.one_of([*found, st.builds(redo_point, levels)] if major >= 17 else found)


def build(major: int, specs: list[RecordSpec]) -> WalBuilder:
    builder = WalBuilder(major, segment_size=MB, start_lsn=MB)
    for spec in specs:
        if spec is SWITCH:
            builder.append_switch()
        else:
            builder.append(spec)
    return builder


def read(
    builder: WalBuilder, start: int, stop: int, *, continues: bool = False, is_last: bool = True, missing: int = 0
) -> tuple[list[Summary], bool]:
    """Return the pieces of [start, stop), and whether they reach its end, of WAL that lacks its last bytes."""
    stop_lsn = Lsn(stop)
    summarizer = Summarizer(1, builder.wal_format, GEOMETRY, Lsn(start), stop=stop_lsn, continues=continues)
    wal = builder.wal_from(start)
    summarizer.feed(wal[: len(wal) - missing])
    summarizer.finish(stop_lsn if summarizer.complete and is_last else summarizer.position)
    return summarizer.take_pieces(), summarizer.complete


def one_pass(builder: WalBuilder, stop: int, missing: int = 0) -> list[Summary]:
    pieces, _ = read(builder, builder.start_lsn, stop, missing=missing)
    return [piece for piece in with_known_level(pieces) if not piece.minimal]


def with_known_level(pieces: list[Summary]) -> list[Summary]:
    """A piece that says nothing of the level has that of the piece before (segment ends, before 17)."""
    known: list[Summary] = []
    for piece in pieces:
        minimal = known[-1].minimal if known and piece.minimal is None else piece.minimal
        known.append(piece._replace(minimal=minimal))
    return known


def in_parts(builder: WalBuilder, borders: list[int], missing: int = 0) -> list[Summary]:
    parts = []
    is_cut = builder.major < 17
    for number, (start, stop) in enumerate(pairwise(borders)):
        continues, is_last = number > 0 and not is_cut, stop == borders[-1]
        pieces, complete = read(builder, start, stop, continues=continues, is_last=is_last, missing=missing)
        parts.append(pieces)
        if not complete:
            break
    return list(join_pieces(parts, cut_at_joints=is_cut))


def as_written(summaries: list[Summary]) -> list[tuple[object, bytes]]:
    return [(summary.range, encode_summary(summary.block_map, summary.link)) for summary in summaries]


@many
@given(data=st.data(), specs=st.lists(events(18), min_size=1, max_size=24))
def test_parts_from_anywhere_give_what_one_pass_gives(data: st.DataObject, specs: list[RecordSpec]) -> None:
    builder = build(18, specs)
    # Pages behind a switch are zeros: no part begins there.
    starts = [record.lsn for record in builder.records]
    pages = [lsn - lsn % 8192 for lsn in starts]
    places = [*starts, *(lsn + 8 for lsn in starts), *pages]
    # By number, so that what is drawn does not hang on the WAL: hypothesis calls a sample of places inconsistent.
    borders = {places[number % len(places)] for number in data.draw(st.sets(st.integers(0, 999), max_size=6))}
    stop = builder.end_lsn
    missing = data.draw(st.sampled_from([0, 0, 8, 5000]))
    # The first part has room for a record, so that there is something to go on with.
    inner = sorted(b for b in borders if starts[0] < b < stop)
    expected = one_pass(builder, stop, missing)
    assert as_written(in_parts(builder, [builder.start_lsn, *inner, stop], missing)) == as_written(expected)


@pytest.mark.parametrize("major", [13, 16, 17, 18])
@many
@given(data=st.data())
def test_parts_of_segments_give_what_one_pass_gives(major: int, data: st.DataObject) -> None:
    specs = data.draw(st.lists(events(major), min_size=1, max_size=24))
    builder = build(major, specs)
    stop = -(-builder.end_lsn // MB) * MB
    if builder.end_lsn < stop:
        builder.append_switch()
        stop = -(-builder.end_lsn // MB) * MB
    inner = data.draw(st.sets(st.integers(1, stop // MB - 1), max_size=5))
    borders = [builder.start_lsn, *sorted(n * MB for n in inner if n > 1), stop]
    assert as_written(in_parts(builder, borders)) == as_written(one_pass(builder, stop))


def test_a_cut_at_the_first_byte_of_a_part_is_a_cut() -> None:
    """The redo point is the first record of the second segment, behind its header."""
    specs = [mark(16384, [1]), SWITCH, redo_point(REPLICA), mark(16384, [2]), SWITCH]
    builder = build(17, specs)
    joined = in_parts(builder, [MB, 2 * MB, 3 * MB])
    assert [(s.range.start, s.range.end) for s in joined] == [(MB + 40, 2 * MB + 40), (2 * MB + 40, 3 * MB)]
    assert as_written(joined) == as_written(one_pass(builder, 3 * MB))


def test_a_shortening_that_an_earlier_one_outdid_keeps_the_blocks_behind_it() -> None:
    """The later part forgets block 9 by itself; one pass would not, for the fork was shorter before."""
    key = RelationFork(1663, 5, 16384, 0)
    builder = build(18, [shorten(16384, 3), mark(16384, [9]), shorten(16384, 7), mark(16384, [8])])
    second = builder.records[1].lsn
    (joined,) = in_parts(builder, [MB, second, builder.end_lsn])
    assert joined.block_map.limit_block(*key) == 3
    assert list(joined.block_map.blocks_between(*key, 0, 100)) == [8, 9]


def test_summaries_come_as_soon_as_they_are_whole() -> None:
    """However long a timeline is, what is joined does not pile up."""

    def parts() -> Iterator[list[Summary]]:
        for number, (start, stop) in enumerate(pairwise(borders)):
            taken.append(number)
            yield read(builder, start, stop, continues=number > 0, is_last=stop == borders[-1])[0]

    taken: list[int] = []
    builder = build(18, [redo_point(REPLICA), mark(16384, [1])] * 6)
    borders = [MB, *(record.lsn for record in builder.records[2::2]), int(builder.end_lsn)]
    joined = join_pieces(parts(), cut_at_joints=False)
    for number in range(5):
        assert isinstance(next(joined).block_map, BlockMap)
        assert taken[-1] == number + 1
