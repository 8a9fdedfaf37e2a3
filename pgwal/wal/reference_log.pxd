# C types for reference_log.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pgwal.wal.scan_types cimport *

# Assigned in reference_log.py, once.
cdef uint64_t _DERIVED_BIT, _LOW_HALF, _NO_LIMIT, _NO_NUMBER, _OF_MAP, _SEEN_SIZE


@cython.final
cdef class ReferenceLog:
    cdef uint64_t *found_at
    cdef uint64_t found_count, log_count, reference_count
    cdef bint is_full
    cdef bint _takes_shortenings, _is_shortened
    cdef object _found, _log, _derived, _seen, _places, _numbers, _limits, _slots
    cdef dict _derived_blocks
    cdef uint64_t *_log_at
    cdef uint64_t *_derived_at
    cdef uint64_t *_seen_at
    cdef uint64_t *_places_at
    cdef uint64_t *_numbers_at
    cdef uint32_t *_limits_at
    cdef uint32_t *_slots_at
    cdef uint64_t _log_limit, _derived_count, _derived_limit
    cdef uint64_t _relation_count, _relation_limit, _slot_mask, _last_place, _last_number, _last_relation

    @cython.locals(
        logged=uint64_t, index=uint64_t, place=uint64_t, number=uint64_t, relation=uint64_t, last_place=uint64_t,
        last_number=uint64_t, key=uint64_t,
    )
    cdef void push(self, uint64_t count) noexcept nogil

    @cython.locals(slot=uint64_t, relation=uint64_t)
    cdef void shorten(self, uint64_t place, uint64_t number, uint64_t limit) noexcept nogil

    cdef bint has_room(self, uint64_t count) noexcept nogil

    @cython.locals(relation=uint64_t, key=uint64_t)
    cdef void derive_map_block(self, uint64_t place, uint64_t number, uint64_t map_block) noexcept nogil

    @cython.locals(relation=uint64_t, slot=uint64_t)
    cdef uint64_t _relation(self, uint64_t place, uint64_t number) noexcept nogil

    @cython.locals(relation=uint64_t, slot=uint64_t)
    cdef uint64_t _slot(self, uint64_t place, uint64_t number) noexcept nogil

    @cython.locals(relation=uint64_t)
    cdef uint64_t _add_relation(self, uint64_t slot, uint64_t place, uint64_t number, uint64_t limit) noexcept nogil

    @cython.locals(slot=uint64_t)
    cdef bint _is_new(self, uint64_t key) noexcept nogil

    @cython.locals(relation=uint64_t)
    cdef int _fill_slots(self) except -1

    cdef object grow(self)

    @cython.locals(
        ends_at="uint32_t *", taken=list, start=uint64_t, end=uint64_t, relation=uint64_t, limit=uint64_t,
        is_left_out=bint,
    )
    cdef list take(self)

    cdef list take_derived(self)

    @cython.locals(place=uint64_t, number=uint64_t)
    cdef tuple _fork(self, uint64_t relation)

    @cython.locals(index=uint64_t, start=uint32_t, count=uint32_t, relation=uint64_t, key=uint64_t)
    cdef void _fill_sorted(self, uint32_t *blocks, uint32_t *ends) noexcept nogil
