/*
 * See writer.h. Buffered writes with a preallocated file are as fast as the page cache is, from any thread, since every
 * blob is a file (and an inode lock) of its own. Writing through a map was tried by others: slow, and SIGBUS on a full
 * disk.
 */
#include "writer.h"

#include <limits.h>

#include "io.h"

/* The device begins with one part while the next is copied into the page cache, and the sync at the end is short. */
#define WINDOW ((size_t)8 << 20)
#define LITTLE ((off_t)16 << 10) /* smaller files are left to the sync at the end, which sends many of them at a time */
#define WORTH_RESERVING ((off_t)1 << 20) /* a smaller file is written before a full disk could be asked about */

int fc_open_writer(struct fc_writer *writer, int dirfd, const char *path, off_t size_hint, bool writeback,
                   struct fc_error *err)
{
    writer->writeback = writeback;
    writer->size = 0;
    writer->reserved = 0;
    writer->fd = fc_create_file(dirfd, path, err);
    if (writer->fd < 0)
        return -1;
    if (size_hint <= WORTH_RESERVING)
        return 0;
    writer->reserved = size_hint;
    if (fc_reserve_space(writer->fd, size_hint, err) < 0) {
        fc_abandon_writer(writer);
        return -1;
    }
    return 0;
}

static int start_writeback(const struct fc_writer *writer, off_t offset, off_t length, struct fc_error *err)
{
    return writer->writeback && writer->size + length > LITTLE ? fc_start_writeback(writer->fd, offset, length, err)
                                                               : 0;
}

int fc_append_piece(struct fc_writer *writer, const void *data, size_t length, struct fc_error *err)
{
    while (length > 0) {
        size_t part = length < WINDOW ? length : WINDOW;
        if (fc_write_at(writer->fd, data, part, writer->size, err) < 0)
            return -1;
        if (part == WINDOW && start_writeback(writer, writer->size, (off_t)part, err) < 0)
            return -1;
        writer->size += (off_t)part;
        data = (const char *)data + part;
        length -= part;
    }
    return 0;
}

int fc_finish_writer(struct fc_writer *writer, bool sync, struct fc_error *err)
{
    int rc = -1;
    if (writer->reserved > writer->size && fc_trim_file(writer->fd, writer->size, err) < 0)
        goto out;
    if (fc_check_size(writer->fd, writer->size, err) < 0)
        goto out;
    if ((sync ? fc_sync_file(writer->fd, err) : start_writeback(writer, 0, 0, err)) < 0)
        goto out;
    rc = fc_close_written(writer->fd, err);
    writer->fd = -1;
out:
    fc_abandon_writer(writer);
    return rc;
}

void fc_abandon_writer(struct fc_writer *writer)
{
    if (writer->fd >= 0)
        fc_close_read(writer->fd);
    writer->fd = -1;
}

static int write_file(int dirfd, const char *path, const void *data, size_t size, bool writeback, struct fc_error *err)
{
    struct fc_writer writer;
    if (fc_open_writer(&writer, dirfd, path, (off_t)size, writeback, err) < 0)
        return -1;
    if (fc_append_piece(&writer, data, size, err) < 0) {
        fc_abandon_writer(&writer);
        return -1;
    }
    return fc_finish_writer(&writer, false, err);
}

static int write_tensor(int dirfd, const struct fc_tensor *tensor, bool writeback, const char **file,
                        struct fc_error *err)
{
    char out[PATH_MAX], meta[PATH_MAX];
    *file = NULL;
    if (!fc_join_path(out, tensor->folder, "out") || !fc_join_path(meta, tensor->folder, "meta"))
        return fc_fail_with(err, "mkdir", ENAMETOOLONG);
    if (fc_make_folder(dirfd, tensor->folder, err) < 0)
        return -1;
    *file = "out";
    if (write_file(dirfd, out, tensor->out, tensor->out_size, writeback, err) < 0)
        return -1;
    *file = "meta";
    return write_file(dirfd, meta, tensor->meta, tensor->meta_size, writeback, err);
}

int fc_write_tensors(int dirfd, const struct fc_tensor *tensors, size_t count, bool writeback, size_t *failed,
                     const char **file, struct fc_error *err)
{
    for (*failed = 0; *failed < count; (*failed)++)
        if (write_tensor(dirfd, &tensors[*failed], writeback, file, err) < 0)
            return -1;
    return 0;
}
