/*
 * See reader.h. A folder costs five system calls warm (open, fstat, read, close, fstatat) and they are nearly all the
 * time it takes; so the loop over the folders is here and not in Python, where each call would take and give up the
 * GIL.
 */
#include "reader.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "io.h"
#include "map.h"

/* `path` becomes "folder/file"; false when it would be longer than the kernel takes. */
static bool join_path(char path[PATH_MAX], const char *folder, const char *file)
{
    size_t length = strlen(folder), extra = strlen(file);
    if (length + 1 + extra >= PATH_MAX)
        return false;
    memcpy(path, folder, length);
    path[length] = '/';
    memcpy(path + length + 1, file, extra + 1);
    return true;
}

/* The first bytes of a meta into `room`. Returns how many, or -errno; `full`: no room for them, and nothing was read. */
static int64_t read_meta(int dirfd, const char *path, char *room, size_t length, bool *full)
{
    struct fc_error err;
    off_t size;
    ssize_t count = -1;
    int fd = fc_open_file(dirfd, path, &size, &err);
    if (fd < 0)
        return -err.code;
    if (size > FC_META_MAX)
        size = FC_META_MAX;
    *full = (size_t)size > length;
    if (!*full)
        count = fc_read_at(fd, room, (size_t)size, 0, &err);
    fc_close_read(fd);
    return count < 0 ? -err.code : count;
}

static int64_t get_out_size(int dirfd, const char *path, bool safe_folder)
{
    struct fc_error err;
    off_t size;
    int fd;
    if (safe_folder)
        return fc_stat_file(dirfd, path, &size, &err) < 0 ? -err.code : size;
    /* The folder may be a link to somewhere else: opening refuses that, where a stat would follow it. */
    fd = fc_open_file(dirfd, path, &size, &err);
    if (fd < 0)
        return -err.code;
    fc_close_read(fd);
    return size;
}

static int64_t map_out(int dirfd, const char *path, void **address)
{
    struct fc_error err;
    off_t size;
    return fc_map_file(dirfd, path, -1, &size, address, &err) < 0 ? -err.code : size;
}

/* False when there is no room for the meta. */
static bool scan_folder(int dirfd, struct fc_folder *folder, bool map, char *room, size_t length)
{
    char path[PATH_MAX];
    bool full = false;
    folder->meta = room;
    folder->meta_size = folder->out_size = -ENAMETOOLONG;
    folder->address = NULL;
    if (!join_path(path, folder->name, "meta"))
        return true;
    folder->meta_size = read_meta(dirfd, path, room, length, &full);
    if (full)
        return false;
    (void)join_path(path, folder->name, "out");
    if (map && folder->meta_size >= 0)
        folder->out_size = map_out(dirfd, path, &folder->address);
    else
        folder->out_size = get_out_size(dirfd, path, folder->meta_size >= 0);
    return true;
}

size_t fc_scan_folders(int dirfd, struct fc_folder *folders, size_t count, bool map, char *room, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (!scan_folder(dirfd, &folders[i], map, room, length))
            return i;
        if (folders[i].meta_size > 0) {
            room += folders[i].meta_size;
            length -= (size_t)folders[i].meta_size;
        }
    }
    return count;
}

int fc_read_part(int dirfd, const char *path, off_t offset, void *data, size_t length, off_t size, off_t *found,
                 struct fc_error *err)
{
    ssize_t count;
    int rc = -1;
    int fd = fc_open_file(dirfd, path, found, err);
    if (fd < 0)
        return -1;
    if (size >= 0 && *found != size) {
        fc_fail_with(err, "size", FC_SIZE_CHANGED);
        goto out;
    }
    count = fc_read_at(fd, data, length, offset, err);
    if (count < 0)
        goto out;
    if ((size_t)count < length) {
        /* The file may have become shorter only now. */
        if (*found - offset >= (off_t)length)
            *found = offset + count;
        fc_fail_with(err, "size", FC_SIZE_CHANGED);
        goto out;
    }
    rc = 0;
out:
    fc_close_read(fd);
    return rc;
}
