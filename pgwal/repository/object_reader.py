"""Read an object from front to back, or at any place, whatever the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from pgwal.budget import OBJECT_AHEAD_BYTES, OBJECT_FIRST_BYTES, OBJECT_WHOLE_BYTES
from pgwal.repository.store import ByteRange, ObjectStore, as_files

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Kept(NamedTuple):
    name: str
    size_bytes: int | None
    pieces: Mapping[int, bytes]


class LastRead:
    """What was read last of an object that is never replaced, for whoever opens it again soon."""

    def __init__(self) -> None:
        # Replaced as a whole: threads that read different objects only make each other ask again.
        self._kept = _Kept("", None, {})

    def find(self, name: str, start: int) -> tuple[int, bytes] | None:
        """Return a piece of an object that has the byte at ``start``, and where it begins."""
        kept = self._kept
        if name != kept.name:
            return None
        return next(((at, piece) for at, piece in kept.pieces.items() if at <= start < at + len(piece)), None)

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, if it was read to its end."""
        kept = self._kept
        return kept.size_bytes if name == kept.name else None

    def keep(self, name: str, start: int, piece: bytes, size_bytes: int | None) -> None:
        """Keep a piece: with others of the same object, as long as they are not too large together."""
        kept = self._kept
        if name != kept.name or sum(map(len, kept.pieces.values())) + len(piece) > OBJECT_WHOLE_BYTES:
            kept = _Kept(name, size_bytes, {})
        self._kept = _Kept(name, size_bytes, {**kept.pieces, start: piece})


def open_object(
    store: ObjectStore, name: str, *, is_read_whole: bool = False, last_read: LastRead | None = None
) -> BinaryIO:
    """Open an object for reading: a file where the store has files, which alone has a descriptor.

    One that ``is_read_whole`` is asked for in larger pieces.  What is not in files is taken from ``last_read`` as far
    as that has it.  Raises ObjectNotFound, and so does reading, when it is gone by then.
    """
    return cast(BinaryIO, _opened(store, name, is_read_whole=is_read_whole, last_read=last_read))


def open_buffered(store: ObjectStore, name: str, *, is_read_whole: bool = False) -> BinaryIO:
    """As ``open_object``, for many small reads."""
    return BufferedReader(_opened(store, name, is_read_whole=is_read_whole))


def _opened(store: ObjectStore, name: str, *, is_read_whole: bool, last_read: LastRead | None = None) -> RawIOBase:
    files = as_files(store)
    if files is not None:
        return files.open_file(name)
    sizes = (OBJECT_WHOLE_BYTES, OBJECT_WHOLE_BYTES) if is_read_whole else (OBJECT_FIRST_BYTES, OBJECT_AHEAD_BYTES)
    return _RangeReader(store, name, *sizes, last_read)


class _RangeReader(RawIOBase):
    """Asks for ranges of an object, and keeps the last of them; the first one tells whether it is there."""

    def __init__(
        self, store: ObjectStore, name: str, first_bytes: int, ahead_bytes: int, last_read: LastRead | None
    ) -> None:
        self._store = store
        self._name = name
        self._position = 0
        self._size = None if last_read is None else last_read.size(name)
        self._ahead_bytes = ahead_bytes
        self._last_read = last_read
        self._kept_at, self._kept = self._fetch(0, first_bytes)

    def _fetch(self, start: int, length: int) -> tuple[int, bytes]:
        """Return a piece that has what is wanted, but an empty one at the end, and where it begins."""
        known = None if self._last_read is None else self._last_read.find(self._name, start)
        if known is not None:
            return known
        (found,) = self._store.get_ranges(self._name, [ByteRange(start, start + length)])
        if len(found) < length and (found or not start):
            self._size = start + len(found)
        if self._last_read is not None:
            self._last_read.keep(self._name, start, found, self._size)
        return start, found

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
            self._kept_at, self._kept = self._fetch(self._position, max(len(target), self._ahead_bytes))
        start = self._position - self._kept_at
        found = self._kept[start : start + len(target)]
        target[: len(found)] = found
        self._position += len(found)
        return len(found)
