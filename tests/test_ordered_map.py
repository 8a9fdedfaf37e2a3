"""Work in threads whose results come in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from pgwal.engine.ordered_map import ordered_map


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_results_come_in_order_whatever_ends_first(ahead: int) -> None:
    second_ended = threading.Event()

    def work(item: int) -> int:
        if item == 0 and ahead:
            assert second_ended.wait(20)
        if item == 1:
            second_ended.set()
        return -item

    with ThreadPoolExecutor(2) as pool, closing(ordered_map(pool, work, range(50), ahead=ahead)) as results:
        assert list(results) == [-item for item in range(50)]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_few_items_are_taken_ahead(ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool, closing(ordered_map(pool, abs, items(), ahead=ahead)) as results:
        for count, item in enumerate(results, 1):
            assert item == count - 1
            assert len(taken) <= count + ahead
    assert len(taken) == 20


def test_what_fails_is_raised_in_its_turn_and_what_has_not_begun_is_dropped() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("the second")
        return item

    held = threading.Event()

    def hold(item: int) -> int:
        if item == 2:
            assert held.wait(20)
        return work(item)

    with ThreadPoolExecutor(1) as pool, closing(ordered_map(pool, hold, range(20), ahead=10)) as results:
        assert next(results) == 0
        with pytest.raises(ValueError, match="the second"):
            next(results)
        held.set()
    assert begun[:2] == [0, 1]
    assert len(begun) <= 3


def test_what_has_not_begun_is_dropped_when_no_more_is_wanted() -> None:
    begun = []
    held = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        assert item == 0 or held.wait(20)
        return item

    with ThreadPoolExecutor(1) as pool:
        with closing(ordered_map(pool, work, range(20), ahead=10)) as results:
            assert next(results) == 0
        held.set()
    assert len(begun) <= 2
