# C types for record_parser.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pgwal.wal.crc32c cimport choose_crc_way, crc_of_record
from pgwal.wal.main_data cimport MainData
from pgwal.wal.scan_types cimport *


cdef class RecordParser(MainData):
    # What is wanted, and how it is written.
    cdef uint64_t _start_lsn, _stop, _expected_prev
    cdef uint32_t _compressed_bits
    cdef bint _has_top_level_xid, _has_custom_rmgrs, _derives
    # Where the walk is.
    cdef uint64_t _at, _cursor
    cdef int _reason
    cdef bint _has_prev, _is_linked
    cdef readonly uint64_t position, last_record_lsn, first_record_lsn, first_prev_lsn, record_count
    # The record that was parsed last.
    cdef uint64_t _image_length, _block_0, _block_1, _lsn
    cdef uint32_t _rmid, _info
    cdef readonly uint64_t special_lsn, special_end_lsn, special_prev_lsn
    cdef readonly uint32_t special_xid, special_rmid, special_info

    cdef int _end(self, uint64_t lsn, int reason) noexcept nogil

    @cython.locals(
        code=int, at=uint64_t, on_page=uint64_t, cursor=uint64_t, here=uint64_t, total=uint64_t, aligned=uint64_t
    )
    cdef int _take_records(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef void _push_found(self, int code) noexcept nogil

    cdef bint _is_link_right(self, uint64_t lsn, uint64_t link) noexcept nogil

    @cython.locals(info=uint32_t, rmid=uint32_t, is_special=bint)
    cdef int _take_record(
        self, const uint8_t *data, uint64_t base, uint64_t total, uint64_t lsn, uint64_t end_lsn, uint32_t crc
    ) noexcept nogil

    cdef bint _is_known(self, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(
        payload=uint64_t, main=uint64_t, count=uint64_t, next_id=uint32_t, place=uint64_t, number=uint64_t,
        id_=uint32_t, flags=uint32_t, length=uint64_t, fork=uint64_t,
    )
    cdef bint _parse(self, const uint8_t *data, uint64_t at, uint64_t end) noexcept nogil

    cdef bint _broken(self, int detail) noexcept nogil

    @cython.locals(id_=uint32_t)
    cdef uint64_t _pass_other_header(self, const uint8_t *data, uint64_t at, uint64_t end) noexcept nogil

    @cython.locals(
        length=uint64_t, hole_offset=uint32_t, image_info=uint32_t, hole_length=uint64_t, is_compressed=uint32_t,
        is_right=bint,
    )
    cdef uint64_t _pass_image_header(self, const uint8_t *data, uint64_t at, uint64_t end) noexcept nogil

    cdef bint _is_all(
        self, uint64_t at, uint64_t end, uint64_t payload, uint64_t main, uint64_t count
    ) noexcept nogil

    @cython.locals(
        operation=uint32_t, offset=uint64_t, old_bit=uint32_t, new_bit=uint32_t, flags=uint32_t, is_other_page=bint
    )
    cdef void _derive_map_blocks(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(at=uint64_t)
    cdef void _derive_map_block(self, uint64_t place_in_found) noexcept nogil
