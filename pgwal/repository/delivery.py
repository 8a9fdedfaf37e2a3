"""What becomes of received WAL once it is durable on this machine: a contract.

In a directory it is where it belongs, and may be compressed; a spool's goes to the store that the repository is in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from pgwal.errors import RepositoryError
from pgwal.lsn import Lsn


class Delivery(Protocol):
    """Works in threads of its own, for one receiver; nothing here waits for them but ``paused``."""

    @property
    def done_count(self) -> int:
        """How many segments were compressed, or stored elsewhere."""

    @property
    def failed_count(self) -> int:
        """How often that failed."""

    @property
    def waiting_count(self) -> int:
        """How many segments wait."""

    @property
    def spooled_bytes(self) -> int | None:
        """How much waits on this machine, None where nothing has to go elsewhere."""

    @property
    def trouble(self) -> RepositoryError | None:
        """What the last try ended with, if it is to be tried again."""

    @property
    def is_away(self) -> bool:
        """Whether where it goes does not answer: the last try has failed, or the present one takes long."""

    @property
    def is_behind(self) -> bool:
        """Whether something waits that can go elsewhere now."""

    @property
    def is_proven(self) -> bool:
        """Whether what an earlier receiver left is known to be the server's."""

    def add(self, name: str) -> None:
        """Take a segment that is whole and durable."""

    def begin(self, timeline_id: int) -> None:
        """Note that WAL of a timeline is going to be received; before any is written."""

    def compared(self) -> None:
        """Note that what the archive held when the stream began is no longer read."""

    def look_again(self) -> None:
        """Learn what others have deleted meanwhile from where it goes, if that answers."""

    def prove(self, timeline_id: int, start: Lsn, lsn: Lsn, *, is_all: bool) -> None:
        """Take what is here from a position to another for the server's, as it was received again and compared.

        ``is_all`` says that nothing more was left by an earlier receiver.  What that left in front of ``start``, and
        nobody has compared, must go on with what was delivered, else it raises RepositoryError.
        """

    def grow(self, timeline_id: int, flushed_lsn: Lsn) -> None:
        """Note up to where received WAL is durable on this machine."""

    def safe_lsn(self, timeline_id: int, flushed_lsn: Lsn) -> Lsn:
        """Return up to where WAL outlives this machine, as far as it is durable here, which is ``flushed_lsn``."""

    def has_room(self) -> bool:
        """Tell whether a further segment may be received; raises what has ended the delivery for good."""

    def hurry(self) -> None:
        """Have what was received delivered now: somebody waits for it."""

    @property
    def wants_open_segment(self) -> bool:
        """Whether the segment that is being received is to be durable here as far as it is: it can be delivered."""

    def paused(self) -> AbstractContextManager[None]:
        """Have nothing delivered for a while, whatever is moved meanwhile."""
