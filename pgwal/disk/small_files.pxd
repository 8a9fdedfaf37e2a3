# C types for small_files.py, which is plain Python without this file; nothing here changes what it does.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport ENOENT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef extern from "small_files.h" nogil:
    ctypedef struct pgwal_small_file:
        const char *path
        uint8_t *data
        uint64_t size
        const uint32_t *numbers
        int to_end
        int is_longer
        int error
        int is_created

    void pgwal_read_small_files(pgwal_small_file *files, uint64_t count) noexcept
    void pgwal_sync_files(pgwal_small_file *files, uint64_t count) noexcept
    void pgwal_write_small_files(pgwal_small_file *files, uint64_t count, int mode) noexcept


cdef object _failed(int error_number, bytes path)
cdef object _unwritable(bint is_created, int error_number, bytes path)


cdef inline pgwal_small_file *_files(list paths) except NULL:
    """Return what is to be freed: a file for each path, and one more, for there may be none."""
    cdef uint64_t at
    cdef pgwal_small_file *files = <pgwal_small_file *> calloc(len(paths) + 1, sizeof(pgwal_small_file))
    if files == NULL:
        raise MemoryError
    for at in range(<uint64_t> len(paths)):
        files[at].path = PyBytes_AS_STRING(paths[at])
    return files


cdef inline list _read(list paths, list sizes, list block_numbers, list to_end):
    cdef uint64_t at, count = len(paths)
    cdef Py_buffer view
    # Nobody else sees them before they are filled.
    cdef list contents = [PyBytes_FromStringAndSize(NULL, size) for size in sizes]
    cdef pgwal_small_file *files = _files(paths)
    try:
        for at in range(count):
            files[at].data = <uint8_t *> PyBytes_AS_STRING(contents[at])
            files[at].size = PyBytes_GET_SIZE(contents[at])
            files[at].to_end = to_end[at]
            if block_numbers[at] is not None:
                # They stay where they are while the list holds them, and nobody changes their length.
                PyObject_GetBuffer(block_numbers[at], &view, PyBUF_SIMPLE)
                files[at].numbers = <const uint32_t *> view.buf
                PyBuffer_Release(&view)
        with nogil:
            pgwal_read_small_files(files, count)
        for at in range(count):
            if files[at].error == ENOENT:
                contents[at] = None
            elif files[at].error:
                raise _failed(files[at].error, paths[at])
            elif files[at].is_longer:
                contents[at] = True
            elif files[at].size != <uint64_t> PyBytes_GET_SIZE(contents[at]):
                contents[at] = contents[at][: files[at].size]
    finally:
        free(files)
    return contents


cdef inline object _write(list paths, list contents, int mode):
    cdef uint64_t at, count = len(paths)
    cdef pgwal_small_file *files = _files(paths)
    try:
        for at in range(count):
            files[at].data = <uint8_t *> PyBytes_AS_STRING(contents[at])
            files[at].size = PyBytes_GET_SIZE(contents[at])
        with nogil:
            pgwal_write_small_files(files, count, mode)
        for at in range(count):
            if files[at].error:
                raise _unwritable(files[at].is_created, files[at].error, paths[at])
    finally:
        free(files)


cdef inline object _sync(list paths):
    cdef uint64_t at, count = len(paths)
    cdef pgwal_small_file *files = _files(paths)
    try:
        with nogil:
            pgwal_sync_files(files, count)
        for at in range(count):
            if files[at].error:
                raise _failed(files[at].error, paths[at])
    finally:
        free(files)
