/*
 * Checksums of data pages, for the compiled form of page.py: see there for the format.
 *
 * A page is 64 rows of 32 words, and each column has a sum of its own, so that the compiler makes vectors of the
 * columns.  Where the loader can choose (GNU/Linux on x86-64), there is a second form for processors with AVX2.
 *
 * tests/core/test_page.py holds both forms to the algorithm written down plainly.
 */
#ifndef PGWAL_PAGE_CHECKSUM_H
#define PGWAL_PAGE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PGWAL_PAGE_SIZE 8192
#define PGWAL_COLUMNS 32
#define PGWAL_ROWS (PGWAL_PAGE_SIZE / 4 / PGWAL_COLUMNS)
#define PGWAL_FNV_PRIME 16777619u
#define PGWAL_NEVER_TORN UINT64_MAX

#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define PGWAL_FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define PGWAL_FOR_EACH_PROCESSOR
#endif

static const uint32_t pgwal_column_start[PGWAL_COLUMNS] = {
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
};

static inline uint32_t pgwal_mix(uint32_t sum, uint32_t word)
{
    uint32_t mixed = sum ^ word;
    return mixed * PGWAL_FNV_PRIME ^ mixed >> 17;
}

/* Read a row of words; pd_checksum, the lower half of the third word of a page, counts as 0 in its own sum. */
static inline void pgwal_read_row(uint32_t *words, const uint8_t *page, int row)
{
    memcpy(words, page + row * PGWAL_COLUMNS * 4, PGWAL_COLUMNS * 4);
    if (row == 0)
        words[2] &= 0xFFFF0000u;
}

static inline uint32_t pgwal_total(uint32_t *sums)
{
    uint32_t total = 0;

    for (int round = 0; round < 2; round++)
        for (int column = 0; column < PGWAL_COLUMNS; column++)
            sums[column] = pgwal_mix(sums[column], 0);
    for (int column = 0; column < PGWAL_COLUMNS; column++)
        total ^= sums[column];
    return total;
}

PGWAL_FOR_EACH_PROCESSOR
static uint32_t pgwal_page_sum(const uint8_t *page)
{
    uint32_t sums[PGWAL_COLUMNS], words[PGWAL_COLUMNS];

    memcpy(sums, pgwal_column_start, sizeof sums);
    for (int row = 0; row < PGWAL_ROWS; row++) {
        pgwal_read_row(words, page, row);
        for (int column = 0; column < PGWAL_COLUMNS; column++)
            sums[column] = pgwal_mix(sums[column], words[column]);
    }
    return pgwal_total(sums);
}

/*
 * The sums of two pages that follow each other: each row waits for the one before it, and that of another page fits in.
 * Both rows are read first: so written, the compiler keeps all sums in registers.
 */
PGWAL_FOR_EACH_PROCESSOR
static void pgwal_two_page_sums(const uint8_t *pages, uint32_t *totals)
{
    uint32_t sums[PGWAL_COLUMNS], words[PGWAL_COLUMNS], next_sums[PGWAL_COLUMNS], next_words[PGWAL_COLUMNS];

    memcpy(sums, pgwal_column_start, sizeof sums);
    memcpy(next_sums, pgwal_column_start, sizeof next_sums);
    for (int row = 0; row < PGWAL_ROWS; row++) {
        pgwal_read_row(words, pages, row);
        pgwal_read_row(next_words, pages + PGWAL_PAGE_SIZE, row);
        for (int column = 0; column < PGWAL_COLUMNS; column++)
            sums[column] = pgwal_mix(sums[column], words[column]);
        for (int column = 0; column < PGWAL_COLUMNS; column++)
            next_sums[column] = pgwal_mix(next_sums[column], next_words[column]);
    }
    totals[0] = pgwal_total(sums);
    totals[1] = pgwal_total(next_sums);
}

static int pgwal_is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PGWAL_PAGE_SIZE - 1) == 0;
}

static uint64_t pgwal_page_lsn(const uint8_t *page)
{
    uint32_t high, low;

    memcpy(&high, page, 4);
    memcpy(&low, page + 4, 4);
    return (uint64_t) high << 32 | low;
}

/* Return the number of the first page from `at` on that was changed behind `lsn`, or `count`. */
static uint64_t pgwal_next_newer_page(const uint8_t *data, uint64_t at, uint64_t count, uint64_t lsn)
{
    while (at < count && pgwal_page_lsn(data + at * PGWAL_PAGE_SIZE) <= lsn)
        at++;
    return at;
}

/* Tell whether the sum of a page must be taken; else `is_bad` tells whether it is bad. */
static int pgwal_needs_sum(const uint8_t *page, uint64_t lsn, int *is_bad)
{
    uint16_t upper;

    memcpy(&upper, page + 14, 2);
    *is_bad = upper == 0 && lsn == PGWAL_NEVER_TORN && !pgwal_is_zero(page);
    return upper != 0 && (lsn == PGWAL_NEVER_TORN || pgwal_page_lsn(page) < lsn);
}

static int pgwal_differs(const uint8_t *page, uint32_t sum, uint32_t block_number)
{
    uint16_t checksum;

    memcpy(&checksum, page + 8, 2);
    return (sum ^ block_number) % 65535 + 1 != checksum;
}

/* Return the number of the first bad page from `at` on, or `count`; the first page of `data` is `block_number`. */
static uint64_t pgwal_next_bad_page(
    const uint8_t *data, uint64_t at, uint64_t count, uint64_t block_number, uint64_t lsn)
{
    uint32_t sums[2];
    int is_bad, is_next_bad;

    for (; at < count; at++) {
        const uint8_t *page = data + at * PGWAL_PAGE_SIZE, *next = page + PGWAL_PAGE_SIZE;
        if (!pgwal_needs_sum(page, lsn, &is_bad)) {
            if (is_bad)
                return at;
            continue;
        }
        if (at + 1 == count || !pgwal_needs_sum(next, lsn, &is_next_bad)) {
            if (pgwal_differs(page, pgwal_page_sum(page), (uint32_t) (block_number + at)))
                return at;
            continue;
        }
        pgwal_two_page_sums(page, sums);
        if (pgwal_differs(page, sums[0], (uint32_t) (block_number + at)))
            return at;
        at++;
        if (pgwal_differs(next, sums[1], (uint32_t) (block_number + at)))
            return at;
    }
    return count;
}

#endif
