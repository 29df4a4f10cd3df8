/* See table.h. */
#include "table.h"

#include <string.h>

/* The text of a JSON string, its quotes and escapes gone, to the table's room. */
static bool take_text(struct fc_table *table, const char **text, size_t *length)
{
    char *to = table->room;
    if (!fc_take(&table->text, "\""))
        return false;
    for (; table->text.at < table->text.end && *table->text.at != '"'; table->text.at++) {
        char c = *table->text.at;
        if (c < ' ' || c > '~')
            return false;
        if (c == '\\') {
            if (++table->text.at == table->text.end || strchr("n\"\\", *table->text.at) == NULL ||
                *table->text.at == '\0')
                return false;
            c = *table->text.at == 'n' ? '\n' : *table->text.at;
        }
        *to++ = c;
    }
    *text = table->room;
    *length = (size_t)(to - table->room);
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
