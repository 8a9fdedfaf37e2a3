# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""The walk over the pages of WAL: their headers, and the records that are not whole on a page and in a chunk.

One of the modules of the scanner, which run in two forms: ``scan.py`` says how.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    cython = SimpleNamespace(compiled=False)

from pgwal.wal.record_parser import RecordParser

if not cython.compiled:
    from pgwal.wal.scan_types import *

if TYPE_CHECKING:
    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.reference_log import ReferenceLog
    from pgwal.wal.scan_request import ScanRequest
    from pgwal.wal.scan_types import Buffer

COMPILED: bool = cython.compiled

choose_crc_way("")

_INITIAL_RECORD = 1 << 16
# Beyond it _shrink_record gives the memory back.
_LARGE_RECORD = 1 << 22

# --- states of the walk -----------------------------------------------------------------------------------

# On the first pages: what they continue of an earlier record is skipped.
_FINDING_FIRST = 0
# A record ends at _at, or the rest of a segment is skipped from there on.
_BETWEEN_RECORDS = 1
# A record that is not whole on a page and in a chunk is being copied together.
_COLLECTING = 2
# It goes on with the page at _at.
_CONTINUING = 3
# It is whole, the zeros that align its end are not here yet.
_PADDING = 4


class PageWalk(RecordParser):
    """Walks through chunks of WAL, of any size, that follow each other.

    What it tells whoever scans is told in WalScanner.
    """

    def __init__(self, request: ScanRequest, references: ReferenceLog) -> None:
        super().__init__(request, references)
        self._system_identifier = request.system_identifier
        self.magic = 0
        self._all_page_flags = 0
        self._overwrite_flag = 0
        self._state = _FINDING_FIRST
        self.timeline_id = 0
        self._start_page()
        self._start_record()

    def _start_page(self) -> None:
        self._head = bytearray(LONG_PAGE_HEADER_SIZE)
        self._head_bytes = bytes_of(self._head)
        self._head_have = 0
        self._page_flags = 0
        self._page_rest = 0

    def _start_record(self) -> None:
        # Of a longer record than is kept, what follows goes to one page behind it, for its CRC.
        self._start_record_buffer()
        self._record_lsn = 0
        self._record_total = 0
        self._kept = KEPT_BYTES
        self._have = 0
        self._want = 0
        self._want_of_page = 0
        self._body_crc = 0
        self._is_link_checked = False

    def _start_record_buffer(self) -> None:
        self._record = bytearray(_INITIAL_RECORD)
        self._record_bytes = bytes_of(self._record)
        self._record_capacity = _INITIAL_RECORD

    def _grow_record(self) -> None:
        # At most double of what has arrived: a record's length is believed only as far as its bytes are there.
        self._record_capacity = 2 * self._record_capacity
        self._record.extend(bytes(self._record_capacity - len(self._record)))
        self._record_bytes = bytes_of(self._record)

    def _shrink_record(self) -> None:
        """Give the memory of a large record back, unless another is under way."""
        have = 0 if self._state == _BETWEEN_RECORDS else self._have
        if self._record_capacity > _LARGE_RECORD and have <= _INITIAL_RECORD:
            begun = self._record[:have]
            self._start_record_buffer()
            self._record[:have] = begun

    def _read_as(self, wal_format: WalFormat) -> None:
        """Take pages and records to be of this format."""
        super()._read_as(wal_format)
        self.magic = wal_format.magic
        self._all_page_flags = wal_format.page_flags
        self._overwrite_flag = wal_format.overwrite_contrecord_flag

    # -- from here on no Python object is touched when compiled ----------------------------------------------

    def _walk(self, data: Buffer, size: int) -> int:
        """Walk through ``data``, the chunk, from the cursor on."""
        if self._references.is_full:
            return NEEDS_TABLES
        # References of a record that was handed over.
        self._push_found(GOES_ON)
        code = GOES_ON
        while code == GOES_ON:
            if self._references.is_full:
                return NEEDS_TABLES
            if self._state == _BETWEEN_RECORDS:
                code = self._between_records(data, size)
            elif self._state == _COLLECTING:
                code = self._collect(data, size)
            elif self._state == _CONTINUING:
                code = self._continue_on_page(data, size)
            elif self._state == _PADDING:
                code = self._take_collected(size)
            else:
                code = self._find_first(data, size)
        return code

    def _is_stopped(self) -> bool:
        """Tell whether the next record, which has no byte read, starts at or after ``stop_lsn`` at the earliest."""
        start = self._at if self._at > self._skip_to else self._skip_to
        if start & PAGE_MASK == 0:
            start += SHORT_PAGE_HEADER_SIZE if start & self._segment_mask else LONG_PAGE_HEADER_SIZE
        return start >= self._stop

    def _skip(self, size: int) -> int:
        """Drop bytes up to ``_skip_to``, unread."""
        count = size - self._cursor
        if count > self._skip_to - self._at:
            count = self._skip_to - self._at
        self._cursor += count
        self._at += count
        return GOES_ON if self._at == self._skip_to else NEEDS_DATA

    def _page_header(self, data: Buffer, size: int, blamed_lsn: int) -> int:
        """Read and check the header of the page at ``_at`` (XLogReaderValidatePageHeader).

        ``_at`` moves when it is whole and right.  Otherwise WAL ends at ``blamed_lsn``.
        """
        wanted = SHORT_PAGE_HEADER_SIZE
        while True:
            if self._head_have < wanted:
                count = wanted - self._head_have
                if count > size - self._cursor:
                    count = size - self._cursor
                if count:
                    copy_bytes(self._head_bytes, self._head_have, data, self._cursor, count)
                self._head_have += count
                self._cursor += count
            if self._head_have < wanted:
                return NEEDS_DATA
            magic = u16(self._head_bytes, 0)
            flags = u16(self._head_bytes, 2)
            if self.magic == 0 and magic != 0:
                return NEEDS_FORMAT
            if magic != self.magic or magic == 0:
                return self._end(blamed_lsn, END_PAGE_MAGIC)
            if flags & ~self._all_page_flags:
                return self._end(blamed_lsn, END_PAGE_FLAGS)
            if not flags & PAGE_LONG_HEADER or wanted == LONG_PAGE_HEADER_SIZE:
                break
            wanted = LONG_PAGE_HEADER_SIZE
        if wanted == LONG_PAGE_HEADER_SIZE:
            if not self._fits_cluster():
                return self._end(blamed_lsn, END_PAGE_LONG_HEADER)
        elif self._at & self._segment_mask == 0:
            return self._end(blamed_lsn, END_PAGE_LONG_HEADER)
        if u64(self._head_bytes, 8) != self._at:
            return self._end(blamed_lsn, END_PAGE_ADDRESS)
        timeline = u32(self._head_bytes, 4)
        if timeline < self.timeline_id:
            return self._end(blamed_lsn, END_PAGE_TIMELINE)
        self.timeline_id = timeline
        self._page_flags = flags
        self._page_rest = u32(self._head_bytes, 16)
        self._head_have = 0
        self._at += wanted
        return GOES_ON

    def _fits_cluster(self) -> bool:
        if self._system_identifier != 0 and u64(self._head_bytes, 24) != self._system_identifier:
            return False
        return u32(self._head_bytes, 32) == self._segment_size and u32(self._head_bytes, 36) == PAGE_SIZE

    def _find_first(self, data: Buffer, size: int) -> int:
        """Skip what the first pages continue of an earlier record (XLogFindNextRecord)."""
        if self._is_stopped():
            return STOPPED
        if self._at < self._skip_to:
            code = self._skip(size)
            if code != GOES_ON:
                return code
        if self._at & PAGE_MASK:
            self._state = _BETWEEN_RECORDS
            return GOES_ON
        code = self._page_header(data, size, self._at)
        if code != GOES_ON:
            return code
        if self._page_flags & PAGE_FIRST_IS_CONTRECORD:
            rest = self._page_rest + 7 & ~7
            on_page = PAGE_SIZE - (self._at & PAGE_MASK)
            self._skip_to = self._at + (rest if rest < on_page else on_page)
            self.position = self._skip_to
        else:
            self._state = _BETWEEN_RECORDS
        return GOES_ON

    def _between_records(self, data: Buffer, size: int) -> int:
        """Take the whole records of a page that lie in the chunk, and begin with one that is not as simple."""
        if self._is_stopped():
            return STOPPED
        if self._at < self._skip_to:
            code = self._skip(size)
            if code != GOES_ON:
                return code
        if self._at & PAGE_MASK == 0:
            page_lsn = self._at
            code = self._page_header(data, size, page_lsn)
            if code != GOES_ON:
                return code
            if self._page_flags & PAGE_FIRST_IS_CONTRECORD:
                # No record is open here (the server's "contrecord is requested").
                return self._end(page_lsn, END_CONTRECORD)
        code = self._take_records(data, size)
        return self._start_collecting() if code == FOUND_PARTIAL else code

    def _start_collecting(self) -> int:
        self._state = _COLLECTING
        self._record_lsn = self._at
        self._record_total = 0
        self._kept = KEPT_BYTES
        self._have = 0
        self._want = 4
        self._want_of_page = 4
        self._body_crc = 0
        self._is_link_checked = False
        return GOES_ON

    def _collect(self, data: Buffer, size: int) -> int:
        """Copy what this page has of a record into the record buffer, checking its header as soon as it is there.

        ``_want`` is how much of the record to copy next; no copy reaches from its header into its body, of which the
        CRC is computed by the way, nor from what is kept of it into the rest.
        """
        while True:
            count = self._want - self._have
            if count > size - self._cursor:
                count = size - self._cursor
            if count:
                place = self._have if self._have < self._kept else self._kept
                if place + count > self._record_capacity:
                    return NEEDS_RECORD_BUFFER
                if self._have < RECORD_HEADER_SIZE:
                    copy_bytes(self._record_bytes, place, data, self._cursor, count)
                else:
                    self._body_crc = crc_of_copy(self._record_bytes, place, data, self._cursor, count, self._body_crc)
                self._have += count
                self._cursor += count
                self._at += count
            if self._have < self._want:
                return NEEDS_DATA
            if self._record_total == 0:
                total = u32(self._record_bytes, 0)
                if total < RECORD_HEADER_SIZE:
                    return self._end(self._record_lsn, END_RECORD_LENGTH)
                on_page = PAGE_SIZE - (self._record_lsn & PAGE_MASK)
                self._record_total = total
                self._want_of_page = total if total < on_page else on_page
                self._want_header()
                continue
            if not self._is_link_checked and self._have >= RECORD_HEADER_SIZE:
                if not self._is_link_right(self._record_lsn, u64(self._record_bytes, 8)):
                    return self._end(self._record_lsn, END_RECORD_PREV_LINK)
                self._is_link_checked = True
                if self._record_bytes[17] in (RM_XACT, RM_DBASE):
                    self._kept = KEPT_BYTES_OF_LISTS
            if self._have < self._want_of_page:
                self._want_body()
                continue
            if self._have < self._record_total:
                self._state = _CONTINUING
            else:
                self._state = _PADDING
                self._skip_to = self._at + 7 & ~7
            return GOES_ON

    def _want_header(self) -> None:
        """Want what this page has of the record's header."""
        self._want = self._want_of_page if self._want_of_page < RECORD_HEADER_SIZE else RECORD_HEADER_SIZE

    def _want_body(self) -> None:
        """Want what this page has of the record's body, up to where it is no longer kept."""
        self._want = self._want_of_page
        if self._have < self._kept and self._kept < self._want:
            self._want = self._kept

    def _continue_on_page(self, data: Buffer, size: int) -> int:
        """Read the header of a page on which the collected record should go on (XLogDecodeNextRecord)."""
        page_lsn = self._at
        code = self._page_header(data, size, self._record_lsn)
        if code != GOES_ON:
            return code
        if self._page_flags & self._overwrite_flag:
            # A crash cut the record off: it never happened, and its successor begins here.
            self._has_discarded = True
            self._discarded_lsn = self._record_lsn
            self.position = page_lsn
            self._state = _BETWEEN_RECORDS
            return GOES_ON
        if not self._page_flags & PAGE_FIRST_IS_CONTRECORD or self._have + self._page_rest != self._record_total:
            return self._end(self._record_lsn, END_CONTRECORD)
        on_page = PAGE_SIZE - (self._at & PAGE_MASK)
        self._want_of_page = self._have + (self._page_rest if self._page_rest < on_page else on_page)
        if self._have < RECORD_HEADER_SIZE:
            self._want_header()
        else:
            self._want_body()
        self._state = _COLLECTING
        return GOES_ON

    def _take_collected(self, size: int) -> int:
        code = self._skip(size)
        if code != GOES_ON:
            return code
        self._state = _BETWEEN_RECORDS
        total = self._record_total
        self._unkept = total - self._kept if total > self._kept else 0
        crc = crc_of_header(self._record_bytes, self._body_crc)
        code = self._take_record(self._record_bytes, 0, total, self._record_lsn, self._at, crc)
        self._unkept = 0
        self._push_found(code)
        return code
