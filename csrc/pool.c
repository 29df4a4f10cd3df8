/* See pool.h. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

/* What threads share. It outlives the call: a thread that begins too late to be of use looks at nothing else. */
struct share {
    pthread_mutex_t lock;
    pthread_cond_t over;
    void (*work)(void *context, size_t i);
    void *context;
    size_t count;
    size_t next;    /* the first turn that nobody has taken */
    size_t left;    /* turns that are not over */
    size_t users;   /* threads that will still look at this */
    cpu_set_t cpus; /* where they may run */
};

/* Called and returns with the lock held. */
static void work_off(struct share *share)
{
    while (share->next < share->count) {
        size_t i = share->next++;
        pthread_mutex_unlock(&share->lock);
        share->work(share->context, i);
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
    (void)sched_setaffinity(0, sizeof share->cpus, &share->cpus);
    pthread_mutex_lock(&share->lock);
    work_off(share);
    leave(share);
    return NULL;
}

/*
 * Kernels like to begin a thread on its maker's processor, where it waits for a tick (4 ms) while others are idle; so a
 * helper begins anywhere else, where there is anything else, and may then go where it likes.
 */
static void send_away(struct share *share, pthread_attr_t *attr)
{
    cpu_set_t others;
    int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof share->cpus, &share->cpus) < 0)
        return;
    others = share->cpus;
    CPU_CLR(here, &others);
#ifdef __GLIBC__
    if (CPU_COUNT(&others) > 0)
        (void)pthread_attr_setaffinity_np(attr, sizeof others, &others);
#else
    (void)attr;
#endif
}

/* Called with the lock held. How many threads there are to be had does not matter. */
static void call_helpers(struct share *share, size_t count)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before;
    if (pthread_attr_init(&attr) != 0)
        return;
    sigfillset(&all); /* signals are for Python's own threads */
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    send_away(share, &attr);
    for (; count > 0 && pthread_create(&thread, &attr, help, share) == 0; count--)
        share->users++;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
}

void fc_share_turns(size_t count, size_t threads, void (*work)(void *context, size_t i), void *context)
{
    size_t helpers = threads < count ? threads : count;
    struct share *share = helpers > 1 ? malloc(sizeof *share) : NULL;
    if (share == NULL) {
        for (size_t i = 0; i < count; i++)
            work(context, i);
        return;
    }
    *share = (struct share){.work = work, .context = context, .count = count, .left = count, .users = 1};
    (void)pthread_mutex_init(&share->lock, NULL);
    (void)pthread_cond_init(&share->over, NULL);
    pthread_mutex_lock(&share->lock);
    call_helpers(share, helpers - 1);
    work_off(share);
    while (share->left > 0)
        pthread_cond_wait(&share->over, &share->lock);
    leave(share);
}
