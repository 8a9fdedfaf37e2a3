"""Ask a store that lies behind a network for many objects at a time: most of the time is spent waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pgwal.repository.store import ObjectStore, as_renaming

_MOST_AT_A_TIME = 64
_FEWEST = 4
"""For less no threads are begun."""

_Name = TypeVar("_Name")
_Found = TypeVar("_Found")


def ask_for_each(store: ObjectStore, ask: Callable[[_Name], _Found], names: Sequence[_Name]) -> Iterator[_Found]:
    """Yield what ``ask`` returns for each name, in their order; it must be fit for threads.

    One after the other in a store that renames, as local ones do.  What it raises is passed on.
    """
    if as_renaming(store) is not None or len(names) < _FEWEST:
        yield from map(ask, names)
        return
    # Not above: a server waits for each segment that it fetches, and that needs none.
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(min(_MOST_AT_A_TIME, len(names)), "ask-store")
    try:
        yield from threads.map(ask, names)
    finally:
        threads.shutdown(cancel_futures=True)
