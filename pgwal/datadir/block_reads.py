# cython: language_level=3, annotation_typing=False
"""Read blocks that lie apart out of an open file, many in one call.

An incremental backup reads them one by one, and a call of Python for each costs more than the reading.  This source
runs in two forms, as pgwal/wal/scan.py does: compiled by Cython, with block_reads.h, and interpreted as it stands.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    from types import SimpleNamespace

    cython = SimpleNamespace(compiled=False)

if TYPE_CHECKING:
    from array import array

COMPILED: bool = cython.compiled


def read_blocks(descriptor: int, block_numbers: array[int]) -> bytes:
    """Return blocks of 8192 bytes, one after the other; zeros for what lies beyond the end of the file.

    ``block_numbers`` is an array of type I.  Raises OSError.
    """
    assert block_numbers.itemsize == 4
    content = _new_bytes(len(block_numbers) * 8192)
    error = _read_into(content, descriptor, block_numbers, len(block_numbers))
    if error:
        raise OSError(error, os.strerror(error))
    return _finished(content)


if not cython.compiled:

    def _new_bytes(size: int) -> bytearray:
        return bytearray(size)

    def _finished(content: bytearray) -> bytes:
        return bytes(content)

    def _read_into(content: bytearray, descriptor: int, block_numbers: array[int], count: int) -> int:
        for at in range(count):
            start, end = at * 8192, (at + 1) * 8192
            while start < end and (
                data := os.pread(descriptor, end - start, block_numbers[at] * 8192 + start - at * 8192)
            ):
                content[start : start + len(data)] = data
                start += len(data)
        return 0
