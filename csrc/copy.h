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

#endif
