# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""The loop over the records of a page: each is checked and parsed, and its references are put with the log.

One of the modules of the scanner, which run in two forms: ``scan.py`` says how.  All that is done with every record is
in this one, and in final methods, so that the compiler of C sees it at once: any other is called through a table.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; these are all the names that it uses.
    cython = SimpleNamespace(compiled=False, final=lambda method: method)

from pgwal.wal.main_data import MainData

if TYPE_CHECKING:
    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.reference_log import ReferenceLog
    from pgwal.wal.scan_request import ScanRequest
    from pgwal.wal.scan_types import Buffer

COMPILED: bool = cython.compiled

if not cython.compiled:
    from pgwal.wal.scan_types import *

choose_crc_way("")


class RecordParser(MainData):
    """Takes records whose first byte is known to lie at ``_at``; where that is, PageWalk knows.

    What records mean to whoever scans is told in WalScanner.
    """

    def __init__(self, request: ScanRequest, references: ReferenceLog) -> None:
        super().__init__(request, references)
        self._start_lsn = request.start_lsn
        self._expected_prev = request.prev_lsn
        self._compressed_bits = 0
        self._has_top_level_xid = False
        self._has_custom_rmgrs = False
        self._derives = False
        self._stop = (1 << 64) - 1
        self._at = self._skip_to
        self.position = self._at
        self._cursor = 0
        self._reason = 0
        self._has_prev = False
        self._is_linked = False
        self.last_record_lsn = 0
        self.first_record_lsn = 0
        self.first_prev_lsn = 0
        self.record_count = 0
        self._image_length = 0
        self._block_0 = 0
        self._block_1 = 0
        self._lsn = 0
        self._rmid = 0
        self._info = 0
        self.special_lsn = 0
        self.special_end_lsn = 0
        self.special_prev_lsn = 0
        self.special_xid = 0
        self.special_rmid = 0
        self.special_info = 0

    def _read_as(self, wal_format: WalFormat) -> None:
        """Take records to be of this format."""
        super()._read_as(wal_format)
        self._compressed_bits = wal_format.compressed_image_bits
        self._has_top_level_xid = wal_format.has_top_level_xid
        self._has_custom_rmgrs = wal_format.has_custom_rmgrs
        self._derives = self._wants_derived and wal_format.clears_unnamed_map_blocks

    # -- from here on no Python object is touched when compiled ----------------------------------------------

    @cython.final
    def _end(self, lsn: int, reason: int) -> int:
        self.position = lsn
        self._reason = reason
        return ENDED

    @cython.final
    def _take_records(self, data: Buffer, size: int) -> int:
        """Take the whole records of a page that lie in the chunk, up to anything that is not as simple."""
        code = GOES_ON
        while code == GOES_ON and not self._references.is_full:
            at = self._at
            if at >= self._stop:
                code = STOPPED
                break
            on_page = PAGE_SIZE - (at & PAGE_MASK)
            cursor = self._cursor
            here = size - cursor
            if here > on_page:
                here = on_page
            if here < RECORD_HEADER_SIZE:
                code = FOUND_PARTIAL
                break
            total = u32(data, cursor)
            if total < RECORD_HEADER_SIZE:
                code = self._end(at, END_RECORD_LENGTH)
                break
            if not self._is_link_right(at, u64(data, cursor + 8)):
                code = self._end(at, END_RECORD_PREV_LINK)
                break
            aligned = total + 7 & ~7
            if aligned > here:
                code = FOUND_PARTIAL
                break
            code = self._take_record(data, cursor, total, at, at + aligned, crc_of_record(data, cursor, total))
            if code in (GOES_ON, FOUND_SPECIAL):
                self._cursor = cursor + aligned
                self._at = at + aligned
            if self._at & PAGE_MASK == 0 or self._at < self._skip_to:
                break
            if code == GOES_ON and self._references.found_count > MAX_FOUND - MAX_REFERENCES:
                self._push_found(code)
        self._push_found(code)
        return code

    @cython.final
    def _push_found(self, code: int) -> None:
        """Have the log take the references that were found, but for those of a record that is handed over."""
        if self._references.found_count:
            self._references.push(self._found_before if code == FOUND_SPECIAL else self._references.found_count)

    @cython.final
    def _is_link_right(self, lsn: int, link: int) -> bool:
        """Check xl_prev (ValidXLogRecordHeader)."""
        if self._is_linked:
            return link == self.last_record_lsn
        if self._has_prev:
            if link != self.last_record_lsn:
                return False
        elif link >= lsn:
            return False
        return lsn < self._start_lsn or self._expected_prev == 0 or link == self._expected_prev

    @cython.final
    def _take_record(self, data: Buffer, base: int, total: int, lsn: int, end_lsn: int, crc: int) -> int:
        """Check and parse the record of ``total`` bytes at ``base``, which has this CRC.

        Its header was read and its link is right.
        """
        if crc != u32(data, base + 20):
            return self._end(lsn, END_RECORD_CRC)
        self.last_record_lsn = lsn
        self._has_prev = True
        info = data[base + 16]
        rmid = data[base + 17]
        self._lsn = lsn
        if not self._is_known(rmid, info):
            self._rmid = rmid
            self._info = info
            return FOUND_UNKNOWN
        if not self._parse(data, base + RECORD_HEADER_SIZE, base + total - self._unkept):
            return FOUND_BROKEN
        is_special = False
        if rmid in (RM_HEAP, RM_HEAP2):
            if self._derives and lsn >= self._start_lsn:
                self._derive_map_blocks(data, rmid, info)
        elif rmid <= RM_DBASE:
            if rmid == RM_XLOG and not self._check_xlog(data, info, end_lsn):
                self._references.found_count = self._found_before
                return FOUND_BROKEN
            is_special = self._is_special(data, rmid, info)
        elif rmid == RM_TBLSPC:
            is_special = self._tablespaces
        self._has_discarded = False
        self.position = end_lsn if end_lsn > self._skip_to else self._skip_to
        if lsn < self._start_lsn:
            self._references.found_count = self._found_before
            return GOES_ON
        if not self._is_linked:
            self._is_linked = True
            self.first_record_lsn = lsn
            self.first_prev_lsn = u64(data, base + 8)
        self.record_count += 1
        if is_special and not (self._decodes_shortenings and self._is_decoded(data, rmid, info)):
            self.special_lsn = lsn
            self.special_end_lsn = end_lsn
            self.special_prev_lsn = u64(data, base + 8)
            self.special_xid = u32(data, base + 4)
            self.special_rmid = rmid
            self.special_info = info
            return FOUND_SPECIAL
        return GOES_ON

    @cython.final
    def _is_known(self, rmid: int, info: int) -> bool:
        if rmid > LAST_BUILTIN_RMID and not (self._has_custom_rmgrs and rmid >= FIRST_CUSTOM_RMID):
            return False
        # SPECIAL_REL_UPDATE: it changes relation files other than by its references.
        return info & 0x01 == 0 or rmid in (RM_XACT, RM_SMGR, RM_DBASE)

    # -- headers of blocks and data --------------------------------------------------------------------------

    @cython.final
    def _parse(self, data: Buffer, at: int, end: int) -> bool:
        """Parse the block and data headers of the record body [at, end), as far as it is kept (DecodeXLogRecord).

        Adds the references to those found, and notes where the main data is.  False with ``_detail`` when it is broken.
        """
        payload = main = next_id = place = number = 0
        found = self._references.found_at
        count = self._references.found_count
        self._found_before = count
        self._block_0 = self._block_1 = 0
        while end - at > payload:
            id_ = data[at]
            if id_ > MAX_BLOCK_ID:
                if id_ == ID_DATA_SHORT and end - at >= 2:
                    main = data[at + 1]
                    at += 2
                    break
                at = self._pass_other_header(data, at, end)
                if at == 0:
                    return False
                if id_ == ID_DATA_LONG:
                    main = self._main_length
                    break
                continue
            if id_ < next_id:
                return self._broken(ID_ORDER)
            if end - at < 8:
                return self._broken(ENDS_EARLY)
            next_id = id_ + 1
            flags = data[at + 1]
            length = u16(data, at + 2)
            at += 4
            if (flags & 0x20 != 0) != (length != 0):
                return self._broken(DATA_LENGTH)
            payload += length
            if flags & 0x10:
                at = self._pass_image_header(data, at, end)
                if at == 0:
                    return False
                payload += self._image_length
            fork = flags & 0x0F
            if fork > 3:
                return self._broken(NO_FORK)
            if flags & 0x80 == 0:
                if end - at < 16:
                    return self._broken(ENDS_EARLY)
                place, number = u64(data, at), u32(data, at + 8)
                at += 12
            elif count == self._found_before or end - at < 4:
                return self._broken(NO_RELATION if count == self._found_before else ENDS_EARLY)
            found[3 * count] = place
            found[3 * count + 1] = number | fork << 32
            found[3 * count + 2] = u32(data, at)
            at += 4
            count += 1
            if id_ == 0:
                self._block_0 = count
            elif id_ == 1:
                self._block_1 = count
        return self._is_all(at, end, payload, main, count)

    @cython.final
    def _broken(self, detail: int) -> bool:
        self._detail = detail
        return False

    @cython.final
    def _pass_other_header(self, data: Buffer, at: int, end: int) -> int:
        """Return where a header that is no block's ends, 0 when it is broken; of long data, note the length."""
        id_ = data[at]
        if id_ == ID_DATA_LONG:
            if end - at >= 5:
                self._main_length = u32(data, at + 1)
            at += 5
        elif id_ == ID_DATA_SHORT:
            at += 2
        elif id_ == ID_ORIGIN:
            at += 3
        elif id_ == ID_TOP_LEVEL_XID and self._has_top_level_xid:
            at += 5
        else:
            self._broken(NO_SUCH_ID)
            return 0
        if at > end:
            self._broken(ENDS_EARLY)
            return 0
        return at

    @cython.final
    def _pass_image_header(self, data: Buffer, at: int, end: int) -> int:
        """Return where the header of a page image ends, 0 when it is broken, and note the length of the image."""
        if end - at < 7:
            # Five bytes here, or seven, and a block number of four after them.
            self._broken(ENDS_EARLY)
            return 0
        length = u16(data, at)
        hole_offset = u16(data, at + 2)
        image_info = data[at + 4]
        hole_length = 0
        is_compressed = image_info & self._compressed_bits
        if is_compressed == 0:
            # One longer than a block fits neither rule below.
            hole_length = BLOCK_SIZE - length if length <= BLOCK_SIZE else 0
        elif image_info & 0x01:
            hole_length = u16(data, at + 5)
            at += 2
        if image_info & 0x01:
            is_right = hole_offset != 0 and hole_length != 0 and length != BLOCK_SIZE
        else:
            is_right = hole_offset == 0 and hole_length == 0 and (length == BLOCK_SIZE) == (is_compressed == 0)
        if not is_right:
            self._broken(IMAGE_HEADER)
            return 0
        self._image_length = length
        return at + 5

    @cython.final
    def _is_all(self, at: int, end: int, payload: int, main: int, count: int) -> bool:
        """Tell whether what the headers promise is all that follows them, and note it."""
        if end - at + self._unkept != payload + main:
            return self._broken(LENGTH_SUM)
        if self._unkept and end - at < payload + MAIN_START:
            # Headers of megabytes, which no server writes.
            return self._broken(ENDS_EARLY)
        self._references.found_count = count
        self._main_at = at + payload
        self._main_length = main
        return True

    @cython.final
    def _derive_map_blocks(self, data: Buffer, rmid: int, info: int) -> None:
        """Note the map blocks in which a heap record clears bits without referring to them (13 to 17.10, 18.5).

        The flags are in its main data; one that has too little of it says nothing (a server writes none such).
        """
        operation = info & 0x70
        offset = 7
        old_bit = 0x01
        new_bit = 0x00
        if rmid == RM_HEAP2:
            if operation == 0x50:  # MULTI_INSERT
                offset = 0
            elif operation != 0x60:  # LOCK_UPDATED
                return
        elif operation == 0x00:  # INSERT
            offset = 2
        elif operation == 0x20 or operation == 0x40:  # UPDATE, HOT_UPDATE
            new_bit = 0x02
        elif operation != 0x10 and operation != 0x60:  # DELETE, LOCK
            return
        if offset >= self._main_length:
            return
        flags = data[self._main_at + offset]
        if flags & new_bit:
            self._derive_map_block(self._block_0)
        if flags & old_bit:
            # An update within one page has no reference 1; the other records have only reference 0 to mean.
            is_other_page = new_bit != 0 and self._block_1 != 0
            self._derive_map_block(self._block_1 if is_other_page else self._block_0)

    @cython.final
    def _derive_map_block(self, place_in_found: int) -> None:
        """``place_in_found`` counts from 1; 0 is no reference."""
        if place_in_found == 0:
            return
        at = 3 * (place_in_found - 1)
        found = self._references.found_at
        self._references.derive_map_block(found[at], found[at + 1], found[at + 2] // HEAP_BLOCKS_PER_MAP_BLOCK)
