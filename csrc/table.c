/* See table.h. */
#include "table.h"

#include <string.h>

/* What stands behind a backslash; 0 for what we do not write. */
static char unescaped(char c)
{
    return (char)(c == 'n' ? '\n' : c == '"' || c == '\\' ? c : 0);
}

/* The text of a JSON string, its quotes and escapes gone, to the table's room. */
static bool take_text(struct fc_table *table, const char **text, size_t *length)
{
    const char *at, *end = table->text.end;
    char *to = table->room;
    if (!fc_take(&table->text, "\""))
        return false;
    for (at = table->text.at; at < end && *at != '"'; at++) {
        char c = *at;
        if (c < ' ' || c > '~')
            return false;
        if (c == '\\' && (++at == end || (c = unescaped(*at)) == 0))
            return false;
        *to++ = c;
    }
    table->text.at = at;
    *text = table->room;
    *length = (size_t)(to - table->room);
    *to++ = 0; /* there is room: two quotes were left out */
    table->room = to;
    return fc_take(&table->text, "\"");
}

static bool take_place(struct fc_table *table, int64_t *copy_at)
{
    *copy_at = -1;
    return fc_take(&table->text, "null") || fc_take_number(&table->text, copy_at);
}

bool fc_open_table(struct fc_table *table, const char *text, size_t length, char *room)
{
    *table = (struct fc_table){.text = {text, text + length}, .room = room};
    return fc_take(&table->text, "[");
}

int fc_take_row(struct fc_table *table, struct fc_row *row)
{
    if (fc_take(&table->text, "]\n"))
        return table->text.at == table->text.end ? 0 : -1;
    if (table->begun && !fc_take(&table->text, ","))
        return -1;
    table->begun = true;
    return fc_take(&table->text, "[") && take_text(table, &row->folder, &row->folder_length) &&
                   fc_take(&table->text, ",") && take_text(table, &row->meta, &row->meta_length) &&
                   fc_take(&table->text, ",") && fc_take_number(&table->text, &row->nbytes) &&
                   fc_take(&table->text, ",") && take_place(table, &row->copy_at) && fc_take(&table->text, "]")
               ? 1
               : -1;
}

/* Move over the record. It may be long, and hold any text; what is behind it has a form, and is short. */
static bool take_object(struct fc_cursor *at, const char *text, struct fc_head *head)
{
    static const char behind[] = ",\"index\":[";
    const ptrdiff_t longest = 160;
    head->object_at = head->object_length = 0;
    if (!fc_take(at, ",\"object\":"))
        return true;
    for (ptrdiff_t left = sizeof behind; left <= at->end - at->at && left < longest; left++) {
        if (memcmp(at->end - left, behind, sizeof behind - 1) == 0) {
            head->object_at = (size_t)(at->at - text);
            at->at = at->end - left;
            head->object_length = (size_t)(at->at - text) - head->object_at;
            return true;
        }
    }
    return false;
}

bool fc_parse_head(const char *text, size_t length, struct fc_head *head)
{
    struct fc_cursor at = {text, text + length};
    if (!fc_take(&at, "{\"format\":\"fastckpt\",\"version\":1,\"count\":") || !fc_take_number(&at, &head->count) ||
        !take_object(&at, text, head) || !fc_take(&at, ",\"index\":[") || !fc_take_number(&at, &head->table_length) ||
        !fc_take(&at, ",") || !fc_take_number(&at, &head->copies_at) || !fc_take(&at, ",") ||
        !fc_take_number(&at, &head->size) || !fc_take(&at, "],\"table\":\"") || !fc_take_crc(&at, &head->table_crc))
        return false;
    head->sealed = (size_t)(at.at - text);
    if (!fc_take(&at, ",\"self\":\"") || !fc_take_crc(&at, &head->seal) || !fc_take(&at, "}\n") || at.at != at.end)
        return false;
    head->length = (size_t)(at.at - text);
    return head->table_length <= head->copies_at - (int64_t)head->length && head->copies_at <= head->size;
}
