/* See names.h. readdir(3) would take a descriptor of its own, memory, and the time to get both. */
#include "names.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t fc_read_names(int fd, void *room, size_t size, struct fc_error *err)
{
    long count;
    do {
        count = syscall(SYS_getdents64, fd, room, size);
    } while (count < 0 && errno == EINTR);
    return count < 0 ? fc_fail(err, "readdir") : (ssize_t)count;
}

const char *fc_next_name(const void *room, size_t used, size_t *at)
{
    while (*at < used) {
        const struct dirent64 *entry = (const struct dirent64 *)((const char *)room + *at);
        *at += entry->d_reclen;
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            return entry->d_name;
    }
    return NULL;
}

uint64_t fc_hash_name(const char *name, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a, and the last steps of MurmurHash3 */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * 0x100000001b3u;
    hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccdu;
    hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53u;
    return hash ^ hash >> 33;
}
