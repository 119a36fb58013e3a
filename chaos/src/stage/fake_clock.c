/* Loaded before all other libraries: the time of day is what the kernel says and the seconds in the file that
   HUTONG_CLOCK_FILE names, which is read again every second. It asks the kernel itself and allocates nothing, since an
   allocator may want to know the time before anything else is ready. Monotonic time stays true, as it does when a
   clock is set. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead_s;
static long read_at_s = -1;

static void read_file(void) {
    char text[32];
    const char *name = getenv("HUTONG_CLOCK_FILE");
    long file = name ? syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    long length = syscall(SYS_read, file, text, sizeof text);
    syscall(SYS_close, file);
    long number = 0;
    for (long i = 0; i < length; i++)
        if (text[i] >= '0' && text[i] <= '9') number = number * 10 + (text[i] - '0');
    if (length > 0) __atomic_store_n(&ahead_s, text[0] == '-' ? -number : number, __ATOMIC_RELAXED);
}

static long ahead(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long seen = __atomic_load_n(&read_at_s, __ATOMIC_RELAXED);
    if (seen != now.tv_sec &&
        __atomic_compare_exchange_n(&read_at_s, &seen, now.tv_sec, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        read_file();
    return __atomic_load_n(&ahead_s, __ATOMIC_RELAXED);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    long failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += ahead();
    return (int)failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
