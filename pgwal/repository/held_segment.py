"""A WAL segment that is held in memory while it is received, and stored from there when it is whole.

The spool has of it what had to be durable before that: of WAL that arrives at full speed, next to nothing, so that it
is written once, where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pgwal.errors import BrokenInvariant
from pgwal.repository.spool import Appender, Spool
from pgwal.repository.store import ObjectSealer
from pgwal.repository.wal_file_name import split_segment_name


class WholeSegments(Protocol):
    """Where segments go that were held."""

    def sealer(self, name: str) -> ObjectSealer | None:
        """Return what seals a segment while it is received; None where that is not all that is done to it."""

    def store_whole(self, name: str, content: HeldPieces | ObjectSealer) -> bool:
        """Store a segment by its name, durably, where it belongs; False where that cannot be now."""


class HeldPieces:
    """What was received of a segment, as it came."""

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview] = []

    def add(self, piece: bytes | memoryview) -> None:
        self.pieces.append(piece)

    def content_from(self, start: int) -> Iterator[bytes | memoryview]:
        """Yield it from a byte offset on."""
        for piece in self.pieces:
            if start < len(piece):
                yield memoryview(piece)[start:]
            start = max(0, start - len(piece))

    def close(self) -> None:
        self.pieces = []


class HeldSegment:
    """See pgwal.repository.spool.Appender: for a segment that is not there yet, and is written from its start on.

    What is only to be sealed is so at once, and held in that form alone: what was just received is in the caches of the
    processor still, and what follows is received into the memory that it leaves.
    """

    is_held = True

    def __init__(self, spool: Spool, name: str, size_bytes: int, segments: WholeSegments) -> None:
        self._spool = spool
        self._name = name
        self._size_bytes = size_bytes
        self._segments = segments
        sealer = segments.sealer(split_segment_name(name.rpartition("/")[2])[0])
        self._content = HeldPieces() if sealer is None else sealer
        self._end = 0
        self._file: Appender | None = None
        self._written = 0
        """How many bytes are in the file."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset != self._end or offset + len(data) > self._size_bytes:
            raise BrokenInvariant(f"{self._name} is written from its start to its end")
        self._content.add(data)
        self._end += len(data)

    def clear_behind(self, offset: int) -> None:
        pass  # Nobody has written there.

    def sync(self) -> None:
        self._write_all().sync()

    def _write_all(self) -> Appender:
        if self._file is None:
            self._file = self._spool.preallocate(self._name, self._size_bytes)
        for piece in self._content.content_from(self._written):
            self._file.write(self._written, piece)
            self._written += len(piece)
        return self._file

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        if self._end == self._size_bytes and self._segments.store_whole(name, self._content):
            self.close()
        else:
            self._write_all().rename(name, is_read_soon=is_read_soon)

    def pieces(self) -> Iterator[bytes]:
        return map(bytes, self._content.content_from(0))

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._content.close()
