"""Writes of an open file past the page cache (O_DIRECT), where the file system can do that, and else through it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

_DIRECT = getattr(os, "O_DIRECT", 0)
_NOT_DIRECTLY = (errno.EINVAL, errno.EOPNOTSUPP)
"""How file systems refuse to write past the page cache: what does not lie or end where their blocks do, or anything."""


class DirectWrites:
    """Writes to a descriptor, which stays its owner's; ``are_direct`` while they go past the page cache."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.are_direct = False

    def begin(self) -> None:
        """Go past the page cache from now on, if that is possible, until something does not lie where blocks do."""
        if _DIRECT:
            with suppress(OSError):
                self._set_flag(_DIRECT, 0)
                self.are_direct = True

    def end(self) -> None:
        """Go through the page cache from now on."""
        if self.are_direct:
            self._set_flag(0, _DIRECT)
            self.are_direct = False

    def write(self, data: memoryview, offset: int) -> int:
        """Write bytes at an offset, and return how many of them; raises OSError."""
        try:
            return os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            if not self.are_direct or error.errno not in _NOT_DIRECTLY:
                raise
        self.end()
        return os.pwrite(self._descriptor, data, offset)

    def _set_flag(self, added: int, removed: int) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~removed | added)
