/*
 * Two ways of reading files of a snapshot that nobody has checked yet: the metas of many folders, and part of one blob.
 *
 * Both open by fc_open_file's rules, so that nothing in the snapshot can make them wait, or look at a file outside it.
 * The caller owns all memory that they fill.
 */
#ifndef FC_READER_H
#define FC_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

#define FC_META_MAX 65537 /* one more than a meta may have, so that a reader sees that it is too long */

#define FC_SMALL_BLOB 16384 /* up to here a copy costs less than a map, which takes whole pages and an munmap */

/* Memory of the caller that is handed out from the front. */
struct fc_room {
    char *at;
    size_t left;
};

/* One folder of a snapshot, before (`name`) and after (the rest) it was looked at. */
struct fc_folder {
    const char *name;
    const char *meta;  /* its bytes, in the room for metas; not terminated */
    int64_t meta_size; /* how many, at most FC_META_MAX; or -errno, and then there are none */
    int64_t out_size;  /* size of the blob in bytes, or -errno */
    void *address;     /* the blob's bytes; NULL if there are none or none were asked for */
    bool is_map;       /* `address` is a map, for the caller to give to fc_unmap; else it lies in the room for blobs */
};

/*
 * Read the metas and ask for the sizes of the blobs of `count` folders, in order. With `blobs` (which may be NULL),
 * each blob beside a meta that could be read is mapped, or read into that room, 64-aligned, if it is small. What one
 * folder refuses is noted there and stops nobody else. Stops early when a room is full: give at least FC_META_MAX bytes
 * for metas and FC_SMALL_BLOB for blobs. Returns how many folders it has done, at least one (0 only when `count` is 0):
 * call it again, with more room, for the others.
 */
size_t fc_scan_folders(int dirfd, struct fc_folder *folders, size_t count, struct fc_room *metas,
                       struct fc_room *blobs);

/* A run of folders, with rooms of its own. */
struct fc_run {
    int dirfd;
    struct fc_folder *folders;
    size_t count;
    struct fc_room metas;
    struct fc_room blobs; /* `at` is NULL where blobs are not asked for */
    size_t done;          /* out: what fc_scan_folders returned */
};

/*
 * fc_scan_folders for `count` runs, shared by at most `threads` threads, of which the caller is one. It waits for the runs
 * that others have taken, but not for a thread that has not begun: on a busy machine that may take longer than
 * all the work. Such a thread ends by itself, having touched nothing of the caller's.
 */
void fc_scan_runs(struct fc_run *runs, size_t count, size_t threads);

/*
 * Fill `data` with the `length` bytes at `offset` of a file that must have `size` bytes (any size when negative).
 * FC_SIZE_CHANGED: it has another size, or ends before `data` is full; `*found` is then how many bytes it has.
 */
int fc_read_part(int dirfd, const char *path, off_t offset, void *data, size_t length, off_t size, off_t *found,
                 struct fc_error *err);

#endif
