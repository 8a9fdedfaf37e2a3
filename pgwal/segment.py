"""WAL segments: their size, their names and what positions they hold.

Source of the formats: src/include/access/xlog_internal.h, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgwal.errors import FormatError
from pgwal.lsn import Lsn

WAL_PAGE_SIZE = 8192
SHORT_PAGE_HEADER_SIZE = 24
LONG_PAGE_HEADER_SIZE = 40

MIN_SEGMENT_SIZE = 1 << 20
MAX_SEGMENT_SIZE = 1 << 30

_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
_BACKUP_HISTORY_NAME = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
_HISTORY_NAME = re.compile(r"[0-9A-F]{8}\.history")


def is_segment_name(name: str) -> bool:
    """Tell whether ``name`` is that of a complete WAL segment (24 upper-case hex digits)."""
    return _SEGMENT_NAME.fullmatch(name) is not None


def is_history_name(name: str) -> bool:
    """Tell whether ``name`` is that of a timeline history file."""
    return _HISTORY_NAME.fullmatch(name) is not None


def is_backup_history_name(name: str) -> bool:
    """Tell whether ``name`` is that of a file that tells of a base backup, as a server archives it."""
    return _BACKUP_HISTORY_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class WalGeometry:
    """The segment size of a cluster in bytes, and the arithmetic that follows from it."""

    segment_size: int

    def __post_init__(self) -> None:
        size = self.segment_size
        if not MIN_SEGMENT_SIZE <= size <= MAX_SEGMENT_SIZE or size & (size - 1):
            raise FormatError(f"invalid WAL segment size {size}: not a power of two from 1 MB to 1 GB")

    @property
    def segments_per_xlogid(self) -> int:
        return 0x1_0000_0000 // self.segment_size

    @property
    def record_bytes_per_segment(self) -> int:
        """How much a segment holds besides the headers of its pages."""
        pages = self.segment_size // WAL_PAGE_SIZE
        return self.segment_size - LONG_PAGE_HEADER_SIZE - (pages - 1) * SHORT_PAGE_HEADER_SIZE

    def segment_no(self, lsn: int) -> int:
        """Return the number of the segment that holds the byte at ``lsn``."""
        return lsn // self.segment_size

    def last_segment_no(self, end: int) -> int:
        """Return the number of the segment that holds the last byte before ``end``."""
        return (end - 1) // self.segment_size

    def segment_start(self, segment_no: int) -> Lsn:
        return Lsn(segment_no * self.segment_size)

    def file_name(self, timeline_id: int, segment_no: int) -> str:
        high, low = divmod(segment_no, self.segments_per_xlogid)
        return f"{timeline_id:08X}{high:08X}{low:08X}"

    def parse_file_name(self, name: str) -> tuple[int, int]:
        """Return (timeline, segment number) of a segment file name.

        Raises FormatError when it is not one for this segment size.
        """
        if not is_segment_name(name):
            raise FormatError(f"{name!r} is not the name of a WAL segment")
        number = int(name, 16)
        timeline_id, high, low = number >> 64, number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF
        if timeline_id == 0 or low >= self.segments_per_xlogid:
            raise FormatError(f"{name!r} is not the name of a WAL segment of {self.segment_size} bytes")
        return timeline_id, high * self.segments_per_xlogid + low

    def position_behind(self, segment_no: int, size: int) -> Lsn:
        """Return where the next record can start when a segment begins with ``size`` bytes of one from before."""
        start = self.segment_start(segment_no)
        first_page = WAL_PAGE_SIZE - LONG_PAGE_HEADER_SIZE
        if size <= first_page:
            return self.first_record_position(start + LONG_PAGE_HEADER_SIZE + size)
        pages, rest = divmod(size - first_page, WAL_PAGE_SIZE - SHORT_PAGE_HEADER_SIZE)
        page = start + (1 + pages) * WAL_PAGE_SIZE
        return self.first_record_position(page + SHORT_PAGE_HEADER_SIZE + rest if rest else page)

    def first_record_position(self, lsn: int) -> Lsn:
        """Return the earliest position at or after ``lsn`` at which a record can start.

        A page boundary and the byte after that page's header denote the same place in the stream of records;
        this maps the first to the second, so that a gap that holds only a page header is none.
        """
        aligned = (lsn + 7) & ~7
        offset = aligned % WAL_PAGE_SIZE
        header = SHORT_PAGE_HEADER_SIZE if aligned - offset & (self.segment_size - 1) else LONG_PAGE_HEADER_SIZE
        return Lsn(aligned if offset >= header else aligned - offset + header)


_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def parse_segment_size(text: str) -> int:
    """Return the bytes of a setting such as ``16MB``, as SHOW wal_segment_size answers; raises FormatError."""
    match = re.fullmatch(r"([0-9]+)(B|kB|MB|GB)", text)
    if match is None:
        raise FormatError(f"{text!r} is not a size as the server shows it")
    return int(match[1]) * _UNITS[match[2]]
