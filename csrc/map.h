/*
 * Blobs as memory: private, writable maps of whole files.
 *
 * The pages come from the page cache and are copied when written to, so that a loaded tensor can be changed in place
 * and the file never is. A map needs no descriptor, and lives on when the file is unlinked or replaced by another of
 * its name; but a file that somebody truncates in place takes the pages with it (SIGBUS): snapshots are never changed
 * in place.
 */
#ifndef FC_MAP_H
#define FC_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "error.h"

#define FC_HUGE_PAGE ((off_t)2 << 20) /* bytes, on the processors that most have */

/*
 * Hold some maps (vm.max_map_count) until one is refused here with ENOMEM: what must be made then finds those. False, and
 * none held, where there are not so many. Any thread may.
 */
bool fc_hold_maps(void);

/* Give them up. Whoever was refused memory asks once more then. */
void fc_give_up_maps(void);

/* Whether they are held still. */
bool fc_holds_maps(void);

/* How many maps there are that were made here. */
size_t fc_count_maps(void);

/* Map an open file of `size` > 0 bytes, whole; `*address` is page-aligned. Errors as for fc_map_files. */
int fc_map_open(int fd, off_t size, void **address, struct fc_error *err);

/* Memory that is no file's: `size` > 0 zeroed bytes, in huge pages if the system has them. fc_unmap gives it back. */
int fc_map_memory(size_t size, void **address, struct fc_error *err);

struct fc_map_job {
    const char *path;
    off_t size;    /* in: the size that the file must have */
    off_t found;   /* out, on FC_SIZE_CHANGED: the size that it has */
    void *address; /* out: the map, page-aligned; NULL for an empty file */
};

/*
 * Map `count` files, whole, opened by fc_open_file's rules. `advice`: an MADV_* for each map, 0 for none; advice that
 * the kernel does not know is passed over. The caller unmaps each with fc_unmap(address, size). On error nothing stays
 * mapped, `*failed` is the index of the file that failed, and the code is an errno (ENOMEM: perhaps too many maps, see
 * /proc/sys/vm/max_map_count) or FC_SIZE_CHANGED.
 */
int fc_map_files(int dirfd, struct fc_map_job *jobs, size_t count, int advice, size_t *failed, struct fc_error *err);

/*
 * Copy part of an open file that is in the page cache in huge pages, or can come into it so, to `data`, out of a map of it:
 * nothing but the bytes is moved, and those around the processor's caches, which a read cannot. 0: done. -1: its first whole
 * huge page is none (the map of small ones takes longer than a read), or the system cannot, or the bytes cannot be had; then
 * a read says why. The part must lie within the file. `pagemap`: from fc_open_pagemap.
 */
int fc_copy_huge(int fd, int pagemap, void *data, size_t length, off_t offset);

/* Unmap what was mapped. Does nothing for NULL. */
void fc_unmap(void *address, size_t size);

/*
 * madvise(2) for the pages that hold `length` bytes at `offset` of a map (both within it). Populating is done without
 * SIGBUS: a page that cannot be read is EFAULT.
 */
int fc_advise(void *address, size_t offset, size_t length, int advice, struct fc_error *err);

/* The same for whole maps, at most IOV_MAX (1024), in one system call where there is one (Linux 6.14); it is a wish. */
void fc_advise_all(const struct iovec *maps, size_t count, int advice);

#endif
