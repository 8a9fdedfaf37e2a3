"""The rule of timeline switches: which limits count as 0."""

from __future__ import annotations

import pytest

from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.timeline_switch import forget_limits_beside_switch, is_beside_switch

GEOMETRY = WalGeometry(1 << 20)
PAGE = 8192

FORK, LENGTHENED = RelationFork(1663, 5, 16384, 0), RelationFork(1663, 5, 16385, 0)


def span(timeline_id: int, start: int, end: int) -> LsnRange:
    return LsnRange(timeline_id, Lsn(start), Lsn(end))


# A window over two switches, of which the second one lies at the start of a page.
SWITCH = 132 * PAGE
WINDOW = [span(1, 0x101000, 0x105000), span(2, 0x105000, SWITCH), span(3, SWITCH, 0x109000)]


@pytest.mark.parametrize(
    ("part", "is_beside"),
    [
        (span(1, 0x101000, 0x105000), True),
        (span(1, 0x101000, 0x102000), False),
        (span(1, 0x102000, 0x104FF8), False),
        (span(1, 0x104000, 0x105000), True),
        (span(2, 0x105000, 0x106000), True),
        (span(2, 0x105000, SWITCH), True),
        (span(2, 0x106000, 0x107000), False),
        (span(2, SWITCH - 16, SWITCH), True),
        (span(2, SWITCH - 16, SWITCH - 8), False),
        (span(3, SWITCH, 0x108800), True),
        (span(3, 0x108800, 0x109000), False),
        # Behind the page's header is the same place as before it.
        (span(2, SWITCH - 16, SWITCH + 24), True),
        (span(3, SWITCH + 24, 0x108800), True),
        (span(3, SWITCH + 32, 0x108800), False),
    ],
)
def test_what_lies_beside_a_switch(part: LsnRange, is_beside: bool) -> None:
    assert is_beside_switch(part, WINDOW, GEOMETRY) == is_beside


@pytest.mark.parametrize(("start", "end"), [(0x105000, 0x106000), (0x105000, 0x107000), (0x106000, 0x107000)])
def test_the_ends_of_a_window_are_no_switches(start: int, end: int) -> None:
    assert not is_beside_switch(span(2, start, end), [span(2, 0x105000, 0x107000)], GEOMETRY)


@pytest.mark.parametrize(("part", "limit_block"), [(WINDOW[1], 0), (span(2, 0x105100, 0x105200), 7)])
def test_a_limit_beside_a_switch_counts_as_zero_and_no_other_does(part: LsnRange, limit_block: int) -> None:
    changes = BlockMap()
    changes.set_limit(FORK, 7)
    changes.mark(FORK, [3])
    changes.mark(LENGTHENED, [9])
    forget_limits_beside_switch(changes, part, WINDOW, GEOMETRY)
    assert changes.limit_block(*FORK) == limit_block
    assert changes.limit_block(*LENGTHENED) == INVALID_BLOCK_NUMBER
    assert list(changes.blocks_between(*FORK, 0, 10)) == [3]
