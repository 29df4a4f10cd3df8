/* What of a file is in memory already: a guess, for choosing a way to read it. */
#ifndef FC_RESIDENT_H
#define FC_RESIDENT_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Whether a file of `size` bytes lies in the page cache, two thirds of it at least, judged by samples: with more missing, a
 * map of it would be slower than to read all of it past the cache. Where nobody can tell: true.
 */
bool fc_is_resident(int fd, off_t size);

/* The same for a file by its name, opened by fc_open_file's rules; true when it cannot be opened, or is empty. */
bool fc_is_resident_at(int dirfd, const char *path);

/* What fc_is_huge asks: a descriptor, to be closed; -1 without /proc. */
int fc_open_pagemap(void);

/*
 * Whether what is mapped at an aligned address is one huge page, and has been touched. False where nobody can tell: Linux
 * before 6.7, or no `pagemap`.
 */
bool fc_is_huge(int pagemap, const void *map);

#endif
