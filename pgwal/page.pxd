# C types for page.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "page_checksum.h" nogil:
    uint64_t _next_bad_page "pgwal_next_bad_page"(
        const uint8_t *data, uint64_t at, uint64_t count, uint64_t block_number, uint64_t lsn
    ) noexcept
    uint64_t _next_newer_page "pgwal_next_newer_page"(
        const uint8_t *data, uint64_t at, uint64_t count, uint64_t lsn
    ) noexcept


cdef inline const uint8_t *_bytes_of(object holder) except NULL:
    """Return where the bytes of ``holder`` are; they stay there while it lives and keeps its size."""
    cdef Py_buffer view
    PyObject_GetBuffer(holder, &view, PyBUF_SIMPLE)
    cdef const uint8_t *start = <const uint8_t *> view.buf
    PyBuffer_Release(&view)
    return start


cdef inline const uint32_t *_numbers_of(object holder) except NULL:
    return <const uint32_t *> _bytes_of(holder)


@cython.locals(start="const uint8_t *", at=uint64_t)
cdef list _find(object data, uint64_t count, uint64_t block_number, uint64_t lsn)


@cython.locals(start="const uint8_t *", numbers="const uint32_t *", at=uint64_t)
cdef list _find_listed(object data, object block_numbers, uint64_t count, uint64_t lsn)


@cython.locals(start="const uint8_t *", at=uint64_t)
cdef list _find_newer(object data, uint64_t count, uint64_t lsn)
