"""How the bytes of a whole file get from one place to another: pg_combinebackup's choices."""

from __future__ import annotations

import os
import sys
from enum import StrEnum

_FICLONE = 0x40049409
"""ioctl of Linux that makes a file share the extents of another one, of linux/fs.h."""

_MAX_RANGE = 1 << 30


class CopyMethod(StrEnum):
    """Of these, COPY alone reads the bytes."""

    COPY = "copy"
    CLONE = "clone"
    COPY_FILE_RANGE = "copy-file-range"
    LINK = "link"


def clone_file(source: int, target: int) -> None:
    """Make open file ``target`` share the bytes of ``source`` (a reflink); raises OSError where that is impossible."""
    if sys.platform != "linux":
        raise OSError(95, "file cloning not supported on this platform")
    import fcntl

    fcntl.ioctl(target, _FICLONE, source)


def copy_file_range(source: int, target: int, offset: int, length: int, target_offset: int) -> None:
    """Have the kernel copy ``length`` bytes; raises OSError, EOFError when the source ends before."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(95, "copy_file_range not supported on this platform")
    while length:
        copied = os.copy_file_range(source, target, min(length, _MAX_RANGE), offset, target_offset)
        if not copied:
            raise EOFError(f"it ends at byte {offset}")
        offset, target_offset, length = offset + copied, target_offset + copied, length - copied
