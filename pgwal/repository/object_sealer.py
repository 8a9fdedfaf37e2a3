"""One object of an encrypted repository, sealed in memory as what it holds comes, and stored when all is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Lock
from typing import cast

from pgwal.aligned_buffer import aligned_buffer
from pgwal.encryption.container import FRAME_BYTES, SEALED_FRAME_BYTES, TAG_BYTES, FrameCipher, Frames
from pgwal.errors import BrokenInvariant
from pgwal.repository.store import ObjectStore


class Sealer:
    """See pgwal.repository.store.ObjectSealer."""

    def __init__(
        self, store: ObjectStore, name: str, size_bytes: int, header: bytes, cipher: FrameCipher, buffers: Buffers
    ) -> None:
        """``store`` has what is sealed as it is stored, in ``size_bytes``."""
        self.name = name
        self._store = store
        self._cipher = cipher
        self._frames = Frames()
        self._number = 0
        self._buffers = buffers
        self._buffer = buffers.take(size_bytes)
        self._begin = self._end = len(header)
        self._buffer[: self._end] = header
        self._has_last = False

    def add(self, piece: bytes | memoryview) -> None:
        for content in self._frames.add(piece):
            self._seal(content, last=False)

    def _seal(self, content: bytes | memoryview, *, last: bool) -> None:
        target = self._buffer[self._end : self._end + len(content) + TAG_BYTES]
        self._cipher.seal_into(target, self._number, content, last=last)
        self._number, self._end = self._number + 1, self._end + len(target)

    def put(self) -> None:
        self._seal(self._frames.last(), last=True)
        self._has_last = True
        if self._end != len(self._buffer):
            raise BrokenInvariant(f"{self.name} was to be of another size")
        # Whatever joins pieces, or writes them, takes a view as well.
        self._store.put(self.name, cast(Iterable[bytes], (self._buffer,)))

    def content_from(self, start: int) -> Iterator[bytes | memoryview]:
        place = self._store.locate(self.name)
        first, skipped = divmod(start, FRAME_BYTES)
        for number in range(min(first, self._number), self._number):
            at = self._begin + number * SEALED_FRAME_BYTES
            stored = self._buffer[at : min(at + SEALED_FRAME_BYTES, self._end)]
            is_last = self._has_last and number == self._number - 1
            content = memoryview(self._cipher.open(number, stored, place, last=is_last))
            yield content[skipped:]
            skipped = 0
        skipped += max(0, first - self._number) * FRAME_BYTES
        for piece in self._frames.waiting:
            yield memoryview(piece)[skipped:]
            skipped = max(0, skipped - len(piece))

    def close(self) -> None:
        buffer, self._buffer = self._buffer, memoryview(b"")
        if buffer:
            self._buffers.give_back(buffer)


class Buffers:
    """Memory for objects that are sealed one after the other: to have it made anew costs more than to seal them."""

    def __init__(self) -> None:
        self._spare: memoryview | None = None
        self._lock = Lock()

    def take(self, size_bytes: int) -> memoryview:
        with self._lock:
            spare, self._spare = self._spare, None
        return spare if spare is not None and len(spare) == size_bytes else aligned_buffer(size_bytes)

    def give_back(self, buffer: memoryview) -> None:
        with self._lock:
            self._spare = buffer
