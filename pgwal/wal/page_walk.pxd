# C types for page_walk.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pgwal.wal.crc32c cimport choose_crc_way, crc_of_copy, crc_of_header
from pgwal.wal.record_parser cimport RecordParser
from pgwal.wal.scan_types cimport *

# Assigned in page_walk.py, once.
cdef int _FINDING_FIRST, _BETWEEN_RECORDS, _COLLECTING, _CONTINUING, _PADDING


cdef class PageWalk(RecordParser):
    cdef uint64_t _system_identifier
    cdef readonly uint32_t magic, timeline_id
    cdef uint32_t _all_page_flags, _overwrite_flag
    cdef int _state
    # The page header.
    cdef object _head
    cdef uint8_t *_head_bytes
    cdef uint64_t _head_have, _page_rest
    cdef uint32_t _page_flags
    # The record that is being collected.
    cdef object _record
    cdef uint8_t *_record_bytes
    cdef uint64_t _record_capacity, _record_lsn, _record_total, _have, _want, _want_of_page, _kept
    cdef uint32_t _body_crc
    cdef bint _is_link_checked

    @cython.locals(code=int)
    cdef int _walk(self, const uint8_t *data, uint64_t size) noexcept nogil

    @cython.locals(start=uint64_t)
    cdef bint _is_stopped(self) noexcept nogil

    @cython.locals(count=uint64_t)
    cdef int _skip(self, uint64_t size) noexcept nogil

    @cython.locals(wanted=uint64_t, count=uint64_t, magic=uint32_t, flags=uint32_t, timeline=uint32_t)
    cdef int _page_header(self, const uint8_t *data, uint64_t size, uint64_t blamed_lsn) noexcept nogil

    cdef bint _fits_cluster(self) noexcept nogil

    @cython.locals(code=int, rest=uint64_t, on_page=uint64_t)
    cdef int _find_first(self, const uint8_t *data, uint64_t size) noexcept nogil

    @cython.locals(code=int, page_lsn=uint64_t)
    cdef int _between_records(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef int _start_collecting(self) noexcept nogil

    @cython.locals(count=uint64_t, place=uint64_t, total=uint64_t, on_page=uint64_t)
    cdef int _collect(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef void _want_header(self) noexcept nogil

    cdef void _want_body(self) noexcept nogil

    @cython.locals(page_lsn=uint64_t, code=int, on_page=uint64_t)
    cdef int _continue_on_page(self, const uint8_t *data, uint64_t size) noexcept nogil

    @cython.locals(code=int, crc=uint32_t, total=uint64_t)
    cdef int _take_collected(self, uint64_t size) noexcept nogil
