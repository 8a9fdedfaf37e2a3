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
_WHOLE_BYTES = 16 << 20
"""What one asks for of an object that is read whole: most segments and entries are not larger."""


def open_object(store: ObjectStore, name: str, *, is_read_whole: bool = False) -> BinaryIO:
    """Open an object for reading: a file where the store has files, which alone has a descriptor.

    One that ``is_read_whole`` is asked for in larger pieces.  Raises ObjectNotFound, and so does reading, when it is
    gone by then.
    """
    return cast(BinaryIO, _opened(store, name, is_read_whole=is_read_whole))


def open_buffered(store: ObjectStore, name: str, *, is_read_whole: bool = False) -> BinaryIO:
    """As ``open_object``, for many small reads."""
    return BufferedReader(_opened(store, name, is_read_whole=is_read_whole))


def _opened(store: ObjectStore, name: str, *, is_read_whole: bool) -> RawIOBase:
    files = as_files(store)
    if files is not None:
        return files.open_file(name)
    return _RangeReader(store, name, *((_WHOLE_BYTES,) * 2 if is_read_whole else (_FIRST_BYTES, _AHEAD_BYTES)))


class _RangeReader(RawIOBase):
    """Asks for ranges of an object, and keeps the last of them; the first one tells whether it is there."""

    def __init__(self, store: ObjectStore, name: str, first_bytes: int, ahead_bytes: int) -> None:
        self._store = store
        self._name = name
        self._position = 0
        self._kept_at = 0
        self._size: int | None = None
        self._ahead_bytes = ahead_bytes
        self._kept = self._fetch(0, first_bytes)

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
            self._kept = self._fetch(self._position, max(len(target), self._ahead_bytes))
            self._kept_at = self._position
        start = self._position - self._kept_at
        found = self._kept[start : start + len(target)]
        target[: len(found)] = found
        self._position += len(found)
        return len(found)
