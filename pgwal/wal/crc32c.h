/*
 * CRC-32C (Castagnoli), as PostgreSQL's COMP_CRC32C, for the compiled form of scan.py.
 *
 * The fastest way that this processor has is chosen at run time, once, by pgwal_crc32c_choose():
 *   - x86-64 with SSE 4.2 and PCLMULQDQ: the crc32 instruction on three strands at a time.  It takes 3 cycles and a
 *     new one can start each cycle, so three strands keep it busy; a carry-less multiplication joins them.
 *   - 64-bit ARM with the CRC extension: its crc32c instructions.
 *   - anything else: eight bytes at a time from tables ("slicing by 8").
 *
 * tests/core/test_scan.py holds each of them to google-crc32c.
 */
#ifndef PGWAL_CRC32C_H
#define PGWAL_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PGWAL_CRC32C_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define PGWAL_CRC32C_ARM 1
#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif
#endif

/* The polynomial 0x1EDC6F41 with its bits reversed: in a reflected CRC the lowest bit is the highest power of x. */
#define PGWAL_CRC32C_POLYNOMIAL 0x82F63B78u

/*
 * A way to compute the CRC of a WAL record of `length` >= 24 bytes: of what follows its header, then of the header's
 * first 20 bytes.  Records are short, so both parts are one call.
 */
typedef uint32_t (*pgwal_record_crc32c_function)(const uint8_t *record, size_t length);

#define PGWAL_RECORD_HEADER 24
#define PGWAL_RECORD_CRC_AT 20

/* --- any processor ------------------------------------------------------------------------------------------ */

static uint32_t pgwal_crc32c_table[8][256];

static void pgwal_crc32c_fill_table(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ PGWAL_CRC32C_POLYNOMIAL : crc >> 1;
        pgwal_crc32c_table[0][byte] = crc;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        for (int distance = 1; distance < 8; distance++) {
            uint32_t crc = pgwal_crc32c_table[distance - 1][byte];
            pgwal_crc32c_table[distance][byte] = crc >> 8 ^ pgwal_crc32c_table[0][crc & 0xFF];
        }
}

static uint32_t pgwal_crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; data += 8, length -= 8) {
        /* Bytes, not words: right on processors of either byte order. */
        crc ^= (uint32_t) data[0] | (uint32_t) data[1] << 8 | (uint32_t) data[2] << 16 | (uint32_t) data[3] << 24;
        crc = pgwal_crc32c_table[7][crc & 0xFF] ^ pgwal_crc32c_table[6][crc >> 8 & 0xFF]
            ^ pgwal_crc32c_table[5][crc >> 16 & 0xFF] ^ pgwal_crc32c_table[4][crc >> 24]
            ^ pgwal_crc32c_table[3][data[4]] ^ pgwal_crc32c_table[2][data[5]]
            ^ pgwal_crc32c_table[1][data[6]] ^ pgwal_crc32c_table[0][data[7]];
    }
    while (length--)
        crc = crc >> 8 ^ pgwal_crc32c_table[0][(crc ^ *data++) & 0xFF];
    return crc;
}

static uint32_t pgwal_record_crc32c_by_table(const uint8_t *record, size_t length)
{
    uint32_t crc = pgwal_crc32c_by_table(~0u, record + PGWAL_RECORD_HEADER, length - PGWAL_RECORD_HEADER);
    return ~pgwal_crc32c_by_table(crc, record, PGWAL_RECORD_CRC_AT);
}

/* --- x86-64 ------------------------------------------------------------------------------------------------- */

#ifdef PGWAL_CRC32C_X86

/* Bytes in one strand.  Of a WAL page's 8168, two long rounds and five short ones leave 104 for the single strand. */
#define PGWAL_CRC32C_LONG 1024
#define PGWAL_CRC32C_SHORT 128

/* Multipliers that move a CRC over one and over two strands of zeros. */
static uint64_t pgwal_crc32c_over_long[2];
static uint64_t pgwal_crc32c_over_short[2];

/*
 * Return x^(8 * bytes - 33) modulo the polynomial, reflected.  Of the missing 33, 32 are made good by the crc32
 * instruction that reduces the product, one by the product of two reflected numbers being one place too low.
 */
static uint64_t pgwal_crc32c_multiplier(unsigned bytes)
{
    uint32_t power = 0x80000000u;
    for (unsigned step = 0; step < 8 * bytes - 33; step++)
        power = power & 1 ? power >> 1 ^ PGWAL_CRC32C_POLYNOMIAL : power >> 1;
    return power;
}

static void pgwal_crc32c_fill_multipliers(void)
{
    for (unsigned strands = 1; strands <= 2; strands++) {
        pgwal_crc32c_over_long[strands - 1] = pgwal_crc32c_multiplier(strands * PGWAL_CRC32C_LONG);
        pgwal_crc32c_over_short[strands - 1] = pgwal_crc32c_multiplier(strands * PGWAL_CRC32C_SHORT);
    }
}

static inline uint64_t pgwal_crc32c_word(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* clang 14 made the crc32 instruction a feature of its own, which sse4.2 no longer implies in later versions. */
#if defined(__clang__) && __clang_major__ >= 14
#define PGWAL_CRC32C_TARGET __attribute__((target("sse4.2,crc32,pclmul")))
#else
#define PGWAL_CRC32C_TARGET __attribute__((target("sse4.2,pclmul")))
#endif

PGWAL_CRC32C_TARGET static inline uint64_t
pgwal_crc32c_product(uint64_t crc, uint64_t multiplier)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long) crc), _mm_cvtsi64_si128((long long) multiplier), 0);
    return (uint64_t) _mm_cvtsi128_si64(product);
}

PGWAL_CRC32C_TARGET static uint64_t
pgwal_crc32c_three_strands(uint64_t crc, const uint8_t *data, size_t strand, const uint64_t *over)
{
    uint64_t second = 0, third = 0;
    for (size_t at = 0; at < strand; at += 8) {
        crc = _mm_crc32_u64(crc, pgwal_crc32c_word(data + at));
        second = _mm_crc32_u64(second, pgwal_crc32c_word(data + strand + at));
        third = _mm_crc32_u64(third, pgwal_crc32c_word(data + 2 * strand + at));
    }
    return third ^ _mm_crc32_u64(0, pgwal_crc32c_product(crc, over[1]) ^ pgwal_crc32c_product(second, over[0]));
}

PGWAL_CRC32C_TARGET static inline uint32_t
pgwal_crc32c_one_strand(uint64_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; data += 8, length -= 8)
        crc = _mm_crc32_u64(crc, pgwal_crc32c_word(data));
    uint32_t short_crc = (uint32_t) crc;
    if (length & 4) {
        uint32_t word;
        memcpy(&word, data, sizeof word);
        short_crc = _mm_crc32_u32(short_crc, word);
        data += 4;
    }
    if (length & 2) {
        uint16_t word;
        memcpy(&word, data, sizeof word);
        short_crc = _mm_crc32_u16(short_crc, word);
        data += 2;
    }
    if (length & 1)
        short_crc = _mm_crc32_u8(short_crc, *data);
    return short_crc;
}

PGWAL_CRC32C_TARGET static uint32_t
pgwal_record_crc32c_by_sse42(const uint8_t *record, size_t length)
{
    const uint8_t *data = record + PGWAL_RECORD_HEADER;
    uint64_t crc = ~0u;
    length -= PGWAL_RECORD_HEADER;
    for (; length >= 3 * PGWAL_CRC32C_LONG; data += 3 * PGWAL_CRC32C_LONG, length -= 3 * PGWAL_CRC32C_LONG)
        crc = pgwal_crc32c_three_strands(crc, data, PGWAL_CRC32C_LONG, pgwal_crc32c_over_long);
    for (; length >= 3 * PGWAL_CRC32C_SHORT; data += 3 * PGWAL_CRC32C_SHORT, length -= 3 * PGWAL_CRC32C_SHORT)
        crc = pgwal_crc32c_three_strands(crc, data, PGWAL_CRC32C_SHORT, pgwal_crc32c_over_short);
    crc = pgwal_crc32c_one_strand(crc, data, length);
    return ~pgwal_crc32c_one_strand(crc, record, PGWAL_RECORD_CRC_AT);
}

static int pgwal_crc32c_has_sse42(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_2) && (ecx & bit_PCLMUL);
}

#endif

/* --- 64-bit ARM --------------------------------------------------------------------------------------------- */

#ifdef PGWAL_CRC32C_ARM

#if defined(__ARM_FEATURE_CRC32)
#define PGWAL_CRC32C_TARGET
#elif defined(__clang__)
#define PGWAL_CRC32C_TARGET __attribute__((target("crc")))
#else
#define PGWAL_CRC32C_TARGET __attribute__((target("+crc")))
#endif

PGWAL_CRC32C_TARGET static inline uint32_t
pgwal_crc32c_by_armv8(uint32_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        crc = __crc32cd(crc, word);
    }
    if (length & 4) {
        uint32_t word;
        memcpy(&word, data, sizeof word);
        crc = __crc32cw(crc, word);
        data += 4;
    }
    for (length &= 3; length; length--)
        crc = __crc32cb(crc, *data++);
    return crc;
}

PGWAL_CRC32C_TARGET static uint32_t
pgwal_record_crc32c_by_armv8(const uint8_t *record, size_t length)
{
    uint32_t crc = pgwal_crc32c_by_armv8(~0u, record + PGWAL_RECORD_HEADER, length - PGWAL_RECORD_HEADER);
    return ~pgwal_crc32c_by_armv8(crc, record, PGWAL_RECORD_CRC_AT);
}

static int pgwal_crc32c_has_armv8(void)
{
#if defined(__ARM_FEATURE_CRC32)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
    return 0;
#endif
}

#endif

/* --- choice and use ----------------------------------------------------------------------------------------- */

static pgwal_record_crc32c_function pgwal_record_crc32c_chosen = pgwal_record_crc32c_by_table;

/*
 * Choose the way and fill its tables; returns its name.  Called once, before the first CRC.  `by_table` chooses the
 * way that every processor has, for tests.
 */
static const char *pgwal_crc32c_choose(int by_table)
{
    pgwal_crc32c_fill_table();
    pgwal_record_crc32c_chosen = pgwal_record_crc32c_by_table;
    if (by_table)
        return "table";
#ifdef PGWAL_CRC32C_X86
    if (pgwal_crc32c_has_sse42()) {
        pgwal_crc32c_fill_multipliers();
        pgwal_record_crc32c_chosen = pgwal_record_crc32c_by_sse42;
        return "sse4.2";
    }
#endif
#ifdef PGWAL_CRC32C_ARM
    if (pgwal_crc32c_has_armv8()) {
        pgwal_record_crc32c_chosen = pgwal_record_crc32c_by_armv8;
        return "armv8";
    }
#endif
    return "table";
}

/* Return the CRC that belongs into the header of the WAL record of `length` >= 24 bytes at `data + at`. */
static inline uint32_t pgwal_record_crc32c(const uint8_t *data, size_t at, size_t length)
{
    return pgwal_record_crc32c_chosen(data + at, length);
}

#endif
