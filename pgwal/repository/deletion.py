"""Remove objects, as far as what stores them lets them go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from pgwal.errors import ObjectNotFound, ObjectRetained
from pgwal.repository.store import ObjectStore

logger = logging.getLogger(__name__)


def delete_what_can_go(
    store: ObjectStore, names: Iterable[str], on_done: Callable[[str], None] = lambda _: None
) -> None:
    """Remove objects, some of which may be gone already; ``on_done`` is told of each.

    What the storage has to keep for some time stays, with one warning for all of it.
    """
    retained: list[ObjectRetained] = []
    for name in names:
        try:
            store.delete(name)
        except ObjectNotFound:
            # Compressed, completed or removed meanwhile.
            logger.info("%s is gone already", name)
        except ObjectRetained as error:
            retained.append(error)
        on_done(name)
    if retained:
        logger.warning("%d objects stay until their retention is over; the first: %s", len(retained), retained[0])
