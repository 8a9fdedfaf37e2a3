"""Timeline histories."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.errors import FormatError, TimelineMismatch
from pgwal.lsn import Lsn, LsnRange
from pgwal.timeline import TimelineHistory, TimelineSwitch, history_file_name

WRITTEN_BY_A_SERVER = b"1\t0/A000198\tno recovery target specified\n\n2\t0/B0000A0\tbefore 2026-11-22 12:00:00+00\n"


def history(*switches: tuple[int, int], timeline_id: int) -> TimelineHistory:
    return TimelineHistory(timeline_id, tuple(TimelineSwitch(parent, Lsn(lsn)) for parent, lsn in switches))


def test_what_a_server_writes() -> None:
    assert TimelineHistory.decode(3, WRITTEN_BY_A_SERVER) == history((1, 0xA000198), (2, 0xB0000A0), timeline_id=3)
    assert history_file_name(0x1A) == "0000001A.history"


def test_comments_and_reasons_of_any_bytes() -> None:
    content = b"# a comment\n   \n1 0/28\n# 9 0/1\n 4\t1/0\t\xff\xfe reason \n"
    assert TimelineHistory.decode(7, content) == history((1, 0x28), (4, 1 << 32), timeline_id=7)


@pytest.mark.parametrize(
    "content",
    [
        b"1\n",
        b"one\t0/28\n",
        b"-1\t0/28\n",
        b"1\t0x28\n",
        b"\xd9\xa1\t0/28\n",
        b"0\t0/28\n",
        b"2\t0/28\n1\t0/30\n",
        b"1\t0/28\n1\t0/30\n",
        b"5\t0/28\n",
        b"6\t0/28\n",
    ],
)
def test_what_no_server_writes(content: bytes) -> None:
    with pytest.raises(FormatError):
        TimelineHistory.decode(5, content)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_history_or_a_format_error(content: bytes) -> None:
    with suppress(FormatError):
        TimelineHistory.decode(5, content)


def test_ranges_follow_the_history() -> None:
    third = history((1, 100), (2, 200), timeline_id=3)
    assert third.ranges(1, Lsn(50), Lsn(300)) == [
        LsnRange(1, Lsn(50), Lsn(100)),
        LsnRange(2, Lsn(100), Lsn(200)),
        LsnRange(3, Lsn(200), Lsn(300)),
    ]
    assert third.ranges(2, Lsn(150), Lsn(300)) == [LsnRange(2, Lsn(150), Lsn(200)), LsnRange(3, Lsn(200), Lsn(300))]
    assert third.ranges(3, Lsn(250), Lsn(300)) == [LsnRange(3, Lsn(250), Lsn(300))]


def test_a_start_after_the_switch_is_on_no_ancestor() -> None:
    with pytest.raises(TimelineMismatch, match="left timeline 1 at 0/64"):
        history((1, 100), (2, 200), timeline_id=3).ranges(1, Lsn(101), Lsn(300))


def test_a_timeline_that_is_no_ancestor() -> None:
    with pytest.raises(TimelineMismatch, match="timeline 2 is not in the history of timeline 4"):
        history((1, 100), (3, 200), timeline_id=4).ranges(2, Lsn(150), Lsn(300))


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 1000)), max_size=6), st.data())
def test_ranges_join_without_a_hole(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    switches, timeline_id, lsn = [], 0, 0
    for timeline_step, lsn_step in steps:
        timeline_id, lsn = timeline_id + timeline_step, lsn + lsn_step
        switches.append((timeline_id, lsn))
    newest = history(*switches, timeline_id=timeline_id + 1)
    index = data.draw(st.integers(0, len(switches)))
    begin = switches[index - 1][1] if index else 0
    end = switches[index][1] if index < len(switches) else lsn + 50
    start = data.draw(st.integers(begin, end))
    start_timeline_id = switches[index][0] if index < len(switches) else newest.timeline_id
    found = newest.ranges(start_timeline_id, Lsn(start), Lsn(lsn + 50))
    assert [part.timeline_id for part in found] == [t for t, _ in switches[index:]] + [newest.timeline_id]
    assert (found[0].start, found[-1].end) == (start, lsn + 50)
    assert all(earlier.end == later.start for earlier, later in pairwise(found))


def test_ranges_between_positions_anywhere_on_the_history() -> None:
    third = history((1, 100), (2, 200), timeline_id=3)
    cases = {
        (10, 20): [(1, 10, 20)],
        (10, 100): [(1, 10, 100)],
        (100, 101): [(2, 100, 101)],
        (10, 150): [(1, 10, 100), (2, 100, 150)],
        (10, 300): [(1, 10, 100), (2, 100, 200), (3, 200, 300)],
        (200, 300): [(3, 200, 300)],
        (150, 200): [(2, 150, 200)],
    }
    for (start, end), expected in cases.items():
        assert third.ranges_between(Lsn(start), Lsn(end)) == expected
    assert TimelineHistory(1).ranges_between(Lsn(5), Lsn(6)) == [(1, 5, 6)]


FALLING = TimelineHistory(3, (TimelineSwitch(1, Lsn(0x100)), TimelineSwitch(2, Lsn(0x50))))


def test_an_ancestor_ends_at_the_least_of_its_own_and_all_later_switch_points() -> None:
    assert TimelineHistory.decode(3, b"1\t0/100\tno recovery target specified\n\n2\t0/50\tat 0/50\n") == FALLING
    assert FALLING.switches == (TimelineSwitch(1, Lsn(0x50)), TimelineSwitch(2, Lsn(0x50)))
    assert FALLING.timeline_at(0x60) == 3
    assert FALLING.timeline_at(0x4F) == 1
    expected = [LsnRange(1, Lsn(0x40), Lsn(0x50)), LsnRange(3, Lsn(0x50), Lsn(0x200))]
    assert FALLING.ranges_between(Lsn(0x40), Lsn(0x200)) == expected
    assert FALLING.ranges(1, Lsn(0x40), Lsn(0x200)) == expected
    with pytest.raises(TimelineMismatch, match="left timeline 1 at 0/50"):
        FALLING.ranges(1, Lsn(0x70), Lsn(0x200))
    with pytest.raises(TimelineMismatch, match="came to timeline 3 at 0/50"):
        FALLING.ranges(3, Lsn(0x40), Lsn(0x200))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 100)), max_size=6), st.integers(0, 110), st.integers(0, 110)
)
def test_histories_with_any_switch_points_split_a_range(steps: list[tuple[int, int]], first: int, second: int) -> None:
    """The ranges cover each position once, on the timeline that a walk back through the switch points gives."""
    switches, timeline_id = [], 0
    for step, lsn in steps:
        timeline_id += step
        switches.append((timeline_id, lsn))
    found = history(*switches, timeline_id=timeline_id + 1)
    start, end = sorted((first, second))
    covered = {
        lsn: part.timeline_id
        for part in found.ranges_between(Lsn(start), Lsn(end))
        for lsn in range(part.start, part.end)
    }

    def walked_back(lsn: int) -> int:
        """From the newest timeline: whatever lies before the point at which it was made is its parent's."""
        timeline = found.timeline_id
        for parent, switch_lsn in reversed(switches):
            if lsn < switch_lsn:
                timeline = parent
            else:
                break
        return timeline

    assert covered == {lsn: found.timeline_at(lsn) for lsn in range(start, end)}
    assert covered == {lsn: walked_back(lsn) for lsn in range(start, end)}


def test_histories_of_ancestors() -> None:
    third = history((1, 100), (2, 200), timeline_id=3)
    assert third.part_up_to(2) == history((1, 100), timeline_id=2)
    assert third.part_up_to(1) == TimelineHistory(1)
    assert third.part_up_to(3) is third
    assert third.part_up_to(4) is None
    assert [third.end_of(number) for number in (1, 2, 3, 4)] == [100, 200, None, 0]


@pytest.mark.parametrize("separator", [b"\v", b"\f", b"\x1c", b"\xe2\x80\xa8", b"\r", b"\x85", b"\0"])
def test_only_a_line_feed_ends_a_line(separator: bytes) -> None:
    content = b'1\t0/28\tat restore point "a' + separator + b'9 0/1"\n\n2\t0/30\tno recovery target specified\n'
    assert TimelineHistory.decode(3, content) == history((1, 0x28), (2, 0x30), timeline_id=3)
