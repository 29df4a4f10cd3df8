/* See pool.h. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* What threads share. It outlives the call: a thread that begins too late to be of use looks at nothing else. */
struct fc_turns {
    pthread_mutex_t lock;
    pthread_cond_t news; /* a turn is over */
    void (*work)(void *context, size_t i);
    void *context;
    size_t count;
    size_t next;    /* the first turn that nobody has taken */
    size_t first;   /* the first that is not over */
    size_t running; /* turns that were taken and are not over */
    size_t users;   /* threads that will still look at this */
    cpu_set_t cpus; /* where they may run */
    bool over[];    /* of each turn */
};

/* Called and returns with the lock held. */
static void take_turn(struct fc_turns *turns)
{
    size_t i = turns->next++;
    turns->running++;
    pthread_mutex_unlock(&turns->lock);
    turns->work(turns->context, i);
    pthread_mutex_lock(&turns->lock);
    turns->running--;
    turns->over[i] = true;
    while (turns->first < turns->count && turns->over[turns->first])
        turns->first++;
    pthread_cond_signal(&turns->news);
}

/* Called with the lock held, which is gone afterwards. */
static void leave(struct fc_turns *turns)
{
    bool last = --turns->users == 0;
    pthread_mutex_unlock(&turns->lock);
    if (!last)
        return;
    pthread_cond_destroy(&turns->news);
    pthread_mutex_destroy(&turns->lock);
    free(turns);
}

static void *help(void *argument)
{
    struct fc_turns *turns = argument;
    (void)sched_setaffinity(0, sizeof turns->cpus, &turns->cpus);
    pthread_mutex_lock(&turns->lock);
    while (turns->next < turns->count)
        take_turn(turns);
    leave(turns);
    return NULL;
}

/*
 * Kernels like to begin a thread on its maker's processor, where it waits for a tick (4 ms) while others are idle; so a
 * helper begins anywhere else, where there is anything else, and may then go where it likes.
 */
static void send_away(struct fc_turns *turns, pthread_attr_t *attr)
{
    cpu_set_t others;
    int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof turns->cpus, &turns->cpus) < 0)
        return;
    others = turns->cpus;
    CPU_CLR(here, &others);
#ifdef __GLIBC__
    if (CPU_COUNT(&others) > 0)
        (void)pthread_attr_setaffinity_np(attr, sizeof others, &others);
#else
    (void)attr;
#endif
}

/* Called with the lock held. How many threads there are to be had does not matter. */
static void call_helpers(struct fc_turns *turns, size_t count)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before;
    if (pthread_attr_init(&attr) != 0)
        return;
    sigfillset(&all); /* signals are for Python's own threads */
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    send_away(turns, &attr);
    for (; count > 0 && pthread_create(&thread, &attr, help, turns) == 0; count--)
        turns->users++;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
}

struct fc_turns *fc_begin_turns(size_t count, size_t threads, void (*work)(void *context, size_t i), void *context)
{
    struct fc_turns *turns = malloc(sizeof *turns + count * sizeof *turns->over);
    size_t helpers = threads < count ? threads : count;
    if (turns == NULL)
        return NULL;
    *turns = (struct fc_turns){.work = work, .context = context, .count = count, .users = 1};
    memset(turns->over, 0, count * sizeof *turns->over);
    (void)pthread_mutex_init(&turns->lock, NULL);
    (void)pthread_cond_init(&turns->news, NULL);
    pthread_mutex_lock(&turns->lock);
    if (helpers > 1)
        call_helpers(turns, helpers - 1);
    pthread_mutex_unlock(&turns->lock);
    return turns;
}

void fc_finish_turns(struct fc_turns *turns, size_t end)
{
    pthread_mutex_lock(&turns->lock);
    while (turns->first < end && turns->first < turns->count) {
        if (turns->next < turns->count)
            take_turn(turns);
        else
            pthread_cond_wait(&turns->news, &turns->lock);
    }
    pthread_mutex_unlock(&turns->lock);
}

void fc_end_turns(struct fc_turns *turns)
{
    if (turns == NULL)
        return;
    pthread_mutex_lock(&turns->lock);
    turns->next = turns->count;
    while (turns->running > 0)
        pthread_cond_wait(&turns->news, &turns->lock);
    leave(turns);
}

void fc_share_turns(size_t count, size_t threads, void (*work)(void *context, size_t i), void *context)
{
    struct fc_turns *turns = threads > 1 && count > 1 ? fc_begin_turns(count, threads, work, context) : NULL;
    if (turns == NULL) {
        for (size_t i = 0; i < count; i++)
            work(context, i);
        return;
    }
    fc_finish_turns(turns, count);
    fc_end_turns(turns);
}
