"""Copy files in several threads at once: results in order, one limit of the rate, and one end for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from pgwal.budget import RESULTS_WAITING
from pgwal.engine.ordered_map import ordered_map

_Tool = TypeVar("_Tool")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Pace:
    """Lets bytes pass no faster than a rate, over all threads together, until it is stopped.

    ``bytes_per_s`` None is no limit.  ``on_passed`` is told of each number of bytes, by one thread at a time.
    """

    def __init__(self, bytes_per_s: int | None = None, on_passed: Callable[[int], None] | None = None) -> None:
        self._bytes_per_s = bytes_per_s
        self._on_passed = on_passed
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._free_at_s = time.monotonic()

    def take(self, size_bytes: int) -> None:
        """Return when these bytes may be over; raises Stopped."""
        if self._stopped.is_set():
            raise Stopped
        if self._bytes_per_s is None and self._on_passed is None:
            return
        with self._lock:
            if self._on_passed is not None:
                self._on_passed(size_bytes)
            now_s = time.monotonic()
            # Time that was not used is lost, or a pause would be followed by a rush.
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / (self._bytes_per_s or float("inf"))
            wait_s = self._free_at_s - now_s
        if wait_s > 0 and self._stopped.wait(wait_s):
            raise Stopped

    def stop(self) -> None:
        """Have every thread that takes from here end."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()


class Stopped(Exception):
    """Another thread has failed, or the user wants an end."""


class Workers(Generic[_Tool]):
    """Threads that work on items, one for each tool, which is for one thread at a time; none when there is one tool.

    A tool whose work has failed is not used again: nobody knows in the middle of what it is.  When all are to end,
    ``cut`` has each tool end what another thread waits for.
    """

    def __init__(self, tools: Sequence[_Tool], pace: Pace, cut: Callable[[_Tool], None] = lambda _: None) -> None:
        self._tools = tools
        self._pace = pace
        self._cut = cut
        self._idle: SimpleQueue[_Tool] = SimpleQueue()
        for tool in tools:
            self._idle.put(tool)
        self._ending = threading.Lock()
        self._error: BaseException | None = None

    def map(self, work: Callable[[_Tool, _Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
        """Yield the results in the order of ``items``, of which few are taken ahead.

        When work fails, or the generator is closed, what is under way is stopped and ended first.  Raises what
        failed first.
        """
        if len(self._tools) == 1:
            try:
                for item in items:
                    yield work(self._tools[0], item)
            except BaseException as error:
                # Before what was read half is given up: to end that properly, a server would be waited for that hangs.
                self._end_all(error)
                raise
            return
        pool = ThreadPoolExecutor(len(self._tools), thread_name_prefix="pgwal-copy")
        try:
            yield from ordered_map(pool, partial(self._run, work), items, ahead=RESULTS_WAITING)
        except BaseException as error:
            self._end_all(error)
            pool.shutdown(cancel_futures=True)
            # What else fails then is because of it, such as the connections that were cut.
            if isinstance(error, Exception) and self._error is not None:
                raise self._error from None
            raise
        pool.shutdown()

    def _run(self, work: Callable[[_Tool, _Item], _Result], item: _Item) -> _Result:
        if self._pace.is_stopped:
            # Before a tool is waited for that nobody gives back.
            raise Stopped
        tool = self._idle.get()
        try:
            result = work(tool, item)
        except BaseException as error:
            # At once: the result that is waited for may be hours away.
            self._end_all(error)
            raise
        self._idle.put(tool)
        return result

    def _end_all(self, error: BaseException) -> None:
        with self._ending:
            if self._error is None and not isinstance(error, Stopped):
                self._error = error
            if self._pace.is_stopped:
                return
            self._pace.stop()
        for tool in self._tools:
            self._cut(tool)
