"""The WAL of a repository, laid out as pg_receivewal does: segments, ``.partial`` ones and history files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pgwal.budget import MOST_LOOKS, PART_BYTES, SCAN_BYTES
from pgwal.errors import FormatError, ObjectNotFound, UnsupportedVersion
from pgwal.lsn import Lsn
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.store import ObjectStore, StoredObject
from pgwal.repository.wal_directory import WalDirectory, WalSegmentFile
from pgwal.segment import SHORT_PAGE_HEADER_SIZE, WAL_PAGE_SIZE, WalGeometry, is_history_name, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name


class _Copy(NamedTuple):
    """A segment of a later timeline, which begins with WAL of an earlier one up to ``end``."""

    segment: WalSegmentFile
    end: Lsn


class WalArchive(WalDirectory):
    """``wal/`` of a repository."""

    def __init__(self, store: ObjectStore, geometry: WalGeometry) -> None:
        super().__init__(store, WAL_DIRECTORY, geometry)

    def segments(self) -> list[WalSegmentFile]:
        """As WalDirectory's, and right while a receiver completes and compresses segments.

        A file that is renamed during a look at the directory may be missed under either name; two looks together
        do not miss it.
        """
        first, second = super().segments(), super().segments()
        found = {(segment.timeline_id, segment.segment_no): segment for segment in (*first, *second)}
        return [found[key] for key in sorted(found)]

    def first_missing(self, timeline_id: int, numbers: Sequence[int], *, whole: Collection[int] = ()) -> int | None:
        """Return the first of some segments of a timeline that is not there, or not whole though it is to be.

        Looks again where one is missing, for the same reason as ``segments``.
        """
        there = {number for number in numbers if self._is_known_whole(timeline_id, number)}
        missing = next((number for number in numbers if number not in there), None)
        for _ in range(2):
            if missing is None:
                break
            for segment in self._segments_between(timeline_id, numbers):
                if segment.timeline_id == timeline_id and (segment.complete or segment.segment_no not in whole):
                    there.add(segment.segment_no)
            missing = next((number for number in numbers if number not in there), None)
        return missing

    def behind(self, timeline_id: int, segment_no: int) -> tuple[list[WalSegmentFile], list[TimelineHistory]]:
        """Return the segments behind one on its timeline and on later ones, and the histories of these; maybe more."""
        if self._has_files:
            return self.segments(), self.histories()
        # One look is enough: what is stored has its next name before it loses the last one.
        before = self._path(self.geometry.file_name(timeline_id, segment_no))
        found = self._store.list(self._path(""), after=before)
        listed = sorted(StoredObject(path.rpartition("/")[2], size_bytes) for path, size_bytes in found)
        histories = [self.history(int(name[:8], 16)) for name, size in listed if is_history_name(name) and size]
        with suppress(ObjectNotFound):
            histories.append(self.history(timeline_id))
        return self._segments_of(listed), histories

    def resume_point(self) -> tuple[int, Lsn] | None:
        """Return (timeline, LSN) from which to receive on: behind the newest whole segment of the newest timeline."""
        newest = max(self.segments(), key=lambda s: (s.timeline_id, s.segment_no, s.complete), default=None)
        if newest is None:
            return None
        return newest.timeline_id, self.geometry.segment_start(newest.segment_no + newest.complete)

    def end_of_records(self, segment: WalSegmentFile, *in_front: WalSegmentFile) -> tuple[Lsn, bool]:
        """Return where the last whole record that begins in a segment ends, and whether anything but a record follows.

        ``in_front`` are the segments before it from which a record reaches into it: only with them it is known whether
        that one is whole.  Without them its end counts as it stands.
        Raises FormatError when a file is damaged, ObjectNotFound when it is gone.
        """
        for _ in range(MOST_LOOKS):
            # What is no open file is gone between two reads when a receiver has stored more of the segment.
            with suppress(ObjectNotFound):
                return self._end_of_records(segment, *in_front)
        return self._end_of_records(segment, *in_front)

    def _end_of_records(self, segment: WalSegmentFile, *in_front: WalSegmentFile) -> tuple[Lsn, bool]:
        # Not above: a server waits for each segment that it fetches, and that needs none of it.
        from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner

        start = self.geometry.segment_start((*in_front, segment)[0].segment_no)
        scanner = WalScanner(self.geometry.segment_size, start, derive_map_blocks=False)
        event = NEED_DATA
        for file in (*in_front, segment):
            with self.open_segment(file) as reader:
                while event != END_OF_WAL and (data := reader.read(SCAN_BYTES)):
                    try:
                        scanner.feed(data)
                        while (event := scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                            pass
                        scanner.take_blocks()
                    except UnsupportedVersion:
                        # The first page is none.
                        return Lsn(scanner.position), True
                    except FormatError:
                        # Its CRC is right, so it is a record, and what follows cannot be told from records.
                        return self.geometry.segment_start(segment.segment_no + 1), False
        return Lsn(scanner.position), event == END_OF_WAL

    def continued_size(self, segment: WalSegmentFile) -> int:
        """Return how many bytes of a record from before a segment begins with, all pages' headers left out."""
        from pgwal.wal.layout import PAGE_FIRST_IS_CONTRECORD, ShortPageHeader

        with self.open_segment(segment) as reader:
            content = reader.read(SHORT_PAGE_HEADER_SIZE)
        if len(content) < SHORT_PAGE_HEADER_SIZE:
            return 0
        header = ShortPageHeader.parse(content)
        return int(header.remaining_length) if header.info & PAGE_FIRST_IS_CONTRECORD else 0

    def read(self, timeline_id: int, start: Lsn) -> Iterator[bytes]:
        """As WalDirectory's.  A timeline's last segment is read from the copy with which a later timeline begins, where
        its own file is gone, or has less.
        """
        position = Lsn(start - start % WAL_PAGE_SIZE)
        # Where each look is a request: as long as its own are whole, it need not be known where the timeline ends.
        while not self._has_files and self.is_complete(timeline_id, self.geometry.segment_no(position)):
            segment_no, offset = divmod(position, self.geometry.segment_size)
            with self._open(self.geometry.file_name(timeline_id, segment_no)) as file:
                yield from self._read_segment(file, offset)
            position = self.geometry.segment_start(segment_no + 1)
        copy = self._copy_of_last_segment(timeline_id)
        if copy is None or self.geometry.segment_no(position) > copy.segment.segment_no:
            yield from super().read(timeline_id, max(start, position))
            return
        copy_start = self.geometry.segment_start(copy.segment.segment_no)
        if position < copy_start:
            for data in super().read(timeline_id, position):
                data = data[: copy_start - position]
                if data:
                    yield data
                position = Lsn(position + len(data))
                if position == copy_start:
                    break
            else:
                return
        with self.open_segment(copy.segment) as reader:
            reader.skip(position - copy_start)
            while size := min(PART_BYTES, copy_start + self.geometry.segment_size - position):
                data = reader.read(size)[: max(0, copy.end - position)]
                # As the timeline's own file would be.
                yield data.ljust(size, b"\0")
                position = Lsn(position + size)

    def _copy_of_last_segment(self, timeline_id: int) -> _Copy | None:
        """Return where a timeline's last segment is to be read from, None when that is its own file."""
        ends = {history.timeline_id: history.end_of(timeline_id) for history in self.histories()}
        if not any(ends.values()):
            return None
        segments = {(segment.timeline_id, segment.segment_no): segment for segment in self.segments()}
        copies = [
            _Copy(segments[follower, number], end)
            for follower, end in ends.items()
            if end and (follower, number := self.geometry.last_segment_no(end)) in segments
        ]
        if not copies:
            return None
        copy = max(copies, key=lambda copy: (copy.end, copy.segment.complete))
        own = segments.get((timeline_id, copy.segment.segment_no))
        place = self.geometry.first_record_position
        if own is not None and (own.complete or place(self.end_of_records(own)[0]) >= place(copy.end)):
            return None
        return copy

    def read_file(self, name: str) -> bytes:
        """Return a segment or history file as the server wants it back; a partial segment if there is no whole one.

        Raises ObjectNotFound, or FormatError when a segment is damaged.
        """
        return self.read_segment(name) if is_segment_name(name) else self.history_content(int(name[:8], 16))

    def has_history(self, timeline_id: int) -> bool:
        """Tell whether a timeline's history is known; an empty file says nothing."""
        if timeline_id == 1:
            return True
        try:
            return self._store.size(self._path(history_file_name(timeline_id))) > 0
        except ObjectNotFound:
            return False

    def write_history(self, timeline_id: int, content: bytes) -> None:
        TimelineHistory.decode(timeline_id, content)
        self._store.put(self._path(history_file_name(timeline_id)), content, replace=True)
