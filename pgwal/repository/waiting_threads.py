"""Ask a store that lies behind a network for many objects at a time: most of the time is spent waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pgwal.budget import FEWEST_FOR_THREADS, REQUESTS_AT_ONCE
from pgwal.repository.store import ObjectStore, as_renaming

_Name = TypeVar("_Name")
_Found = TypeVar("_Found")


def ask_for_each(store: ObjectStore, ask: Callable[[_Name], _Found], names: Sequence[_Name]) -> Iterator[_Found]:
    """Yield what ``ask`` returns for each name, in their order; it must be fit for threads.

    One after the other in a store that renames, as local ones do.  What it raises is passed on.
    """
    if as_renaming(store) is not None or len(names) < FEWEST_FOR_THREADS:
        yield from map(ask, names)
        return
    # Not above: a server waits for each segment that it fetches, and that needs none.
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(names)), "ask-store")
    try:
        yield from threads.map(ask, names)
    finally:
        threads.shutdown(cancel_futures=True)
