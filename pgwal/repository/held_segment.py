"""A WAL segment that is held in memory while it is received, and stored from there when it is whole.

The spool has of it what had to be durable before that: of WAL that arrives at full speed, next to nothing, so that it
is written once, where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from pgwal.errors import BrokenInvariant
from pgwal.repository.spool import Appender, Spool
from pgwal.repository.store import ObjectSealer
from pgwal.repository.wal_file_name import split_segment_name


class WholeSegments(Protocol):
    """Where segments go that were held."""

    def sealer(self, name: str) -> ObjectSealer | None:
        """Return what seals a segment while it is received; None where that is not all that is done to it."""

    def store_whole(self, name: str, content: Sequence[bytes | memoryview], sealed: ObjectSealer | None) -> bool:
        """Store a segment by its name, durably, where it belongs; False where that cannot be now.

        ``sealed`` has all of it too, if there is one.
        """


class HeldSegment:
    """See pgwal.repository.spool.Appender: for a segment that is not there yet, and is written from its start on."""

    is_held = True

    def __init__(self, spool: Spool, name: str, size_bytes: int, segments: WholeSegments) -> None:
        self._spool = spool
        self._name = name
        self._size_bytes = size_bytes
        self._segments = segments
        self._sealer = segments.sealer(split_segment_name(name.rpartition("/")[2])[0])
        self._pieces: list[bytes | memoryview] = []
        self._end = 0
        self._file: Appender | None = None
        self._written = 0
        """How many of the pieces are in the file."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset != self._end or offset + len(data) > self._size_bytes:
            raise BrokenInvariant(f"{self._name} is written from its start to its end")
        self._pieces.append(data)
        if self._sealer is not None:
            # Here, where it was just received, rather than beside whoever receives the next: both would wait in turns.
            self._sealer.add(data)
        self._end += len(data)

    def clear_behind(self, offset: int) -> None:
        pass  # Nobody has written there.

    def sync(self) -> None:
        self._write_all().sync()

    def _write_all(self) -> Appender:
        if self._file is None:
            self._file = self._spool.preallocate(self._name, self._size_bytes)
        position = self._end - sum(map(len, self._pieces[self._written :]))
        for piece in self._pieces[self._written :]:
            self._file.write(position, piece)
            position += len(piece)
            self._written += 1
        return self._file

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        if self._end == self._size_bytes and self._segments.store_whole(name, self._pieces, self._sealer):
            self.close()
        else:
            self._write_all().rename(name, is_read_soon=is_read_soon)

    def pieces(self) -> Iterator[bytes]:
        return map(bytes, self._pieces)

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._pieces, self._sealer = [], None
