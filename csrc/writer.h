/*
 * One new file, from pieces of memory to a file that is complete; and all files of many small tensors.
 *
 * The caller owns the pieces and may make each one while the file is open; the writer owns the descriptor. What it
 * writes goes through the page cache at the end of what is there; it never opens, changes or removes a file that
 * existed before. After an error the file, of whatever length, stays: the caller throws its folder away.
 */
#ifndef FC_WRITER_H
#define FC_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"

struct fc_writer {
    int fd;         /* -1 when closed */
    off_t size;     /* bytes written so far */
    off_t reserved; /* bytes of disk that were asked for at the start */
    bool writeback;
};

/*
 * Create `path`, which must not exist (EEXIST). `size_hint`: how many bytes will come, 0 if unknown; a disk with less
 * space than that is an error now (ENOSPC) and not after minutes of writing. A wrong hint does no harm. `writeback`: the device begins before
 * anybody waits for it, but for little files.
 */
int fc_open_writer(struct fc_writer *writer, int dirfd, const char *path, off_t size_hint, bool writeback,
                   struct fc_error *err);

/* Append one piece. After an error the writer is still to be abandoned. */
int fc_append_piece(struct fc_writer *writer, const void *data, size_t length, struct fc_error *err);

/*
 * Check that the file has the size that was written, make it durable (`sync`) or, with `writeback`, start to, and close it.
 * 0 means with `sync`: the content survives a power cut (the file's name does once its folder is synced as well).
 * Without `sync`: nothing is durable before an fc_sync_system. The writer is closed in every case.
 */
int fc_finish_writer(struct fc_writer *writer, bool sync, struct fc_error *err);

/* A small tensor: the folder that it will have, and what its two files will hold. */
struct fc_tensor {
    const char *folder;
    const void *out, *meta;
    size_t out_size, meta_size;
};

/*
 * Write small tensors, one after the other, none of which is durable before an fc_sync_system. After an error, *failed
 * says at which, and *file at which of its files: NULL is the folder itself. What was written stays.
 */
int fc_write_tensors(int dirfd, const struct fc_tensor *tensors, size_t count, bool writeback, size_t *failed,
                     const char **file, struct fc_error *err);

/* Close a writer that will not be finished. Does nothing when it is closed already. */
void fc_abandon_writer(struct fc_writer *writer);

#endif
