# C types for chunks.py, which is plain Python without this file; nothing here changes what it does.

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint32_t

cdef int64_t _TWICE, _BITMAP_WORDS, _ARRAY_MAX, _NO_RUNS, _HEAD_WORDS, _CONTAINER_WORDS, _FEW

@cython.locals(end=int64_t, total=int64_t, chunk=int64_t)
cpdef int64_t chunk_words(const uint16_t[::1] words, int64_t at, int64_t chunk_count)

@cython.locals(container_count=int64_t, data_words=int64_t, used=int64_t)
cpdef object roaring_of_chunks(const uint16_t[::1] words, int64_t at, int64_t chunk_count)

@cython.locals(used=int64_t, data=int64_t, chunk=int64_t, usage=int64_t, index=int64_t)
cdef int64_t _used_chunks(const uint16_t[::1] words, int64_t at, int64_t chunk_count) noexcept nogil

@cython.locals(
    header=int64_t, offset=int64_t, body=int64_t, data=int64_t, chunk=int64_t, usage=int64_t, cardinality=int64_t,
    length=int64_t, index=int64_t, byte=int64_t
)
cdef int64_t _fill(
    const uint16_t[::1] words, int64_t at, int64_t chunk_count, uint16_t[::1] roaring, int64_t container_count,
    uint16_t[::1] scratch
) noexcept nogil

@cython.locals(index=int64_t, word=uint32_t, place=int64_t)
cdef bint _insert_sorted(
    const uint16_t[::1] words, int64_t data, int64_t count, uint16_t[::1] target, int64_t body
) noexcept nogil

@cython.locals(index=int64_t, word=uint32_t, found=int64_t)
cdef bint _sort_by_bits(
    const uint16_t[::1] words, int64_t data, int64_t count, uint16_t[::1] target, int64_t body, uint16_t[::1] scratch
) noexcept nogil

@cython.locals(count=int64_t, index=int64_t, word=uint32_t)
cdef int64_t _count_bits(const uint16_t[::1] words, int64_t at) noexcept nogil

@cython.locals(count=int64_t, index=int64_t, word=uint32_t, bit=uint32_t)
cdef int64_t _list_bits(const uint16_t[::1] words, int64_t at, uint16_t[::1] target, int64_t body) noexcept nogil
