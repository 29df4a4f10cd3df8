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

#endif
