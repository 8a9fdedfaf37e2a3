"""The WAL of a repository, laid out as pg_receivewal does: segments, ``.partial`` ones and history files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from pgwal.errors import ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.layout import PARTIAL_SUFFIX, WAL_DIRECTORY
from pgwal.repository.store import Appender, Store
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name

_READ_SIZE = 1 << 20


class ArchivedSegment(NamedTuple):
    """A segment file; one that is not ``complete`` holds valid WAL up to some position inside."""

    timeline_id: int
    segment_no: int
    complete: bool


class WalArchive:
    """Reads and writes ``wal/`` of a repository."""

    def __init__(self, store: Store, geometry: WalGeometry) -> None:
        self.geometry = geometry
        self._store = store

    def segments(self) -> list[ArchivedSegment]:
        """Return the segments, by timeline and number; a complete one hides a partial one of the same name."""
        found: dict[tuple[int, int], bool] = {}
        for name, size_bytes in self._store.list(WAL_DIRECTORY):
            base = name.removesuffix(PARTIAL_SUFFIX)
            if is_segment_name(base) and size_bytes == self.geometry.segment_size:
                key = self.geometry.parse_file_name(base)
                found[key] = found.get(key, False) or name == base
        return [ArchivedSegment(*key, complete) for key, complete in sorted(found.items())]

    def resume_point(self) -> tuple[int, Lsn] | None:
        """Return (timeline, LSN) from which to receive on, as pg_receivewal would: a segment start."""
        segments = self.segments()
        if not segments:
            return None
        newest = max(segments, key=lambda s: (s.segment_no, s.timeline_id, s.complete))
        number = newest.segment_no + 1 if newest.complete else newest.segment_no
        return newest.timeline_id, self.geometry.segment_start(number)

    def is_complete(self, timeline_id: int, segment_no: int) -> bool:
        return self._store.exists(self._name(timeline_id, segment_no))

    def read(self, timeline_id: int, start: Lsn) -> Iterator[bytes]:
        """Yield the bytes from the start of ``start``'s page on, to the end of the last consecutive segment.

        The last segment may be a partial one: zeros or old WAL follow what is valid in it.
        """
        position = start - start % WAL_PAGE_SIZE
        while True:
            segment_no, offset = divmod(position, self.geometry.segment_size)
            try:
                yield from self._read_segment(timeline_id, segment_no, offset)
            except ObjectNotFound:
                return
            position = (segment_no + 1) * self.geometry.segment_size

    def read_file(self, name: str) -> bytes:
        """Return a segment or history file as the server wants it back; a partial segment if there is no whole one.

        Raises ObjectNotFound.
        """
        path = f"{WAL_DIRECTORY}/{name}"
        if not is_segment_name(name):
            return self._store.read(path)
        with self._open_segment(path) as file:
            content = file.read()
        if len(content) != self.geometry.segment_size:
            raise RepositoryError(
                f"{path} has {len(content)} bytes, a WAL segment has {self.geometry.segment_size}",
                hint="Replace it by a whole copy of the segment, if another archive holds one.",
            )
        return content

    def history(self, timeline_id: int) -> TimelineHistory:
        """Return a timeline's history; raises ObjectNotFound when its file is not there."""
        if timeline_id == 1:
            return TimelineHistory(1)
        content = self._store.read(f"{WAL_DIRECTORY}/{history_file_name(timeline_id)}")
        return TimelineHistory.decode(timeline_id, content)

    def has_history(self, timeline_id: int) -> bool:
        return timeline_id == 1 or self._store.exists(f"{WAL_DIRECTORY}/{history_file_name(timeline_id)}")

    def write_history(self, timeline_id: int, content: bytes) -> None:
        TimelineHistory.decode(timeline_id, content)
        self._store.write(f"{WAL_DIRECTORY}/{history_file_name(timeline_id)}", content)

    def _name(self, timeline_id: int, segment_no: int) -> str:
        return f"{WAL_DIRECTORY}/{self.geometry.file_name(timeline_id, segment_no)}"

    def _read_segment(self, timeline_id: int, segment_no: int, offset: int) -> Iterator[bytes]:
        with self._open_segment(self._name(timeline_id, segment_no)) as file:
            file.seek(offset)
            while data := file.read(_READ_SIZE):
                yield data

    def _open_segment(self, name: str) -> BinaryIO:
        """Open a segment, complete or partial; raises ObjectNotFound when there is neither."""
        for path in (name, name + PARTIAL_SUFFIX):
            with suppress(ObjectNotFound):
                return self._store.open(path)
        return self._store.open(name)  # completed between the two


class WalWriter:
    """Writes received WAL of one timeline into segments, from a segment start on.

    ``written_lsn`` is the end of what was written, ``flushed_lsn`` of what is durable.
    """

    def __init__(self, store: Store, geometry: WalGeometry, timeline_id: int, start: Lsn) -> None:
        assert start % geometry.segment_size == 0
        self.written_lsn = start
        self.flushed_lsn = start
        self._store = store
        self._geometry = geometry
        self._timeline_id = timeline_id
        self._segment: Appender | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data`` at ``written_lsn``; a segment that gets full is synced and renamed."""
        view = memoryview(data)
        while view:
            offset = self.written_lsn % self._geometry.segment_size
            part = view[: self._geometry.segment_size - offset]
            self._open_segment().write(offset, part)
            self.written_lsn = Lsn(self.written_lsn + len(part))
            view = view[len(part) :]
            if self.written_lsn % self._geometry.segment_size == 0:
                self._complete_segment()

    def sync(self) -> None:
        """Make all that was written durable."""
        if self._segment is not None and self.flushed_lsn < self.written_lsn:
            self._segment.sync()
            self.flushed_lsn = self.written_lsn

    def close(self) -> None:
        """Sync and close; a segment that is not full stays partial."""
        try:
            self.sync()
        finally:
            if self._segment is not None:
                self._segment.close()
                self._segment = None

    def _open_segment(self) -> Appender:
        if self._segment is None:
            segment_no = self._geometry.segment_no(self.written_lsn)
            name = f"{WAL_DIRECTORY}/{self._geometry.file_name(self._timeline_id, segment_no)}{PARTIAL_SUFFIX}"
            self._segment = self._store.preallocate(name, self._geometry.segment_size)
        return self._segment

    def _complete_segment(self) -> None:
        assert self._segment is not None
        segment_no = self._geometry.last_segment_no(self.written_lsn)
        self._segment.rename(self._geometry.file_name(self._timeline_id, segment_no))
        self._segment = None
        self.flushed_lsn = self.written_lsn
