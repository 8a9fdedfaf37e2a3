"""Where WAL is cut into summaries, and what they hold; on WAL that is built."""

from __future__ import annotations

from typing import Any

import pytest
from core.wal_builder import CHECKPOINT_FIELDS, RM_HEAP, RM_SMGR, RM_XLOG, BlockSpec, RecordSpec, WalBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.errors import LimitExceeded
from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.segment import WalGeometry
from pgwal.summary import codec
from pgwal.summary import summarizer as summarizer_module
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.summarizer import ChangeReader, Summarizer, Summary
from pgwal.wal import layout
from pgwal.wal.record import EndReason

MB = 1 << 20
GEOMETRY = WalGeometry(MB)
TABLE = RelationFork(1663, 5, 16384, 0)
TABLE_FSM = RelationFork(1663, 5, 16384, 1)
LOCATOR = {"spc_oid": 1663, "db_oid": 5, "rel_number": 16384}
LEVELS = {"minimal": 0, "replica": 1, "logical": 2}

PARAMETERS = dict.fromkeys(
    ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact"), 10
) | {"wal_log_hints": False, "track_commit_timestamp": False}
CHECKPOINT = CHECKPOINT_FIELDS | {"redo_lsn": MB}
RECOVERY = {"time": 0, "timeline_id": 1, "prev_timeline_id": 1}


def insertion(block_no: int, fork: int = 0, data: bytes = b"tuple") -> RecordSpec:
    block = BlockSpec(0, locator=TABLE[:3], fork=fork, block_no=block_no, data=data)
    return RecordSpec(RM_HEAP, 0, 700, (block,), bytes(3))


def truncation(block_no: int) -> RecordSpec:
    data = layout.SmgrTruncate.build({"block_no": block_no, "locator": LOCATOR, "flags": 1})
    return RecordSpec(RM_SMGR, layout.SMGR_TRUNCATE | layout.INFO_SPECIAL_REL_UPDATE, main_data=data)


def announcement(builder: WalBuilder, info: int, level: str = "replica") -> RecordSpec:
    """Return an XLOG record that says which wal_level what follows is written with, where the version does."""
    fields: dict[int, dict[str, Any]] = {
        layout.XLOG_PARAMETER_CHANGE: PARAMETERS,
        layout.XLOG_CHECKPOINT_SHUTDOWN: CHECKPOINT,
        layout.XLOG_CHECKPOINT_ONLINE: CHECKPOINT,
        layout.XLOG_END_OF_RECOVERY: RECOVERY,
        layout.XLOG_CHECKPOINT_REDO: {},
    }
    declared = layout.payloads(builder.wal_format)[RM_XLOG, info]
    return RecordSpec(RM_XLOG, info, main_data=declared.build(fields[info] | {"wal_level": LEVELS[level]}))


def summarise(builder: WalBuilder, *, start: int = MB, sizes: list[int] | None = None) -> list[Summary]:
    """Return the summaries of what was built, fed in pieces, the unfinished last one not among them."""
    summarizer = Summarizer(1, builder.wal_format, GEOMETRY, Lsn(start))
    wal = builder.wal_from(start)
    found: list[Summary] = []
    for size in [*(sizes or []), len(wal)]:
        summarizer.feed(wal[:size])
        found += summarizer.take_finished()
        wal = wal[size:]
    assert summarizer.position == builder.end_lsn
    return found


def spans(summaries: list[Summary]) -> list[tuple[int, int]]:
    return [(summary.range.start, summary.range.end) for summary in summaries]


def blocks(block_map: BlockMap) -> list[int]:
    return list(block_map.blocks_between(*TABLE, 0, 1 << 20))


CUTS = [layout.XLOG_CHECKPOINT_REDO, layout.XLOG_CHECKPOINT_SHUTDOWN, layout.XLOG_PARAMETER_CHANGE]


@pytest.mark.parametrize("major", [17, 18])
@pytest.mark.parametrize("info", [*CUTS, layout.XLOG_END_OF_RECOVERY], ids=hex)
def test_from_17_on_summaries_are_cut_before_the_records_that_the_server_cuts_at(major: int, info: int) -> None:
    builder = WalBuilder(major=major)
    builder.append(insertion(1))
    first = builder.append(announcement(builder, info)).lsn
    builder.append_all([insertion(2), announcement(builder, layout.XLOG_CHECKPOINT_ONLINE), insertion(3)])
    second = builder.append(announcement(builder, info)).lsn
    summaries = summarise(builder)
    assert spans(summaries) == [(MB + 40, first), (first, second)]
    assert [blocks(summary.block_map) for summary in summaries] == [[1], [2, 3]]


@pytest.mark.parametrize("major", [17, 18])
def test_from_17_on_the_ends_of_segments_are_no_cuts(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append_switch()
    builder.append(insertion(1))
    redo = builder.append(announcement(builder, layout.XLOG_CHECKPOINT_REDO)).lsn
    assert spans(summarise(builder)) == [(MB + 40, redo)]


@pytest.mark.parametrize("major", [13, 14, 15, 16])
def test_before_17_summaries_are_cut_at_the_ends_of_segments(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append(insertion(1))
    builder.append(announcement(builder, layout.XLOG_CHECKPOINT_SHUTDOWN))
    builder.append_switch()
    builder.append_all([insertion(2), announcement(builder, layout.XLOG_CHECKPOINT_ONLINE)])
    builder.append_switch()
    builder.append(insertion(3))
    summaries = summarise(builder)
    assert spans(summaries) == [(MB + 40, 2 * MB), (2 * MB, 3 * MB)]
    assert [blocks(summary.block_map) for summary in summaries] == [[1], [2]]


@pytest.mark.parametrize("major", [13, 16])
def test_a_record_that_crosses_segments_belongs_to_the_summary_of_the_one_in_which_it_starts(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append(RecordSpec(main_data=bytes(MB - 20000)))
    builder.append(insertion(1, data=bytes(40000)))
    builder.append(RecordSpec(main_data=bytes(5 * MB // 2)))
    builder.append(insertion(2))
    _, second, third, last = builder.records
    summaries = summarise(builder)
    assert spans(summaries) == [(MB + 40, second.end_lsn), (second.end_lsn, third.end_lsn)]
    assert [blocks(summary.block_map) for summary in summaries] == [[1], []]
    assert [summary.link for summary in summaries] == [(0, second.lsn), (second.lsn, third.lsn)]
    # Whoever begins within it begins behind it, where the record that it ends is not known.
    assert spans(summarise(builder, start=2 * MB)) == [(third.lsn, last.lsn)]
    assert spans(summarise(builder, start=3 * MB)) == []


@pytest.mark.parametrize("major", [13, 16, 17, 18])
def test_what_was_written_with_wal_level_minimal_is_a_hole(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append(insertion(1))
    minimal = builder.append(announcement(builder, layout.XLOG_PARAMETER_CHANGE, "minimal")).lsn
    builder.append_all([insertion(2), truncation(1)])
    builder.append_switch()
    builder.append(insertion(3))
    replica = builder.append(announcement(builder, layout.XLOG_PARAMETER_CHANGE)).lsn
    builder.append(insertion(4))
    builder.append_switch()
    end = 3 * MB if major < 17 else builder.append(announcement(builder, layout.XLOG_CHECKPOINT_REDO)).lsn
    builder.append(insertion(5))
    summaries = summarise(builder)
    assert spans(summaries) == [(MB + 40, minimal), (replica, end)]
    assert [blocks(summary.block_map) for summary in summaries] == [[1], [4]]
    reader = read(builder, MB, builder.end_lsn)
    assert reader.minimal_lsn == minimal
    assert read(builder, MB, minimal).minimal_lsn is None


def test_free_space_maps_are_in_no_summary() -> None:
    builder = WalBuilder(major=18)
    builder.append_all([insertion(1, fork=1), insertion(2, fork=2)])
    builder.append(announcement(builder, layout.XLOG_CHECKPOINT_REDO))
    (summary,) = summarise(builder)
    assert [key.fork for key, _ in summary.block_map.entries()] == [2]


@pytest.mark.parametrize("major", [13, 18])
def test_the_end_of_a_timeline_finishes_a_summary(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append(insertion(1))
    summarizer = Summarizer(1, builder.wal_format, GEOMETRY, Lsn(MB))
    summarizer.feed(builder.wal())
    assert summarizer.take_finished() == []
    summarizer.finish(builder.end_lsn)
    (summary,) = summarizer.take_finished()
    assert (summary.range.end, blocks(summary.block_map)) == (builder.end_lsn, [1])


def read(builder: WalBuilder, start: int, stop: int) -> ChangeReader:
    reader = ChangeReader(builder.wal_format, GEOMETRY, Lsn(start), Lsn(stop))
    reader.feed(builder.wal_from(start))
    return reader


steps = st.one_of(
    st.builds(insertion, st.integers(0, 20), st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([b"x", bytes(9000)])),
    st.builds(truncation, st.integers(0, 20)),
    st.sampled_from(["checkpoint", "switch"]),
)


def build(major: int, taken: list[RecordSpec | str]) -> WalBuilder:
    builder = WalBuilder(major=major)
    for step in taken:
        if isinstance(step, RecordSpec):
            builder.append(step)
        elif step == "switch":
            builder.append_switch()
        else:
            cut = layout.XLOG_CHECKPOINT_REDO if major >= 17 else layout.XLOG_CHECKPOINT_ONLINE
            builder.append(announcement(builder, cut))
    return builder


def meaning(block_map: BlockMap) -> dict[RelationFork, tuple[int, set[int]]]:
    """Return the limit of each fork and which of the first blocks are to be copied."""
    return {
        key: (changes.limit_block, {n for n in range(30) if n >= changes.limit_block or n in changes.blocks})
        for key, changes in block_map.entries()
    }


@given(st.sampled_from([13, 16, 17, 18]), st.lists(steps, max_size=12), st.lists(st.integers(1, 20000), max_size=5))
@settings(deadline=None, max_examples=60)
def test_summaries_say_what_the_wal_of_their_range_says_however_it_arrives(
    major: int, taken: list[RecordSpec | str], sizes: list[int]
) -> None:
    builder = build(major, taken)
    summaries = summarise(builder, sizes=sizes)
    assert summaries == summarise(builder)
    merged, position = BlockMap(), MB + 40
    for (_, start, end), block_map, link, _ in summaries:
        assert start == position
        reader = read(builder, start, end)
        assert (reader.block_map, reader.link) == (block_map, link)
        merged.merge(block_map)
        position = end
    whole = read(builder, MB, position)
    assert whole.complete
    assert meaning(whole.block_map) == meaning(merged)


@given(st.sampled_from([13, 16, 17, 18]), st.lists(steps, min_size=1, max_size=12), st.data())
@settings(deadline=None, max_examples=60)
def test_a_summary_knows_the_record_before_it_wherever_summarising_begins_again(
    major: int, taken: list[RecordSpec | str], data: st.DataObject
) -> None:
    builder = build(major, taken)
    resumed: list[Summary] = []
    position, prev_lsn = Lsn(MB), None
    for stop in sorted(data.draw(st.sets(st.sampled_from([r.lsn for r in builder.records])))):
        summarizer = Summarizer(1, builder.wal_format, GEOMETRY, position, stop=stop, prev_lsn=prev_lsn)
        summarizer.feed(builder.wal_from(position))
        summarizer.finish(stop)
        found = summarizer.take_finished()
        assert summarizer.end_of_wal is None
        if found:
            assert summarizer.link == (found[0].link.prev_lsn, found[-1].link.last_lsn)
            position, prev_lsn = found[-1].range.end, found[-1].link.last_lsn
        resumed += found
    for before, summary in zip([None, *resumed], resumed, strict=False):
        own = [r for r in builder.records if summary.range.start <= r.lsn < summary.range.end]
        assert summary.link == (own[0].prev_lsn, own[-1].lsn)
        if before is not None:
            assert before.link.last_lsn == summary.link.prev_lsn
            place = GEOMETRY.first_record_position
            assert place(before.range.end) == place(summary.range.start)


@pytest.mark.parametrize("major", [13, 16, 17, 18])
def test_what_does_not_link_to_the_record_before_it_is_not_summarised(major: int) -> None:
    builder = WalBuilder(major=major)
    builder.append_all([insertion(1), insertion(2), insertion(3)])
    first, second, third = builder.records
    for start, prev_lsn, fits in [
        (third.lsn, second.lsn, True),
        (third.lsn, first.lsn, False),
        # Not one that links, but within the one before.
        (second.lsn + 8, second.lsn, True),
        (second.lsn + 8, first.lsn, False),
    ]:
        summarizer = Summarizer(1, builder.wal_format, GEOMETRY, Lsn(start), prev_lsn=prev_lsn)
        summarizer.feed(builder.wal())
        end = summarizer.end_of_wal
        assert (end is None) == fits
        if end is not None:
            assert (end.lsn, end.reason) == (third.lsn, EndReason.RECORD_PREV_LINK)


@given(st.sampled_from([13, 16, 17, 18]), st.lists(steps, min_size=1, max_size=12), st.data())
@settings(deadline=None, max_examples=60)
def test_a_reader_takes_the_records_that_start_in_its_range(
    major: int, taken: list[RecordSpec | str], data: st.DataObject
) -> None:
    builder = build(major, taken)
    starts = [record.lsn for record in builder.records] + [builder.end_lsn]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(starts) - 1)] * 2)))
    reader = read(builder, starts[first], starts[last])
    assert reader.complete
    if first < last:
        assert reader.first_record_lsn == starts[first]
        assert reader.link == (builder.records[first].prev_lsn, starts[last - 1])
    expected = BlockMap()
    for record in builder.records[first:last]:
        for block in record.spec.blocks:
            if block.fork != TABLE_FSM.fork:
                expected.mark(RelationFork(*block.relation), [block.block_no])
        if record.spec.rmid == RM_SMGR:
            expected.set_limit(TABLE, layout.SmgrTruncate.parse(record.spec.main_data).block_no)
    assert reader.block_map == expected
    assert reader.block_map.limit_block(*TABLE_FSM) == INVALID_BLOCK_NUMBER


def test_wal_that_names_ever_more_forks_is_refused_before_its_summary_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summarizer_module, "UNTAKEN_BLOCKS", 10)
    monkeypatch.setattr(summarizer_module, "UNMEASURED_REFERENCES", 100)
    monkeypatch.setattr(codec, "MAX_SUMMARY_ENTRIES", 1000)
    builder = WalBuilder(major=17)
    for number in range(2000):
        block = BlockSpec(0, locator=(1663, 5, 16384 + number), data=b"tuple")
        builder.append(RecordSpec(RM_HEAP, 0, 700, (block,), bytes(3)))
    with pytest.raises(LimitExceeded, match=r"^WAL 0/100028 to .* timeline 1 names more than 1000 relation forks"):
        summarise(builder, sizes=[8192] * 20)
