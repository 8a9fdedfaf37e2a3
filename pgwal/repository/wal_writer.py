"""Write received WAL into the segments of a repository."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, Protocol

from pgwal.budget import WAITING_WAL_BYTES
from pgwal.errors import BrokenInvariant, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.archived_segment import ArchivedSegment
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.place import Place
from pgwal.repository.spool import Appender
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX
from pgwal.segment import WalGeometry


class WalObserver(Protocol):
    """Who wants to know what a WalWriter does."""

    def segment_completed(self, name: str) -> None:
        """Called when a segment is whole, durable, and has its final name."""

    def wal_synced(self, seconds: float) -> None:
        """Called after each sync with the time that it took."""


class _Completion(NamedTuple):
    """The segment that is being completed."""

    name: str
    end: Lsn
    was_archived: bool
    """Whether it had been there whole before."""
    sync_s: Future[float]
    """How many seconds it took."""


class WalWriter:
    """Writes received WAL of one timeline into segments, from a segment start on.

    A segment that is full is completed by a thread, and what follows waits in memory, as it came or, where segments are
    held there, as the next segment: of that nothing is stored before, so that at any time only the last one is partial.
    ``flushed_lsn`` is the end of what is durable.
    ``synchronous`` says that it is synced often, because somebody waits for it, ``is_read_soon`` that somebody reads
    each segment when it is complete.
    A segment that is there whole is never written again: an archive_command, or an earlier receiver, has brought it,
    and what is received must be the same.  HistoryMismatch says that it is not.
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
        self.flushed_lsn = start
        self._end = start
        self._is_held = False
        self._archive = WalArchive(place.store, geometry)
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
        self._completing: _Completion | None = None

    @property
    def written_lsn(self) -> Lsn:
        """The end of what was written, and outlives this process."""
        return self.flushed_lsn if self._is_held else self._end

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change any more; a segment that gets full is synced and renamed."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._completing is not None and self._completing.sync_s.done():
            self._await_completion()
        if self._can_write() or self._waiting_bytes >= WAITING_WAL_BYTES:
            self._write_waiting()

    def clear_rest(self) -> None:
        """Write zeros over what an earlier writer left behind what is written of the segment that is open now."""
        self._write_waiting()
        self._open_segment().clear_behind(self._end % self._geometry.segment_size)

    def sync(self, *, may_hold: bool = False) -> None:
        """Write all that waits, and make it durable; where a segment is held in memory it may stay there alone."""
        self._write_waiting()
        self._await_completion()
        if self._segment is not None and self.flushed_lsn < self._end and not (may_hold and self._is_held):
            started_s = time.monotonic()
            self._segment.sync()
            self.flushed_lsn = self._end
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
                offset = self._end % self._geometry.segment_size
                part = view[: self._geometry.segment_size - offset]
                self._open_segment().write(offset, part)
                self._end = Lsn(self._end + len(part))
                view = view[len(part) :]
                if self._end % self._geometry.segment_size == 0:
                    self._complete_segment()

    def _open_segment(self) -> Appender:
        if self._segment is None:
            if not self._can_write():
                self._await_completion()
            segment = self._segment_name(self._end)
            if (archived := self._archived(segment)) is not None:
                self._await_completion()
                self._segment = archived
            else:
                self._segment = self._spool.preallocate(
                    self._partial_path(segment), self._geometry.segment_size, zeroed=self._synchronous
                )
            self._is_held = self._segment.is_held
        return self._segment

    def _can_write(self) -> bool:
        """Tell whether nothing is completed, or the next segment may be begun before that is."""
        if self._completing is None or self._segment is not None:
            return True
        if not self._is_held:
            return False
        path = self._partial_path(self._segment_name(self._end))
        return self._spool.holds(path, self._geometry.segment_size, zeroed=self._synchronous)

    def _partial_path(self, segment: str) -> str:
        return f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}"

    def _complete_segment(self) -> None:
        assert self._segment is not None
        self._await_completion()
        name = self._segment_name(self._end - 1)
        try:
            sync_s = self._completer.submit(self._complete, self._segment, name)
        except RuntimeError as error:
            raise RepositoryError(f"cannot complete WAL segment {name}: {error}") from error
        self._completing = _Completion(name, self._end, isinstance(self._segment, ArchivedSegment), sync_s)
        self._segment = None

    def _archived(self, name: str) -> ArchivedSegment | None:
        """Return a segment that is there whole, by a name that is durable; None where it is not."""
        if not self._archive.is_complete(*self._geometry.parse_file_name(name)):
            return None
        # Whoever has brought it may not have come to that.
        self._spool.settle(WAL_DIRECTORY)
        return ArchivedSegment(self._archive, name)

    def _complete(self, segment: Appender, name: str) -> float:
        """Make a full segment durable under its final name, and return how many seconds that took.

        Where an archive_command has brought it meanwhile, that one stays, if it is the same.
        """
        started_s = time.monotonic()
        try:
            if not isinstance(segment, ArchivedSegment) and (archived := self._archived(name)) is not None:
                with closing(archived):
                    archived.require_same(segment.pieces())
                segment.discard()
            else:
                segment.rename(name, is_read_soon=self._is_read_soon)
        finally:
            segment.close()
        return time.monotonic() - started_s

    def _await_completion(self) -> None:
        if self._completing is None:
            return
        completing, self._completing = self._completing, None
        sync_s = completing.sync_s.result()
        self.flushed_lsn = completing.end
        self._observer.wal_synced(sync_s)
        if not completing.was_archived:
            self._observer.segment_completed(completing.name)

    def _segment_name(self, lsn: int) -> str:
        return self._geometry.file_name(self._timeline_id, self._geometry.segment_no(lsn))
