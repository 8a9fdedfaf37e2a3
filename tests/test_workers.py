"""Threads that copy: order of the results, the end when one fails, and the rate of all together."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from pgwal.engine.workers import Pace, Stopped, Workers

JOBS = [1, 2, 4]


@pytest.mark.parametrize("jobs", JOBS)
def test_results_come_in_order_and_every_tool_serves_one_thread_at_a_time(jobs: int) -> None:
    locks = [threading.Lock() for _ in range(jobs)]

    def work(lock: threading.Lock, item: int) -> int:
        assert lock.acquire(blocking=False), "a tool in two threads"
        # Those that start first end last.
        time.sleep(0.002 * (item % 3 == 0))
        lock.release()
        return item * item

    with closing(Workers(locks, Pace()).map(work, range(3000))) as results:
        assert list(results) == [item * item for item in range(3000)]


def test_jobs_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)
    with closing(Workers([1, 2, 3], Pace()).map(lambda _, item: together.wait() >= 0 and item, range(6))) as results:
        assert list(results) == list(range(6))


@pytest.mark.parametrize("jobs", JOBS)
def test_what_fails_first_ends_all_and_is_raised(jobs: int) -> None:
    pace = Pace()
    ended = []

    def work(_: int, item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        try:
            # The first one would take hours, and its result is waited for.
            for _step in range(10**9 if item == 0 and jobs > 1 else 1):
                pace.take(1)
                time.sleep(0.001)
        finally:
            ended.append(item)
        return item

    with (
        closing(Workers(list(range(jobs)), pace).map(work, range(10**9))) as results,
        pytest.raises(ValueError, match="the third"),
    ):
        list(results)
    assert 0 in ended
    count = len(ended)
    time.sleep(0.05)
    assert len(ended) == count, "a thread was still at work"


@pytest.mark.parametrize("jobs", [2, 4])
def test_when_the_results_are_no_longer_wanted_all_work_ends(jobs: int) -> None:
    pace = Pace()
    running = threading.Semaphore(0)

    def work(_: int, item: int) -> int:
        if item == 0:
            return item
        running.release()
        while True:
            pace.take(1)
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt), closing(Workers(list(range(jobs)), pace).map(work, range(99))) as results:  # noqa: PT012
        next(results)
        for _ in range(jobs):
            assert running.acquire(timeout=20)
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pgwal-copy")]


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_rate_is_that_of_all_jobs_together(jobs: int) -> None:
    passed = []
    pace = Pace(1_000_000, passed.append)
    start_s = time.monotonic()
    with closing(Workers(list(range(jobs)), pace).map(lambda _, size: pace.take(size), [10_000] * 50)) as results:
        list(results)
    elapsed_s = time.monotonic() - start_s
    assert sum(passed) == 500_000
    assert elapsed_s >= 0.49


def test_who_waits_for_the_rate_is_woken_by_the_end() -> None:
    pace = Pace(1)
    stopper = threading.Timer(0.05, pace.stop)
    stopper.start()
    start_s = time.monotonic()
    with pytest.raises(Stopped):
        pace.take(1_000_000)
    assert time.monotonic() - start_s < 20
    stopper.join()
