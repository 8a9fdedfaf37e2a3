"""Memory to read files into and to write them from."""

from __future__ import annotations

import mmap
from contextlib import suppress

_HUGE_PAGE_BYTES = 2 << 20
"""Of x86-64 and most arm64 systems; where they are larger, asking for them does no harm."""


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return memory of that size, zeros at first, that starts where a page of memory does.

    O_DIRECT writes require page-aligned memory.  Cached reads profit too: into memory from malloc, which starts 16
    bytes into a page, the kernel copies at half the speed.  Large ones have huge pages where the system has them:
    encrypting into 16 MiB of small ones takes half as long again.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel may be built without.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
