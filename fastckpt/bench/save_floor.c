/*
 * The floor under a save: the folders and files of a snapshot made once more, each of as many bytes, and nothing else.
 * A durable one copies them to where O_DIRECT can write from, and syncs all of it once; the other writes them through the
 * page cache. The benchmark builds it where there is a C compiler; the library does not contain it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MOST_THREADS = 64,
    BLOCK = 4096,
    LARGE = 1 << 20,
    PIECE = 2 << 20,
    HUGE = 2 << 20,
    CACHED_PIECE = 4 << 20,
    SHIFT = 64,
    LONGEST = NAME_MAX + 8
};

struct tensor {
    char name[NAME_MAX + 1];
    size_t out, meta; /* bytes */
    const char *data;
    pthread_mutex_t lock;
    int fd;
    atomic_size_t left; /* bytes that are still to be written */
};

struct job {
    struct tensor *tensor;
    size_t at;
};

static struct {
    struct tensor *tensors;
    struct job *jobs;
    size_t count, jobs_count;
    size_t piece; /* bytes of a job of a large tensor */
    size_t threads;
    bool durable;
    int dirfd;
    char *rooms;
    atomic_size_t next, room, files;
} save;

static int create(const char *folder, const char *name, int flags)
{
    char path[LONGEST];
    return snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path)
               ? openat(save.dirfd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600)
               : -1;
}

static void write_whole(const char *folder, const char *name, const char *data, size_t size)
{
    int fd = create(folder, name, 0);
    if (fd < 0)
        return;
    if (write(fd, data, size) == (ssize_t)size)
        atomic_fetch_add(&save.files, 1);
    close(fd);
}

static int opened(struct tensor *tensor)
{
    pthread_mutex_lock(&tensor->lock);
    if (tensor->fd < 0 && mkdirat(save.dirfd, tensor->name, 0700) == 0) {
        tensor->fd = create(tensor->name, "out", save.durable ? O_DIRECT : 0);
        if (tensor->fd >= 0 && save.durable && fallocate(tensor->fd, 0, 0, (off_t)tensor->out) < 0)
            tensor->fd = -1;
    }
    pthread_mutex_unlock(&tensor->lock);
    return tensor->fd;
}

/* The last bytes go through the page cache. */
static void finish(struct tensor *tensor)
{
    size_t body = tensor->out / BLOCK * BLOCK, rest = tensor->out - body;
    if (fcntl(tensor->fd, F_SETFL, 0) == 0 &&
        pwrite(tensor->fd, tensor->data + body, rest, (off_t)body) == (ssize_t)rest)
        atomic_fetch_add(&save.files, 1);
    close(tensor->fd);
    write_whole(tensor->name, "meta", tensor->data, tensor->meta);
}

static bool write_body(int fd, const char *data, size_t size, size_t at, char *room)
{
    size_t done = 0, step;
    if (save.durable)
        return pwrite(fd, memcpy(room, data, size), size, (off_t)at) == (ssize_t)size;
    for (; done < size; done += step) {
        step = size - done < CACHED_PIECE ? size - done : CACHED_PIECE;
        if (pwrite(fd, data + done, step, (off_t)(at + done)) != (ssize_t)step)
            return false;
    }
    return true;
}

static void write_piece(struct tensor *tensor, size_t at, char *room)
{
    size_t length = tensor->out - at < save.piece ? tensor->out - at : save.piece, body = length / BLOCK * BLOCK;
    int fd = opened(tensor);
    if (fd >= 0 && write_body(fd, tensor->data + at, body, at, room) &&
        atomic_fetch_sub(&tensor->left, length) == length)
        finish(tensor);
}

static void *work(void *context)
{
    char *room = save.rooms + atomic_fetch_add(&save.room, 1) * PIECE;
    size_t at;
    while ((at = atomic_fetch_add(&save.next, 1)) < save.jobs_count) {
        struct tensor *tensor = save.jobs[at].tensor;
        if (tensor->out > LARGE)
            write_piece(tensor, save.jobs[at].at, room);
        else if (mkdirat(save.dirfd, tensor->name, 0700) == 0) {
            write_whole(tensor->name, "out", tensor->data, tensor->out);
            write_whole(tensor->name, "meta", tensor->data, tensor->meta);
        }
    }
    return context;
}

static int larger_first(const void *one, const void *other)
{
    size_t a = ((const struct tensor *)one)->out, b = ((const struct tensor *)other)->out;
    return (a < b) - (a > b);
}

/* Small tensors are spread among three quarters of the pieces of large ones. */
static int list_jobs(size_t pieces)
{
    size_t large = 0, small, done = 0;
    while (large < save.count && save.tensors[large].out > LARGE)
        large++;
    small = save.count - large;
    save.jobs = calloc(pieces + small + 1, sizeof(*save.jobs));
    if (!save.jobs)
        return -1;
    for (size_t which = 0, piece = 0; which < large; which++)
        for (size_t at = 0; at < save.tensors[which].out; at += save.piece, piece++) {
            save.jobs[save.jobs_count++] = (struct job){&save.tensors[which], at};
            for (; done < small && done * 3 * pieces <= piece * 4 * small; done++)
                save.jobs[save.jobs_count++] = (struct job){&save.tensors[large + done], 0};
        }
    for (; done < small; done++)
        save.jobs[save.jobs_count++] = (struct job){&save.tensors[large + done], 0};
    return 0;
}

static void add(int dirfd, const char *name)
{
    char path[LONGEST];
    struct stat out, meta;
    struct tensor *tensors = realloc(save.tensors, (save.count + 1) * sizeof(*tensors));
    if (!tensors)
        return;
    save.tensors = tensors;
    if (snprintf(path, sizeof(path), "%s/out", name) >= (int)sizeof(path) || fstatat(dirfd, path, &out, 0) < 0)
        return;
    if (snprintf(path, sizeof(path), "%s/meta", name) >= (int)sizeof(path) || fstatat(dirfd, path, &meta, 0) < 0)
        return;
    tensors[save.count] = (struct tensor){.out = (size_t)out.st_size, .meta = (size_t)meta.st_size, .fd = -1};
    memcpy(tensors[save.count++].name, name, strlen(name) + 1);
}

/*
 * Takes the sizes of a snapshot's files, and how to write them. Returns how many bytes `save_write` wants to read, 0 where
 * there are none.
 */
size_t save_like(const char *snapshot, size_t threads, bool durable)
{
    size_t pieces = 0, bytes = 0;
    struct dirent *entry;
    DIR *dir = opendir(snapshot);
    if (!dir)
        return 0;
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.' && entry->d_type == DT_DIR)
            add(dirfd(dir), entry->d_name);
    closedir(dir);
    save.threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    save.durable = durable;
    save.piece = durable ? PIECE : SSIZE_MAX; /* the page cache lets no two write to one file at a time */
    qsort(save.tensors, save.count, sizeof(*save.tensors), larger_first);
    for (size_t at = 0; at < save.count; at++) {
        struct tensor *tensor = &save.tensors[at];
        pthread_mutex_init(&tensor->lock, NULL);
        atomic_init(&tensor->left, tensor->out);
        pieces += tensor->out > LARGE ? (tensor->out - 1) / save.piece + 1 : 0;
        bytes += (tensor->out + tensor->meta) / BLOCK * BLOCK + 2 * BLOCK;
    }
    return list_jobs(pieces) < 0 ? 0 : bytes;
}

/* Returns how many files were made: two for each tensor, or something failed. Folder `target` is there, and empty. */
size_t save_write(const char *target, const char *memory)
{
    pthread_t ids[MOST_THREADS];
    size_t started = 0, size = save.threads * PIECE + HUGE;
    char *rooms = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    save.dirfd = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (rooms == MAP_FAILED || save.dirfd < 0)
        return 0;
    save.rooms = rooms + (HUGE - (uintptr_t)rooms % HUGE) % HUGE;
    (void)madvise(save.rooms, size - HUGE, MADV_HUGEPAGE);
    for (size_t at = 0; at < save.count; at++) { /* each begins as torch's do */
        save.tensors[at].data = memory + SHIFT;
        memory += (save.tensors[at].out + save.tensors[at].meta) / BLOCK * BLOCK + 2 * BLOCK;
    }
    while (started < save.threads && pthread_create(&ids[started], NULL, work, NULL) == 0)
        started++;
    for (size_t at = 0; at < started; at++)
        pthread_join(ids[at], NULL);
    if (save.durable && syncfs(save.dirfd) < 0)
        atomic_store(&save.files, 0);
    close(save.dirfd);
    munmap(rooms, size);
    return atomic_load(&save.files);
}

void save_forget(void)
{
    free(save.tensors);
    free(save.jobs);
    memset(&save, 0, sizeof(save));
}
