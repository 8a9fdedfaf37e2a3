"""Threads that write the files of a tree: what they have done so far, and their common end when one of them fails."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from pgwal.budget import FILES_UNDER_WAY, OPEN_FILES, OTHER_OPEN_FILES
from pgwal.engine.ordered_map import ordered_map
from pgwal.errors import PgwalError

_File = TypeVar("_File")
_Written = TypeVar("_Written")


class WritingThreads:
    """Has ``jobs`` threads write files; the counts are of all threads, sizes in bytes.

    ``on_progress`` is told how much of ``total_bytes`` has been written.
    """

    def __init__(self, jobs: int, total_bytes: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.jobs = jobs
        self.file_count = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.bytes_kept = 0
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._stopping = False
        self._error: BaseException | None = None

    def write_all(self, write: Callable[[_File], _Written], files: Iterable[_File]) -> Iterator[_Written]:
        """Write files, and yield what each gave, in order, when it is there; raises the first error of any."""

        def write_or_stop(file: _File) -> _Written:
            return self._write_or_stop(write, file)

        ahead = self.jobs * FILES_UNDER_WAY
        with (
            ThreadPoolExecutor(self.jobs) as pool,
            closing(ordered_map(pool, write_or_stop, files, ahead=ahead)) as written,
        ):
            try:
                yield from written
            except _Stopped as stopped:
                assert self._error is not None
                raise self._error from stopped
            finally:
                self._stopping = True
        self._stopping = False

    def count(self, *, read: int = 0, written: int = 0, kept: int = 0) -> None:
        """Count what a thread has done, or found done; ends it where another one has failed."""
        if self._stopping:
            raise _Stopped("another file could not be written")
        with self._lock:
            self.bytes_read += read
            self.bytes_written += written
            self.bytes_kept += kept
            if self._on_progress is not None and written + kept:
                self._on_progress(min(self.bytes_written + self.bytes_kept, self._total_bytes), self._total_bytes)

    def count_file(self) -> None:
        """Count a file that is there."""
        with self._lock:
            self.file_count += 1

    def files_per_thread(self) -> int:
        """Return how many files a thread may hold open: chains may be longer than a process may open files."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most == resource.RLIM_INFINITY:
            return OPEN_FILES
        return max(2, min(OPEN_FILES, (most - OTHER_OPEN_FILES) // self.jobs))

    def _write_or_stop(self, write: Callable[[_File], _Written], file: _File) -> _Written:
        if self._stopping:
            raise _Stopped("another file could not be written")
        try:
            return write(file)
        except _Stopped:
            raise
        except BaseException as error:
            # At once: the file that is waited for may be large.
            with self._lock:
                self._error = self._error or error
            self._stopping = True
            raise


class _Stopped(PgwalError):
    """Ends a thread when another one has failed."""
