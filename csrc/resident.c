/* See resident.h. */
#include "resident.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io.h"
#include "map.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* As <linux/fs.h> has it since Linux 6.7. */
struct scan {
    uint64_t size, flags, start, end, walk_end, regions, regions_length, most, inverted, all, any, returned;
};
#define SCAN_ _IOWR('f', 16, struct scan)
#define IS_HUGE_ ((uint64_t)1 << 6)

/* Before Linux 6.5: whether a few bytes, here and there, can be had without waiting for the disk. */
static bool is_resident_by_reading(int fd, off_t size)
{
    char byte;
    struct iovec to = {&byte, 1};
    const int places = 8;
    for (off_t i = 0; i < places; i++) {
        ssize_t count = preadv2(fd, &to, 1, size / places * i, RWF_NOWAIT);
        if (count < 0)
            return errno != EAGAIN; /* EOPNOTSUPP: who cannot say is taken for resident, and mapped */
    }
    return true;
}

/* Pages of a stretch of a file that are in the page cache; -1 where the kernel (before 6.5) cannot tell. */
static int64_t count_cached(int fd, off_t offset, off_t length)
{
    /* As <linux/mman.h> has them. */
    struct {
        uint64_t offset, length;
    } range = {(uint64_t)offset, (uint64_t)length};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } found;
    return syscall(SYS_cachestat, fd, &range, &found, 0) < 0 ? -1 : (int64_t)found.cached;
}

bool fc_is_resident(int fd, off_t size)
{
    /* Asking about all of it would take the kernel as long as mapping it: 10 ns for each page. */
    const off_t page = sysconf(_SC_PAGESIZE), stretch = 32 * page, places = 3;
    int64_t cached = 0, pages = 0;
    for (off_t i = 0; i < places; i++) {
        off_t offset = (size - stretch) / (places - 1) * i / page * page;
        int64_t count = size <= places * stretch ? count_cached(fd, 0, size) : count_cached(fd, offset, stretch);
        if (count < 0)
            return is_resident_by_reading(fd, size);
        cached += count;
        if (size <= places * stretch)
            return cached * page >= size * 2 / 3;
        pages += stretch / page;
    }
    return cached >= pages * 2 / 3;
}

bool fc_is_resident_at(int dirfd, const char *path)
{
    struct fc_error err;
    off_t size;
    bool answer;
    int fd = fc_open_file(dirfd, path, &size, &err);
    if (fd < 0)
        return true;
    answer = size == 0 || fc_is_resident(fd, size);
    fc_close_read(fd);
    return answer;
}

int fc_open_pagemap(void)
{
    return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

bool fc_is_huge(int pagemap, const void *map)
{
    uint64_t region[3], start = (uint64_t)(uintptr_t)map;
    struct scan scan = {.size = sizeof scan, .start = start, .end = start + FC_HUGE_PAGE, .regions_length = 1};
    scan.regions = (uint64_t)(uintptr_t)region;
    scan.all = scan.returned = IS_HUGE_;
    return ioctl(pagemap, SCAN_, &scan) > 0;
}
