/* See copy.h. */
#include "copy.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"

#define PIECE ((size_t)4 << 20) /* a thread's share at a time */

#ifdef __SSE2__
#include <emmintrin.h>

enum { LINE = 64, STRIDE = 4096, WAYS = 4, BLOCK = WAYS * STRIDE, LEAST = 256 << 10 };

static void stream_line(char *to, const char *from)
{
    const __m128i *in = (const __m128i *)(const void *)from;
    __m128i *out = (__m128i *)(void *)to;
    __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
    __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
}

/*
 * Four pages side by side, a line of each at a time, while those of the next four are fetched: memory has banks, and
 * one page after the other keeps few of them busy. A quarter faster than that; two lines at a time are 5 % slower.
 */
static void stream_block(char *to, const char *from, bool last)
{
    for (size_t at = 0; at < STRIDE; at += LINE) {
        for (size_t way = 0; way < BLOCK && !last; way += STRIDE)
            _mm_prefetch(from + BLOCK + way + at, _MM_HINT_T0);
        for (size_t way = 0; way < BLOCK; way += STRIDE)
            stream_line(to + way + at, from + way + at);
    }
}

/* `to` is aligned to LINE, and `length` a multiple of it. */
static void stream(char *to, const char *from, size_t length)
{
    for (; length >= BLOCK; length -= BLOCK, to += BLOCK, from += BLOCK)
        stream_block(to, from, length < 2 * BLOCK);
    for (; length > 0; length -= LINE, to += LINE, from += LINE)
        stream_line(to, from);
    _mm_sfence();
}

void fc_copy(void *to, const void *from, size_t length)
{
    size_t head = -(uintptr_t)to % LINE, body;
    if (length < LEAST) {
        memcpy(to, from, length);
        return;
    }
    memcpy(to, from, head);
    body = (length - head) / LINE * LINE;
    stream((char *)to + head, (const char *)from + head, body);
    memcpy((char *)to + head + body, (const char *)from + head + body, length - head - body);
}
#else
void fc_copy(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
}
#endif

struct copies {
    const struct fc_copy_job *jobs;
    size_t count;
    size_t total;
};

/* The last job that begins at or before that byte. */
static size_t find_job(const struct copies *all, size_t at)
{
    size_t low = 0, high = all->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (all->jobs[middle].begin <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void copy_turn(void *context, size_t i)
{
    const struct copies *all = context;
    size_t at = i * PIECE, end = all->total - at < PIECE ? all->total : at + PIECE;
    for (size_t job = find_job(all, at); at < end; job++) {
        const struct fc_copy_job *one = &all->jobs[job];
        size_t skip = at - one->begin, left = one->length - skip;
        size_t length = left < end - at ? left : end - at;
        fc_copy((char *)one->to + skip, (const char *)one->from + skip, length);
        at += length;
    }
}

void fc_copy_all(struct fc_copy_job *jobs, size_t count, size_t threads)
{
    struct copies all = {.jobs = jobs, .count = count};
    for (size_t i = 0; i < count; i++) {
        jobs[i].begin = all.total;
        all.total += jobs[i].length;
    }
    fc_share_turns((all.total + PIECE - 1) / PIECE, threads, copy_turn, &all);
}
