/*
 * A cursor over text that is moved over what it expects; canon.c and table.c read what we write ourselves with it. Where
 * fc_take says false it has not moved; where fc_take_number does, it may stand anywhere.
 */
#ifndef FC_CURSOR_H
#define FC_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct fc_cursor {
    const char *at;
    const char *end;
};

/* Move over a text, which must stand there. */
static inline bool fc_take(struct fc_cursor *cursor, const char *text)
{
    size_t length = strlen(text);
    if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, text, length) != 0)
        return false;
    cursor->at += length;
    return true;
}

/* Decimal, 0 to 2^63-1, as a number is written: no sign, no leading zero. */
static inline bool fc_take_number(struct fc_cursor *cursor, int64_t *number)
{
    const char *start = cursor->at;
    int64_t value = 0;
    for (; cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9'; cursor->at++) {
        int digit = *cursor->at - '0';
        if (value > (INT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return cursor->at > start && (*start != '0' || cursor->at == start + 1);
}

#endif
