# C types for main_data.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pgwal.wal.reference_log cimport ReferenceLog
from pgwal.wal.scan_types cimport *

# Assigned in main_data.py, once.
cdef uint64_t _NO_LIMIT, _OF_MAP, _OF_INIT


cdef class MainData:
    cdef uint64_t _segment_size, _segment_mask
    cdef ReferenceLog _references
    cdef bint _wants_derived, _all_transaction_ends, _tablespaces, _decodes_shortenings
    cdef uint32_t _dbase_create_file_copy, _dbase_create_wal_log, _dbase_drop
    cdef uint64_t _main_at, _main_length, _unkept, _found_before
    cdef uint64_t _skip_to, _discarded_lsn
    cdef bint _has_discarded
    cdef int _detail

    @cython.locals(operation=uint32_t)
    cdef bint _check_xlog(self, const uint8_t *data, uint32_t info, uint64_t end_lsn) noexcept nogil

    @cython.locals(operation=uint32_t)
    cdef bint _is_special(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(operation=uint32_t, at=uint64_t, size=uint64_t)
    cdef bint _is_decoded(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    cdef bint _note_shortenings(
        self, const uint8_t *data, uint64_t at, uint64_t size, uint32_t rmid, uint32_t operation
    ) noexcept nogil

    @cython.locals(fork=uint64_t, block=uint64_t)
    cdef bint _note_smgr(self, const uint8_t *data, uint64_t at, uint64_t size, uint32_t operation) noexcept nogil

    @cython.locals(map_number=uint64_t, map_block=uint64_t, is_in_map_block=bint)
    cdef void _truncate(self, uint64_t place, uint64_t number, uint64_t block, uint32_t flags) noexcept nogil

    @cython.locals(count=uint64_t, index=uint64_t, database=uint64_t)
    cdef bint _note_dbase(self, const uint8_t *data, uint64_t at, uint64_t size, uint32_t operation) noexcept nogil

    @cython.locals(xinfo=uint32_t, offset=uint64_t, count=uint64_t, _=uint64_t, place=uint64_t, number=uint64_t)
    cdef bint _note_dropped(self, const uint8_t *data, uint64_t at, uint64_t size) noexcept nogil
