/* Reading blocks that lie apart, for the compiled form of block_reads.py: see there. */
#ifndef PGWAL_BLOCK_READS_H
#define PGWAL_BLOCK_READS_H

#include <stdint.h>
#include <string.h>

#include "read_at.h"

#define PGWAL_BLOCK_SIZE 8192

/* Read `count` blocks to `target`, zeros for what lies beyond the end of the file; return 0 or -errno. */
static int64_t pgwal_read_blocks(int descriptor, const uint32_t *numbers, uint64_t count, uint8_t *target)
{
    uint64_t at = 0;

    while (at < count) {
        uint64_t start = at;
        size_t size;
        ssize_t done;

        for (at++; at < count && (uint64_t) numbers[at] == (uint64_t) numbers[at - 1] + 1; at++)
            ;
        size = (size_t) (at - start) * PGWAL_BLOCK_SIZE;
        done = pgwal_read_at(descriptor, target, size, (off_t) numbers[start] * PGWAL_BLOCK_SIZE);
        if (done < 0)
            return done;
        memset(target + done, 0, size - (size_t) done);
        target += size;
    }
    return 0;
}

/* Read `count` parts to `target`, one after the other; return how many bytes there are before one is cut off, or -errno. */
static int64_t pgwal_read_parts(
    const int32_t *descriptors, const uint64_t *offsets, const uint32_t *lengths, uint64_t count, uint8_t *target)
{
    int64_t total = 0;

    for (uint64_t at = 0; at < count; at++) {
        ssize_t done;

        if (descriptors[at] < 0) {
            memset(target + total, 0, lengths[at]);
            done = (ssize_t) lengths[at];
        } else
            done = pgwal_read_at(descriptors[at], target + total, lengths[at], (off_t) offsets[at]);
        if (done < 0)
            return done;
        total += done;
        if ((uint64_t) done < lengths[at])
            break;
    }
    return total;
}

/* Copy `count` parts of contents to `target`, one after the other, zeros where there is none. */
static void pgwal_copy_parts(
    const uint8_t **contents, const uint64_t *offsets, const uint32_t *lengths, uint64_t count, uint8_t *target)
{
    for (uint64_t at = 0; at < count; at++) {
        if (contents[at] == NULL)
            memset(target, 0, lengths[at]);
        else
            memcpy(target, contents[at] + offsets[at], lengths[at]);
        target += lengths[at];
    }
}

#endif
