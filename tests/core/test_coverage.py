"""Summaries and holes that make up a range."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pgwal.lsn import Lsn, LsnRange
from pgwal.segment import WalGeometry
from pgwal.summary.coverage import Piece, cover, holes

GEOMETRY = WalGeometry(1 << 20)
SEGMENT = 1 << 20

# Few places, and each of them by the names it can have: a page's start, the end of its header, and not quite.
positions = st.builds(
    lambda page, offset: Lsn(page * 8192 + offset),
    st.one_of(st.integers(127, 132), st.integers(255, 258)),
    st.sampled_from([0, 1, 8, 23, 24, 25, 39, 40, 48, 8184, 8185]),
)
summary_ranges = st.builds(
    lambda timeline_id, ends: LsnRange(timeline_id, min(ends), max(ends)),
    st.sampled_from([1, 1, 1, 1, 2]),
    st.tuples(positions, positions),
)


def place(lsn: int) -> Lsn:
    return GEOMETRY.first_record_position(lsn)


def span(start: int, end: int, timeline_id: int = 1) -> LsnRange:
    return LsnRange(timeline_id, Lsn(start), Lsn(end))


def lies_in(inner: LsnRange, outer: LsnRange) -> bool:
    in_order = place(outer.start) <= place(inner.start) < place(inner.end) <= place(outer.end)
    return inner.timeline_id == outer.timeline_id and in_order


@given(summary_ranges, st.lists(summary_ranges, max_size=10))
def test_pieces_tile_the_range_in_order_and_exactly(wanted: LsnRange, summaries: list[LsnRange]) -> None:
    pieces = cover(wanted, summaries, GEOMETRY)
    position = place(wanted.start)
    for piece in pieces:
        assert place(piece.range.start) == position < place(piece.range.end)
        position = place(piece.range.end)
    assert position == place(wanted.end)


@given(summary_ranges, st.lists(summary_ranges, max_size=10))
def test_pieces_are_whole_summaries_or_hold_none(wanted: LsnRange, summaries: list[LsnRange]) -> None:
    for piece in cover(wanted, summaries, GEOMETRY):
        if piece.summarised:
            assert piece.range in summaries
            assert lies_in(piece.range, wanted)
    assert not any(lies_in(summary, hole) for hole in holes(wanted, summaries, GEOMETRY) for summary in summaries)


@given(st.lists(positions, min_size=2, max_size=10), st.data())
def test_consecutive_summaries_cover_whatever_they_begin_and_end(cuts: list[Lsn], data: st.DataObject) -> None:
    cuts.sort()
    summaries = [LsnRange(1, start, end) for start, end in pairwise(cuts)]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(cuts) - 1)] * 2)))
    shuffled = data.draw(st.permutations(summaries))
    assert holes(LsnRange(1, cuts[first], cuts[last]), shuffled, GEOMETRY) == []


def test_a_hole_is_named() -> None:
    before, after = span(0x100028, 0x110000), span(0x120000, 0x200000)
    assert cover(span(0x100028, 0x210000), [after, before], GEOMETRY) == [
        Piece(before, summarised=True),
        Piece(span(0x110000, 0x120000), summarised=False),
        Piece(after, summarised=True),
        Piece(span(0x200000, 0x210000), summarised=False),
    ]


def test_a_gap_that_is_only_a_page_header_is_none() -> None:
    # The server's, after a promotion at a segment's end (formats 4.6).
    assert holes(span(0x100028, 0x300000), [span(0x100028, 0x200000), span(0x200028, 0x300000)], GEOMETRY) == []
    assert holes(span(0x100028, 0x300000), [span(0x100028, 0x202000), span(0x202018, 0x300000)], GEOMETRY) == []
    assert holes(span(0x200000, 0x200028), [], GEOMETRY) == []
    assert holes(span(0x200000, 0x200030), [], GEOMETRY) == [span(0x200000, 0x200030)]


def test_a_redo_point_behind_the_header_begins_the_summary_that_begins_before_it() -> None:
    # What a backup of 13 to 16 meets every time: it starts at X000028, and summaries are cut at X000000.
    segment = span(SEGMENT, 2 * SEGMENT)
    assert cover(span(SEGMENT + 40, 2 * SEGMENT + 40), [segment], GEOMETRY) == [Piece(segment, summarised=True)]
    summary = span(SEGMENT + 40, 2 * SEGMENT + 40)
    assert cover(span(SEGMENT, 2 * SEGMENT), [summary], GEOMETRY) == [Piece(summary, summarised=True)]


def test_a_summary_that_reaches_over_an_end_is_not_used() -> None:
    wanted = span(0x110000, 0x120000)
    for summary in (span(0x10FFF0, 0x120000), span(0x110000, 0x120020), span(0x100000, 0x200000)):
        assert cover(wanted, [summary], GEOMETRY) == [Piece(wanted, summarised=False)]


def test_summaries_of_other_timelines_do_not_count() -> None:
    wanted = span(0x110000, 0x120000, timeline_id=2)
    assert holes(wanted, [span(0x110000, 0x120000)], GEOMETRY) == [wanted]


def test_of_two_summaries_that_overlap_one_is_used() -> None:
    wide, narrow = span(0x110000, 0x120000), span(0x110000, 0x118000)
    assert cover(wide, [narrow, wide], GEOMETRY) == [Piece(wide, summarised=True)]
    late = span(0x11C000, 0x130000)
    assert cover(span(0x110000, 0x130000), [wide, late], GEOMETRY) == [
        Piece(wide, summarised=True),
        Piece(span(0x120000, 0x130000), summarised=False),
    ]


def test_a_summary_that_another_one_holds_does_not_end_the_search() -> None:
    wide, inner, next_one = span(0x110000, 0x120000), span(0x114000, 0x118000), span(0x120000, 0x130000)
    assert cover(span(0x110000, 0x130000), [wide, inner, next_one], GEOMETRY) == [
        Piece(wide, summarised=True),
        Piece(next_one, summarised=True),
    ]


def test_a_summary_of_nothing_is_no_piece() -> None:
    wanted = span(0x110000, 0x120000)
    assert cover(wanted, [span(0x110000, 0x110000), span(0x118000, 0x118000)], GEOMETRY) == [
        Piece(wanted, summarised=False)
    ]
