/*
 * The floor under a load: every tensor's meta and out opened, read or, where it is large, mapped, and closed, in threads,
 * and nothing else. The benchmark builds it where there is a C compiler; the library does not contain it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM = 1 << 20, MOST_THREADS = 64 };

struct map {
    void *address;
    size_t size;
};

struct floor {
    int dirfd;
    off_t read; /* what has more bytes is mapped */
    char **names;
    struct map *maps; /* one a folder */
    size_t count;
    atomic_size_t next;
    atomic_size_t files; /* read whole */
};

static int map_file(int fd, off_t size, struct map *map)
{
    void *address = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (address == MAP_FAILED)
        return -1;
    *map = (struct map){address, (size_t)size};
    return 0;
}

static int read_file(const struct floor *floor, size_t at, const char *name, char *room)
{
    char path[NAME_MAX + 8];
    struct stat status;
    off_t done = 0;
    int fd;
    if (snprintf(path, sizeof(path), "%s/%s", floor->names[at], name) >= (int)sizeof(path))
        return -1;
    fd = openat(floor->dirfd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) < 0)
        status.st_size = -1;
    else if (status.st_size > floor->read)
        done = map_file(fd, status.st_size, &floor->maps[at]) == 0 ? status.st_size : 0;
    else
        while (done < status.st_size) {
            ssize_t count = read(fd, room, ROOM);
            if (count <= 0)
                break;
            done += count;
        }
    close(fd);
    return done == status.st_size ? 0 : -1;
}

static void *read_folders(void *context)
{
    struct floor *floor = context;
    char *room = malloc(ROOM);
    size_t at;
    while (room && (at = atomic_fetch_add(&floor->next, 1)) < floor->count) {
        if (read_file(floor, at, "meta", room) == 0)
            atomic_fetch_add(&floor->files, 1);
        if (read_file(floor, at, "out", room) == 0)
            atomic_fetch_add(&floor->files, 1);
    }
    free(room);
    return NULL;
}

static void list_folders(struct floor *floor, DIR *dir)
{
    struct dirent *entry;
    size_t most = 0;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.' || entry->d_type != DT_DIR)
            continue;
        if (floor->count == most) {
            char **larger = realloc(floor->names, (most = most * 2 + 64) * sizeof(*larger));
            if (!larger)
                return;
            floor->names = larger;
        }
        if (!(floor->names[floor->count] = strdup(entry->d_name)))
            return;
        floor->count++;
    }
}

static struct floor last; /* whose maps are still there: to undo them is no part of a load */

void floor_forget(void)
{
    for (size_t at = 0; last.maps && at < last.count; at++)
        if (last.maps[at].address)
            munmap(last.maps[at].address, last.maps[at].size);
    free(last.maps);
    last = (struct floor){0};
}

/*
 * Returns how many files were read whole or, if they have more than `most` bytes, mapped: two for each folder, or something
 * failed. The maps stay until floor_forget.
 */
size_t floor_read(const char *path, size_t threads, size_t most)
{
    struct floor floor = {.read = (off_t)most};
    pthread_t ids[MOST_THREADS];
    size_t started = 0, at;
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    floor.dirfd = dirfd(dir);
    list_folders(&floor, dir);
    floor.maps = calloc(floor.count + 1, sizeof(*floor.maps));
    while (floor.maps && started < threads && started < MOST_THREADS && started < floor.count)
        if (pthread_create(&ids[started], NULL, read_folders, &floor) == 0)
            started++;
        else
            break;
    for (at = 0; at < started; at++)
        pthread_join(ids[at], NULL);
    for (at = 0; at < floor.count; at++)
        free(floor.names[at]);
    free(floor.names);
    closedir(dir);
    last.maps = floor.maps;
    last.count = floor.count;
    return atomic_load(&floor.files);
}
