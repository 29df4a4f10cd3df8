/*
 * One function per system call, and each of them finishes what it began: it goes on after EINTR, after a short count,
 * and past the 2 GiB that Linux moves in one call. Nothing above this file calls the system for a file, but
 * map.c for its memory, names.c for a folder and resident.c for a guess.
 *
 * Paths are relative to an open folder. A reader never trusts what lies in that folder: see fc_open_file.
 * All functions may block on the disk and none needs the Python GIL.
 */
#ifndef FC_IO_H
#define FC_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"

#define FC_RENAME_NOREPLACE 1u
#define FC_RENAME_EXCHANGE 2u

/*
 * Open a regular file of a folder that somebody else may have prepared, for reading, and say its size.
 *
 * No component of `path` may be a symbolic link (ELOOP), and it can not leave the folder by ".." or "/" (EXDEV). A
 * folder gives EISDIR, anything else that is not a regular file (FIFO, socket, device) EINVAL; it never waits for a
 * FIFO's writer. Returns the descriptor; the caller closes it with fc_close_read.
 */
int fc_open_file(int dirfd, const char *path, off_t *size, struct fc_error *err);

/* Size of a regular file by its name. A link is followed only before the last component. Errors as above. */
int fc_stat_file(int dirfd, const char *path, off_t *size, struct fc_error *err);

/* `path` becomes "folder/file"; false when it would be longer than the kernel takes (PATH_MAX). */
bool fc_join_path(char *path, const char *folder, const char *file);

/* Create a folder that must not exist (EEXIST). Mode: 0777 less the umask. */
int fc_make_folder(int dirfd, const char *path, struct fc_error *err);

/* Create a file that must not exist (EEXIST, also for a dangling link), for writing. Mode: 0666 less the umask. */
int fc_create_file(int dirfd, const char *path, struct fc_error *err);

/*
 * Ask for `length` bytes of disk without changing the file's size, so that a full disk is noticed before anything is
 * written. Fails only for want of space (ENOSPC, EDQUOT, EFBIG): a file system that cannot do this is none the worse,
 * nor is one that signals keep from it again and again: a full disk is then noticed when it is written.
 */
int fc_reserve_space(int fd, off_t length, struct fc_error *err);

/* Give a new file its size, with the disk space for it. Fails as above. */
int fc_allocate_file(int fd, off_t size, struct fc_error *err);

/* Let a file be read or written past the page cache (O_DIRECT), or not. False: the file system does not have that. */
bool fc_set_direct(int fd, bool direct);

/*
 * What the address of memory must be a multiple of, to be written past the page cache; 0 when the file system does not
 * have that, or asks for offsets or addresses aligned to more than `most`, which is also what is said for lack of knowledge.
 */
size_t fc_get_memory_align(int fd, size_t most);

/* Write all `length` bytes at `offset`. After an error an unknown part of them is in the file. */
int fc_write_at(int fd, const void *data, size_t length, off_t offset, struct fc_error *err);

/* Read up to `length` bytes at `offset`, with one call. Returns how many; 0 at the end of the file. */
ssize_t fc_read_some(int fd, void *data, size_t length, off_t offset, struct fc_error *err);

/* Read `length` bytes at `offset`. Returns how many there were: less than `length` only at the end of the file. */
ssize_t fc_read_at(int fd, void *data, size_t length, off_t offset, struct fc_error *err);

/* Have the first `size` bytes of a file brought into the page cache, without waiting: a hint. */
void fc_begin_reading(int fd, off_t size);

/* Size of an open file. */
int fc_get_size(int fd, off_t *size, struct fc_error *err);

/*
 * FC_SIZE_CHANGED, with both sizes, unless a file that nobody else knows has the size that was written: then the system
 * lost or invented something.
 */
int fc_check_size(int fd, off_t size, struct fc_error *err);

/* Give back the disk space that fc_reserve_space took beyond `size`, which must be the file's size. */
int fc_trim_file(int fd, off_t size, struct fc_error *err);

/* Make a file or folder durable. NEVER again after an error: the kernel has then already forgotten the lost pages. */
int fc_sync_file(int fd, struct fc_error *err);

/* Make the whole file system of `fd` durable. NEVER again after an error, as above. */
int fc_sync_system(int fd, struct fc_error *err);

/*
 * Start to write part of a file back (`length` 0: to its end), and do not wait: a hint, which makes a later sync
 * shorter and nothing durable.
 */
int fc_start_writeback(int fd, off_t offset, off_t length, struct fc_error *err);

/*
 * renameat2(2), which the C library need not know. `flags`: 0, FC_RENAME_NOREPLACE or FC_RENAME_EXCHANGE.
 * Not tried again after EINTR: an exchange that did happen would be undone.
 */
int fc_rename(int olddir, const char *old, int newdir, const char *new, unsigned flags, struct fc_error *err);

/* Close a file that was written. The descriptor is gone in any case; some file systems report a lost write here. */
int fc_close_written(int fd, struct fc_error *err);

/* Close a file that was only read: nothing can be lost, so there is nothing to report. errno is kept. */
void fc_close_read(int fd);

#endif
