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


def check_segment(
    content: bytes, geometry: WalGeometry, timeline_id: int, segment_no: int, system_identifier: int, *, complete: bool
) -> None:
    """Check the size and all page headers of a segment; of one that is not complete, the first one.

    Pages of zeros may follow the last one, as they do after a switch of segments.  Raises FormatError, WrongCluster for
    another cluster's.
    """
    if len(content) != geometry.segment_size:
        raise FormatError(f"it has {len(content)} bytes, not {geometry.segment_size}")
    start = geometry.segment_start(segment_no)
    magic, _, first_timeline_id, address, _, found_identifier, segment_size, page_size = _LONG_HEADER.unpack_from(
        content
    )
    if address != start or segment_size != geometry.segment_size or page_size != WAL_PAGE_SIZE:
        raise FormatError(f"its first page is not that of the segment at {start}")
    if found_identifier != system_identifier:
        raise WrongCluster(f"it is of the cluster with system identifier {found_identifier}, not {system_identifier}")
    if not 0 < first_timeline_id <= timeline_id:
        raise FormatError(f"its first page is of timeline {first_timeline_id}")
    if complete:
        _check_pages(content, start, magic)


def _check_pages(content: bytes, start: int, magic: int) -> None:
    # Whole columns of headers at once: this runs for each segment that a server replays.
    view = memoryview(content)
    magics = view.cast("H")[:: WAL_PAGE_SIZE // 2].tolist()
    addresses = view.cast("Q")[1 :: WAL_PAGE_SIZE // 8].tolist()
    count = len(addresses)
    expected = list(range(start, start + len(content), WAL_PAGE_SIZE))
    if addresses == expected and magics == [magic] * count:
        return
    good = next(at for at in range(count) if (addresses[at], magics[at]) != (expected[at], magic))
    if any(view[good * WAL_PAGE_SIZE :]):
        raise FormatError(f"its page at byte {good * WAL_PAGE_SIZE} is not one of WAL at that place")
