/* Reading blocks that lie apart, for the compiled form of block_reads.py: see there. */
#ifndef PGWAL_BLOCK_READS_H
#define PGWAL_BLOCK_READS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define PGWAL_BLOCK_SIZE 8192

/* Read `count` blocks to `target`, zeros for what lies beyond the end of the file; return 0 or errno. */
static int pgwal_read_blocks(int descriptor, const uint32_t *numbers, uint64_t count, uint8_t *target)
{
    uint64_t at = 0;

    while (at < count) {
        uint64_t end = at + 1;
        off_t offset = (off_t) numbers[at] * PGWAL_BLOCK_SIZE;
        size_t left;

        while (end < count && (uint64_t) numbers[end] == (uint64_t) numbers[end - 1] + 1)
            end++;
        left = (size_t) (end - at) * PGWAL_BLOCK_SIZE;
        at = end;
        while (left > 0) {
            ssize_t got = pread(descriptor, target, left, offset);

            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0)
                return errno;
            if (got == 0) {
                memset(target, 0, left);
                got = (ssize_t) left;
            }
            target += got;
            offset += got;
            left -= (size_t) got;
        }
    }
    return 0;
}

#endif
