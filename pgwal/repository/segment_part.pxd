# C types for segment_part.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

from pgwal.wal.scan cimport WalSource


cdef extern from "read_at.h" nogil:
    int64_t _read_at "pgwal_read_at"(int descriptor, uint8_t *target, uint64_t size, int64_t offset) noexcept


cdef inline uint8_t *_bytes_of(object view) except NULL:
    """Return where the bytes of ``view`` are; they stay there while what it is a view of lives."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_WRITABLE)
    cdef uint8_t *start = <uint8_t *> buffer.buf
    PyBuffer_Release(&buffer)
    return start


cdef inline void _clear(uint8_t *target, uint64_t start, uint64_t end) noexcept nogil:
    memset(target + start, 0, end - start)


cdef class SegmentPart(WalSource):
    cdef object _file
    cdef int _descriptor
    cdef bint _zero_filled
    cdef int64_t _offset
    cdef readonly str path
    cdef readonly int64_t end
    cdef readonly int error_number

    @cython.locals(done=int64_t)
    cdef uint64_t fill(self, uint8_t *target, uint64_t size) noexcept nogil

    @cython.locals(count=uint64_t, done=uint64_t)
    cpdef object load(self, object target)
