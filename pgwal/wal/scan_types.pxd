# What the modules of the scanner share where they are compiled: scan_types.py is the same where they are interpreted.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


# To the compiler of C these are constants, which a variable that Python sets is not.
cdef enum:
    NEEDS_DATA = 0
    STOPPED = 1
    FOUND_SPECIAL = 2
    ENDED = 3
    NEEDS_FORMAT = 4
    NEEDS_TABLES = 5
    NEEDS_RECORD_BUFFER = 6
    FOUND_UNKNOWN = 7
    FOUND_BROKEN = 8
    GOES_ON = 9
    FOUND_PARTIAL = 10

    PAGE_SIZE = 8192
    PAGE_MASK = 8191
    SHORT_PAGE_HEADER_SIZE = 24
    LONG_PAGE_HEADER_SIZE = 40
    PAGE_FIRST_IS_CONTRECORD = 0x0001
    PAGE_LONG_HEADER = 0x0002

    RECORD_HEADER_SIZE = 24
    KEPT_BYTES = 8380416
    KEPT_BYTES_OF_LISTS = 67100672
    LAST_BUILTIN_RMID = 21
    FIRST_CUSTOM_RMID = 128
    RM_XLOG = 0
    RM_XACT = 1
    RM_SMGR = 2
    RM_DBASE = 4
    RM_TBLSPC = 5
    RM_HEAP2 = 9
    RM_HEAP = 10
    NO_OPERATION = 0x100

    MAX_BLOCK_ID = 32
    ID_TOP_LEVEL_XID = 252
    ID_ORIGIN = 253
    ID_DATA_LONG = 254
    ID_DATA_SHORT = 255
    BLOCK_SIZE = 8192
    MAIN_START = 16

    FSM_FORK = 1
    INIT_FORK = 3
    HEAP_BLOCKS_PER_MAP_BLOCK = 32672

    MAX_FOUND = 128
    MAX_REFERENCES = 33

    END_PAGE_MAGIC = 1
    END_PAGE_FLAGS = 2
    END_PAGE_LONG_HEADER = 3
    END_PAGE_ADDRESS = 4
    END_PAGE_TIMELINE = 5
    END_CONTRECORD = 6
    END_RECORD_LENGTH = 7
    END_RECORD_PREV_LINK = 8
    END_RECORD_CRC = 9

    ENDS_EARLY = 0
    NO_SUCH_ID = 1
    ID_ORDER = 2
    DATA_LENGTH = 3
    NO_RELATION = 4
    NO_FORK = 5
    IMAGE_HEADER = 6
    LENGTH_SUM = 7
    DATA_SHORT = 8
    OTHER_OVERWRITTEN = 9


cdef inline void *_buffer(object holder) except NULL:
    """Return where the bytes of ``holder`` are; they stay there while it lives and keeps its size."""
    cdef Py_buffer view
    PyObject_GetBuffer(holder, &view, PyBUF_SIMPLE)
    cdef void *start = view.buf
    PyBuffer_Release(&view)
    return start


cdef inline uint8_t *bytes_of(object holder) except NULL:
    return <uint8_t *> _buffer(holder)


cdef inline uint32_t *words_of(object holder) except NULL:
    return <uint32_t *> _buffer(holder)


cdef inline uint64_t *double_words_of(object holder) except NULL:
    return <uint64_t *> _buffer(holder)


cdef inline void copy_bytes(
    uint8_t *target, uint64_t target_at, const uint8_t *source, uint64_t source_at, uint64_t count
) noexcept nogil:
    memcpy(target + target_at, source + source_at, count)


# The compiler makes a single load of each where the processor's byte order is that of the WAL.

cdef inline uint32_t u16(const uint8_t *data, uint64_t at) noexcept nogil:
    return data[at] | <uint32_t> data[at + 1] << 8


cdef inline uint32_t u32(const uint8_t *data, uint64_t at) noexcept nogil:
    return (
        data[at] | <uint32_t> data[at + 1] << 8 | <uint32_t> data[at + 2] << 16 | <uint32_t> data[at + 3] << 24
    )


cdef inline uint64_t u64(const uint8_t *data, uint64_t at) noexcept nogil:
    return u32(data, at) | <uint64_t> u32(data, at + 4) << 32
