"""The C library's memory allocator, in a process that gets its data in large pieces."""

from __future__ import annotations

import ctypes

from pgwal.budget import FREED_BYTES, FREED_PIECE_BYTES

# malloc.h of glibc; no other C library has them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Have malloc keep up to 32 MB of freed memory, in pieces of up to two megabytes.

    A message of a walsender (128 KB) and a piece of a file (up to 1 MB) are so large that glibc gives their memory back
    to the system each time, and having it zeroed for the next one costs more than receiving or reading does.  Without
    glibc nothing changes.
    """
    _set({_M_MMAP_THRESHOLD: FREED_PIECE_BYTES, _M_TRIM_THRESHOLD: FREED_BYTES})


def share_freed_memory() -> None:
    """Have malloc keep freed memory, as above, for whichever thread wants it next; to be called before there are any.

    What one thread has decoded another one writes and frees, and each would keep its own.  Not where pieces of many
    sizes are made, as by compression: gaps between them take more than is saved.
    """
    keep_freed_memory()
    _set({_M_ARENA_MAX: 1})


def _set(values: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in values.items():
            mallopt(option, value)
