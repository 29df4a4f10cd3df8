/* See blocks.h. */
#include "blocks.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "map.h"

/* Who was given a part of it, and who hands it out from the front, are its users. */
struct fc_block {
    atomic_size_t users;
    char *at;
    size_t left;
    void *map; /* where the memory is, if it is not `data` */
    size_t map_size;
    char data[];
};

/* Just under what malloc gives back to the kernel at once, so that the pages of one load serve the next. */
#define BLOCK_SIZE (((size_t)120 << 10) - sizeof(struct fc_block))

void fc_release_block(struct fc_block *block)
{
    if (block == NULL || atomic_fetch_sub_explicit(&block->users, 1, memory_order_acq_rel) > 1)
        return;
    fc_unmap(block->map, block->map_size);
    free(block);
}

/* A block whose memory is a map, NULL without memory for it. */
static struct fc_block *own_map(void *map, size_t size, struct fc_error *err)
{
    struct fc_block *block = calloc(1, sizeof *block);
    if (block == NULL) {
        fc_unmap(map, size);
        fc_fail_with(err, "allocate", ENOMEM);
        return NULL;
    }
    atomic_init(&block->users, 1);
    block->map = map;
    block->map_size = size;
    return block;
}

int fc_make_block(size_t size, struct fc_block **block, void **address, struct fc_error *err)
{
    if (fc_map_memory(size, address, err) < 0)
        return -1;
    *block = own_map(*address, size, err);
    return *block == NULL ? -1 : 0;
}

int fc_make_file_block(int dirfd, const char *path, off_t size, struct fc_block **block, void **address, off_t *found,
                       struct fc_error *err)
{
    struct fc_map_job job = {.path = path, .size = size};
    size_t failed;
    int rc = fc_map_files(dirfd, &job, 1, 0, &failed, err);
    *found = job.found;
    if (rc < 0)
        return -1;
    *address = job.address;
    *block = own_map(job.address, (size_t)size, err);
    return *block == NULL ? -1 : 0;
}

int fc_make_open_block(int fd, off_t size, struct fc_block **block, void **address, struct fc_error *err)
{
    if (fc_map_open(fd, size, address, err) < 0)
        return -1;
    *block = own_map(*address, (size_t)size, err);
    return *block == NULL ? -1 : 0;
}

struct fc_block *fc_share_block(struct fc_block *block)
{
    atomic_fetch_add_explicit(&block->users, 1, memory_order_relaxed);
    return block;
}

/* What an address must be moved by to be 64-aligned. */
static size_t get_gap(const char *address)
{
    return -(uintptr_t)address & 63;
}

static struct fc_block *make_room(void)
{
    struct fc_block *block = malloc(sizeof *block + BLOCK_SIZE);
    if (block != NULL)
        return block;
    fc_give_up_maps(); /* with as many as it may have, a process gets no memory */
    return malloc(sizeof *block + BLOCK_SIZE);
}

char *fc_take_room(struct fc_block **hand, size_t size, struct fc_block **user)
{
    struct fc_block *block = *hand;
    size_t gap = block == NULL ? 0 : get_gap(block->at);
    if (block == NULL || block->left < size + gap) {
        fc_release_block(block);
        *hand = block = make_room();
        if (block == NULL)
            return NULL;
        atomic_init(&block->users, 1);
        block->map = NULL;
        block->at = block->data;
        block->left = BLOCK_SIZE;
        gap = get_gap(block->at);
    }
    block->at += gap + size;
    block->left -= gap + size;
    *user = fc_share_block(block);
    return block->at - size;
}
