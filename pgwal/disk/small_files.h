/* Reading, writing and syncing many files, for the compiled form of small_files.py: see there. */
#ifndef PGWAL_SMALL_FILES_H
#define PGWAL_SMALL_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "block_reads.h"

/* One file: what is wanted of it, or what it is to hold, at `data`.  `error` is 0 or an errno. */
typedef struct {
    const char *path;
    uint8_t *data;
    uint64_t size;
    /* Of the blocks that are wanted; NULL for the first `size` bytes. */
    const uint32_t *numbers;
    /* Whether all of it is wanted; `size` then becomes what it has, and if that is more, it is not read. */
    int to_end;
    int is_longer;
    int error;
    int is_created;
} pgwal_small_file;

static int pgwal_opened(const char *path, int flags, int mode)
{
    int descriptor;

    do
        descriptor = open(path, flags | O_CLOEXEC, mode);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

/* Read a file up to the end that it has now; return 0 or -errno. */
static int64_t pgwal_read_to_end(int descriptor, pgwal_small_file *file)
{
    struct stat status;
    ssize_t done;

    if (fstat(descriptor, &status) != 0)
        return -errno;
    file->is_longer = (uint64_t) status.st_size > file->size;
    if (file->is_longer)
        return 0;
    done = pgwal_read_at(descriptor, file->data, (size_t) status.st_size, 0);
    if (done < 0)
        return done;
    file->size = (uint64_t) done;
    return 0;
}

/* Read each file, zeros for what lies beyond its end; whether one is missing or cannot be read is noted with it. */
static void pgwal_read_small_files(pgwal_small_file *files, uint64_t count)
{
    for (pgwal_small_file *file = files; file < files + count; file++) {
        int descriptor = pgwal_opened(file->path, O_RDONLY | O_NOFOLLOW, 0);
        int64_t done;

        if (descriptor < 0) {
            file->error = errno;
            continue;
        }
        if (file->to_end)
            done = pgwal_read_to_end(descriptor, file);
        else if (file->numbers != NULL)
            done = pgwal_read_blocks(descriptor, file->numbers, file->size / PGWAL_BLOCK_SIZE, file->data);
        else {
            done = pgwal_read_at(descriptor, file->data, file->size, 0);
            if (done >= 0)
                memset(file->data + done, 0, file->size - (uint64_t) done);
        }
        if (done < 0)
            file->error = (int) -done;
        close(descriptor);
    }
}

/* Create and write each file; the first that fails is noted and ends it. */
static void pgwal_write_small_files(pgwal_small_file *files, uint64_t count, int mode)
{
    for (pgwal_small_file *file = files; file < files + count; file++) {
        int descriptor = pgwal_opened(file->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
        uint64_t done = 0;

        if (descriptor < 0) {
            file->error = errno;
            return;
        }
        file->is_created = 1;
        while (done < file->size && file->error == 0) {
            ssize_t written = write(descriptor, file->data + done, file->size - done);

            if (written >= 0)
                done += (uint64_t) written;
            else if (errno != EINTR)
                file->error = errno;
        }
        /* Some file systems tell only here that there was no room. */
        if (close(descriptor) != 0 && file->error == 0 && errno != EINTR)
            file->error = errno;
        if (file->error != 0)
            return;
    }
}

/* Make each file durable; whether one cannot be is noted with it. */
static void pgwal_sync_files(pgwal_small_file *files, uint64_t count)
{
    for (pgwal_small_file *file = files; file < files + count; file++) {
        int descriptor = pgwal_opened(file->path, O_RDONLY, 0);
        int result;

        if (descriptor < 0) {
            file->error = errno;
            continue;
        }
        do
            result = fsync(descriptor);
        while (result != 0 && errno == EINTR);
        if (result != 0)
            file->error = errno;
        close(descriptor);
    }
}

#endif
