/* Memory that several tensors share, and that goes away with the last of them. */
#ifndef FC_BLOCKS_H
#define FC_BLOCKS_H

#include <stddef.h>
#include <sys/types.h>

#include "error.h"

struct fc_block;

/* Make one of `size` > 0 bytes of fresh, zeroed, page-aligned memory, in huge pages where the system has them. */
int fc_make_block(size_t size, struct fc_block **block, void **address, struct fc_error *err);

/* Make one that is a private map of a file, opened by fc_open_file's rules, that must have `size` > 0 bytes. */
int fc_make_file_block(int dirfd, const char *path, off_t size, struct fc_block **block, void **address, off_t *found,
                       struct fc_error *err);

/* The same of a file that is open, and has `size` > 0 bytes. */
int fc_make_open_block(int fd, off_t size, struct fc_block **block, void **address, struct fc_error *err);

/* Become one more user. */
struct fc_block *fc_share_block(struct fc_block *block);

/* Give up a part of it, which goes away with its last user. Any thread may; NULL is nothing. */
void fc_release_block(struct fc_block *block);

/*
 * Room for `size` bytes, 64-aligned, from the front of `*hand`, or of a new block that takes its place; NULL when there is no
 * memory. `*user` is the block, for whoever has the room to release. `*hand` is NULL at first, and its holder's to release.
 */
char *fc_take_room(struct fc_block **hand, size_t size, struct fc_block **user);

#endif
