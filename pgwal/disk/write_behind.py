"""Write a file front to back, with the disk at work while the next bytes are made."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from pgwal.disk.new_file import NewFile, write_buffer


class WriteBehind:
    """Two buffers, of which one is filled while a thread of ``pool`` writes the other; for one thread's files."""

    def __init__(self, buffer: memoryview, pool: ThreadPoolExecutor) -> None:
        """``buffer`` is a ``write_buffer`` that nothing else uses while a file is written."""
        self._buffers = (buffer, write_buffer())
        self._pool = pool

    def write(self, file: NewFile, chunks: Iterable[bytes]) -> int:
        """Write all chunks and return their size in bytes; nothing is under way any more when this ends.

        Raises TargetError for what the file system refuses, and what ``chunks`` raises.
        """
        filling, next_one = self._buffers
        under_way: Future[None] | None = None
        size_bytes = filled = 0
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    taken = rest[: len(filling) - filled]
                    filling[filled : filled + len(taken)] = taken
                    rest, filled = rest[len(taken) :], filled + len(taken)
                    if filled == len(filling):
                        file.go_direct()
                        if under_way is not None:
                            under_way.result()
                        under_way = self._submit(file, filling, size_bytes)
                        filling, next_one = next_one, filling
                        size_bytes, filled = size_bytes + filled, 0
        finally:
            # Not even after an error may the file be closed, or the buffer filled again, before.
            if under_way is not None:
                wait((under_way,))
        if under_way is not None:
            under_way.result()
        file.write(filling[:filled], size_bytes)
        return size_bytes + filled

    def _submit(self, file: NewFile, data: memoryview, offset: int) -> Future[None]:
        try:
            return self._pool.submit(file.write, data, offset)
        except RuntimeError:
            # Without a new thread for it, another one may have taken it all the same, whom nobody could wait for.
            self._pool.shutdown(cancel_futures=True)
            raise
