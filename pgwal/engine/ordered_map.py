"""Work on items in threads, of which few are taken ahead, and give the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, wait
from typing import TypeVar

from pgwal.budget import FUTURE_LOOK_S

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ordered_map(
    workers: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int
) -> Generator[_Result, None, None]:
    """Yield what ``work`` makes of each item, in order; at most ``ahead`` results are made or wait beyond that.

    Items are taken by the thread that asks for results.  Raises what the work raises, when its turn has come.  To be
    closed: then, and after an error, work that has not begun is dropped, and what is under way is left to its end.
    """
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(workers.submit(work, item))
            if len(pending) > ahead:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    finally:
        for future in pending:
            future.cancel()


def _result(future: Future[_Result]) -> _Result:
    """Return what a thread makes.

    It waits in short pieces: a signal that comes just before a wait is handled after it, and that may be never.
    """
    while not future.done():
        wait((future,), FUTURE_LOOK_S)
    return future.result()
