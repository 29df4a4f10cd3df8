/* See copy.h. */
#include "copy.h"

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>

enum { LINE = 64, LEAST = 256 << 10 };

static void stream_lines(char *to, const char *from, size_t lines)
{
    for (; lines > 0; lines--, to += LINE, from += LINE) {
        const __m128i *in = (const __m128i *)(const void *)from;
        __m128i *out = (__m128i *)(void *)to;
        __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
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
    stream_lines((char *)to + head, (const char *)from + head, body / LINE);
    memcpy((char *)to + head + body, (const char *)from + head + body, length - head - body);
}
#else
void fc_copy(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
}
#endif
