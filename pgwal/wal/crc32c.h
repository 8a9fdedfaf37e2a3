/*
 * CRC-32C (Castagnoli), as PostgreSQL's COMP_CRC32C, for the compiled form of the scanner.
 *
 * The fastest way that this processor has is chosen at run time, once, by pgwal_crc32c_choose():
 *   - x86-64 with SSE 4.2 and PCLMULQDQ: the crc32 instruction on three strands at a time.  It takes 3 cycles and a
 *     new one can start each cycle, so three strands keep it busy; a carry-less multiplication joins them.
 *   - x86-64 with AVX-512 and VPCLMULQDQ: as before for what is short; what is long is folded, 256 bytes at a time.
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
/* gcc has all the intrinsics from 10 on. */
#if defined(__clang__) || __GNUC__ >= 10
#define PGWAL_CRC32C_AVX512 1
#endif
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
 * Ways to compute CRCs.  A `crc` of bytes before is the register: ~0 for none, and not inverted at the end.
 */
typedef struct {
    const char *name;
    /* Of a WAL record of `length` >= 24 bytes: of what follows its header, then of the header's first 20 bytes. */
    uint32_t (*record)(const uint8_t *record, size_t length);
    /* Of bytes that are copied to `target`: both in one pass take no longer than either. */
    uint32_t (*copied)(uint32_t crc, uint8_t *target, const uint8_t *data, size_t length);
} pgwal_crc32c_way;

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

static uint32_t pgwal_copied_crc32c_by_table(uint32_t crc, uint8_t *target, const uint8_t *data, size_t length)
{
    memcpy(target, data, length);
    return pgwal_crc32c_by_table(crc, target, length);
}

static const pgwal_crc32c_way pgwal_crc32c_table_way = {
    "table", pgwal_record_crc32c_by_table, pgwal_copied_crc32c_by_table
};

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

PGWAL_CRC32C_TARGET static inline uint64_t
pgwal_crc32c_three_strands(uint64_t crc, uint8_t *target, const uint8_t *data, size_t strand, const uint64_t *over)
{
    uint64_t second = 0, third = 0;
    for (size_t at = 0; at < strand; at += 8) {
        crc = _mm_crc32_u64(crc, pgwal_crc32c_word(data + at));
        second = _mm_crc32_u64(second, pgwal_crc32c_word(data + strand + at));
        third = _mm_crc32_u64(third, pgwal_crc32c_word(data + 2 * strand + at));
    }
    if (target != NULL)
        memcpy(target, data, 3 * strand);
    return third ^ _mm_crc32_u64(0, pgwal_crc32c_product(crc, over[1]) ^ pgwal_crc32c_product(second, over[0]));
}

PGWAL_CRC32C_TARGET static inline uint32_t
pgwal_crc32c_one_strand(uint64_t crc, uint8_t *target, const uint8_t *data, size_t length)
{
    if (target != NULL)
        memcpy(target, data, length);
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

/* Copies too, where there is a `target`. */
PGWAL_CRC32C_TARGET static inline uint32_t
pgwal_crc32c_by_sse42(uint32_t before, uint8_t *target, const uint8_t *data, size_t length)
{
    uint64_t crc = before;
    size_t at = 0;
    for (; length - at >= 3 * PGWAL_CRC32C_LONG; at += 3 * PGWAL_CRC32C_LONG)
        crc = pgwal_crc32c_three_strands(
            crc, target ? target + at : NULL, data + at, PGWAL_CRC32C_LONG, pgwal_crc32c_over_long);
    for (; length - at >= 3 * PGWAL_CRC32C_SHORT; at += 3 * PGWAL_CRC32C_SHORT)
        crc = pgwal_crc32c_three_strands(
            crc, target ? target + at : NULL, data + at, PGWAL_CRC32C_SHORT, pgwal_crc32c_over_short);
    return pgwal_crc32c_one_strand(crc, target ? target + at : NULL, data + at, length - at);
}

PGWAL_CRC32C_TARGET static uint32_t
pgwal_record_crc32c_by_sse42(const uint8_t *record, size_t length)
{
    uint32_t crc = pgwal_crc32c_by_sse42(~0u, NULL, record + PGWAL_RECORD_HEADER, length - PGWAL_RECORD_HEADER);
    return ~pgwal_crc32c_one_strand(crc, NULL, record, PGWAL_RECORD_CRC_AT);
}

static const pgwal_crc32c_way pgwal_crc32c_sse42_way = {
    "sse4.2", pgwal_record_crc32c_by_sse42, pgwal_crc32c_by_sse42
};

static int pgwal_crc32c_has_sse42(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_2) && (ecx & bit_PCLMUL);
}

#endif

#ifdef PGWAL_CRC32C_AVX512

#if defined(__clang__) && __clang_major__ >= 14
#define PGWAL_CRC32C_WIDE_TARGET __attribute__((target("sse4.2,crc32,pclmul,avx512f,vpclmulqdq")))
#else
#define PGWAL_CRC32C_WIDE_TARGET __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))
#endif

/* What is shorter is not worth the way back from folded vectors to a CRC. */
#define PGWAL_CRC32C_FOLDED 512

/* For each lane of 16 bytes, its two multipliers for moving it over 256 and over 64 bytes of data. */
static uint64_t pgwal_crc32c_over_256[8];
static uint64_t pgwal_crc32c_over_64[8];

static void pgwal_crc32c_fill_lanes(uint64_t *lanes, unsigned bytes)
{
    for (unsigned lane = 0; lane < 4; lane++) {
        /* The first half of a lane lies 8 bytes further from the data that it is moved to. */
        lanes[2 * lane] = pgwal_crc32c_multiplier(bytes + 8);
        lanes[2 * lane + 1] = pgwal_crc32c_multiplier(bytes);
    }
}

PGWAL_CRC32C_WIDE_TARGET static inline __m512i
pgwal_crc32c_fold(__m512i vector, __m512i over, __m512i data)
{
    return _mm512_ternarylogic_epi64(
        _mm512_clmulepi64_epi128(vector, over, 0x00), _mm512_clmulepi64_epi128(vector, over, 0x11), data, 0x96);
}

PGWAL_CRC32C_WIDE_TARGET static inline __m512i
pgwal_crc32c_take(uint8_t *target, const uint8_t *data, size_t at)
{
    __m512i vector = _mm512_loadu_si512(data + at);
    if (target != NULL)
        _mm512_storeu_si512(target + at, vector);
    return vector;
}

/* Return the CRC of the 64 bytes of `vector`, into which that of what is before was XORed. */
PGWAL_CRC32C_WIDE_TARGET static inline uint64_t
pgwal_crc32c_of_vector(__m512i vector)
{
    uint64_t crc = 0, words[8];
    _mm512_storeu_si512(words, vector);
    for (int at = 0; at < 8; at++)
        crc = _mm_crc32_u64(crc, words[at]);
    return crc;
}

PGWAL_CRC32C_WIDE_TARGET static inline uint32_t
pgwal_crc32c_by_avx512(uint32_t crc, uint8_t *target, const uint8_t *data, size_t length)
{
    size_t at = 0;
    if (length >= PGWAL_CRC32C_FOLDED) {
        __m512i over = _mm512_loadu_si512(pgwal_crc32c_over_256);
        __m512i first = pgwal_crc32c_take(target, data, 0), second = pgwal_crc32c_take(target, data, 64);
        __m512i third = pgwal_crc32c_take(target, data, 128), fourth = pgwal_crc32c_take(target, data, 192);
        first = _mm512_xor_si512(first, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int) crc)));
        for (at = 256; length - at >= 256; at += 256) {
            first = pgwal_crc32c_fold(first, over, pgwal_crc32c_take(target, data, at));
            second = pgwal_crc32c_fold(second, over, pgwal_crc32c_take(target, data, at + 64));
            third = pgwal_crc32c_fold(third, over, pgwal_crc32c_take(target, data, at + 128));
            fourth = pgwal_crc32c_fold(fourth, over, pgwal_crc32c_take(target, data, at + 192));
        }
        over = _mm512_loadu_si512(pgwal_crc32c_over_64);
        fourth = pgwal_crc32c_fold(
            pgwal_crc32c_fold(pgwal_crc32c_fold(first, over, second), over, third), over, fourth);
        for (; length - at >= 64; at += 64)
            fourth = pgwal_crc32c_fold(fourth, over, pgwal_crc32c_take(target, data, at));
        crc = (uint32_t) pgwal_crc32c_of_vector(fourth);
    }
    return pgwal_crc32c_by_sse42(crc, target ? target + at : NULL, data + at, length - at);
}

PGWAL_CRC32C_WIDE_TARGET static uint32_t
pgwal_record_crc32c_by_avx512(const uint8_t *record, size_t length)
{
    uint32_t crc = pgwal_crc32c_by_avx512(~0u, NULL, record + PGWAL_RECORD_HEADER, length - PGWAL_RECORD_HEADER);
    return ~pgwal_crc32c_one_strand(crc, NULL, record, PGWAL_RECORD_CRC_AT);
}

static const pgwal_crc32c_way pgwal_crc32c_avx512_way = {
    "avx512", pgwal_record_crc32c_by_avx512, pgwal_crc32c_by_avx512
};

static int pgwal_crc32c_has_avx512(void)
{
    /* These ask the operating system too, which has to save the wide registers. */
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
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

PGWAL_CRC32C_TARGET static uint32_t
pgwal_copied_crc32c_by_armv8(uint32_t crc, uint8_t *target, const uint8_t *data, size_t length)
{
    memcpy(target, data, length);
    return pgwal_crc32c_by_armv8(crc, target, length);
}

static const pgwal_crc32c_way pgwal_crc32c_armv8_way = {
    "armv8", pgwal_record_crc32c_by_armv8, pgwal_copied_crc32c_by_armv8
};

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

static const pgwal_crc32c_way *pgwal_crc32c_chosen = &pgwal_crc32c_table_way;

/* List the ways that this processor has, the fastest last, filling their tables; returns how many. */
static size_t pgwal_crc32c_list(const pgwal_crc32c_way **ways)
{
    size_t count = 0;
    pgwal_crc32c_fill_table();
    ways[count++] = &pgwal_crc32c_table_way;
#ifdef PGWAL_CRC32C_X86
    if (pgwal_crc32c_has_sse42()) {
        pgwal_crc32c_fill_multipliers();
        ways[count++] = &pgwal_crc32c_sse42_way;
#ifdef PGWAL_CRC32C_AVX512
        if (pgwal_crc32c_has_avx512()) {
            pgwal_crc32c_fill_lanes(pgwal_crc32c_over_256, 256);
            pgwal_crc32c_fill_lanes(pgwal_crc32c_over_64, 64);
            ways[count++] = &pgwal_crc32c_avx512_way;
        }
#endif
    }
#endif
#ifdef PGWAL_CRC32C_ARM
    if (pgwal_crc32c_has_armv8())
        ways[count++] = &pgwal_crc32c_armv8_way;
#endif
    return count;
}

#define PGWAL_CRC32C_MAX_WAYS 4

/*
 * Choose a way; returns its name.  Called once, before the first CRC.  A `name` chooses that one, for tests; where the
 * processor has no such way, and for "", it is the fastest one.
 */
static const char *pgwal_crc32c_choose(const char *name)
{
    const pgwal_crc32c_way *ways[PGWAL_CRC32C_MAX_WAYS];
    size_t count = pgwal_crc32c_list(ways);
    pgwal_crc32c_chosen = ways[count - 1];
    for (size_t at = 0; at < count; at++)
        if (strcmp(ways[at]->name, name) == 0)
            pgwal_crc32c_chosen = ways[at];
    return pgwal_crc32c_chosen->name;
}

/* Return the CRC that belongs into the header of the WAL record of `length` >= 24 bytes at `data + at`. */
static inline uint32_t pgwal_record_crc32c(const uint8_t *data, size_t at, size_t length)
{
    return pgwal_crc32c_chosen->record(data + at, length);
}

/* Copy `length` bytes and return their CRC, continued from `crc`; 0 for none. */
static inline uint32_t pgwal_copied_crc32c(
    uint8_t *target, size_t target_at, const uint8_t *source, size_t source_at, size_t length, uint32_t crc)
{
    return ~pgwal_crc32c_chosen->copied(~crc, target + target_at, source + source_at, length);
}

/* Return what pgwal_record_crc32c does, of a record whose part behind the header has the CRC `body_crc`. */
static inline uint32_t pgwal_header_crc32c(const uint8_t *record, uint32_t body_crc)
{
    uint8_t unused[PGWAL_RECORD_CRC_AT];
    return ~pgwal_crc32c_chosen->copied(~body_crc, unused, record, PGWAL_RECORD_CRC_AT);
}

#endif
