# cython: language_level=3, annotation_typing=False
"""A part of an uncompressed segment file, which a scanner reads when it gets to it, or a thread before.

This source runs in two forms, as pgwal/wal/scan.py does: compiled by Cython, and interpreted as it stands.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    from contextlib import nullcontext
    from types import SimpleNamespace

    cython = SimpleNamespace(compiled=False, nogil=nullcontext())

from pgwal.wal.scan import WalSource

if TYPE_CHECKING:
    from pgwal.wal.scan import Buffer

COMPILED: bool = cython.compiled


class SharedFile:
    """An open file that is closed when nothing refers to it any more: who reads the last part of it shows only then."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is another one of the file, which its owner closes."""
        self.descriptor = -1
        self.descriptor = os.dup(descriptor)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class SegmentPart(WalSource):
    """``size_bytes`` of a file from ``offset`` on; zeros behind its end, if it is ``zero_filled``.

    path           of the file, for messages
    end            -1, or the offset at which the file ends within the part
    error_number   0, or the errno with which reading has failed
    """

    def __init__(self, file: SharedFile, path: str, offset: int, size_bytes: int, *, zero_filled: bool) -> None:
        self._file = file
        self._descriptor = file.descriptor
        self._offset = offset
        self.left = size_bytes
        self._zero_filled = zero_filled
        self.path = path
        self.end = -1
        self.error_number = 0

    def fill(self, target: Buffer, size: int) -> int:
        """As of WalSource."""
        if size > self.left:
            size = self.left
        done = _read_at(self._descriptor, target, size, self._offset)
        if done < 0:
            self.error_number = -done
            self.left = 0
            return 0
        if done < size and self._zero_filled:
            _clear(target, done, size)
            done = size
        if done < size:
            self.end = self._offset + done
            self.left = done
        self._offset += done
        self.left -= done
        return done

    def load(self, target: memoryview) -> memoryview:
        """Read all that is left to the start of ``target``, which has room for it, and return what was filled."""
        count = 0
        while self.left:
            rest = target[count:]
            data = _bytes_of(rest)
            with cython.nogil:
                done = self.fill(data, self.left)
            count += done
        return target[:count]


if not cython.compiled:

    def _bytes_of(view: memoryview) -> memoryview:
        return view

    def _read_at(descriptor: int, target: Buffer, size: int, offset: int) -> int:
        done = 0
        try:
            while done < size and (count := os.preadv(descriptor, [memoryview(target)[done:size]], offset + done)):
                done += count
        except OSError as error:
            return -(error.errno or 0)
        return done

    def _clear(target: Buffer, start: int, end: int) -> None:
        memoryview(target)[start:end] = bytes(end - start)
