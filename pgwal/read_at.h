/* Reading a part of an open file, for what is compiled. */
#ifndef PGWAL_READ_AT_H
#define PGWAL_READ_AT_H

#include <errno.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

/* Read up to `size` bytes at `offset` to `target`; return how many there are before the end of the file, or -errno. */
static inline ssize_t pgwal_read_at(int descriptor, uint8_t *target, size_t size, off_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = pread(descriptor, target + done, size - done, offset + (off_t) done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t) got;
    }
    return (ssize_t) done;
}

#endif
