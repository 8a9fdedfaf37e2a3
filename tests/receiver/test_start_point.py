"""Where a receiver goes on, from what the archive has and the server says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.engine.start_point import (
    StreamStart,
    abandoned_wal,
    agreed_history,
    new_start,
    segment_before,
    starts_behind,
    starts_in_segment,
    stream_starts,
)
from pgwal.errors import HistoryMismatch, OlderTimeline, TimelineMismatch
from pgwal.lsn import Lsn
from pgwal.postgres.replication_answer import SlotPosition
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory, TimelineSwitch

GEOMETRY = WalGeometry(1 << 20)
FAR = Lsn(90 << 20)


def at(segments: float) -> Lsn:
    """Return a position, counted in segments."""
    return Lsn(int(segments * (1 << 20)))


def segment(timeline_id: int, number: int, complete: bool = True) -> WalSegmentFile:
    name = GEOMETRY.file_name(timeline_id, number)
    return WalSegmentFile(timeline_id, number, complete, name if complete else f"{name}.partial")


def segments(*names: str) -> list[WalSegmentFile]:
    """Return segments from ``timeline:number``, with a ``p`` behind partial ones."""
    found = []
    for name in names:
        timeline_id, _, number = name.removesuffix("p").partition(":")
        found.append(segment(int(timeline_id), int(number), not name.endswith("p")))
    return found


def history(timeline_id: int, *switches: tuple[int, float]) -> TimelineHistory:
    return TimelineHistory(timeline_id, tuple(TimelineSwitch(parent, at(end)) for parent, end in switches))


def encoded(of: TimelineHistory, reason: str = "as it was") -> bytes:
    return b"".join(f"{parent}\t{lsn}\t{reason}\n".encode() for parent, lsn in of.recorded)


@pytest.mark.parametrize(
    ("stored", "of", "server_at", "expected"),
    [
        pytest.param([], history(1), 9.5, [], id="an empty archive"),
        pytest.param(["1:3p"], history(1), 9.5, [(1, 3)], id="nothing but an open segment"),
        pytest.param(["1:3"], history(1), 9.5, [(1, 3), (1, 4)], id="one whole segment is received again"),
        pytest.param(["1:2", "1:3", "1:4p"], history(1), 9.5, [(1, 3), (1, 4)], id="whole ones and an open one"),
        pytest.param(["1:2", "1:3p", "1:5"], history(1), 9.5, [(1, 5), (1, 6)], id="a hole is left"),
        pytest.param(["1:2", "1:4p"], history(1), 9.5, [(1, 4)], id="no whole one before"),
        pytest.param(["1:3", "1:4", "1:5"], history(1), 4.5, [(1, 3), (1, 6)], id="the server is behind"),
        pytest.param(["1:3", "1:4p"], history(2, (1, 4.5)), 4.7, [(1, 3), (1, 4), (2, 4)], id="left in the open one"),
        pytest.param(["1:3", "1:4"], history(2, (1, 4.5)), 4.7, [(1, 3), (2, 4)], id="left within the last whole one"),
        pytest.param(["1:3", "1:4"], history(2, (1, 5)), 5.5, [(1, 4), (1, 5), (2, 5)], id="left at its end"),
        pytest.param(
            ["1:3", "1:4", "1:5", "1:6p"], history(2, (1, 4.5)), 4.7, [(1, 3), (2, 4)], id="the old one went on"
        ),
        pytest.param(["1:3", "1:4p", "2:4", "2:5p"], history(2, (1, 4.5)), 9.5, [(2, 4), (2, 5)], id="followed before"),
        pytest.param(
            ["1:7", "1:8", "2:4p"], history(2, (1, 4.5)), 9.5, [(2, 4)], id="the timeline decides, not the number"
        ),
        pytest.param(
            ["1:3", "1:4p"], history(3, (1, 4.2), (2, 4.6)), 4.9, [(1, 3), (1, 4), (3, 4)], id="left twice in one"
        ),
        pytest.param(
            ["1:3", "1:4p"], history(3, (1, 4.2), (2, 5.5)), 6, [(1, 3), (1, 4), (2, 4)], id="left again later"
        ),
        pytest.param(
            ["1:2", "1:3", "1:4", "2:4", "2:5p"],
            history(3, (1, 4.5), (2, 3.5)),
            4,
            [(1, 2), (3, 3)],
            id="recovered to before a failover",
        ),
        pytest.param(["2:4", "2:5p", "1:4"], history(3, (1, 4.5)), 6, [(3, 4)], id="a timeline beside"),
    ],
)
def test_starts(stored: list[str], of: TimelineHistory, server_at: float, expected: list[tuple[int, int]]) -> None:
    found = stream_starts(segments(*stored), of, GEOMETRY, at(server_at))
    assert found == [StreamStart(timeline_id, at(number)) for timeline_id, number in expected]


@pytest.mark.parametrize(
    ("of", "slot", "expected"),
    [
        pytest.param(history(1), None, (1, 9), id="no slot"),
        pytest.param(history(3, (1, 2), (2, 4)), None, (3, 9), id="no slot, on a later timeline"),
        pytest.param(history(1), SlotPosition(None, None), (1, 9), id="a slot that has reserved nothing"),
        pytest.param(history(1), SlotPosition(at(5.5), 1), (1, 5), id="a slot"),
        pytest.param(history(2, (1, 7)), SlotPosition(at(5.5), 1), (1, 5), id="a slot on an ancestor"),
        pytest.param(history(2, (1, 3)), SlotPosition(at(5), None), (2, 5), id="a slot whose timeline is not told"),
    ],
)
def test_where_to_begin_with_nothing(of: TimelineHistory, slot: SlotPosition | None, expected: tuple[int, int]) -> None:
    assert new_start(of, GEOMETRY, at(9.5), slot) == StreamStart(expected[0], at(expected[1]))


@pytest.mark.parametrize(
    ("end", "of", "expected"),
    [
        pytest.param((1, 4.5), history(2, (1, 4.5)), [(2, 4)], id="the next one begins with a copy"),
        pytest.param((1, 5), history(2, (1, 5)), [(2, 5)], id="at the end of a segment"),
        pytest.param((1, 4.2), history(3, (1, 4.2), (2, 4.6)), [(2, 4), (3, 4)], id="left again in the same segment"),
        pytest.param((2, 4.6), history(3, (1, 4.2), (2, 4.6)), [(3, 4)], id="the last one"),
    ],
)
def test_what_follows_a_timeline(end: tuple[int, float], of: TimelineHistory, expected: list[tuple[int, int]]) -> None:
    found = starts_behind(end[0], at(end[1]), of, GEOMETRY)
    assert found == [StreamStart(timeline_id, at(number)) for timeline_id, number in expected]


@pytest.mark.parametrize(
    ("of", "before"),
    [
        pytest.param(history(1), [], id="no other timeline"),
        pytest.param(history(2, (1, 6)), [], id="the server goes on with it"),
        pytest.param(history(2, (1, 4.5)), [(1, at(4.5))], id="ended there before"),
    ],
)
def test_a_timeline_that_ends_where_none_does(of: TimelineHistory, before: list[tuple[int, Lsn]]) -> None:
    with pytest.raises(
        TimelineMismatch, match="says that timeline 1 ends at 0/480000, but its history goes on"
    ) as raised:
        starts_behind(1, at(4.5), of, GEOMETRY, before)
    assert raised.value.hint


def test_an_archive_of_which_nothing_is_on_the_history() -> None:
    with pytest.raises(TimelineMismatch, match="none of the WAL in the repository is in the history of timeline 3"):
        stream_starts(segments("2:4", "2:5"), history(3, (1, 4.5)), GEOMETRY, at(9))
    with pytest.raises(TimelineMismatch, match="none of the WAL") as raised:
        stream_starts(segments("1:5", "1:6p"), history(2, (1, 5)), GEOMETRY, at(9))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("stored", "of", "expected"),
    [
        ([], history(2, (1, 4.5)), None),
        (["1:3", "1:4"], history(1), None),
        (["1:3"], history(2, (1, 4.5)), None),
        (["1:4p"], history(2, (1, 4.5)), None),
        (["1:4"], history(2, (1, 4.5)), "1:4"),
        (["1:4"], history(2, (1, 5)), None),
        (["1:5p"], history(2, (1, 4.5)), "1:5p"),
        (["1:5", "2:4p"], history(2, (1, 4.5)), None),
        (["1:3", "2:2p"], history(3, (1, 4.5)), "2:2p"),
        (["1:3", "2:4p"], history(3, (1, 4.5), (2, 3.5)), "2:4p"),
    ],
)
def test_wal_that_the_server_never_had(stored: list[str], of: TimelineHistory, expected: str | None) -> None:
    assert abandoned_wal(segments(*stored), of, GEOMETRY) == (segments(expected)[0] if expected else None)


@pytest.mark.parametrize(
    ("start", "of", "expected"),
    [
        ((1, 4), history(1), [(1, 4)]),
        ((1, 4), history(2, (1, 4.5)), [(1, 4), (2, 4)]),
        ((1, 3), history(2, (1, 4.5)), [(1, 3)]),
        ((1, 4), history(2, (1, 5)), [(1, 4)]),
        ((1, 4), history(3, (1, 4.2), (2, 4.4)), [(1, 4), (3, 4)]),
        ((1, 4), history(3, (1, 4.2), (2, 5.4)), [(1, 4), (2, 4)]),
        ((2, 4), history(3, (1, 4.2), (2, 4.4)), [(2, 4), (3, 4)]),
        ((1, 4), history(3, (1, 5.2), (2, 4.4)), [(1, 4), (3, 4)]),
    ],
)
def test_starts_in_a_segment(start: tuple[int, int], of: TimelineHistory, expected: list[tuple[int, int]]) -> None:
    found = starts_in_segment(StreamStart(start[0], at(start[1])), of, GEOMETRY)
    assert found == [StreamStart(timeline_id, at(number)) for timeline_id, number in expected]


@pytest.mark.parametrize(
    ("stored", "of", "timeline_id", "expected"),
    [
        ([], history(1), 1, None),
        (["1:4"], history(1), 1, 1),
        (["1:4p"], history(1), 1, None),
        (["1:3", "1:5"], history(1), 1, None),
        (["1:4", "2:4"], history(2, (1, 4.5)), 2, 2),
        (["1:4", "2:4"], history(2, (1, 4.5)), 1, 1),
        (["1:4"], history(2, (1, 3.5)), 2, None),
        (["1:4"], history(2, (1, 4)), 2, None),
        (["2:4"], history(3, (1, 4.5)), 3, None),
    ],
)
def test_the_segment_before(stored: list[str], of: TimelineHistory, timeline_id: int, expected: int | None) -> None:
    found = segment_before(segments(*stored), of, GEOMETRY, timeline_id, 4)
    assert found == (StreamStart(expected, at(4)) if expected else None)


# ---- any segments, any histories ----

_switch_points = st.integers(1, 12 << 3).map(lambda eighths: eighths / 8)


@st.composite
def histories(draw: st.DrawFn) -> TimelineHistory:
    """Histories of timelines up to 6; their switch points may fall."""
    parents = draw(st.lists(st.integers(1, 5), unique=True, max_size=4).map(sorted))
    timeline_id = draw(st.integers(max(parents, default=0) + 1, 6))
    return history(timeline_id, *((parent, draw(_switch_points)) for parent in parents))


archives = st.lists(
    st.builds(segment, st.integers(1, 6), st.integers(1, 12), st.booleans()),
    unique_by=lambda s: (s.timeline_id, s.segment_no),
    max_size=8,
)


def is_on(of: TimelineHistory, timeline_id: int, lsn: Lsn) -> bool:
    """Tell whether WAL of a timeline from ``lsn`` on, or the end of the timeline there, is in a history."""
    if timeline_id == of.timeline_id:
        return True
    ends = [lsn for parent, lsn in of.recorded if parent >= timeline_id]
    return timeline_id in dict(of.recorded) and lsn <= min(ends)


@given(archives, histories(), st.integers(0, 13 << 20).map(Lsn))
def test_whatever_is_returned_lies_on_the_history(
    stored: Sequence[WalSegmentFile], of: TimelineHistory, server_lsn: Lsn
) -> None:
    usable = [s for s in stored if is_on(of, s.timeline_id, Lsn(at(s.segment_no) + 1))]
    if not usable:
        if stored:
            with pytest.raises(TimelineMismatch):
                stream_starts(stored, of, GEOMETRY, server_lsn)
        return
    starts = stream_starts(stored, of, GEOMETRY, server_lsn)
    newest = max(usable, key=lambda s: (s.timeline_id, s.segment_no))
    for start in starts:
        assert start.lsn % GEOMETRY.segment_size == 0
        assert is_on(of, start.timeline_id, start.lsn)
        # Never so far that something would be left out.
        assert start.lsn <= at(newest.segment_no + newest.complete)
        assert start.timeline_id in {of.timeline_id, *dict(of.recorded)}
    # The newest timeline decides, whatever the numbers of older ones' segments are.
    assert starts[-1].timeline_id >= newest.timeline_id
    assert len(starts) == len(set(starts))


@given(archives, histories(), st.integers(0, 13 << 20).map(Lsn))
def test_a_whole_segment_that_both_have_comes_first(
    stored: Sequence[WalSegmentFile], of: TimelineHistory, server_lsn: Lsn
) -> None:
    try:
        starts = stream_starts(stored, of, GEOMETRY, server_lsn)
    except TimelineMismatch:
        return
    first = starts[0] if starts else None
    resumed = [start for start in starts if start.lsn == starts[-1].lsn]
    whole = {(s.timeline_id, s.segment_no) for s in stored if s.complete}
    if first is not None and first not in resumed:
        number = GEOMETRY.segment_no(first.lsn)
        assert (first.timeline_id, number) in whole
        assert number == min(GEOMETRY.segment_no(resumed[0].lsn), GEOMETRY.segment_no(server_lsn)) - 1


@given(archives, histories(), st.integers(1, 6), st.integers(0, 12))
def test_the_segment_before_is_whole_and_on_the_history(
    stored: Sequence[WalSegmentFile], of: TimelineHistory, timeline_id: int, number: int
) -> None:
    found = segment_before(stored, of, GEOMETRY, timeline_id, number)
    usable = [
        s.timeline_id
        for s in stored
        if s.complete
        and s.segment_no == number
        and s.timeline_id <= timeline_id
        and is_on(of, s.timeline_id, Lsn(at(number) + 1))
    ]
    assert found == (StreamStart(max(usable), at(number)) if usable else None)


@given(archives, histories())
def test_only_what_reaches_beyond_the_history_is_abandoned(
    stored: Sequence[WalSegmentFile], of: TimelineHistory
) -> None:
    found = abandoned_wal(stored, of, GEOMETRY)
    newest = max(stored, key=lambda s: (s.timeline_id, s.segment_no), default=None)
    if newest is None:
        assert found is None
        return
    is_within = is_on(of, newest.timeline_id, at(newest.segment_no + newest.complete))
    assert found == (None if is_within else newest)


# ---- histories of server and archive ----

THIRD = history(3, (1, 4.5), (2, 6))


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        pytest.param({}, [], id="an empty archive"),
        pytest.param({}, ["1:4p"], id="no history file here"),
        pytest.param({2: encoded(history(2, (1, 4.5)))}, ["2:5p"], id="the server was promoted"),
        pytest.param({2: encoded(history(2, (1, 4.5)), "other words")}, [], id="an ancestor told in other words"),
        pytest.param({3: encoded(THIRD)}, ["3:7", "3:8p"], id="the same"),
        pytest.param({2: encoded(history(2, (1, 4.5)))}, ["1:99"], id="more of an old timeline"),
    ],
)
def test_histories_that_agree(stored: dict[int, bytes], names: list[str]) -> None:
    assert agreed_history(3, encoded(THIRD), stored, segments(*names)) == THIRD


def test_a_timeline_beside_the_server_s_is_nothing_against_it() -> None:
    stored = {2: encoded(history(2, (1, 9))), 3: encoded(history(3, (1, 4), (2, 12)))}
    of = history(4, (1, 4.5))
    assert agreed_history(4, encoded(of), stored, segments("2:9", "3:12p")) == of


@pytest.mark.parametrize(
    ("stored", "names"), [({4: encoded(history(4, (1, 2)))}, []), ({}, ["4:1p"]), ({}, ["3:7", "4:1", "1:99"])]
)
def test_a_server_on_an_older_timeline(stored: dict[int, bytes], names: list[str]) -> None:
    with pytest.raises(OlderTimeline, match="holds WAL of timeline 4, this server is still on timeline 3") as raised:
        agreed_history(3, encoded(THIRD), stored, segments(*names))
    assert raised.value.timeline_id == 4
    assert raised.value.hint


@pytest.mark.parametrize(
    ("stored", "timeline_id"),
    [
        pytest.param({3: encoded(history(3, (1, 4.5), (2, 6.5)))}, 3, id="left its parent elsewhere"),
        pytest.param({3: encoded(history(3, (1, 4.5)))}, 3, id="of another parent"),
        pytest.param({3: encoded(THIRD, "other words")}, 3, id="promoted for another reason"),
        pytest.param({2: encoded(history(2, (1, 4.25)))}, 2, id="an ancestor of the same number"),
        pytest.param({2: b"", 3: encoded(THIRD)}, 2, id="an ancestor without ancestors"),
    ],
)
def test_equal_numbers_with_different_histories(stored: dict[int, bytes], timeline_id: int) -> None:
    with pytest.raises(HistoryMismatch, match="promoted to the same number") as raised:
        agreed_history(3, encoded(THIRD), stored, [])
    assert (raised.value.timeline_id, raised.value.lsn) == (timeline_id, 0)
    assert raised.value.hint


@given(histories(), st.data())
def test_each_ancestor_is_compared(of: TimelineHistory, data: st.DataObject) -> None:
    parts = [part for number in range(2, of.timeline_id + 1) if (part := of.part_up_to(number)) is not None]
    stored = {part.timeline_id: encoded(part) for part in parts}
    known = data.draw(st.sets(st.sampled_from(sorted(stored)))) if stored else set()
    assert agreed_history(of.timeline_id, encoded(of), {number: stored[number] for number in known}, []) == of
    changeable = [part for part in parts if part.recorded]
    if changeable:
        part = data.draw(st.sampled_from(changeable))
        number = data.draw(st.integers(0, len(part.recorded) - 1))
        switches = list(part.recorded)
        switches[number] = switches[number]._replace(switch_lsn=Lsn(switches[number].switch_lsn + 8))
        stored[part.timeline_id] = encoded(TimelineHistory(part.timeline_id, tuple(switches)))
        with pytest.raises(HistoryMismatch):
            agreed_history(of.timeline_id, encoded(of), stored, [])
