# C types for block_reads.py, which is plain Python without this file; nothing here changes what it does.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "block_reads.h" nogil:
    int pgwal_read_blocks(int descriptor, const uint32_t *numbers, uint64_t count, uint8_t *target) noexcept


cdef inline bytes _new_bytes(Py_ssize_t size):
    return PyBytes_FromStringAndSize(NULL, size)


cdef inline bytes _finished(bytes content):
    return content


cdef inline int _read_into(bytes content, int descriptor, object block_numbers, uint64_t count) except -1:
    """Fill ``content``, which nobody else has seen yet; return 0 or the system's number of an error."""
    cdef Py_buffer view
    cdef uint8_t *target = <uint8_t *> PyBytes_AS_STRING(content)
    cdef int error
    PyObject_GetBuffer(block_numbers, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            error = pgwal_read_blocks(descriptor, <const uint32_t *> view.buf, count, target)
    finally:
        PyBuffer_Release(&view)
    return error
