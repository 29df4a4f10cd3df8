/*
 * Loaded in front of the C library: from the moment it is armed, one request for memory is refused, or one count of
 * bytes is cut short, or all are from there on. For glibc, whose own allocator has names of its own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { NOTHING, MEMORY, COUNTS };

static atomic_int armed;
static atomic_long seen, goal;
static atomic_int persists;

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

/* From now on the call number `at` of a kind fails; with `lasts`, all behind it too. */
void fault_arm(int kind, long at, int lasts)
{
    seen = 0;
    goal = at;
    persists = lasts;
    armed = kind;
}

/* Disarm; tells how many calls there were. */
long fault_seen(void)
{
    armed = NOTHING;
    return seen;
}

static int fails(int kind)
{
    if (armed != kind)
        return 0;
    long number = ++seen;
    return persists ? number >= goal : number == goal;
}

static void *refused(void)
{
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t size) { return fails(MEMORY) ? refused() : __libc_malloc(size); }

void *calloc(size_t count, size_t size) { return fails(MEMORY) ? refused() : __libc_calloc(count, size); }

void *realloc(void *memory, size_t size) { return fails(MEMORY) ? refused() : __libc_realloc(memory, size); }

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (fails(MEMORY)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

void *mmap(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap64")));

/* About half of it, in whole blocks where there are some: O_DIRECT wants them. */
static size_t cut(size_t length)
{
    if (length < 2 || !fails(COUNTS))
        return length;
    if (length >= 8192)
        return length / 2 & ~(size_t)4095;
    return length % 512 ? length / 2 : length;
}

ssize_t pread64(int fd, void *data, size_t length, off_t offset)
{
    return syscall(SYS_pread64, fd, data, cut(length), offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return syscall(SYS_pwrite64, fd, data, cut(length), offset);
}

ssize_t pread(int, void *, size_t, off_t) __attribute__((alias("pread64")));
ssize_t pwrite(int, const void *, size_t, off_t) __attribute__((alias("pwrite64")));

ssize_t read(int fd, void *data, size_t length) { return syscall(SYS_read, fd, data, cut(length)); }
