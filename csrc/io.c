/*
 * See io.h. What older headers and C libraries lack (openat2, renameat2) is called by number, so that what was built on
 * an old system runs as well on a new one; and where the kernel lacks openat2, its steps are taken here.
 */
#include "io.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_renameat2
#if defined(__x86_64__)
#define SYS_renameat2 316
#elif defined(__aarch64__) || defined(__riscv)
#define SYS_renameat2 276
#else
#error "the number of renameat2 on this processor is not known: build with newer kernel headers"
#endif
#endif

_Static_assert(sizeof(off_t) == 8, "build with _FILE_OFFSET_BITS=64");

#define PIECE_MAX ((size_t)1 << 30) /* Linux moves at most 2 GiB - 4096 in one call */
#define READ_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define RESOLVE_NO_SYMLINKS_ 0x04u

/* Again as long as a signal was all that happened. */
#define UNINTERRUPTED(result, call) \
    do { \
        (result) = (call); \
    } while ((result) < 0 && errno == EINTR)

/* As <linux/openat2.h> has it. */
struct how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};

/* The kernel (before 5.6) or a sandbox does not let us call openat2: found out once, remembered for the process. */
static atomic_bool no_openat2;

static bool is_parent(const char *name, size_t length)
{
    return length == 2 && name[0] == '.' && name[1] == '.';
}

/* Relative, and no component is "..": then only a symbolic link could lead out of the folder. */
static bool stays_beneath(const char *path)
{
    if (path[0] == '/')
        return false;
    for (;;) {
        size_t length = strcspn(path, "/");
        if (is_parent(path, length))
            return false;
        if (path[length] == '\0')
            return true;
        path += length + 1;
    }
}

static int open_folder(int dirfd, const char *name)
{
    int fd;
    struct stat st;
    UNINTERRUPTED(fd, openat(dirfd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    /* The kernel calls a link here "not a directory"; openat2 calls it a loop, and so do we. */
    if (fd < 0 && errno == ENOTDIR) {
        bool link = fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
        errno = link ? ELOOP : ENOTDIR;
    }
    return fd;
}

/* What openat2 does with RESOLVE_NO_SYMLINKS, one component at a time. */
static int open_by_steps(int dirfd, const char *path)
{
    char name[NAME_MAX + 1];
    int at = dirfd, next;
    for (;;) {
        size_t length = strcspn(path, "/");
        bool last = path[length] == '\0';
        if (length > NAME_MAX || (length == 0 && last)) {
            errno = length ? ENAMETOOLONG : ENOENT;
            next = -1;
        } else {
            memcpy(name, path, length);
            name[length] = '\0';
            if (last)
                UNINTERRUPTED(next, openat(at, name, READ_FLAGS));
            else
                next = open_folder(at, length ? name : ".");
        }
        if (at != dirfd)
            fc_close_read(at);
        if (last || next < 0)
            return next;
        at = next;
        path += length + 1;
    }
}

static int open_beneath(int dirfd, const char *path)
{
    /* Not RESOLVE_BENEATH: without links and ".." it adds nothing but a global lock in the kernel. */
    struct how how = {.flags = READ_FLAGS, .resolve = RESOLVE_NO_SYMLINKS_};
    int fd;
    if (!stays_beneath(path)) {
        errno = EXDEV;
        return -1;
    }
    if (atomic_load_explicit(&no_openat2, memory_order_relaxed))
        return open_by_steps(dirfd, path);
    UNINTERRUPTED(fd, (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how));
    if (fd < 0 && errno == ENOSYS)
        atomic_store_explicit(&no_openat2, true, memory_order_relaxed);
    /* Some sandboxes say EPERM for a call that they do not know: the steps tell whether the file was meant. */
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        return open_by_steps(dirfd, path);
    return fd;
}

/* A regular file has a size; for anything else say what the header promises. */
static int take_size(const struct stat *st, off_t *size, struct fc_error *err)
{
    if (S_ISREG(st->st_mode)) {
        *size = st->st_size;
        return 0;
    }
    if (S_ISDIR(st->st_mode))
        return fc_fail_with(err, "not a file", EISDIR);
    if (S_ISLNK(st->st_mode))
        return fc_fail_with(err, "not a file", ELOOP);
    return fc_fail_with(err, "not a regular file", EINVAL);
}

int fc_open_file(int dirfd, const char *path, off_t *size, struct fc_error *err)
{
    int fd = open_beneath(dirfd, path);
    if (fd < 0)
        return fc_fail(err, "open");
    /* The descriptor is asked, not the name: between the two the name could come to mean another file. */
    if (fc_get_size(fd, size, err) < 0) {
        fc_close_read(fd);
        return -1;
    }
    return fd;
}

int fc_stat_file(int dirfd, const char *path, off_t *size, struct fc_error *err)
{
    struct stat st;
    int rc;
    UNINTERRUPTED(rc, fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW));
    return rc < 0 ? fc_fail(err, "stat") : take_size(&st, size, err);
}

bool fc_join_path(char *path, const char *folder, const char *file)
{
    size_t length = strlen(folder), extra = strlen(file);
    if (length + 1 + extra >= PATH_MAX)
        return false;
    memcpy(path, folder, length);
    path[length] = '/';
    memcpy(path + length + 1, file, extra + 1);
    return true;
}

int fc_make_folder(int dirfd, const char *path, struct fc_error *err)
{
    int rc;
    UNINTERRUPTED(rc, mkdirat(dirfd, path, 0777));
    return rc < 0 ? fc_fail(err, "mkdir") : 0;
}

int fc_create_file(int dirfd, const char *path, struct fc_error *err)
{
    int fd;
    UNINTERRUPTED(fd, openat(dirfd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
    return fd < 0 ? fc_fail(err, "create") : fd;
}

/* 1: it has to be done without. On tmpfs a signal undoes what was reserved so far, which a timer would do for ever. */
static int allocate(int fd, int mode, off_t length, struct fc_error *err)
{
    int tries = 8;
    while (fallocate(fd, mode, 0, length) < 0) {
        if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
            return fc_fail(err, "allocate");
        if (errno != EINTR || --tries == 0)
            return 1;
    }
    return 0;
}

int fc_reserve_space(int fd, off_t length, struct fc_error *err)
{
    return allocate(fd, FALLOC_FL_KEEP_SIZE, length, err) < 0 ? -1 : 0;
}

int fc_allocate_file(int fd, off_t size, struct fc_error *err)
{
    int rc = size > 0 ? allocate(fd, 0, size, err) : 0;
    return rc > 0 ? fc_trim_file(fd, size, err) : rc;
}

bool fc_set_direct(int fd, bool direct)
{
    return fcntl(fd, F_SETFL, direct ? O_DIRECT : 0) == 0;
}

size_t fc_get_memory_align(int fd, size_t most)
{
    /* As <linux/stat.h> of Linux 6.1 has it: older headers know neither the two fields nor the flag. */
    union {
        uint32_t words[64];
        uint64_t aligned;
    } st = {{0}};
    const unsigned dioalign = 0x2000;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, dioalign, &st) < 0 || (st.words[0] & dioalign) == 0)
        return most;
    return st.words[38] <= most && st.words[39] <= most && st.words[39] > 0 ? st.words[38] : 0;
}

int fc_write_at(int fd, const void *data, size_t length, off_t offset, struct fc_error *err)
{
    const char *next = data;
    while (length > 0) {
        size_t piece = length < PIECE_MAX ? length : PIECE_MAX;
        ssize_t count;
        UNINTERRUPTED(count, pwrite(fd, next, piece, offset));
        if (count < 0)
            return fc_fail(err, "write");
        if (count == 0) /* no error and no progress: going on could go on for ever */
            return fc_fail_with(err, "write", EIO);
        next += count;
        offset += count;
        length -= (size_t)count;
    }
    return 0;
}

ssize_t fc_read_some(int fd, void *data, size_t length, off_t offset, struct fc_error *err)
{
    ssize_t count;
    UNINTERRUPTED(count, pread(fd, data, length < PIECE_MAX ? length : PIECE_MAX, offset));
    return count < 0 ? fc_fail(err, "read") : count;
}

ssize_t fc_read_at(int fd, void *data, size_t length, off_t offset, struct fc_error *err)
{
    char *next = data;
    size_t left = length;
    while (left > 0) {
        ssize_t count = fc_read_some(fd, next, left, offset, err);
        if (count < 0)
            return -1;
        if (count == 0)
            break;
        next += count;
        offset += count;
        left -= (size_t)count;
    }
    return (ssize_t)(length - left);
}

void fc_begin_reading(int fd, off_t size)
{
    const off_t most = 128 << 10; /* of one hint the kernel takes no more than it reads ahead, seldom less than that */
    for (off_t at = 0; at < size; at += most)
        (void)posix_fadvise(fd, at, size - at < most ? size - at : most, POSIX_FADV_WILLNEED);
}

int fc_get_size(int fd, off_t *size, struct fc_error *err)
{
    struct stat st;
    int rc;
    UNINTERRUPTED(rc, fstat(fd, &st));
    return rc < 0 ? fc_fail(err, "stat") : take_size(&st, size, err);
}

int fc_check_size(int fd, off_t size, struct fc_error *err)
{
    off_t found;
    if (fc_get_size(fd, &found, err) < 0)
        return -1;
    if (found == size)
        return 0;
    err->wanted = size;
    err->found = found;
    return fc_fail_with(err, "size after writing", FC_SIZE_CHANGED);
}

int fc_trim_file(int fd, off_t size, struct fc_error *err)
{
    int rc;
    UNINTERRUPTED(rc, ftruncate(fd, size));
    return rc < 0 ? fc_fail(err, "truncate") : 0;
}

int fc_sync_file(int fd, struct fc_error *err)
{
    return fsync(fd) < 0 ? fc_fail(err, "fsync") : 0;
}

int fc_sync_system(int fd, struct fc_error *err)
{
    return syncfs(fd) < 0 ? fc_fail(err, "syncfs") : 0;
}

int fc_start_writeback(int fd, off_t offset, off_t length, struct fc_error *err)
{
    int rc;
    UNINTERRUPTED(rc, sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE));
    /* A file system or sandbox without this call loses the head start; a lost write would be no hint any more. */
    if (rc < 0 && (errno == EIO || errno == ENOSPC || errno == EDQUOT))
        return fc_fail(err, "write back");
    return 0;
}

int fc_rename(int olddir, const char *old, int newdir, const char *new, unsigned flags, struct fc_error *err)
{
    return syscall(SYS_renameat2, olddir, old, newdir, new, flags) < 0 ? fc_fail(err, "rename") : 0;
}

int fc_close_written(int fd, struct fc_error *err)
{
    /* On Linux a close that was interrupted has closed; what it did not wait for, fsync or syncfs will report. */
    if (close(fd) < 0 && errno != EINTR)
        return fc_fail(err, "close");
    return 0;
}

void fc_close_read(int fd)
{
    int kept = errno;
    (void)close(fd);
    errno = kept;
}
