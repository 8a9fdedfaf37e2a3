"""The contract of what is written piece by piece, the third of three: see also ``store`` and ``lease``.

It is local by nature: nothing that is reached over a network appends, and makes durable, several times a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Protocol


class Appender(Protocol):
    """An object of fixed size that is written in place, such as a WAL segment that is being received."""

    is_held: bool
    """Whether what was written is nowhere but in this process until ``sync``: it ends with that."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at a byte offset; not durable until ``sync``."""

    def clear_behind(self, offset: int) -> None:
        """Write zeros over whatever is not zero from a byte offset on; not durable until ``sync``."""

    def sync(self) -> None:
        """Make all that was written durable."""

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        """Sync, give the object its final name in the same folder, durably, and close it.

        A spool whose objects go elsewhere may have it there at once, and then not here.
        What is not ``is_read_soon`` need not stay in a cache, where it would take the place of something else.
        """

    def pieces(self) -> Iterator[bytes]:
        """Yield all that was written, synced or not, from the start on."""

    def discard(self) -> None:
        """Remove the object, and close it: what it holds is elsewhere."""

    def close(self) -> None:
        """Close without syncing or renaming."""


class Spool(Protocol):
    """Objects that grow; those that have their final names are the store's.  Raises RepositoryError, StorageFull."""

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> Appender:
        """Open an object of ``size_bytes`` zeros, or one of this size that is there already, for writing in place.

        With ``zeroed`` the zeros are really written, so that each later sync is of data alone: worth the double
        writing where somebody waits for each of them.
        """

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:
        """Tell whether what ``preallocate`` would open is held: nothing of it is there, and nothing would be made."""

    def settle(self, folder: str) -> None:
        """Make the names in a folder durable, whoever gave them."""

    def create_notes(self, name: str) -> IO[bytes]:
        """Create what is written and then read by one process; it is never durable, and no object of the store.

        Where it is a file, it lies at the place of an object of its name.
        """

    def drop_notes(self, name: str) -> None:
        """Remove notes."""
