"""Write received WAL into the segments of a repository."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pgwal.errors import BrokenInvariant, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.place import Place
from pgwal.repository.spool import Appender
from pgwal.repository.wal_file_name import COMPRESSION_SUFFIXES, PARTIAL_SUFFIX
from pgwal.segment import WalGeometry

_MAX_WAITING_BYTES = 16 << 20
"""What may wait in memory while a segment is completed."""


class WalObserver(Protocol):
    """Who wants to know what a WalWriter does."""

    def segment_completed(self, name: str) -> None:
        """Called when a segment is whole, durable, and has its final name."""

    def wal_synced(self, seconds: float) -> None:
        """Called after each sync with the time that it took."""


class WalWriter:
    """Writes received WAL of one timeline into segments, from a segment start on.

    A segment that is full is completed by a thread, and what follows waits in memory: the next segment is not begun
    before, so that at any time only the last one is partial.  ``written_lsn`` is the end of what was written,
    ``flushed_lsn`` of what is durable.  ``synchronous`` says that it is synced often, because somebody waits for it,
    ``is_read_soon`` that somebody reads each segment when it is complete.
    A segment that is there whole is never written again.
    After an error of the storage nothing may be done but close it: what a failed sync has not made durable, the next
    one may pass over in silence.
    """

    def __init__(
        self,
        place: Place,
        geometry: WalGeometry,
        timeline_id: int,
        start: Lsn,
        observer: WalObserver,
        *,
        synchronous: bool,
        is_read_soon: bool,
    ) -> None:
        if start % geometry.segment_size != 0:
            raise BrokenInvariant("WAL is written from the start of a segment")
        # What an earlier writer renamed counts as complete from here on, even if it failed before that was durable.
        place.spool.settle(WAL_DIRECTORY)
        self.written_lsn = start
        self.flushed_lsn = start
        self._store = place.store
        self._spool = place.spool
        self._geometry = geometry
        self._timeline_id = timeline_id
        self._observer = observer
        self._synchronous = synchronous
        self._is_read_soon = is_read_soon
        self._segment: Appender | None = None
        self._waiting: list[bytes | memoryview] = []
        self._waiting_bytes = 0
        self._completer = ThreadPoolExecutor(1, "complete-segment")
        self._completing: Future[float] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change any more; a segment that gets full is synced and renamed."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._completing is None or self._completing.done() or self._waiting_bytes >= _MAX_WAITING_BYTES:
            self._write_waiting()

    def clear_rest(self) -> None:
        """Write zeros over what an earlier writer left behind ``written_lsn`` of the segment that is written now."""
        self._write_waiting()
        self._open_segment().clear_behind(self.written_lsn % self._geometry.segment_size)

    def sync(self) -> None:
        """Write all that waits, and make it durable."""
        self._write_waiting()
        self._await_completion()
        if self._segment is not None and self.flushed_lsn < self.written_lsn:
            started_s = time.monotonic()
            self._segment.sync()
            self.flushed_lsn = self.written_lsn
            self._observer.wal_synced(time.monotonic() - started_s)

    def close(self) -> None:
        """Close, without a sync; a segment that is not full stays partial, and what waits is dropped."""
        self._completer.shutdown()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _write_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for data in waiting:
            view = memoryview(data)
            while view:
                offset = self.written_lsn % self._geometry.segment_size
                part = view[: self._geometry.segment_size - offset]
                self._open_segment().write(offset, part)
                self.written_lsn = Lsn(self.written_lsn + len(part))
                view = view[len(part) :]
                if self.written_lsn % self._geometry.segment_size == 0:
                    self._complete_segment()

    def _open_segment(self) -> Appender:
        self._await_completion()
        if self._segment is None:
            self._require_missing(self._segment_name(self.written_lsn))
            name = f"{WAL_DIRECTORY}/{self._segment_name(self.written_lsn)}{PARTIAL_SUFFIX}"
            self._segment = self._spool.preallocate(name, self._geometry.segment_size, zeroed=self._synchronous)
        return self._segment

    def _require_missing(self, name: str) -> None:
        """Raise RepositoryError for a segment that is here whole: whatever a server says, that one is not rewritten."""
        for suffix in COMPRESSION_SUFFIXES:
            if self._store.exists(f"{WAL_DIRECTORY}/{name}{suffix}"):
                raise RepositoryError(
                    f"the server sends WAL of segment {name} to be written, which is whole in the repository already:"
                    " nothing was overwritten",
                    hint="Check the server's timeline history files, and that the connection leads to one server.",
                )

    def _complete_segment(self) -> None:
        assert self._segment is not None
        name = self._segment_name(self.written_lsn - 1)
        try:
            self._completing = self._completer.submit(_complete, self._segment, name, is_read_soon=self._is_read_soon)
        except RuntimeError as error:
            raise RepositoryError(f"cannot complete WAL segment {name}: {error}") from error
        self._segment = None

    def _await_completion(self) -> None:
        if self._completing is None:
            return
        completing, self._completing = self._completing, None
        sync_s = completing.result()
        # Nothing has been written since.
        self.flushed_lsn = self.written_lsn
        self._observer.wal_synced(sync_s)
        self._observer.segment_completed(self._segment_name(self.written_lsn - 1))

    def _segment_name(self, lsn: int) -> str:
        return self._geometry.file_name(self._timeline_id, self._geometry.segment_no(lsn))


def _complete(segment: Appender, name: str, *, is_read_soon: bool) -> float:
    """Make a full segment durable under its final name, and return how many seconds that took."""
    started_s = time.monotonic()
    try:
        segment.rename(name, is_read_soon=is_read_soon)
    finally:
        segment.close()
    return time.monotonic() - started_s
