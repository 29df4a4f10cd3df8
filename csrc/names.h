/* The names in a folder, many to a system call. */
#ifndef FC_NAMES_H
#define FC_NAMES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

/*
 * Read names of an open folder from where it stands, as many as `room` holds in the kernel's form. Returns the bytes used;
 * 0 after the last.
 */
ssize_t fc_read_names(int fd, void *room, size_t size, struct fc_error *err);

/* The name at `*at` of `used` bytes of that, which is moved to the next; NULL after the last. Skips "." and "..". */
const char *fc_next_name(const void *room, size_t used, size_t *at);

/*
 * A number of a name, 64 bits well mixed. The sum of those of many names tells whether they are the same as others, in any
 * order: by accident once in 2^64 times.
 */
uint64_t fc_hash_name(const char *name, size_t length);

#endif
