/*
 * A cursor over text that is moved over what it expects; canon.c and table.c read what we write ourselves with it. Where
 * fc_take says false it has not moved; where the others do, it may stand anywhere.
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

/* `crc32:` and eight lower-case hexadecimal digits, as we write them, and the quote behind. */
static inline bool fc_take_crc(struct fc_cursor *cursor, uint32_t *crc)
{
    const int digits = 8;
    if (!fc_take(cursor, "crc32:") || cursor->end - cursor->at < digits)
        return false;
    *crc = 0;
    for (int i = 0; i < digits; i++) {
        char c = *cursor->at++;
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
            return false;
        *crc = *crc << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return fc_take(cursor, "\"");
}

#endif
