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
