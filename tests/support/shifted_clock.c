/*
 * A machine whose clock is wrong by PGWAL_TEST_CLOCK_SHIFT seconds: loaded before the C library (LD_PRELOAD), so that
 * Python and the libraries that sign requests meet it alike.  Clocks that only go forward are left as they are.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    const char *shift = getenv("PGWAL_TEST_CLOCK_SHIFT");
    if (result == 0 && clock == CLOCK_REALTIME && shift != NULL)
        time->tv_sec += atol(shift);
    return result;
}
