/*
 * See reader.h. A folder costs five system calls warm (open, fstat, read, close, fstatat) and they are nearly all the
 * time it takes; so the loop over the folders is here and not in Python, where each call would take and give up the
 * GIL. Threads are C's as well: Python's, waiting for each other's GIL, made a load of 150 tensors no faster.
 */
#include "reader.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "direct.h"
#include "io.h"
#include "map.h"
#include "pool.h"
#include "resident.h"

#define MAPS ((size_t)64) /* that are advised at a time */
#define AHEAD ((size_t)8) /* files that a thread has open at a time: with 16 threads, as many as a disk can use */

/* A file that may be open already; else whoever opens it is told why it cannot be. */
struct file {
    int fd;
    off_t size;
};

static void open_file(const struct fc_run *run, const char *path, struct file *file, struct fc_error *err)
{
    if (file->fd < 0)
        file->fd = fc_open_file(run->dirfd, path, &file->size, err);
}

/* The first bytes of a meta. Returns how many, or -errno. */
static int64_t read_meta(struct fc_run *run, const char *path, struct file *file, struct fc_folder *folder)
{
    struct fc_error err;
    ssize_t count = -1;
    open_file(run, path, file, &err);
    if (file->fd < 0)
        return -err.code;
    off_t size = file->size < FC_META_MAX ? file->size : FC_META_MAX;
    char *room = fc_take_room(&run->block, (size_t)size, &folder->meta_block);
    if (room == NULL)
        fc_fail_with(&err, "allocate", ENOMEM);
    else
        count = fc_read_at(file->fd, room, (size_t)size, 0, &err);
    folder->meta = room;
    fc_close_read(file->fd);
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

/* A small blob into a block. A file that has become shorter since it was opened is as long as what could be read. */
static int64_t copy_out(struct fc_run *run, int fd, size_t size, struct fc_folder *folder)
{
    struct fc_error err;
    ssize_t count;
    char *room = fc_take_room(&run->block, size, &folder->blob_block);
    if (room == NULL)
        return -ENOMEM;
    folder->address = room;
    count = fc_read_at(fd, room, size, 0, &err);
    return count < 0 ? -err.code : count;
}

static bool is_huge(const struct fc_run *run, int64_t size)
{
    return size >= FC_HUGE_PAGE && (run->cold == FC_COLD_HUGE || run->cold == FC_COLD_ADVISE);
}

/* A map of an open file. What can have huge pages is advised later, see advise_huge; of other cold ones reading begins. */
static int map_out(struct fc_run *run, int fd, off_t size, struct fc_folder *folder, struct fc_error *err)
{
    bool huge = is_huge(run, size);
    bool cold = !huge && (run->cold == FC_COLD_LEAVE || run->cold == FC_COLD_ADVISE) && !fc_is_resident(fd, size);
    if ((cold && run->cold == FC_COLD_LEAVE) || run->maps == 0 || !fc_holds_maps())
        return 0;
    run->maps--;
    if (fc_map_open(fd, size, &folder->address, err) < 0)
        return -1;
    if (folder->ask)
        folder->cold = !fc_is_resident(fd, size);
    if (cold)
        fc_begin_reading(fd, size);
    return 0;
}

/*
 * Have what is not in memory come by huge pages: a wish, how fast it will come, not what. It is cheaper to say so of all
 * than to ask for each whether it is needed: on what is in memory it does nothing.
 */
static void advise_huge(const struct fc_run *run)
{
    struct iovec maps[MAPS];
    size_t count = 0;
    for (size_t i = 0; i < run->count; i++) {
        const struct fc_folder *folder = &run->folders[i];
        if (folder->address == NULL || !is_huge(run, folder->out_size))
            continue;
        maps[count++] = (struct iovec){folder->address, (size_t)folder->out_size};
        if (count == MAPS) {
            fc_advise_all(maps, count, MADV_HUGEPAGE);
            count = 0;
        }
    }
    if (count > 0)
        fc_advise_all(maps, count, MADV_HUGEPAGE);
}

/* The blob's size or -errno. */
static int64_t take_out(struct fc_run *run, const char *path, struct file *file, struct fc_folder *folder)
{
    struct fc_error err;
    int64_t found;
    open_file(run, path, file, &err);
    if (file->fd < 0)
        return -err.code;
    off_t size = found = file->size;
    /* Without room for the map the blob keeps its size, which may be wrong; who knows how to get it otherwise, will. */
    if (size > FC_SMALL_BLOB && map_out(run, file->fd, size, folder, &err) < 0 && err.code != ENOMEM)
        found = -err.code;
    if (0 < size && size <= FC_SMALL_BLOB)
        found = copy_out(run, file->fd, (size_t)size, folder);
    fc_close_read(file->fd);
    return found;
}

static void scan_meta(struct fc_run *run, struct file *file, struct fc_folder *folder)
{
    char path[PATH_MAX];
    folder->meta_block = NULL;
    folder->meta_size = -ENAMETOOLONG;
    if (fc_join_path(path, folder->name, "meta"))
        folder->meta_size = read_meta(run, path, file, folder);
}

static void scan_blob(struct fc_run *run, struct file *file, struct fc_folder *folder)
{
    char path[PATH_MAX];
    folder->out_size = -ENAMETOOLONG;
    folder->address = NULL;
    folder->blob_block = NULL;
    if (fc_join_path(path, folder->name, "out"))
        folder->out_size = take_out(run, path, file, folder);
}

static void scan_size(struct fc_run *run, struct fc_folder *folder)
{
    char path[PATH_MAX];
    folder->out_size = -ENAMETOOLONG;
    if (fc_join_path(path, folder->name, "out"))
        folder->out_size = get_out_size(run->dirfd, path, run->what != FC_SIZES && folder->meta_size >= 0);
}

/* Open a small file, and have it begun to be read. What cannot be opened now is told when it is wanted. */
static void begin_file(const struct fc_run *run, const struct fc_folder *folder, struct file *file)
{
    char path[PATH_MAX];
    struct fc_error ignored;
    bool blob = run->what == FC_BLOBS;
    if (run->what == FC_SIZES || !fc_join_path(path, folder->name, blob ? "out" : "meta"))
        return;
    file->fd = fc_open_file(run->dirfd, path, &file->size, &ignored);
    if (file->fd >= 0 && file->size <= (blob ? FC_SMALL_BLOB : FC_META_MAX))
        fc_begin_reading(file->fd, file->size);
}

static void scan_folder(struct fc_run *run, struct file *file, struct fc_folder *folder)
{
    if (run->what == FC_BLOBS) {
        scan_blob(run, file, folder);
        return;
    }
    if (run->what != FC_SIZES)
        scan_meta(run, file, folder);
    if (run->what != FC_METAS)
        scan_size(run, folder);
}

static void scan_run(struct fc_run *run)
{
    struct file files[AHEAD];
    const size_t step = run->ahead ? AHEAD : 1;
    run->block = NULL;
    for (size_t at = 0; at < run->count; at += step) {
        struct fc_folder *folders = run->folders + at;
        size_t count = run->count - at < step ? run->count - at : step;
        for (size_t i = 0; i < count; i++) {
            files[i].fd = -1;
            if (run->ahead)
                begin_file(run, folders + i, files + i);
        }
        for (size_t i = 0; i < count; i++)
            scan_folder(run, files + i, folders + i);
    }
    if (run->what == FC_BLOBS)
        advise_huge(run);
    fc_release_block(run->block);
}

static void scan_turn(void *runs, size_t i)
{
    scan_run((struct fc_run *)runs + i);
}

void fc_scan_folders(struct fc_run *runs, size_t count, size_t threads)
{
    fc_share_turns(count, threads, scan_turn, runs);
}

struct fc_turns *fc_begin_scan(struct fc_run *runs, size_t count, size_t threads)
{
    return fc_begin_turns(count, threads, scan_turn, runs);
}

/* Whether a part was copied out of a map. */
static bool copy_part(int fd, int pagemap, const struct fc_part *part, off_t size)
{
    if (pagemap < 0 || part->length < (size_t)FC_HUGE_PAGE || size - part->offset < (off_t)part->length)
        return false;
    return fc_copy_huge(fd, pagemap, part->data, part->length, part->offset) == 0;
}

/* `*found` is the size of the file on FC_SIZE_CHANGED. `pagemap`: -1, or what can be in huge pages is copied out of maps. */
static int read_part(int dirfd, int pagemap, const struct fc_part *part, off_t *found, struct fc_error *err)
{
    ssize_t count;
    int rc = -1;
    int fd = fc_open_file(dirfd, part->path, found, err);
    if (fd < 0)
        return -1;
    if (part->size >= 0 && *found != part->size) {
        fc_fail_with(err, "size", FC_SIZE_CHANGED);
        goto out;
    }
    if (copy_part(fd, pagemap, part, *found))
        count = (ssize_t)part->length;
    else if (part->room > 0)
        count = fc_read_past_cache(fd, part->data, part->length, part->room, part->offset, err);
    else
        count = fc_read_at(fd, part->data, part->length, part->offset, err);
    if (count < 0)
        goto out;
    if ((size_t)count < part->length) {
        /* The file may have become shorter only now. */
        if (*found - part->offset >= (off_t)part->length)
            *found = part->offset + count;
        fc_fail_with(err, "size", FC_SIZE_CHANGED);
        goto out;
    }
    rc = 0;
out:
    fc_close_read(fd);
    return rc;
}

struct parts {
    int dirfd, pagemap;
    struct fc_part *parts;
    atomic_bool failed;
};

static void read_turn(void *context, size_t i)
{
    struct parts *all = context;
    struct fc_part *part = &all->parts[i];
    part->err.code = 0;
    if (atomic_load_explicit(&all->failed, memory_order_relaxed))
        return;
    if (read_part(all->dirfd, all->pagemap, part, &part->found, &part->err) < 0)
        atomic_store_explicit(&all->failed, true, memory_order_relaxed);
    else
        part->err.code = 0; /* O_DIRECT may have been refused on the way */
}

int fc_read_parts(int dirfd, struct fc_part *parts, size_t count, size_t threads, bool mapped, size_t *failed)
{
    struct parts all = {.dirfd = dirfd, .pagemap = mapped ? fc_open_pagemap() : -1, .parts = parts};
    fc_share_turns(count, threads, read_turn, &all);
    if (all.pagemap >= 0)
        fc_close_read(all.pagemap);
    for (*failed = 0; *failed < count; (*failed)++)
        if (parts[*failed].err.code != 0)
            return -1;
    return 0;
}
