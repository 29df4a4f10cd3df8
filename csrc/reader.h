/*
 * Two ways of reading files of a snapshot that nobody has checked yet: the metas of many folders, and part of one blob.
 *
 * Both open by fc_open_file's rules, so that nothing in the snapshot can make them wait, or look at a file outside it.
 * The caller owns all memory that they fill, or becomes one of its users.
 */
#ifndef FC_READER_H
#define FC_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "blocks.h"
#include "error.h"

#define FC_META_MAX 65537 /* one more than a meta may have, so that a reader sees that it is too long */

#define FC_SMALL_BLOB 16384 /* up to here a copy costs less than a map, which takes whole pages and an munmap */

/* One folder of a snapshot, before (`name`, `ask`) and after (the rest) it was looked at. */
struct fc_folder {
    const char *name;
    bool ask;                    /* whether a blob that is mapped is cold */
    bool cold;                   /* only set then */
    const char *meta;            /* its bytes; not terminated */
    int64_t meta_size;           /* how many, at most FC_META_MAX; or -errno, and then there are none */
    int64_t out_size;            /* size of the blob in bytes, or -errno; without memory for a map the size alone */
    void *address;               /* the blob's bytes; NULL if there are none or none were asked for */
    struct fc_block *meta_block; /* what `meta` lies in, for the caller to release; may be NULL */
    struct fc_block *blob_block; /* the same for `address`; where this is NULL, it is a map, for fc_unmap */
};

enum fc_what {
    FC_METAS_AND_SIZES, /* the metas' bytes, and how long the blobs are */
    FC_METAS,           /* the metas' bytes */
    FC_SIZES,           /* how long the blobs are */
    FC_BLOBS,           /* every blob mapped; if it is small, read, to a 64-aligned address */
};

/* What to do with a blob that is not small, and not in the page cache. */
enum fc_cold {
    FC_COLD_MAP,    /* map it like any other; nobody looks where it is */
    FC_COLD_LEAVE,  /* do not map it: it has its size only */
    FC_COLD_HUGE,   /* map it so that, if it is large, a touch brings in a huge page and not a small one */
    FC_COLD_ADVISE, /* the same, and if it is not large, begin to read it now */
};

/* A run of folders. What is not asked for is neither touched nor set. */
struct fc_run {
    int dirfd;
    enum fc_what what;
    enum fc_cold cold;
    bool ahead; /* small files come from the disk: several are begun before the first is waited for */
    struct fc_folder *folders;
    size_t count;
    size_t maps;            /* how many blobs may be mapped; of what is not small beyond that, the size is said only, as
                               of all while fc_holds_maps() is false */
    struct fc_block *block; /* of the function that works on it */
};

/*
 * Look at the folders of `count` runs, which may be the same folders for different things. What one folder refuses is
 * noted there and stops nobody else.
 *
 * At most `threads` threads share the runs (fc_share_turns).
 */
void fc_scan_folders(struct fc_run *runs, size_t count, size_t threads);

/* Begin to do so, for fc_finish_turns and fc_end_turns: a turn is a run. NULL: no memory. */
struct fc_turns *fc_begin_scan(struct fc_run *runs, size_t count, size_t threads);

/* Part of a file, and the memory for it. */
struct fc_part {
    const char *path;
    off_t offset;
    void *data;
    size_t length;
    size_t room;         /* 0, or to read past the page cache, as for fc_read_past_cache */
    off_t size;          /* what the whole file must have; any size when negative */
    off_t found;         /* out, of fc_read_parts */
    struct fc_error err; /* the same; its code is 0 for what was read, or not begun after another's error */
};

/*
 * Read some, in at most `threads` threads. On error `*failed` is the first that failed; others may not have been read.
 * FC_SIZE_CHANGED: the file has another size, or ends before `data` is full; `found` is then how many bytes it has.
 * `mapped`: what the page cache has in huge pages, or can bring in so, may be copied out of maps.
 */
int fc_read_parts(int dirfd, struct fc_part *parts, size_t count, size_t threads, bool mapped, size_t *failed);

#endif
