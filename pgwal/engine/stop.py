"""A request to stop that a signal handler or another thread can make, and a waiting receiver notices at once."""

from __future__ import annotations

import os
import select


class StopRequest:
    """Set once; ``fd`` becomes readable then."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self._requested = False

    @property
    def fd(self) -> int:
        return self._read_fd

    def set(self) -> None:
        """Ask to stop; safe in a signal handler."""
        if not self._requested:
            self._requested = True
            os.write(self._write_fd, b"\0")

    def is_set(self) -> bool:
        return self._requested

    def wait(self, timeout_s: float) -> bool:
        """Sleep for at most ``timeout_s``; return whether to stop."""
        if not self._requested:
            select.select([self._read_fd], [], [], timeout_s)
        return self._requested

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
