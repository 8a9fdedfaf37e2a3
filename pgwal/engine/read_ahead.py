"""Read WAL ahead of whoever looks at it: the disk and the scanner work at the same time."""

from __future__ import annotations

from collections.abc import Generator
from itertools import cycle
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING

from pgwal.aligned_buffer import aligned_buffer
from pgwal.budget import PART_BYTES, PARTS_AHEAD
from pgwal.repository.wal_directory import WalParts

if TYPE_CHECKING:
    from pgwal.repository.segment_part import SegmentPart


def read_ahead(parts: WalParts) -> Generator[tuple[bytes | SegmentPart, bytes | memoryview], None, None]:
    """Yield parts with what they hold, reading the next ones while the caller looks at one.

    Up to ``PARTS_AHEAD`` have been read, the one that the caller has among them, and one more is being read.
    """
    ready: SimpleQueue[tuple[bytes | SegmentPart, bytes | memoryview] | BaseException | None] = SimpleQueue()
    room = Semaphore(PARTS_AHEAD)
    abandoned = Event()
    # Memory that is allocated anew for each part costs as much as a third of reading it.
    buffers = cycle([aligned_buffer(PART_BYTES) for _ in range(PARTS_AHEAD + 1)])

    def read() -> None:
        try:
            for part in parts:
                data = part if isinstance(part, bytes) else part.load(next(buffers))
                room.acquire()
                if abandoned.is_set():
                    return
                ready.put((part, data))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    # A daemon: an interruption may come before there is anybody to tell it that it is abandoned.
    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        while (read_part := ready.get()) is not None:
            if isinstance(read_part, BaseException):
                raise read_part
            yield read_part
            room.release()
    finally:
        abandoned.set()
        room.release()
        reader.join()
