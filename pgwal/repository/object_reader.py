"""Read an object from front to back, or at any place, whatever the store."""

from __future__ import annotations

import os
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, BinaryIO, cast

from pgwal.repository.store import ByteRange, ObjectStore, as_files

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FIRST_BYTES = 64 << 10
"""What opening asks for: often that is all of it, or all that is read."""
_AHEAD_BYTES = 1 << 20
"""What one request asks for at least: over a network, its answer takes as long for a byte."""


def open_object(store: ObjectStore, name: str) -> BinaryIO:
    """Open an object for reading: a file where the store has files, which alone has a descriptor.

    Raises ObjectNotFound, and so does reading, when it is gone by then.
    """
    return cast(BinaryIO, _opened(store, name))


def open_buffered(store: ObjectStore, name: str) -> BinaryIO:
    """As ``open_object``, for many small reads."""
    return BufferedReader(_opened(store, name))


def _opened(store: ObjectStore, name: str) -> RawIOBase:
    files = as_files(store)
    return _RangeReader(store, name) if files is None else files.open_file(name)


class _RangeReader(RawIOBase):
    """Asks for ranges of an object, and keeps the last of them; the first one tells whether it is there."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self._position = 0
        self._kept_at = 0
        self._size: int | None = None
        self._kept = self._fetch(0, _FIRST_BYTES)

    def _fetch(self, start: int, length: int) -> bytes:
        (found,) = self._store.get_ranges(self._name, [ByteRange(start, start + length)])
        if len(found) < length and (found or not start):
            self._size = start + len(found)
        return found

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if base is None:
            self._size = base = self._store.size(self._name) if self._size is None else self._size
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        if not self._kept_at <= self._position < self._kept_at + len(self._kept):
            if self._size is not None and self._position >= self._size:
                return 0
            self._kept = self._fetch(self._position, max(len(target), _AHEAD_BYTES))
            self._kept_at = self._position
        start = self._position - self._kept_at
        found = self._kept[start : start + len(target)]
        target[: len(found)] = found
        self._position += len(found)
        return len(found)
