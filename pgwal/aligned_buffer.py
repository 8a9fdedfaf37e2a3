"""Memory to read files into and to write them from."""

from __future__ import annotations

import mmap


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return memory of that size, zeros at first, that starts where a page of memory does.

    O_DIRECT writes require page-aligned memory.  Cached reads profit too: into memory from malloc, which starts 16
    bytes into a page, the kernel copies at half the speed.
    """
    return memoryview(mmap.mmap(-1, size_bytes))
