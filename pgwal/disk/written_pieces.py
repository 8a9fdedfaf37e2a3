"""Write a new file of pieces with few calls: in each of them, other threads of this process take turns."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pgwal.budget import WRITE_SIZE
from pgwal.disk.direct_writes import DirectWrites

_MOST_PIECES = 1024
"""POSIX systems take as many at once."""
_BLOCK_BYTES = 4096
"""No file system wants more of what goes past the page cache to lie and end at."""


def write_pieces(descriptor: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Write pieces from the start of a file; large ones that are no bytes past the page cache, if that is possible.

    Whoever yields a view may overwrite it when asked for the next piece.  Raises OSError.
    """
    waiting: list[bytes] = []
    waiting_bytes = offset = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            waiting.append(piece)
            waiting_bytes += len(piece)
            if waiting_bytes >= WRITE_SIZE or len(waiting) == _MOST_PIECES:
                offset = _write_together(descriptor, waiting, offset)
                waiting, waiting_bytes = [], 0
        else:
            offset = _write_together(descriptor, waiting, offset)
            waiting, waiting_bytes = [], 0
            offset = _write_view(descriptor, piece, offset)
    _write_together(descriptor, waiting, offset)


def _write_together(descriptor: int, pieces: list[bytes], offset: int) -> int:
    """Write pieces at an offset, and return the one behind them."""
    end = offset + sum(map(len, pieces))
    if pieces:
        written = os.pwritev(descriptor, pieces, offset)
        if offset + written < end:
            _write_all(DirectWrites(descriptor), memoryview(b"".join(pieces))[written:], offset + written)
    return end


def _write_view(descriptor: int, view: memoryview, offset: int) -> int:
    writes = DirectWrites(descriptor)
    whole_blocks = len(view) // _BLOCK_BYTES * _BLOCK_BYTES
    if len(view) >= WRITE_SIZE and offset % _BLOCK_BYTES == 0:
        writes.begin()
    _write_all(writes, view[:whole_blocks], offset)
    writes.end()
    _write_all(writes, view[whole_blocks:], offset + whole_blocks)
    return offset + len(view)


def _write_all(writes: DirectWrites, view: memoryview, offset: int) -> None:
    while view:
        written = writes.write(view, offset)
        view, offset = view[written:], offset + written
