/* See map.h. Four system calls a file: open, fstat, mmap, close. */
#include "map.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "copy.h"
#include "io.h"
#include "resident.h"

#define POPULATE_READ 22 /* MADV_POPULATE_READ of Linux 5.14; an older kernel answers EINVAL */

int fc_map_open(int fd, off_t size, void **address, struct fc_error *err)
{
    void *map;
    *address = NULL;
    if ((uint64_t)size > SIZE_MAX / 2)
        return fc_fail_with(err, "map", EOVERFLOW);
    /* NORESERVE: only what is written to needs memory; without it a blob larger than memory could not be mapped. */
    map = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return fc_fail(err, "map");
    *address = map;
    return 0;
}

int fc_map_memory(size_t size, void **address, struct fc_error *err)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
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
    map = mmap(NULL, all, PROT_READ, MAP_SHARED, fd, offset - (off_t)before);
    if (map == MAP_FAILED)
        return -1;
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
        (void)munmap(address, size); /* fails only for arguments that mmap did not give */
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
