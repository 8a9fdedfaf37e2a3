"""What a stream tells of itself while it goes on."""

from __future__ import annotations

from typing import Protocol

from pgwal.lsn import Lsn
from pgwal.repository.wal_writer import WalObserver


class StreamEvents(WalObserver, Protocol):
    """Who wants to know what becomes of a stream."""

    def started(self, start: Lsn) -> None:
        """Called when the server streams."""

    def progressed(self, flushed_lsn: Lsn) -> None:
        """Called when more has become durable, and now and then."""

    def alive(self) -> None:
        """Called as often as the stream looks at the time."""
