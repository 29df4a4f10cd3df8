/* See table.h. */
#include "table.h"

#include <string.h>

static bool take(struct fc_table *table, const char *text)
{
    size_t length = strlen(text);
    if ((size_t)(table->end - table->at) < length || memcmp(table->at, text, length) != 0)
        return false;
    table->at += length;
    return true;
}

/* The text of a JSON string, its quotes and escapes gone, to the table's room. */
static bool take_text(struct fc_table *table, const char **text, size_t *length)
{
    char *to = table->room;
    if (!take(table, "\""))
        return false;
    for (; table->at < table->end && *table->at != '"'; table->at++) {
        char c = *table->at;
        if (c < ' ' || c > '~')
            return false;
        if (c == '\\') {
            if (++table->at == table->end || strchr("n\"\\", *table->at) == NULL || *table->at == '\0')
                return false;
            c = *table->at == 'n' ? '\n' : *table->at;
        }
        *to++ = c;
    }
    *text = table->room;
    *length = (size_t)(to - table->room);
    table->room = to;
    return take(table, "\"");
}

/* Decimal, 0 to 2^63-1, no leading zero. */
static bool take_number(struct fc_table *table, int64_t *number)
{
    const char *start = table->at;
    int64_t value = 0;
    for (; table->at < table->end && *table->at >= '0' && *table->at <= '9'; table->at++) {
        int digit = *table->at - '0';
        if (value > (INT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return table->at > start && (*start != '0' || table->at == start + 1);
}

static bool take_place(struct fc_table *table, int64_t *copy_at)
{
    *copy_at = -1;
    return take(table, "null") || take_number(table, copy_at);
}

bool fc_open_table(struct fc_table *table, const char *text, size_t length, char *room)
{
    *table = (struct fc_table){.at = text, .end = text + length, .room = room};
    return take(table, "[");
}

int fc_take_row(struct fc_table *table, struct fc_row *row)
{
    if (take(table, "]\n"))
        return table->at == table->end ? 0 : -1;
    if (table->begun && !take(table, ","))
        return -1;
    table->begun = true;
    return take(table, "[") && take_text(table, &row->folder, &row->folder_length) && take(table, ",") &&
                   take_text(table, &row->meta, &row->meta_length) && take(table, ",") &&
                   take_number(table, &row->nbytes) && take(table, ",") && take_place(table, &row->copy_at) &&
                   take(table, "]")
               ? 1
               : -1;
}
