/*
 * An operating system that refuses something once, or from then on: loaded before the C library (LD_PRELOAD), so that
 * Python, its libraries and compiled code meet it alike.  See faulty_system.py.
 *
 * An operation is a kind and a name.  The name is the path below one of the roots, with each run of digits and
 * capitals A to F (in names of packs, small letters too) as one '#', so that it is the same in every run; or "socket", or "thread".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHORT (-1)

static char roots[4][PATH_MAX];
static int root_count, log_descriptor = -1, wanted_error, is_sticky;
static char wanted_kind[16], wanted_name[PATH_MAX];
static atomic_int left_before, has_failed;

/* Say what fails: the nth operation of this kind and name, and with `sticky` all of its kind after it.  An error of
 * SHORT is none: the operation does a part of what was asked for. */
void faults_arm(const char *kind, const char *name, int nth, int error, int sticky)
{
    snprintf(wanted_kind, sizeof wanted_kind, "%s", kind);
    snprintf(wanted_name, sizeof wanted_name, "%s", name);
    wanted_error = error;
    is_sticky = sticky;
    atomic_store(&left_before, nth);
    atomic_store(&has_failed, 0);
}

void faults_watch(const char *root)
{
    if (root_count < 4)
        snprintf(roots[root_count++], PATH_MAX, "%s", root);
}

void faults_log(int descriptor) { log_descriptor = descriptor; }

int faults_met(void) { return atomic_load(&has_failed); }

static int is_masked(char c, int is_of_pack)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (is_of_pack && c >= 'a' && c <= 'f');
}

static int name_of_path(const char *path, char *name)
{
    for (int i = 0; i < root_count; i++) {
        size_t length = strlen(roots[i]);
        if (strncmp(path, roots[i], length) != 0 || (path[length] != '/' && path[length] != 0))
            continue;
        char *to = name;
        const char *packs = strstr(path + length, "/packs/");
        for (const char *from = path + length; *from && to - name < PATH_MAX - 2; from++) {
            if (!is_masked(*from, packs != NULL && from > packs + strlen("/packs")))
                *to++ = *from;
            else if (to == name || to[-1] != '#')
                *to++ = '#';
        }
        *to = 0;
        return 1;
    }
    return 0;
}

static int name_of_descriptor(int descriptor, char *name)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    if (strncmp(path, "socket:", 7) == 0) {
        strcpy(name, "socket");
        return 1;
    }
    return name_of_path(path, name);
}

/* Return 0, or the error that the operation ends with. */
static int judge(const char *kind, const char *name)
{
    if (log_descriptor >= 0) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", kind, name);
        syscall(SYS_write, log_descriptor, line, size);
    }
    if (!wanted_kind[0] || strcmp(kind, wanted_kind) != 0)
        return 0;
    if (is_sticky && atomic_load(&has_failed))
        return wanted_error;
    if (strcmp(name, wanted_name) != 0 || atomic_fetch_sub(&left_before, 1) != 1)
        return 0;
    atomic_store(&has_failed, 1);
    return wanted_error;
}

static int judge_path(const char *kind, const char *path)
{
    char name[PATH_MAX];
    int before = errno, error = root_count && name_of_path(path, name) ? judge(kind, name) : 0;
    errno = before;
    return error;
}

static int judge_descriptor(const char *kind, int descriptor)
{
    char name[PATH_MAX];
    int before = errno, error = root_count && name_of_descriptor(descriptor, name) ? judge(kind, name) : 0;
    errno = before;
    return error;
}

/* Of a path relative to an open directory. */
static int judge_path_at(const char *kind, int directory, const char *path)
{
    char link[64], whole[2 * PATH_MAX];
    int before = errno;
    if (path[0] == '/' || directory == AT_FDCWD)
        return judge_path(kind, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t size = syscall(SYS_readlink, link, whole, PATH_MAX - 1);
    errno = before;
    if (size < 0)
        return 0;
    snprintf(whole + size, sizeof whole - size, "/%s", path);
    return judge_path(kind, whole);
}

#define REAL(result, symbol, ...)                                                                                      \
    static result (*real)(__VA_ARGS__);                                                                                \
    if (!real)                                                                                                         \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, symbol)

#define FAIL_OR(error, call)                                                                                           \
    if ((error) > 0) {                                                                                                 \
        errno = (error);                                                                                               \
        return -1;                                                                                                     \
    }                                                                                                                  \
    return call

#define PART(error, size) ((error) == SHORT && (size) > 1 ? (size) / 2 : (size))

#define OPENS(function)                                                                                                \
    int function(const char *path, int flags, ...)                                                                     \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        REAL(int, #function, const char *, int, ...);                                                                  \
        int error = judge_path("open", path);                                                                          \
        FAIL_OR(error, real(path, flags, mode));                                                                       \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(function)                                                                                             \
    int function(int directory, const char *path, int flags, ...)                                                      \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        REAL(int, #function, int, const char *, int, ...);                                                             \
        int error = judge_path_at("open", directory, path);                                                            \
        FAIL_OR(error, real(directory, path, flags, mode));                                                            \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define SINGLE(function, kind)                                                                                         \
    int function(int descriptor)                                                                                       \
    {                                                                                                                  \
        REAL(int, #function, int);                                                                                     \
        int error = judge_descriptor(kind, descriptor);                                                                \
        FAIL_OR(error, real(descriptor));                                                                              \
    }
SINGLE(fsync, "fsync")
SINGLE(fdatasync, "fsync")

#define TRANSFERS(function, kind, buffer)                                                                              \
    ssize_t function(int descriptor, buffer *data, size_t size)                                                        \
    {                                                                                                                  \
        REAL(ssize_t, #function, int, buffer *, size_t);                                                               \
        int error = judge_descriptor(kind, descriptor);                                                                \
        FAIL_OR(error, real(descriptor, data, PART(error, size)));                                                     \
    }
TRANSFERS(read, "read", void)
TRANSFERS(write, "write", const void)

#define TRANSFERS_AT(function, kind, buffer)                                                                           \
    ssize_t function(int descriptor, buffer *data, size_t size, off_t offset)                                          \
    {                                                                                                                  \
        REAL(ssize_t, #function, int, buffer *, size_t, off_t);                                                        \
        int error = judge_descriptor(kind, descriptor);                                                                \
        FAIL_OR(error, real(descriptor, data, PART(error, size), offset));                                             \
    }
TRANSFERS_AT(pread, "read", void)
TRANSFERS_AT(pread64, "read", void)
TRANSFERS_AT(pwrite, "write", const void)
TRANSFERS_AT(pwrite64, "write", const void)

#define VECTORS_AT(function, kind)                                                                                     \
    ssize_t function(int descriptor, const struct iovec *parts, int count, off_t offset)                               \
    {                                                                                                                  \
        REAL(ssize_t, #function, int, const struct iovec *, int, off_t);                                               \
        int error = judge_descriptor(kind, descriptor);                                                                \
        FAIL_OR(error, real(descriptor, parts, PART(error, count), offset));                                           \
    }
VECTORS_AT(preadv, "read")
VECTORS_AT(preadv64, "read")
VECTORS_AT(pwritev, "write")
VECTORS_AT(pwritev64, "write")

/* What Python calls for os.preadv and os.pwritev. */
#define FLAGGED_VECTORS_AT(function, kind)                                                                             \
    ssize_t function(int descriptor, const struct iovec *parts, int count, off_t offset, int flags)                    \
    {                                                                                                                  \
        REAL(ssize_t, #function, int, const struct iovec *, int, off_t, int);                                          \
        int error = judge_descriptor(kind, descriptor);                                                                \
        FAIL_OR(error, real(descriptor, parts, PART(error, count), offset, flags));                                    \
    }
FLAGGED_VECTORS_AT(preadv2, "read")
FLAGGED_VECTORS_AT(preadv64v2, "read")
FLAGGED_VECTORS_AT(pwritev2, "write")
FLAGGED_VECTORS_AT(pwritev64v2, "write")

/* posix_fallocate returns its error. */
#define ALLOCATES(function)                                                                                            \
    int function(int descriptor, off_t offset, off_t size)                                                             \
    {                                                                                                                  \
        REAL(int, #function, int, off_t, off_t);                                                                       \
        int error = judge_descriptor("write", descriptor);                                                             \
        return error > 0 ? error : real(descriptor, offset, size);                                                     \
    }
ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

#define TRUNCATES(function)                                                                                            \
    int function(int descriptor, off_t size)                                                                           \
    {                                                                                                                  \
        REAL(int, #function, int, off_t);                                                                              \
        int error = judge_descriptor("write", descriptor);                                                             \
        FAIL_OR(error, real(descriptor, size));                                                                        \
    }
TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    int error = judge_path("open", path);
    if (error > 0) {
        errno = error;
        return NULL;
    }
    return real(path);
}

/* Returns its error. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    int error = root_count ? judge("thread", "thread") : 0;
    return error > 0 ? error : real(thread, attributes, run, argument);
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    int error = judge_path("rename", to);
    FAIL_OR(error, real(from, to));
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    int error = judge_path_at("rename", to_directory, to);
    FAIL_OR(error, real(from_directory, from, to_directory, to));
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    int error = judge_path_at("open", directory, path);
    FAIL_OR(error, real(directory, path, mode));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    int error = judge_path("open", path);
    FAIL_OR(error, real(path, mode));
}

int connect(int descriptor, const struct sockaddr *address, socklen_t size)
{
    REAL(int, "connect", int, const struct sockaddr *, socklen_t);
    int error = judge_descriptor("connect", descriptor);
    FAIL_OR(error, real(descriptor, address, size));
}

/* What a connection has lost once, it has lost for both sides. */
#define LOSES(error, descriptor)                                                                                       \
    if ((error) > 0)                                                                                                   \
        shutdown(descriptor, SHUT_RDWR)

ssize_t recv(int descriptor, void *data, size_t size, int flags)
{
    REAL(ssize_t, "recv", int, void *, size_t, int);
    int error = judge_descriptor("recv", descriptor);
    LOSES(error, descriptor);
    FAIL_OR(error, real(descriptor, data, PART(error, size), flags));
}

ssize_t send(int descriptor, const void *data, size_t size, int flags)
{
    REAL(ssize_t, "send", int, const void *, size_t, int);
    int error = judge_descriptor("send", descriptor);
    LOSES(error, descriptor);
    FAIL_OR(error, real(descriptor, data, PART(error, size), flags));
}
