/*
 * See reader.h. A folder costs five system calls warm (open, fstat, read, close, fstatat) and they are nearly all the
 * time it takes; so the loop over the folders is here and not in Python, where each call would take and give up the
 * GIL. Threads are C's as well: Python's, waiting for each other's GIL, made a load of 150 tensors no faster.
 */
#include "reader.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
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

/* The first bytes of a meta into `room`. Returns how many, or -errno; `full`: no room for them, nothing was read. */
static int64_t read_meta(int dirfd, const char *path, const struct fc_room *room, bool *full)
{
    struct fc_error err;
    off_t size;
    ssize_t count = -1;
    int fd = fc_open_file(dirfd, path, &size, &err);
    if (fd < 0)
        return -err.code;
    if (size > FC_META_MAX)
        size = FC_META_MAX;
    *full = (size_t)size > room->left;
    if (!*full)
        count = fc_read_at(fd, room->at, (size_t)size, 0, &err);
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

static size_t align(size_t size)
{
    return (size + 63) & ~(size_t)63;
}

/* A small blob into `room`. A file that has become shorter since it was opened is as long as what could be read. */
static int64_t copy_out(int fd, size_t size, struct fc_room *room, struct fc_folder *folder)
{
    struct fc_error err;
    ssize_t count = fc_read_at(fd, room->at, size, 0, &err);
    if (count < 0)
        return -err.code;
    folder->address = room->at;
    room->at += align(size);
    room->left -= align(size);
    return count;
}

/* The blob's size or -errno; `full` as above. */
static int64_t take_out(int dirfd, const char *path, struct fc_room *room, struct fc_folder *folder, bool *full)
{
    struct fc_error err;
    off_t size;
    int64_t found;
    int fd = fc_open_file(dirfd, path, &size, &err);
    if (fd < 0)
        return -err.code;
    found = size;
    *full = size <= FC_SMALL_BLOB && align((size_t)size) > room->left;
    if (size > FC_SMALL_BLOB) {
        folder->is_map = true;
        if (fc_map_open(fd, size, &folder->address, &err) < 0)
            found = -err.code;
    } else if (size > 0 && !*full) {
        found = copy_out(fd, (size_t)size, room, folder);
    }
    fc_close_read(fd);
    return found;
}

/* False when there is no room for the meta or the blob. */
static bool scan_folder(int dirfd, struct fc_folder *folder, struct fc_room *metas, struct fc_room *blobs)
{
    char path[PATH_MAX];
    bool full = false;
    folder->meta = metas->at;
    folder->meta_size = folder->out_size = -ENAMETOOLONG;
    folder->address = NULL;
    folder->is_map = false;
    if (!join_path(path, folder->name, "meta"))
        return true;
    folder->meta_size = read_meta(dirfd, path, metas, &full);
    if (full)
        return false;
    (void)join_path(path, folder->name, "out");
    if (blobs != NULL && folder->meta_size >= 0)
        folder->out_size = take_out(dirfd, path, blobs, folder, &full);
    else
        folder->out_size = get_out_size(dirfd, path, folder->meta_size >= 0);
    return !full;
}

size_t fc_scan_folders(int dirfd, struct fc_folder *folders, size_t count, struct fc_room *metas, struct fc_room *blobs)
{
    for (size_t i = 0; i < count; i++) {
        if (!scan_folder(dirfd, &folders[i], metas, blobs))
            return i;
        if (folders[i].meta_size > 0) {
            metas->at += folders[i].meta_size;
            metas->left -= (size_t)folders[i].meta_size;
        }
    }
    return count;
}

/* What threads share. It outlives the call: a thread that begins too late to be of use looks at nothing else. */
struct share {
    pthread_mutex_t lock;
    pthread_cond_t over;
    struct fc_run *runs;
    size_t count;
    size_t next;  /* the first run that nobody has taken */
    size_t left;  /* runs that are not over */
    size_t users; /* threads that will still look at this */
};

static void scan_run(struct fc_run *run)
{
    struct fc_room *blobs = run->blobs.at == NULL ? NULL : &run->blobs;
    run->done = fc_scan_folders(run->dirfd, run->folders, run->count, &run->metas, blobs);
}

/* Called and returns with the lock held. */
static void work_off(struct share *share)
{
    while (share->next < share->count) {
        struct fc_run *run = &share->runs[share->next++];
        pthread_mutex_unlock(&share->lock);
        scan_run(run);
        pthread_mutex_lock(&share->lock);
        if (--share->left == 0)
            pthread_cond_signal(&share->over);
    }
}

/* Called with the lock held, which is gone afterwards. */
static void leave(struct share *share)
{
    bool last = --share->users == 0;
    pthread_mutex_unlock(&share->lock);
    if (!last)
        return;
    pthread_cond_destroy(&share->over);
    pthread_mutex_destroy(&share->lock);
    free(share);
}

static void *help(void *argument)
{
    struct share *share = argument;
    pthread_mutex_lock(&share->lock);
    work_off(share);
    leave(share);
    return NULL;
}

/* Called with the lock held. How many threads there are to be had does not matter. */
static void call_helpers(struct share *share, size_t count)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all); /* signals are for Python's own threads */
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; count > 0 && pthread_create(&thread, NULL, help, share) == 0; count--) {
        share->users++;
        (void)pthread_detach(thread);
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void fc_scan_runs(struct fc_run *runs, size_t count, size_t threads)
{
    struct share *share = threads > 1 ? malloc(sizeof *share) : NULL;
    if (share == NULL) {
        for (size_t i = 0; i < count; i++)
            scan_run(&runs[i]);
        return;
    }
    *share = (struct share){.runs = runs, .count = count, .left = count, .users = 1};
    (void)pthread_mutex_init(&share->lock, NULL);
    (void)pthread_cond_init(&share->over, NULL);
    pthread_mutex_lock(&share->lock);
    call_helpers(share, threads - 1);
    work_off(share);
    while (share->left > 0)
        pthread_cond_wait(&share->over, &share->lock);
    leave(share);
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
