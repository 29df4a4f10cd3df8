/* See direct.h. One descriptor is enough: O_DIRECT is a flag that can be taken back, for the tail and for ever. */
#include "direct.h"

#include <errno.h>
#include <string.h>

#include "io.h"

#define WINDOW ((size_t)8 << 20) /* of a buffered part: the device begins with it while the next one is copied */

static size_t round_down(size_t size)
{
    return size & ~((size_t)FC_DIRECT_ALIGN - 1);
}

static bool is_refusal(const struct fc_error *err)
{
    return err->code == EINVAL || err->code == EOPNOTSUPP || err->code == ENOTBLK;
}

int fc_create_blob(struct fc_blob *blob, int dirfd, const char *path, off_t size, bool direct, bool writeback,
                   struct fc_error *err)
{
    blob->size = size;
    blob->writeback = writeback;
    blob->memory_align = 0;
    blob->fd = fc_create_file(dirfd, path, err);
    if (blob->fd < 0)
        return -1;
    if (fc_allocate_file(blob->fd, size, err) < 0) {
        fc_abandon_blob(blob);
        return -1;
    }
    if (direct && fc_set_direct(blob->fd, true))
        blob->memory_align = fc_get_memory_align(blob->fd, FC_DIRECT_ALIGN);
    atomic_init(&blob->direct, blob->memory_align > 0);
    if (!fc_is_direct(blob))
        (void)fc_set_direct(blob->fd, false);
    return 0;
}

bool fc_is_direct(struct fc_blob *blob)
{
    return atomic_load_explicit(&blob->direct, memory_order_relaxed);
}

static int write_buffered(struct fc_blob *blob, const char *data, size_t length, off_t offset, struct fc_error *err)
{
    while (length > 0) {
        size_t part = length < WINDOW ? length : WINDOW;
        if (fc_write_at(blob->fd, data, part, offset, err) < 0)
            return -1;
        if (blob->writeback && fc_start_writeback(blob->fd, offset, (off_t)part, err) < 0)
            return -1;
        data += part;
        offset += (off_t)part;
        length -= part;
    }
    return 0;
}

int fc_open_gate(struct fc_gate *gate, unsigned places, struct fc_error *err)
{
    return sem_init(&gate->places, 0, places) < 0 ? fc_fail(err, "gate") : 0;
}

void fc_close_gate(struct fc_gate *gate)
{
    (void)sem_destroy(&gate->places);
}

static int write_gated(int fd, const char *data, size_t length, off_t offset, struct fc_gate *gate,
                       struct fc_error *err)
{
    int rc;
    while (gate != NULL && sem_wait(&gate->places) < 0 && errno == EINTR)
        ;
    rc = fc_write_at(fd, data, length, offset, err);
    if (gate != NULL)
        (void)sem_post(&gate->places);
    return rc;
}

static int write_direct(struct fc_blob *blob, const char *data, size_t length, off_t offset, char *bounce, size_t room,
                        struct fc_gate *gate, struct fc_error *err)
{
    if ((size_t)data % blob->memory_align == 0)
        return write_gated(blob->fd, data, length, offset, gate, err);
    if (bounce == NULL)
        return fc_fail_with(err, "alignment", EINVAL);
    while (length > 0) {
        size_t part = length < room ? length : room;
        memcpy(bounce, data, part);
        if (write_gated(blob->fd, bounce, part, offset, gate, err) < 0)
            return -1;
        data += part;
        offset += (off_t)part;
        length -= part;
    }
    return 0;
}

int fc_write_part(struct fc_blob *blob, const void *data, size_t length, off_t offset, void *bounce, size_t room,
                  struct fc_gate *gate, struct fc_error *err)
{
    size_t body = round_down(length);
    if (offset % FC_DIRECT_ALIGN != 0 || (body < length && offset + (off_t)length != blob->size))
        return fc_fail_with(err, "part", EINVAL);
    /* Kept even where the part goes through the page cache: others may still be writing past it. */
    memcpy(blob->tail, (const char *)data + body, length - body);
    if (fc_is_direct(blob)) {
        if (write_direct(blob, data, body, offset, bounce, room, gate, err) == 0)
            return 0;
        if (!is_refusal(err))
            return -1;
        (void)fc_set_direct(blob->fd, false);
        atomic_store_explicit(&blob->direct, false, memory_order_relaxed);
    }
    return write_buffered(blob, data, length, offset, err);
}

/* The bytes behind the last multiple of FC_DIRECT_ALIGN; a blob that was never direct has them already. */
static int write_tail(struct fc_blob *blob, struct fc_error *err)
{
    size_t length = (size_t)(blob->size % FC_DIRECT_ALIGN);
    if (blob->memory_align == 0 || length == 0)
        return 0;
    if (!fc_set_direct(blob->fd, false))
        return fc_fail(err, "end of O_DIRECT");
    return fc_write_at(blob->fd, blob->tail, length, blob->size - (off_t)length, err);
}

int fc_finish_blob(struct fc_blob *blob, bool sync, struct fc_error *err)
{
    int rc = -1, fd = blob->fd;
    if (write_tail(blob, err) < 0 || fc_check_size(blob->fd, blob->size, err) < 0)
        goto out;
    if (sync && fc_sync_file(blob->fd, err) < 0)
        goto out;
    /* First: a child that is forked in between closes what it finds here, and the number may be another file's by then. */
    blob->fd = -1;
    rc = fc_close_written(fd, err);
out:
    fc_abandon_blob(blob);
    return rc;
}

void fc_abandon_blob(struct fc_blob *blob)
{
    int fd = blob->fd;
    blob->fd = -1;
    if (fd >= 0)
        fc_close_read(fd);
}

/* Whole blocks, as many as there are; the last may end anywhere. -1 when O_DIRECT is refused, with nothing done. */
static ssize_t read_blocks(int fd, char *data, size_t length, off_t offset, struct fc_error *err)
{
    size_t done = 0;
    while (done < length) {
        ssize_t count = fc_read_some(fd, data + done, length - done, offset + (off_t)done, err);
        if (count < 0)
            return -1;
        done += (size_t)count;
        if (count == 0 || done % FC_DIRECT_ALIGN != 0)
            break;
    }
    return (ssize_t)done;
}

ssize_t fc_read_past_cache(int fd, void *data, size_t length, size_t room, off_t offset, struct fc_error *err)
{
    size_t whole = round_down(length + FC_DIRECT_ALIGN - 1);
    size_t body = whole <= room ? whole : round_down(length);
    ssize_t count = 0, rest;
    if (fc_set_direct(fd, true))
        count = read_blocks(fd, data, body, offset, err);
    if (count < 0 && !is_refusal(err))
        return -1;
    if (count < 0)
        count = 0;
    if ((size_t)count >= length)
        return (ssize_t)length;
    (void)fc_set_direct(fd, false);
    rest = fc_read_at(fd, (char *)data + count, length - (size_t)count, offset + count, err);
    return rest < 0 ? -1 : count + rest;
}
