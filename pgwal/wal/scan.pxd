# C types for scan.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pgwal.wal.crc32c cimport choose_crc_way, crc_of_copy, crc_of_record
from pgwal.wal.page_walk cimport PageWalk
from pgwal.wal.scan_types cimport *


cdef class WalSource:
    cdef public uint64_t left

    cdef uint64_t fill(self, uint8_t *target, uint64_t size) noexcept nogil


# Assigned in scan.py, once.
cdef WalSource _NO_SOURCE
cdef uint64_t _SOURCE_BUFFER


@cython.final
cdef class WalScanner(PageWalk):
    cdef readonly uint64_t feed_lsn
    cdef readonly bytes special_main
    cdef object _failure
    # The chunk, those that wait, and what is read when it is used up.
    cdef object _chunk, _queue, _source_buffer
    cdef uint64_t _size
    cdef WalSource _source

    @cython.locals(source=WalSource, code=int)
    cdef int _run(self) except -1
