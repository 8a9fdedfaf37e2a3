"""Is this the WAL segment that it is called?  What the page headers of a segment tell, without its records.

Source of the format: src/include/access/xlog_internal.h, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import struct

from pgwal.errors import FormatError, WrongCluster
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry

# xlp_magic, xlp_info, xlp_tli, xlp_pageaddr, xlp_rem_len; of a long header xlp_sysid, xlp_seg_size, xlp_xlog_blcksz.
_LONG_HEADER = struct.Struct("<HHIQI4xQII")


def begins_with_nothing(content: bytes) -> bool:
    """Tell whether nothing has been written into a segment: its first page has no header."""
    return not any(content[: _LONG_HEADER.size])


class SegmentCheck:
    """Checks all page headers of a segment, which is fed in pieces; of one that is not complete, the first one.

    Pages of zeros may follow the last one, as they do after a switch of segments.
    """

    def __init__(
        self, geometry: WalGeometry, timeline_id: int, segment_no: int, system_identifier: int, *, complete: bool
    ) -> None:
        self._geometry = geometry
        self._timeline_id = timeline_id
        self._system_identifier = system_identifier
        self._complete = complete
        self._start = geometry.segment_start(segment_no)
        self._offset = 0
        self._magic = 0
        self._ended_at: int | None = None

    def feed(self, content: bytes) -> None:
        """Check the next pages, any number of whole ones.  Raises FormatError, WrongCluster for another cluster's."""
        if not self._offset:
            self._check_first_page(content)
        if self._complete:
            self._check_pages(content)
        self._offset += len(content)

    def _check_first_page(self, content: bytes) -> None:
        self._magic, _, first_timeline_id, address, _, found_identifier, segment_size, page_size = (
            _LONG_HEADER.unpack_from(content)
        )
        if address != self._start or segment_size != self._geometry.segment_size or page_size != WAL_PAGE_SIZE:
            raise FormatError(f"its first page is not that of the segment at {self._start}")
        if found_identifier != self._system_identifier:
            raise WrongCluster(
                f"it is of the cluster with system identifier {found_identifier}, not {self._system_identifier}"
            )
        if not 0 < first_timeline_id <= self._timeline_id:
            raise FormatError(f"its first page is of timeline {first_timeline_id}")

    def _check_pages(self, content: bytes) -> None:
        good = 0 if self._ended_at is not None else self._count_pages(content)
        rest = content[good * WAL_PAGE_SIZE :]
        if self._ended_at is None and rest:
            self._ended_at = self._offset + good * WAL_PAGE_SIZE
        if rest != bytes(len(rest)):
            raise FormatError(f"its page at byte {self._ended_at} is not one of WAL at that place")

    def _count_pages(self, content: bytes) -> int:
        """Return how many pages there are before the first one that is not of its place."""
        # Whole columns of headers at once: this runs for each segment that a server replays.
        view = memoryview(content)
        magics = view.cast("H")[:: WAL_PAGE_SIZE // 2].tolist()
        addresses = view.cast("Q")[1 :: WAL_PAGE_SIZE // 8].tolist()
        count, start = len(addresses), self._start + self._offset
        expected = list(range(start, start + len(content), WAL_PAGE_SIZE))
        if addresses == expected and magics == [self._magic] * count:
            return count
        return next(at for at in range(count) if (addresses[at], magics[at]) != (expected[at], self._magic))
