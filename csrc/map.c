/*
 * See map.h. Four system calls a file: open, fstat, mmap, close.
 *
 * A process that has as many maps as it may gets no memory either, neither by mmap nor by brk. So some maps of nothing are
 * held, and given up the first time that another is refused.
 */
#include "map.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "copy.h"
#include "io.h"
#include "resident.h"

#define POPULATE_READ 22     /* MADV_POPULATE_READ of Linux 5.14; an older kernel answers EINVAL */
#define OWN_PROCESS (-10000) /* PIDFD_SELF_THREAD of Linux 6.14; an older kernel answers EBADF */

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

static atomic_size_t maps_there;
static _Atomic(char *) reserve;

enum { RESERVE = 32 }; /* maps */

/* In the middle of others that the kernel took for one map it makes two of them, and so is refused where there are none. */
static void unmap(void *address, size_t size)
{
    if (munmap(address, size) < 0) {
        fc_give_up_maps();
        (void)munmap(address, size);
    }
    atomic_fetch_sub_explicit(&maps_there, 1, memory_order_relaxed);
}

static size_t get_reserve_size(void)
{
    return (size_t)RESERVE * (size_t)sysconf(_SC_PAGESIZE);
}

void fc_give_up_maps(void)
{
    char *held = atomic_exchange(&reserve, NULL);
    if (held != NULL)
        unmap(held, get_reserve_size());
}

/* The one call of mmap; NULL, with errno, where it is refused. */
static void *make_map(size_t size, int protection, int flags, int fd, off_t offset)
{
    void *map = mmap(NULL, size, protection, flags, fd, offset);
    if (map == MAP_FAILED) {
        int code = errno;
        if (code == ENOMEM)
            fc_give_up_maps();
        errno = code;
        return NULL;
    }
    atomic_fetch_add_explicit(&maps_there, 1, memory_order_relaxed);
    return map;
}

bool fc_hold_maps(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = get_reserve_size();
    char *none = NULL, *made;
    if (fc_holds_maps())
        return true;
    /* Pages of which every other one may be read: to the kernel each is a map. Shared ones merge with nobody else's. */
    made = make_map(size, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == NULL)
        return false;
    for (size_t at = 0; at < size; at += 2 * page) {
        if (mprotect(made + at, page, PROT_READ) < 0) {
            unmap(made, size);
            return false;
        }
    }
    if (!atomic_compare_exchange_strong(&reserve, &none, made))
        unmap(made, size); /* another thread was quicker */
    return true;
}

bool fc_holds_maps(void)
{
    return atomic_load_explicit(&reserve, memory_order_relaxed) != NULL;
}

size_t fc_count_maps(void)
{
    return atomic_load_explicit(&maps_there, memory_order_relaxed);
}

int fc_map_open(int fd, off_t size, void **address, struct fc_error *err)
{
    void *map;
    *address = NULL;
    if ((uint64_t)size > SIZE_MAX / 2)
        return fc_fail_with(err, "map", EOVERFLOW);
    /* NORESERVE: only what is written to needs memory; without it a blob larger than memory could not be mapped. */
    map = make_map((size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == NULL)
        return fc_fail(err, "map");
    *address = map;
    return 0;
}

int fc_map_memory(size_t size, void **address, struct fc_error *err)
{
    void *map = make_map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == NULL && errno == ENOMEM) /* perhaps for want of maps, which there are now */
        map = make_map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == NULL)
        return fc_fail(err, "allocate");
    if (size >= (size_t)FC_HUGE_PAGE)
        (void)madvise(map, size, MADV_HUGEPAGE); /* a wish */
    *address = map;
    return 0;
}

static int map_file(int dirfd, struct fc_map_job *job, struct fc_error *err)
{
    int rc = -1;
    int fd = fc_open_file(dirfd, job->path, &job->found, err);
    if (fd < 0)
        return -1;
    if (job->found != job->size)
        fc_fail_with(err, "size", FC_SIZE_CHANGED);
    else
        rc = job->size > 0 ? fc_map_open(fd, job->size, &job->address, err) : 0;
    fc_close_read(fd);
    return rc;
}

static int advise_map(const struct fc_map_job *job, int advice, struct fc_error *err)
{
    if (advice == 0 || job->address == NULL)
        return 0;
    if (fc_advise(job->address, 0, (size_t)job->size, advice, err) == 0)
        return 0;
    return err->code == EINVAL || err->code == EAGAIN ? 0 : -1;
}

int fc_map_files(int dirfd, struct fc_map_job *jobs, size_t count, int advice, size_t *failed, struct fc_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct fc_map_job *job = &jobs[i];
        job->address = NULL;
        if (map_file(dirfd, job, err) == 0 && advise_map(job, advice, err) == 0)
            continue;
        *failed = i;
        for (size_t j = 0; j <= i; j++)
            fc_unmap(jobs[j].address, (size_t)jobs[j].size);
        return -1;
    }
    return 0;
}

int fc_copy_huge(int fd, int pagemap, void *data, size_t length, off_t offset)
{
    const size_t huge = (size_t)FC_HUGE_PAGE, first = (huge - (size_t)offset % huge) % huge;
    const size_t before = (size_t)(offset % sysconf(_SC_PAGESIZE)), all = before + length;
    struct fc_error ignored;
    bool there;
    char *map;
    if (first + huge > length)
        return -1;
    map = make_map(all, PROT_READ, MAP_SHARED, fd, offset - (off_t)before);
    if (map == NULL)
        return -1;
    /* Does nothing to what is in the page cache. RANDOM: a huge page each; reading ahead, begun anew, would take small ones. */
    (void)fc_advise(map, 0, all, MADV_HUGEPAGE, &ignored);
    (void)fc_advise(map, 0, all, MADV_RANDOM, &ignored);
    there =
        fc_advise(map, before + first, 1, POPULATE_READ, &ignored) == 0 && fc_is_huge(pagemap, map + before + first);
    there = there && fc_advise(map, 0, all, POPULATE_READ, &ignored) == 0;
    if (there)
        fc_copy(data, map + before, length);
    fc_unmap(map, all);
    return there ? 0 : -1;
}

void fc_unmap(void *address, size_t size)
{
    if (address != NULL)
        unmap(address, size);
}

int fc_advise(void *address, size_t offset, size_t length, int advice, struct fc_error *err)
{
    size_t before = offset % (size_t)sysconf(_SC_PAGESIZE); /* madvise wants the start of a page */
    int rc;
    do {
        rc = madvise((char *)address + offset - before, length + before, advice);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? fc_fail(err, "advise") : 0;
}

void fc_advise_all(const struct iovec *maps, size_t count, int advice)
{
    struct fc_error ignored;
    size_t length = 0;
    for (size_t i = 0; i < count; i++)
        length += maps[i].iov_len;
    if (syscall(SYS_process_madvise, OWN_PROCESS, maps, count, advice, 0) == (long)length)
        return;
    for (size_t i = 0; i < count; i++)
        (void)fc_advise(maps[i].iov_base, 0, maps[i].iov_len, advice, &ignored);
}
