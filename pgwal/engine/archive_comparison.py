"""Hold WAL that is received again against what the archive has of the same positions.

Equal LSNs prove nothing: a server that was rolled back may write records of the same sizes anew.  So bytes are
compared, before any of them is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from pgwal.engine.start_point import NEW_HISTORY_HINT
from pgwal.errors import BrokenInvariant, HistoryMismatch
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_magic
from pgwal.repository.segment_reader import SegmentReader
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.segment import LONG_PAGE_HEADER_SIZE
from pgwal.segment import WAL_PAGE_SIZE as _PAGE
from pgwal.timeline import TimelineHistory


class _Copy(NamedTuple):
    """A segment file, read up to where WAL was compared last; it counts from ``begin`` up to ``end``.

    The header of its first page counts in any case: it says where ``begin`` is.
    """

    reader: SegmentReader
    begin: Lsn
    end: Lsn
    name: str


class ArchiveComparison:
    """Compares the WAL of one timeline, as it is received, with every file of the archive that holds some of it.

    Those are the timeline's own segments and, where it was begun within a segment, its ancestors', up to where
    ``history`` leaves them.  Of a segment that is not complete what counts is its whole records: a receiver that was
    killed may leave anything behind them, and of the record before the first one nobody can tell whether it is whole
    when its beginning is not here.  ``first_missing`` is the start of the first segment, from ``start`` on,
    that is not complete under the timeline's own name; ``end`` is up to where the archive has WAL of the timeline.
    """

    def __init__(self, archive: WalArchive, history: TimelineHistory, timeline_id: int, start: Lsn) -> None:
        self._archive = archive
        self._geometry = archive.geometry
        part = history.part_up_to(timeline_id)
        assert part is not None, "not on this history"
        self.history = part
        self._limit = history.end_of(timeline_id)
        self._segments = {(segment.timeline_id, segment.segment_no): segment for segment in archive.segments()}
        self._position = start
        self._copies: list[_Copy] = []
        self._opened = ExitStack()
        self.first_missing = self._first_missing(start)
        self.end = self._end(start)
        timelines = {timeline_id, *(switch.timeline_id for switch in part.switches)}
        numbers = [number for of_timeline, number in self._segments if of_timeline in timelines]
        self._last = archive.geometry.segment_start(max(numbers) + 1) if numbers else start

    @property
    def is_over(self) -> bool:
        """Whether the archive has nothing more to compare with."""
        return self._position >= self._last

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def compare(self, lsn: Lsn, data: memoryview | bytes) -> None:
        """Compare the WAL that follows what was compared before.

        Raises HistoryMismatch, which names the first byte that differs, FormatError for a damaged file.
        """
        if lsn != self._position:
            raise BrokenInvariant("WAL is compared in order")
        view = memoryview(data)
        while view:
            if self._position % self._geometry.segment_size == 0 or not self._copies:
                self._open_copies()
            left = self._geometry.segment_size - self._position % self._geometry.segment_size
            part = view[:left]
            for copy in self._copies:
                self._compare_part(copy, part)
            self._position = Lsn(self._position + len(part))
            view = view[len(part) :]

    # -- files of the archive ----------------------------------------------------------------------------------

    def _first_missing(self, start: Lsn) -> Lsn:
        number = self._geometry.segment_no(start)
        timeline_id = self.history.timeline_id
        while (segment := self._segments.get((timeline_id, number))) is not None and segment.complete:
            number += 1
        return self._geometry.segment_start(number)

    def _end(self, start: Lsn) -> Lsn:
        own = [segment for (timeline_id, _), segment in self._segments.items() if timeline_id == self._timeline_id]
        if not own:
            return start
        last = max(own, key=lambda segment: segment.segment_no)
        return max(start, self._end_of(last))

    @property
    def _timeline_id(self) -> int:
        return self.history.timeline_id

    def _end_of(self, segment: WalSegmentFile) -> Lsn:
        """Return up to where a segment file counts on the history."""
        end = self._geometry.segment_start(segment.segment_no + 1)
        limit = self._limit if segment.timeline_id == self._timeline_id else self.history.end_of(segment.timeline_id)
        if limit is not None:
            end = min(end, limit)
        if not segment.complete:
            end = min(end, self._archive.end_of_records(segment, *self._in_front_of(segment))[0])
        return end

    def _begin_of(self, segment: WalSegmentFile) -> Lsn:
        """Return from where on a segment file counts."""
        size = 0 if segment.complete else self._archive.continued_size(segment)
        if not size or self._in_front_of(segment):
            return self._geometry.segment_start(segment.segment_no)
        return self._geometry.position_behind(segment.segment_no, size)

    def _in_front_of(self, segment: WalSegmentFile) -> list[WalSegmentFile]:
        """Return the whole segments over which the record goes that reaches into a segment; none unless all are here.

        Its beginning may be whole while what follows it in the segment was lost with the power.
        """
        found: list[WalSegmentFile] = []
        size, first = self._archive.continued_size(segment), segment
        while size:
            before = self._whole_segment_before(first)
            if before is None:
                return []
            found.insert(0, before)
            size, first = self._archive.continued_size(before), before
            if size < self._geometry.record_bytes_per_segment:
                break
        return found

    def _whole_segment_before(self, segment: WalSegmentFile) -> WalSegmentFile | None:
        start = self._geometry.segment_start(segment.segment_no)
        own_and_ancestors = (self._timeline_id, *(timeline_id for timeline_id, _ in reversed(self.history.switches)))
        for timeline_id in own_and_ancestors:
            before = self._segments.get((timeline_id, segment.segment_no - 1))
            end = None if timeline_id == self._timeline_id else self.history.end_of(timeline_id)
            is_on_history = timeline_id <= segment.timeline_id and (end is None or end >= start)
            if before is not None and before.complete and is_on_history:
                return before
        return None

    def is_damaged_before(self, lsn: Lsn) -> str | None:
        """Return the name of the timeline's own whole segment with ``lsn`` if it holds no valid records up to there."""
        segment = self._segments.get((self._timeline_id, self._geometry.segment_no(lsn)))
        if segment is None or not segment.complete:
            return None
        end, is_invalid = self._archive.end_of_records(segment)
        return segment.name if is_invalid and end <= lsn else None

    def _open_copies(self) -> None:
        self._opened.close()
        number = self._geometry.segment_no(self._position)
        self._copies = list(self._copies_of(number))

    def _copies_of(self, number: int) -> Iterator[_Copy]:
        for timeline_id in (*(switch.timeline_id for switch in self.history.switches), self._timeline_id):
            segment = self._segments.get((timeline_id, number))
            if segment is None:
                continue
            end = self._end_of(segment)
            if end > self._position:
                reader = self._opened.enter_context(self._archive.open_segment(segment))
                reader.skip(self._position % self._geometry.segment_size)
                yield _Copy(reader, self._begin_of(segment), end, segment.name)

    # -- bytes -------------------------------------------------------------------------------------------------

    def _compare_part(self, copy: _Copy, received: memoryview) -> None:
        size = min(len(received), copy.end - self._position)
        if size <= 0:
            return
        # What a file that is not complete has lost its room for is zeros.
        stored, wanted = copy.reader.read(size).ljust(size, b"\0"), bytes(received[:size])
        offset = self._position % self._geometry.segment_size
        passed = min(size, max(0, copy.begin - self._position))
        header = min(passed, max(0, LONG_PAGE_HEADER_SIZE - offset))
        stored = stored[:header] + wanted[header:passed] + stored[passed:]
        if stored == wanted:
            return
        at = next(page for page in range(0, size, _PAGE) if stored[page : page + _PAGE] != wanted[page : page + _PAGE])
        at = next(byte for byte in range(at, size) if stored[byte] != wanted[byte])
        lsn = Lsn(self._position + at)
        # Where the timeline was begun within the segment, that may be an ancestor.
        raise history_mismatch(self.history.timeline_at(lsn), lsn, f"{copy.name} holds other WAL")


def history_mismatch(timeline_id: int, lsn: Lsn, why: str) -> HistoryMismatch:
    """Return the error for a server that has lost WAL which the archive holds, or has got other WAL in its place."""
    return HistoryMismatch(
        f"the server's WAL of timeline {timeline_id} is not that of the repository: they part at {lsn} at the latest"
        f" ({why}); nothing was overwritten",
        timeline_id=timeline_id,
        lsn=lsn,
        hint=NEW_HISTORY_HINT,
    )


def require_known_format(lsn: Lsn, page: memoryview) -> None:
    """Raise UnsupportedVersion where the page that starts at ``lsn`` is whole and of no version that pgwal knows.

    A release candidate has the version number of its release, and may have other WAL.
    """
    page_lsn = int.from_bytes(page[8:16], "little")
    if page_lsn == lsn:
        version_of_magic(int.from_bytes(page[:2], "little"), f"the server's WAL at {lsn}")
