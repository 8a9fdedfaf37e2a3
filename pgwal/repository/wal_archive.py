"""The WAL of a repository, laid out as pg_receivewal does: segments, ``.partial`` ones and history files."""

from __future__ import annotations

from pgwal.lsn import Lsn
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.store import Store
from pgwal.repository.wal_directory import WalDirectory, WalSegmentFile
from pgwal.segment import WalGeometry, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name


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

    def resume_point(self) -> tuple[int, Lsn] | None:
        """Return (timeline, LSN) from which to receive on: behind the newest whole segment of the newest timeline."""
        newest = max(self.segments(), key=lambda s: (s.timeline_id, s.segment_no, s.complete), default=None)
        if newest is None:
            return None
        return newest.timeline_id, self.geometry.segment_start(newest.segment_no + newest.complete)

    def read_file(self, name: str) -> bytes:
        """Return a segment or history file as the server wants it back; a partial segment if there is no whole one.

        Raises ObjectNotFound, or FormatError when a segment is damaged.
        """
        return self.read_segment(name) if is_segment_name(name) else self._store.read(self._path(name))

    def has_history(self, timeline_id: int) -> bool:
        return timeline_id == 1 or self._store.exists(self._path(history_file_name(timeline_id)))

    def history_content(self, timeline_id: int) -> bytes:
        """Return the history file of a timeline as it is; raises ObjectNotFound."""
        return self._store.read(self._path(history_file_name(timeline_id)))

    def write_history(self, timeline_id: int, content: bytes) -> None:
        TimelineHistory.decode(timeline_id, content)
        self._store.write(self._path(history_file_name(timeline_id)), content)
