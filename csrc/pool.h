/*
 * A loop whose turns are shared by threads. The threads are made for the call and end with it; they are C's and not
 * Python's because those, waiting for each other's GIL, made a load of 150 tensors no faster.
 */
#ifndef FC_POOL_H
#define FC_POOL_H

#include <stddef.h>

/*
 * Call `work(context, i)` once for each i below `count`, in order of i but at the same time, in at most `threads` threads of
 * which the caller is one. Waits for the turns that others have taken, but not for a thread that has not begun: on a busy
 * machine that may take longer than all the work. Such a thread ends by itself, having touched nothing of the caller's.
 */
void fc_share_turns(size_t count, size_t threads, void (*work)(void *context, size_t i), void *context);

struct fc_turns; /* a loop whose caller has other work as well */

/* Begin one; the caller's own thread is not taken yet. NULL: no memory, and nothing has begun. */
struct fc_turns *fc_begin_turns(size_t count, size_t threads, void (*work)(void *context, size_t i), void *context);

/* Return when all turns below `end` are over. Works with the others until then. */
void fc_finish_turns(struct fc_turns *turns, size_t end);

/* Wait for the turns that have been taken; those that have not, nobody takes any more. NULL is nothing. */
void fc_end_turns(struct fc_turns *turns);

#endif
