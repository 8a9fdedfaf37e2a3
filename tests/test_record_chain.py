"""Records link across every cut of WAL, and a window begins and ends where records do; on WAL that is built.

What summaries and segments of one history give is compared with one pass over its WAL, however it is cut; what two
histories give together is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from core.wal_builder import RM_HEAP, BlockSpec, BuiltRecord, RecordSpec, WalBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwal.engine.record_chain import require_linked_switch
from pgwal.engine.recorded import read_recorded_changes, summarize_wal
from pgwal.engine.summarize import read_changes, read_derived_changes, read_received_changes
from pgwal.errors import PgwalError, TimelineMismatch, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import WAL_DIRECTORY, RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.link import Link
from pgwal.summary.summarizer import ChangeReader
from pgwal.wal.record import EndReason

MB = 1 << 20
GEOMETRY = WalGeometry(MB)
TABLE = RelationFork(1663, 5, 16384, 0)
MAJORS = (13, 16, 17, 18, 19)

some = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def insertion(block_no: int, size: int = 5) -> RecordSpec:
    block = BlockSpec(0, locator=TABLE[:3], block_no=block_no, data=bytes(size))
    return RecordSpec(RM_HEAP, 0, 700, (block,), bytes(3))


def put(builder: WalBuilder, repository: Repository) -> None:
    """Store all segments of what was built as received and complete, with zeros behind the last record."""
    wal = builder.wal_to_segment_end()
    for at in range(0, len(wal), MB):
        name = GEOMETRY.file_name(builder.timeline_id, (builder.start_lsn + at) // MB)
        repository.store.put(f"{WAL_DIRECTORY}/{name}", wal[at : at + MB], replace=True)


@contextmanager
def repository_of(major: int) -> Iterator[Repository]:
    with repository_at(major) as (repository, _):
        yield repository


@contextmanager
def repository_at(major: int) -> Iterator[tuple[Repository, Path]]:
    """Make a repository for a short time, and tell where its WAL is."""
    with tempfile.TemporaryDirectory() as path:
        root = Path(path) / "repo"
        yield Repository.open_or_create(root, RepositoryIdentity(0x1234567890ABCDEF, MB, major)), root / WAL_DIRECTORY


def one_pass(builder: WalBuilder, start: int, stop: int) -> ChangeReader:
    reader = ChangeReader(builder.wal_format, GEOMETRY, Lsn(start), Lsn(stop))
    reader.feed(builder.wal_from(start))
    assert reader.complete
    return reader


def blocks(block_map: BlockMap) -> list[int]:
    return list(block_map.blocks_between(*TABLE, 0, 100))


# ---- any cuts

# Of a few bytes, over pages, and over segments; SWITCH ends a segment, CUT_OFF is a record that a crash cuts off.
SWITCH, CUT_OFF = "switch", "cut off"
steps = st.lists(
    st.one_of(
        st.builds(insertion, st.integers(0, 99), st.sampled_from([5, 5, 5, 3000, 20000])),
        st.builds(lambda: RecordSpec(main_data=bytes(MB + 5000))),
        st.sampled_from([SWITCH, CUT_OFF]),
    ),
    min_size=2,
    max_size=12,
)


def build(major: int, taken: list[RecordSpec | str]) -> WalBuilder:
    builder = WalBuilder(major=major)
    for step in taken:
        if isinstance(step, RecordSpec):
            builder.append(step)
        elif step == SWITCH:
            builder.append_switch()
        else:
            builder.append_cut_off(RecordSpec(main_data=bytes(30000)), pages=2)
            builder.append(insertion(3))
    return builder


def holder(builder: WalBuilder, lsn: int) -> BuiltRecord | None:
    """Return the record that a position lies within."""
    place = GEOMETRY.first_record_position(lsn)
    return next((record for record in builder.records if record.lsn < place < record.end_lsn), None)


def positions(builder: WalBuilder) -> st.SearchStrategy[int]:
    """Positions where records begin and end, on and around page headers, and anywhere."""
    edges = [
        at for record in builder.records for at in (record.lsn, record.end_lsn, record.lsn + 8, record.end_lsn - 8)
    ]
    pages = list(range(builder.start_lsn, builder.end_lsn, 8192))
    found = st.one_of(
        st.sampled_from(edges),
        st.sampled_from(pages),
        st.sampled_from(pages).map(lambda page: page + 24),
        st.sampled_from(pages).map(lambda page: page - 3),
        st.integers(builder.start_lsn, builder.end_lsn),
    )
    return found.map(lambda lsn: min(max(lsn, builder.start_lsn), builder.end_lsn))


@given(st.sampled_from(MAJORS), steps, st.data())
@some
def test_summaries_and_wal_give_what_one_pass_gives_wherever_they_are_cut(
    major: int, taken: list[RecordSpec | str], data: st.DataObject
) -> None:
    builder = build(major, taken)
    starts = [record.lsn for record in builder.records]
    cuts = sorted(data.draw(st.sets(st.sampled_from([*starts, builder.end_lsn]), min_size=2, max_size=6)))
    with repository_of(major) as repository:
        put(builder, repository)
        for start, stop in pairwise(cuts):
            kind = data.draw(st.sampled_from(["summary", "wal", "summary of an older pgwal"]))
            if kind != "wal":
                part = one_pass(builder, start, stop)
                link = part.link if kind == "summary" else None
                changes = part.block_map if kind == "summary" else BlockMap()
                repository.summaries.write(LsnRange(1, Lsn(start), Lsn(stop)), changes, link)
        # An older pgwal cut at the ends of segments, also within records.
        numbers = list(range(1, builder.end_lsn // MB))
        for number in data.draw(st.sets(st.sampled_from(numbers))) if numbers else ():
            repository.summaries.write(LsnRange(1, Lsn(number * MB), Lsn((number + 1) * MB)), BlockMap(), None)
        window = [LsnRange(1, Lsn(cuts[0]), Lsn(cuts[-1]))]
        assert read_changes(repository, window) == one_pass(builder, cuts[0], cuts[-1]).block_map


@given(st.sampled_from(MAJORS), steps, st.data())
@some
def test_a_part_that_does_not_go_on_behind_the_one_before_it_is_refused(
    major: int, taken: list[RecordSpec | str], data: st.DataObject
) -> None:
    builder = build(major, taken)
    starts = [record.lsn for record in builder.records]
    first, second, third = sorted(
        data.draw(st.lists(st.sampled_from([*starts, builder.end_lsn]), min_size=3, max_size=3, unique=True))
        if len(starts) > 1
        else [starts[0], builder.end_lsn, builder.end_lsn]
    )
    with repository_of(major) as repository:
        put(builder, repository)
        window = [LsnRange(1, Lsn(first), Lsn(third))]
        right = one_pass(builder, first, second).link
        wrong = right._replace(last_lsn=Lsn(right.last_lsn + 8))
        repository.summaries.write(LsnRange(1, Lsn(first), Lsn(second)), BlockMap(), wrong)
        if second == third:
            return
        # Followed by WAL, or by a summary.
        for written in (False, True):
            if written:
                part = one_pass(builder, second, third)
                repository.summaries.write(LsnRange(1, Lsn(second), Lsn(third)), part.block_map, part.link)
            with pytest.raises(
                TimelineMismatch, match=f"at {right.last_lsn}, but the last one before it is at"
            ) as caught:
                read_changes(repository, window)
            assert str(wrong.last_lsn) in str(caught.value)
            assert "full backup" in str(caught.value.hint)
            assert caught.value.facts == {"timeline_id": 1, "lsn": second, "end_lsn": third}


# ---- where windows begin and end


@given(st.sampled_from(MAJORS), steps, st.data())
@some
def test_a_window_that_begins_or_ends_within_a_record_is_refused(
    major: int, taken: list[RecordSpec | str], data: st.DataObject
) -> None:
    builder = build(major, taken)
    start, end = sorted(data.draw(st.tuples(positions(builder), positions(builder))))
    with repository_at(major) as (repository, path):
        put(builder, repository)
        window = [LsnRange(1, Lsn(start), Lsn(end))]
        # A window without a byte of WAL in it has no end to look at.
        is_empty = GEOMETRY.first_record_position(start) == GEOMETRY.first_record_position(end)
        within = None if is_empty else holder(builder, start) or holder(builder, end)
        readings = [
            lambda: read_changes(repository, window),
            lambda: read_recorded_changes(path, None, Lsn(start), Lsn(end))[0],
        ]
        if within is None:
            wanted = [r for r in builder.records if start <= r.lsn < end]
            expected = sorted({block.block_no for r in wanted for block in r.spec.blocks})
            for reading in readings:
                assert blocks(reading()) == expected
            read_derived_changes(repository, window)
            return
        readings.append(lambda: read_derived_changes(repository, window))
        for reading in readings:
            with pytest.raises(TimelineMismatch, match=f"within the record at {within.lsn}$") as caught:
                reading()
            assert f"Name {within.lsn} or {within.end_lsn}" in str(caught.value.hint)
            assert caught.value.facts == {"timeline_id": 1, "lsn": start if holder(builder, start) else end}
        output = path.parent / "output"
        if not is_empty:
            with pytest.raises(TimelineMismatch, match=f"within the record at {within.lsn}$"):
                summarize_wal(path, output, start=Lsn(start), end=Lsn(end))
            assert not output.exists()


def test_an_empty_window_behind_a_switch_is_empty() -> None:
    builder = build(16, [RecordSpec(main_data=bytes(MB + 5000)), SWITCH])
    with repository_at(16) as (repository, path):
        put(builder, repository)
        # On a page of zeros.
        for position in (Lsn(2 * MB + 8217), Lsn(2 * MB + 16384)):
            assert len(read_changes(repository, [LsnRange(1, position, position)])) == 0
            assert len(read_recorded_changes(path, None, position, position)[0]) == 0


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("position", [2 * MB - 7, 2 * MB - 1])
def test_a_window_may_begin_where_no_multiple_of_8_is_left_in_a_segment(major: int, position: int) -> None:
    """Behind a switch: records start at multiples of 8, so the first one can be no earlier than in the next segment."""
    builder = build(major, [SWITCH, insertion(4)])
    first = builder.records[1]
    with repository_at(major) as (repository, path):
        put(builder, repository)
        for end, expected in ((position, []), (2 * MB, []), (first.lsn, []), (first.end_lsn, [4])):
            start, stop = Lsn(position), Lsn(end)
            assert blocks(read_changes(repository, [LsnRange(1, start, stop)])) == expected
            assert blocks(read_recorded_changes(path, None, start, stop)[0]) == expected
            if start < stop:
                summaries = summarize_wal(path, path.parent / "output", start=start, end=stop)
                assert [summary.block_count for summary in summaries] == [1] * len(expected)
        with pytest.raises(TimelineMismatch, match=f"within the record at {first.lsn}$"):
            read_changes(repository, [LsnRange(1, Lsn(position), Lsn(first.lsn + 8))])


def test_what_was_received_may_end_within_a_record() -> None:
    builder = WalBuilder(major=17)
    builder.append_all([insertion(1), insertion(2, 30000)])
    first, second = builder.records
    with repository_of(17) as repository:
        put(builder, repository)
        changes, (covered,) = read_received_changes(repository, [LsnRange(1, first.lsn, Lsn(second.lsn + 64))])
        assert blocks(changes) == [1, 2]
        assert covered.end == second.lsn + 64
        with pytest.raises(TimelineMismatch, match=f"0/100030 .* within the record at {first.lsn}"):
            read_received_changes(repository, [LsnRange(1, Lsn(first.lsn + 8), Lsn(second.lsn + 64))])


def test_a_record_that_begins_in_wal_that_is_not_here_has_no_name() -> None:
    builder = WalBuilder(major=16)
    builder.append_all([RecordSpec(main_data=bytes(2 * MB)), insertion(1)])
    long, last = builder.records
    with repository_of(16) as repository:
        put(builder, repository)
        window = [LsnRange(1, Lsn(2 * MB + 9000), last.end_lsn)]
        with pytest.raises(TimelineMismatch, match=f"within the record at {long.lsn}$"):
            read_changes(repository, window)
        repository.store.delete(f"{WAL_DIRECTORY}/{GEOMETRY.file_name(1, 1)}")
        with pytest.raises(TimelineMismatch, match=r"within a record that begins before 0/200000$") as caught:
            read_changes(repository, window)
        assert f"Name {last.lsn}, where a record begins" in str(caught.value.hint)


# ---- two histories


def lives(major: int, *, crossing: bool) -> tuple[WalBuilder, WalBuilder]:
    """Return the WAL of two lives of one server: in the second, its first segment has other records than in the first.

    With ``crossing``, a record goes over the end of the first segment.
    """
    found = []
    for size in (1000, 1008):
        builder = WalBuilder(major=major)
        builder.append(insertion(1))
        builder.append(insertion(2, size))
        if crossing:
            builder.append(RecordSpec(main_data=bytes(2 * MB - builder.next_lsn % MB - MB)))
        else:
            builder.append_switch()
        builder.append_all([insertion(3), insertion(4)])
        builder.append_switch()
        # What does not link in the last segment may be the end of WAL.
        builder.append(insertion(5))
        found.append(builder)
    return found[0], found[1]


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("crossing", [False, True], ids=["switch", "crossing"])
def test_segments_of_two_lives_are_refused(major: int, crossing: bool, tmp_path: Path) -> None:
    """A server was put back to an earlier state; what it writes then comes in where the archive ends."""
    first, second = lives(major, crossing=crossing)
    with repository_at(major) as (repository, path):
        put(second, repository)
        name = f"{WAL_DIRECTORY}/{GEOMETRY.file_name(1, 1)}"
        repository.store.put(name, first.wal()[:MB], replace=True)
        window = LsnRange(1, Lsn(MB), Lsn(3 * MB))
        for reading in (
            lambda: read_changes(repository, [window]),
            lambda: read_derived_changes(repository, [window]),
            lambda: read_recorded_changes(path, None, window.start, window.end),
            lambda: summarize_wal(path, tmp_path / "one"),
        ):
            with pytest.raises(PgwalError, match="does not go on at") as caught:
                reading()
            assert isinstance(caught.value, TimelineMismatch)
            assert "two histories" in str(caught.value.hint)
            assert caught.value.facts["timeline_id"] == 1
            assert str(caught.value.facts["lsn"]) in str(caught.value)
            if not crossing:
                last = first.records[2].lsn
                assert str(second.records[2].lsn) in str(caught.value), f"not the link to {last}"


@pytest.mark.parametrize("major", MAJORS)
def test_summaries_of_two_lives_are_refused_without_their_wal(major: int) -> None:
    first, second = lives(major, crossing=False)
    with repository_of(major) as repository:
        parts = one_pass(first, MB, 2 * MB), one_pass(second, 2 * MB, 3 * MB)
        for number, part in enumerate(parts, 1):
            span = LsnRange(1, Lsn(number * MB), Lsn((number + 1) * MB))
            repository.summaries.write(span, part.block_map, part.link)
        expected = f"at {parts[1].link.prev_lsn}, but the last one before it is at {parts[0].link.last_lsn}"
        with pytest.raises(TimelineMismatch, match=expected):
            read_changes(repository, [LsnRange(1, Lsn(MB), Lsn(3 * MB))])


@pytest.mark.parametrize("wal", [True, False], ids=["wal", "summaries"])
def test_a_timeline_goes_on_behind_the_last_record_of_the_one_it_left(wal: bool) -> None:
    """Of two servers that were promoted at one place, one had other records before it."""
    old, other = lives(16, crossing=False)
    switch = old.records[2].lsn
    promoted = WalBuilder(major=16, timeline_id=2, start_lsn=2 * MB, prev_lsn=switch)
    wrong = WalBuilder(major=16, timeline_id=2, start_lsn=2 * MB, prev_lsn=other.records[2].lsn)
    ranges = [LsnRange(1, Lsn(MB), Lsn(2 * MB)), LsnRange(2, Lsn(2 * MB), Lsn(2 * MB + 8192))]
    for later, is_right in ((promoted, True), (wrong, False)):
        later.append(insertion(7))
        later.append_filler(0)
        with repository_of(16) as repository:
            put(old, repository)
            if wal:
                put(later, repository)
            else:
                part = one_pass(later, 2 * MB, 2 * MB + 8192)
                repository.summaries.write(ranges[1], part.block_map, part.link)
            if is_right:
                assert blocks(read_changes(repository, ranges)) == [1, 2, 7]
                require_linked_switch(repository.wal, later.wal_format, ranges[0], 2)
                continue
            expected = f"at {other.records[2].lsn}, but .* is at {switch}"
            with pytest.raises(TimelineMismatch, match=expected):
                read_changes(repository, ranges)
            if wal:
                with pytest.raises(TimelineMismatch, match=expected):
                    require_linked_switch(repository.wal, later.wal_format, ranges[0], 2)


def test_a_timeline_that_was_left_within_a_record_of_what_is_here_is_another_history() -> None:
    """The switch point is no end of a record in this WAL of the old timeline, although the link fits."""
    old = WalBuilder(major=16)
    old.append_all([insertion(1), insertion(2, 1000)])
    switch = Lsn(old.records[1].lsn + 64)
    later = WalBuilder(major=16, timeline_id=2)
    later.append_all([insertion(1), RecordSpec(main_data=bytes(20))])
    assert later.next_lsn < switch
    with repository_of(16) as repository:
        put(old, repository)
        link = Link(old.records[1].lsn, old.records[1].lsn)
        repository.summaries.write(LsnRange(2, switch, Lsn(2 * MB)), BlockMap(), link)
        with pytest.raises(TimelineMismatch, match=f"{switch} of timeline 1 lies within the record at"):
            read_changes(repository, [LsnRange(1, Lsn(MB), switch), LsnRange(2, switch, Lsn(2 * MB))])


def test_a_damaged_record_is_no_other_history() -> None:
    builder = WalBuilder(major=17)
    builder.append_all([insertion(1), insertion(2)])
    builder.append_switch()
    builder.append(insertion(3))
    builder.append_switch()
    fourth = builder.records[3]
    with repository_of(17) as repository:
        put(builder, repository)
        name = f"{WAL_DIRECTORY}/{GEOMETRY.file_name(1, 2)}"
        content = bytearray(repository.store.get(name))
        content[fourth.lsn - 2 * MB + 8] ^= 1
        repository.store.put(name, bytes(content), replace=True)
        with pytest.raises(WalGap, match=EndReason.RECORD_PREV_LINK.describe()) as caught:
            read_changes(repository, [LsnRange(1, Lsn(MB), Lsn(3 * MB))])
        assert caught.value.facts == {"timeline_id": 1, "lsn": fourth.lsn}
