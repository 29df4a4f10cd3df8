/* Memory to memory, at the memory's speed. */
#ifndef FC_COPY_H
#define FC_COPY_H

#include <stddef.h>

/*
 * memcpy(3) for what will not be looked at soon: much of it is written around the processor's caches, where the
 * processor can do that. A store through the cache would first fetch what it overwrites, which is a third of the
 * traffic; the C library avoids that only for more bytes at once than a thread here copies.
 */
void fc_copy(void *to, const void *from, size_t length);

struct fc_copy_job {
    void *to;
    const void *from;
    size_t length;
    size_t begin; /* bytes of the jobs before it */
};

/* All of that, in threads (see pool.h): however the bytes are spread among the jobs, each takes as many as it can. */
void fc_copy_all(struct fc_copy_job *jobs, size_t count, size_t threads);

#endif
