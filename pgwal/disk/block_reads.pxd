# C types for block_reads.py, which is plain Python without this file; nothing here changes what it does.

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "block_reads.h" nogil:
    int64_t pgwal_read_blocks(int descriptor, const uint32_t *numbers, uint64_t count, uint8_t *target) noexcept
    int64_t pgwal_read_parts(
        const int32_t *descriptors, const uint64_t *offsets, const uint32_t *lengths, uint64_t count, uint8_t *target
    ) noexcept
    void pgwal_copy_parts(
        const uint8_t **contents, const uint64_t *offsets, const uint32_t *lengths, uint64_t count, uint8_t *target
    ) noexcept


cdef inline bytes _new_bytes(Py_ssize_t size):
    return PyBytes_FromStringAndSize(NULL, size)


cdef inline bytes _finished(bytes content):
    return content


cdef inline object _blocks_into(bytes content, int descriptor, object block_numbers, uint64_t count):
    """Fill ``content``, which nobody else has seen yet; return what the C function does."""
    cdef Py_buffer view
    cdef uint8_t *target = <uint8_t *> PyBytes_AS_STRING(content)
    cdef int64_t done
    PyObject_GetBuffer(block_numbers, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            done = pgwal_read_blocks(descriptor, <const uint32_t *> view.buf, count, target)
    finally:
        PyBuffer_Release(&view)
    return done


cdef inline object _parts_into(object target, object descriptors, object offsets, object lengths, uint64_t count):
    """Fill ``target``, which is large enough; return what the C function does."""
    cdef Py_buffer views[4]
    cdef int held = 0
    cdef int64_t done
    try:
        for holder in (descriptors, offsets, lengths):
            PyObject_GetBuffer(holder, &views[held], PyBUF_SIMPLE)
            held += 1
        PyObject_GetBuffer(target, &views[held], PyBUF_WRITABLE)
        held += 1
        with nogil:
            done = pgwal_read_parts(
                <const int32_t *> views[0].buf,
                <const uint64_t *> views[1].buf,
                <const uint32_t *> views[2].buf,
                count,
                <uint8_t *> views[3].buf,
            )
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&views[held])
    return done


cdef inline object _copy_into(object target, list contents, object offsets, object lengths, uint64_t count):
    """Fill ``target``, which is large enough, with parts that lie in ``contents``, which the caller keeps."""
    cdef Py_buffer views[3]
    cdef int held = 0
    cdef uint64_t at
    cdef const uint8_t **starts = <const uint8_t **> PyMem_Malloc(max(count, 1) * sizeof(void *))
    if starts == NULL:
        raise MemoryError()
    try:
        for at in range(count):
            content = contents[at]
            if content is None:
                starts[at] = NULL
            else:
                starts[at] = <const uint8_t *> PyBytes_AS_STRING(<bytes?> content)
        for holder in (offsets, lengths):
            PyObject_GetBuffer(holder, &views[held], PyBUF_SIMPLE)
            held += 1
        PyObject_GetBuffer(target, &views[held], PyBUF_WRITABLE)
        held += 1
        with nogil:
            pgwal_copy_parts(
                starts,
                <const uint64_t *> views[0].buf,
                <const uint32_t *> views[1].buf,
                count,
                <uint8_t *> views[2].buf,
            )
    finally:
        PyMem_Free(starts)
        while held:
            held -= 1
            PyBuffer_Release(&views[held])
