"""The WAL of a repository, laid out as pg_receivewal does: segments, ``.partial`` ones and history files."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pgwal.lsn import Lsn
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.store import Appender, Store
from pgwal.repository.wal_directory import PARTIAL_SUFFIX, WalDirectory, WalSegmentFile
from pgwal.segment import WalGeometry, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name

_MAX_WAITING_BYTES = 16 << 20


class WalArchive(WalDirectory):
    """``wal/`` of a repository."""

    def __init__(self, store: Store, geometry: WalGeometry) -> None:
        super().__init__(store, WAL_DIRECTORY, geometry)

    def segments(self) -> list[WalSegmentFile]:
        """As WalDirectory's, and right while a receiver completes and compresses segments.

        A file that is renamed during a look at the directory may be missed under either name; two looks together
        do not miss it.
        """
        first, second = super().segments(), super().segments()
        found = {(segment.timeline_id, segment.segment_no): segment for segment in (*first, *second)}
        return [found[key] for key in sorted(found)]

    def resume_point(self, history: TimelineHistory | None = None) -> tuple[int, Lsn] | None:
        """Return (timeline, LSN) from which to receive on, as pg_receivewal would: a segment start.

        With a ``history``, only what lies on it counts: not what was written to a timeline after it was left.
        """
        segments = self.segments()
        if history is not None:
            segments = [segment for segment in segments if self._is_on(history, segment)]
        if not segments:
            return None
        newest = max(segments, key=lambda s: (s.segment_no, s.timeline_id, s.complete))
        number = newest.segment_no + 1 if newest.complete else newest.segment_no
        start = self.geometry.segment_start(number)
        if history is not None:
            switch = next((lsn for number, lsn in history.switches if number == newest.timeline_id), None)
            if switch is not None and start > switch:
                # Whole, with the switch in it: the next timeline begins with a copy of it up to there.
                start = self.geometry.segment_start(self.geometry.segment_no(switch))
                return history.timeline_at(switch), start
        return newest.timeline_id, start

    def _is_on(self, history: TimelineHistory, segment: WalSegmentFile) -> bool:
        """Tell whether a history goes through the start of a segment."""
        start = self.geometry.segment_start(segment.segment_no)
        left = {switch.timeline_id: switch.switch_lsn for switch in history.switches}
        if segment.timeline_id in left:
            return start < left[segment.timeline_id]
        return segment.timeline_id == history.timeline_id

    def read_file(self, name: str) -> bytes:
        """Return a segment or history file as the server wants it back; a partial segment if there is no whole one.

        Raises ObjectNotFound, or FormatError when a segment is damaged.
        """
        return self.read_segment(name) if is_segment_name(name) else self._store.read(self._path(name))

    def has_history(self, timeline_id: int) -> bool:
        return timeline_id == 1 or self._store.exists(self._path(history_file_name(timeline_id)))

    def write_history(self, timeline_id: int, content: bytes) -> None:
        TimelineHistory.decode(timeline_id, content)
        self._store.write(self._path(history_file_name(timeline_id)), content)


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
    ``flushed_lsn`` of what is durable.  ``synchronous`` says that it is synced often, because somebody waits for it.
    After an error of the storage nothing may be done but close it: what a failed sync has not made durable, the next
    one may pass over in silence.
    """

    def __init__(
        self,
        store: Store,
        geometry: WalGeometry,
        timeline_id: int,
        start: Lsn,
        observer: WalObserver,
        *,
        synchronous: bool,
    ) -> None:
        assert start % geometry.segment_size == 0
        self.written_lsn = start
        self.flushed_lsn = start
        self._store = store
        self._geometry = geometry
        self._timeline_id = timeline_id
        self._observer = observer
        self._synchronous = synchronous
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
            name = f"{WAL_DIRECTORY}/{self._segment_name(self.written_lsn)}{PARTIAL_SUFFIX}"
            self._segment = self._store.preallocate(name, self._geometry.segment_size, zeroed=self._synchronous)
        return self._segment

    def _complete_segment(self) -> None:
        assert self._segment is not None
        segment, self._segment = self._segment, None
        self._completing = self._completer.submit(_complete, segment, self._segment_name(self.written_lsn - 1))

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


def _complete(segment: Appender, name: str) -> float:
    """Make a full segment durable under its final name, and return how many seconds that took."""
    started_s = time.monotonic()
    try:
        segment.rename(name)
    finally:
        segment.close()
    return time.monotonic() - started_s
