# C types for scan.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "crc32c.h" nogil:
    const char *pgwal_crc32c_choose(const char *name) noexcept
    uint32_t _record_crc "pgwal_record_crc32c"(const uint8_t *data, size_t at, size_t length) noexcept
    uint32_t _header_crc "pgwal_header_crc32c"(const uint8_t *record, uint32_t body_crc) noexcept
    uint32_t _copied_crc "pgwal_copied_crc32c"(
        uint8_t *target, size_t target_at, const uint8_t *source, size_t source_at, size_t length, uint32_t crc
    ) noexcept


cdef inline void *_buffer(object holder) except NULL:
    """Return where the bytes of ``holder`` are; they stay there while it lives and keeps its size."""
    cdef Py_buffer view
    PyObject_GetBuffer(holder, &view, PyBUF_SIMPLE)
    cdef void *start = view.buf
    PyBuffer_Release(&view)
    return start


cdef inline uint8_t *_bytes_of(object holder) except NULL:
    return <uint8_t *> _buffer(holder)


cdef inline uint32_t *_words_of(object holder) except NULL:
    return <uint32_t *> _buffer(holder)


cdef inline uint64_t *_double_words_of(object holder) except NULL:
    return <uint64_t *> _buffer(holder)


cdef inline void _copy(
    uint8_t *target, uint64_t target_at, const uint8_t *source, uint64_t source_at, uint64_t count
) noexcept nogil:
    memcpy(target + target_at, source + source_at, count)


cdef inline str _choose_crc32c(str name):
    return pgwal_crc32c_choose(name.encode("ascii")).decode("ascii")


# Assigned in scan.py, once.
cdef int _NEED_DATA, _STOP, _SPECIAL, _END_OF_WAL
cdef int _GO_ON, _NEED_FORMAT, _NEED_TABLES, _NEED_RECORD_BUFFER, _UNKNOWN, _BROKEN
cdef uint64_t _PAGE_SIZE, _PAGE_MASK, _SHORT_HEADER, _LONG_HEADER, _RECORD_HEADER, _BLOCK_SIZE
cdef uint32_t _FIRST_IS_CONTRECORD, _HAS_LONG_HEADER
cdef uint32_t _RM_XLOG, _RM_XACT, _RM_SMGR, _RM_DBASE, _RM_TBLSPC, _RM_HEAP2, _RM_HEAP
cdef uint32_t _NO_OPERATION, _LAST_BUILTIN_RMID, _FIRST_CUSTOM_RMID
cdef uint32_t _MAX_BLOCK_ID, _ID_TOP_LEVEL_XID, _ID_ORIGIN, _ID_DATA_LONG, _ID_DATA_SHORT
cdef uint64_t _KEPT_BYTES, _KEPT_BYTES_OF_LISTS, _MAIN_START
cdef uint64_t _SOURCE_BUFFER, _HEAP_BLOCKS_PER_MAP_BLOCK, _DERIVED_BIT, _LOW_HALF, _NO_NUMBER, _SEEN_SIZE
cdef uint64_t _FSM_FORK, _VM_FORK, _INIT_FORK, _NO_LIMIT
cdef int _PAGE_MAGIC, _PAGE_FLAGS, _PAGE_LONG_HEADER, _PAGE_ADDRESS, _PAGE_TIMELINE
cdef int _CONTRECORD, _RECORD_LENGTH, _RECORD_PREV_LINK, _RECORD_CRC
cdef int _FINDING_FIRST, _BETWEEN_RECORDS, _COLLECTING, _CONTINUING, _PADDING
cdef int _ENDS_EARLY, _NO_SUCH_ID, _ID_ORDER, _DATA_LENGTH, _NO_RELATION, _NO_FORK
cdef int _IMAGE, _SUM, _DATA_SHORT, _OTHER_OVERWRITTEN


# The compiler makes a single load of each where the processor's byte order is that of the WAL.

cdef inline uint32_t _u16(const uint8_t *data, uint64_t at) noexcept nogil:
    return data[at] | <uint32_t> data[at + 1] << 8


cdef inline uint32_t _u32(const uint8_t *data, uint64_t at) noexcept nogil:
    return (
        data[at] | <uint32_t> data[at + 1] << 8 | <uint32_t> data[at + 2] << 16 | <uint32_t> data[at + 3] << 24
    )


cdef inline uint64_t _u64(const uint8_t *data, uint64_t at) noexcept nogil:
    return _u32(data, at) | <uint64_t> _u32(data, at + 4) << 32


cdef class WalSource:
    cdef public uint64_t left

    cdef uint64_t fill(self, uint8_t *target, uint64_t size) noexcept nogil


cdef WalSource _NO_SOURCE


@cython.final
cdef class WalScanner:
    # The cluster and what is wanted of its WAL.
    cdef uint64_t _segment_size, _segment_mask, _system_identifier, _start_lsn, _stop, _expected_prev
    cdef readonly uint32_t magic
    cdef uint32_t _compressed_bits, _all_page_flags, _overwrite_flag
    cdef bint _has_top_level_xid, _has_custom_rmgrs, _wants_derived, _derives, _all_transaction_ends, _tablespaces
    cdef bint _decodes_shortenings
    cdef uint32_t _dbase_create_file_copy, _dbase_create_wal_log, _dbase_drop
    # Where the walk is.
    cdef uint64_t _at, _skip_to
    cdef readonly uint64_t feed_lsn, position, last_record_lsn, record_count, block_reference_count
    cdef readonly uint64_t first_record_lsn, first_prev_lsn
    cdef int _state, _reason
    cdef bint _has_prev, _is_linked
    cdef readonly uint32_t timeline_id
    cdef object _failure
    # The chunk, those that wait, and what is read when it is used up.
    cdef object _chunk, _queue, _source_buffer
    cdef uint64_t _size, _cursor
    cdef WalSource _source
    # The page header.
    cdef object _head
    cdef uint8_t *_head_bytes
    cdef uint64_t _head_have, _page_rest
    cdef uint32_t _page_flags
    # The record that is being collected.
    cdef object _record
    cdef uint8_t *_record_bytes
    cdef uint64_t _record_capacity, _record_lsn, _record_total, _have, _want, _want_of_page, _discarded_lsn
    cdef uint64_t _kept, _unkept
    cdef uint32_t _body_crc
    cdef bint _is_link_checked, _has_discarded
    # The record that was parsed last.
    cdef uint64_t _main_at, _main_length, _image_length, _lsn, _block_0, _block_1
    cdef uint32_t _rmid, _info
    cdef int _detail
    cdef bint _is_in_record, _held
    cdef readonly uint64_t special_lsn, special_end_lsn, special_prev_lsn
    cdef readonly uint32_t special_xid, special_rmid, special_info
    cdef readonly bytes special_main
    # Tables.
    cdef object _found, _log, _derived, _seen, _places, _numbers, _limits, _slots
    cdef dict _derived_blocks
    cdef uint64_t *_found_at
    cdef uint64_t *_log_at
    cdef uint64_t *_derived_at
    cdef uint64_t *_seen_at
    cdef uint64_t *_places_at
    cdef uint64_t *_numbers_at
    cdef uint32_t *_limits_at
    cdef uint32_t *_slots_at
    cdef bint _is_shortened
    cdef uint64_t _found_count, _log_count, _log_limit, _derived_count, _derived_limit
    cdef uint64_t _relation_count, _relation_limit, _slot_mask, _last_place, _last_number, _last_relation

    @cython.locals(source=WalSource, code=int)
    cdef int _run(self) except -1

    @cython.locals(code=int)
    cdef int _walk(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef int _end(self, uint64_t lsn, int reason) noexcept nogil

    @cython.locals(start=uint64_t)
    cdef bint _is_stopped(self) noexcept nogil

    @cython.locals(count=uint64_t)
    cdef int _skip(self, uint64_t size) noexcept nogil

    @cython.locals(wanted=uint64_t, count=uint64_t, magic=uint32_t, flags=uint32_t, timeline=uint32_t)
    cdef int _page_header(self, const uint8_t *data, uint64_t size, uint64_t blamed_lsn) noexcept nogil

    cdef bint _fits_cluster(self) noexcept nogil

    @cython.locals(code=int, rest=uint64_t, on_page=uint64_t)
    cdef int _find_first(self, const uint8_t *data, uint64_t size) noexcept nogil

    @cython.locals(
        code=int, page_lsn=uint64_t, at=uint64_t, on_page=uint64_t, cursor=uint64_t, here=uint64_t,
        total=uint64_t, aligned=uint64_t,
    )
    cdef int _between_records(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef bint _is_link_right(self, uint64_t lsn, uint64_t link) noexcept nogil

    cdef int _start_collecting(self) noexcept nogil

    @cython.locals(count=uint64_t, place=uint64_t, total=uint64_t, on_page=uint64_t)
    cdef int _collect(self, const uint8_t *data, uint64_t size) noexcept nogil

    cdef void _want_header(self) noexcept nogil

    cdef void _want_body(self) noexcept nogil

    @cython.locals(page_lsn=uint64_t, code=int, on_page=uint64_t)
    cdef int _continue_on_page(self, const uint8_t *data, uint64_t size) noexcept nogil

    @cython.locals(code=int, crc=uint32_t, total=uint64_t)
    cdef int _take_collected(self, uint64_t size) noexcept nogil

    @cython.locals(info=uint32_t, rmid=uint32_t, is_special=bint)
    cdef int _take_record(
        self, const uint8_t *data, uint64_t base, uint64_t total, uint64_t lsn, uint64_t end_lsn, uint32_t crc
    ) noexcept nogil

    cdef bint _is_known(self, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(operation=uint32_t)
    cdef bint _check_xlog(self, const uint8_t *data, uint32_t info, uint64_t end_lsn) noexcept nogil

    @cython.locals(operation=uint32_t)
    cdef bint _is_special(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(operation=uint32_t, at=uint64_t, size=uint64_t)
    cdef bint _log_shortenings(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(fork=uint64_t, block=uint64_t)
    cdef bint _log_smgr(self, const uint8_t *data, uint64_t at, uint64_t size, uint32_t operation) noexcept nogil

    @cython.locals(map_number=uint64_t, map_block=uint64_t, is_in_map_block=bint)
    cdef void _truncate(self, uint64_t place, uint64_t number, uint64_t block, uint32_t flags) noexcept nogil

    @cython.locals(count=uint64_t, index=uint64_t, database=uint64_t)
    cdef bint _log_dbase(self, const uint8_t *data, uint64_t at, uint64_t size, uint32_t operation) noexcept nogil

    @cython.locals(xinfo=uint32_t, offset=uint64_t, count=uint64_t, _=uint64_t, place=uint64_t, number=uint64_t)
    cdef bint _log_dropped(self, const uint8_t *data, uint64_t at, uint64_t size) noexcept nogil

    cdef bint _has_room(self, uint64_t count) noexcept nogil

    @cython.locals(slot=uint64_t, relation=uint64_t)
    cdef void _shorten(self, uint64_t place, uint64_t number, uint64_t limit) noexcept nogil

    @cython.locals(
        payload=uint64_t, main=uint64_t, count=uint64_t, next_id=uint32_t, place=uint64_t, number=uint64_t,
        id_=uint32_t, flags=uint32_t, length=uint64_t, fork=uint64_t, key=uint64_t,
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

    @cython.locals(relation=uint64_t, slot=uint64_t)
    cdef uint64_t _relation(self, uint64_t place, uint64_t number) noexcept nogil

    @cython.locals(relation=uint64_t, slot=uint64_t)
    cdef uint64_t _slot(self, uint64_t place, uint64_t number) noexcept nogil

    @cython.locals(relation=uint64_t)
    cdef uint64_t _add_relation(self, uint64_t slot, uint64_t place, uint64_t number, uint64_t limit) noexcept nogil

    @cython.locals(count=uint64_t, logged=uint64_t, index=uint64_t, key=uint64_t)
    cdef int _push_references(self) noexcept nogil

    @cython.locals(slot=uint64_t)
    cdef bint _is_new(self, uint64_t key) noexcept nogil

    cdef int _room(self) noexcept nogil

    @cython.locals(operation=uint32_t, offset=uint64_t, old_bit=uint32_t, new_bit=uint32_t, flags=uint32_t, is_other_page=bint)
    cdef void _derive_map_blocks(self, const uint8_t *data, uint32_t rmid, uint32_t info) noexcept nogil

    @cython.locals(heap=uint64_t, number=uint64_t, relation=uint64_t)
    cdef void _derive_map_block(self, uint64_t heap_key) noexcept nogil

    @cython.locals(key=uint64_t)
    cdef void _note_derived(self, uint64_t relation, uint64_t block) noexcept nogil

    @cython.locals(relation=uint64_t)
    cdef int _fill_slots(self) except -1

    @cython.locals(place=uint64_t, number=uint64_t)
    cdef tuple _fork(self, uint64_t relation)

    @cython.locals(
        ends_at="uint32_t *", taken=list, start=uint64_t, end=uint64_t, relation=uint64_t, limit=uint64_t,
        is_left_out=bint,
    )
    cdef list _take(self)

    @cython.locals(index=uint64_t, start=uint32_t, count=uint32_t, relation=uint64_t, key=uint64_t)
    cdef void _fill_sorted(self, uint32_t *blocks, uint32_t *ends) noexcept nogil
