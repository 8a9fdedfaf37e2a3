# The C of crc32c.h, for the modules that compute CRCs: each has its own choice among the ways, and makes it once.

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "crc32c.h" nogil:
    const char *pgwal_crc32c_choose(const char *name) noexcept
    uint32_t crc_of_record "pgwal_record_crc32c"(const uint8_t *data, size_t at, size_t length) noexcept
    uint32_t crc_of_header "pgwal_header_crc32c"(const uint8_t *record, uint32_t body_crc) noexcept
    uint32_t crc_of_copy "pgwal_copied_crc32c"(
        uint8_t *target, size_t target_at, const uint8_t *source, size_t source_at, size_t length, uint32_t crc
    ) noexcept


cdef inline str choose_crc_way(str name):
    return pgwal_crc32c_choose(name.encode("ascii")).decode("ascii")
