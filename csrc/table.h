/*
 * The fast path for the table of an index: the JSON that we write, and only that,
 *
 *     [["l1.bias","shape {\n  dim: 3\n}\ndata_type: kFloat\n",12,0],["l1.weight","…",4096,null]]\n
 *
 * where a text has no escapes but \n, \" and \\. As in canon.h, a deviation is no error here: who calls has a parser of
 * JSON for it.
 */
#ifndef FC_TABLE_H
#define FC_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cursor.h"

struct fc_row {
    const char *folder; /* both texts are ASCII, in the table's room, not terminated */
    size_t folder_length;
    const char *meta;
    size_t meta_length;
    int64_t nbytes;
    int64_t copy_at; /* -1 for null */
};

struct fc_table {
    struct fc_cursor text; /* what is not read yet */
    char *room;            /* where the next text goes */
    bool begun;            /* a row was taken, so there is a comma before the next */
};

/* Begin with `length` bytes of text. `room` has as many; the rows' texts will lie there. False: not our spelling. */
bool fc_open_table(struct fc_table *table, const char *text, size_t length, char *room);

/* Returns 1 and fills `row`; or 0: there is none after the last; or -1: not our spelling. */
int fc_take_row(struct fc_table *table, struct fc_row *row);

#endif
