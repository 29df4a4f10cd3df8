/*
 * Large files in parts, by several threads, past the page cache where the file system lets us (O_DIRECT).
 *
 * What passes the page cache costs no second copy, pushes nobody's pages out, and needs no waiting for write-back in
 * the end. In return offsets, lengths and addresses must be aligned. Parts begin at multiples of FC_DIRECT_ALIGN; the
 * few bytes behind the last such multiple go through the page cache. A file system that refuses is no error: the same
 * calls then go through the page cache altogether.
 */
#ifndef FC_DIRECT_H
#define FC_DIRECT_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"

#define FC_DIRECT_ALIGN 4096 /* no file system asks for more; its blocks and our tails then never share a page */

/* A new file that is being filled. The fields are this module's own, but for `size`. */
struct fc_blob {
    int fd;              /* -1 when closed */
    off_t size;          /* bytes that it will have */
    size_t memory_align; /* what an address must be a multiple of; 0: buffered from the beginning */
    atomic_bool direct;  /* still so */
    bool writeback;
    char tail[FC_DIRECT_ALIGN];
};

/*
 * How many parts are on their way to the device at a time. Who waits here has its bytes where they can be written from: a
 * device that tells of all that it has done in one go, as virtio's do, would be idle until the first of the next is copied.
 */
struct fc_gate {
    sem_t places;
};

int fc_open_gate(struct fc_gate *gate, unsigned places, struct fc_error *err);

void fc_close_gate(struct fc_gate *gate);

/*
 * Create `path`, which must not exist (EEXIST), with the space for `size` bytes (ENOSPC now, and not after minutes), and
 * with that size. `direct`: past the page cache if that can be. `writeback`: the
 * device begins at once with what goes through it.
 */
int fc_create_blob(struct fc_blob *blob, int dirfd, const char *path, off_t size, bool direct, bool writeback,
                   struct fc_error *err);

/* Whether parts go past the page cache. */
bool fc_is_direct(struct fc_blob *blob);

/*
 * Write one part. Any thread may, for parts that do not overlap. `offset` is a multiple of FC_DIRECT_ALIGN, and so is
 * `length` unless the part ends the file. `bounce`: `room` bytes of the caller's thread, both multiples of
 * FC_DIRECT_ALIGN, which data that is not aligned goes through; NULL if it is known to be aligned, or it is written
 * buffered. `gate`: what goes past the page cache waits for a place there; NULL: for none. After an error an unknown
 * part of it is in the file.
 */
int fc_write_part(struct fc_blob *blob, const void *data, size_t length, off_t offset, void *bounce, size_t room,
                  struct fc_gate *gate, struct fc_error *err);

/*
 * When all parts are written, and nobody writes any more: check the size, with `sync` make the content durable, and
 * close. The blob is closed in every case.
 */
int fc_finish_blob(struct fc_blob *blob, bool sync, struct fc_error *err);

/* Close a blob that will not be finished. Does nothing when it is closed already. */
void fc_abandon_blob(struct fc_blob *blob);

/*
 * fc_read_at, past the page cache. `offset` and `data` are multiples of FC_DIRECT_ALIGN, and at `data` there are `room`
 * >= `length` bytes: where a multiple of FC_DIRECT_ALIGN fits in there, nothing goes through the page cache. What lies
 * behind `length` bytes in that room may be overwritten.
 */
ssize_t fc_read_past_cache(int fd, void *data, size_t length, size_t room, off_t offset, struct fc_error *err);

#endif
