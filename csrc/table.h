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

enum { FC_COPY_ALIGN = 64 }; /* bytes: copies begin at multiples of it */

struct fc_row {
    const char *folder; /* both texts are ASCII, in the table's room, terminated by NUL */
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

/*
 * Begin with `length` bytes of text. `room` has as many; the rows' texts will lie there. It may be the text itself, which
 * is then overwritten as far as it was read. False: not our spelling.
 */
bool fc_open_table(struct fc_table *table, const char *text, size_t length, char *room);

/* Returns 1 and fills `row`; or 0: there is none after the last; or -1: not our spelling. */
int fc_take_row(struct fc_table *table, struct fc_row *row);

/* The line before the table, where digests are stored; with the record of an object that is not flat:
 *
 *     {"format":"fastckpt","version":1,"count":2,"object":{…},"index":[411,512,8192],"table":"crc32:…","self":"crc32:…"}\n
 */
struct fc_head {
    int64_t count;
    int64_t table_length; /* bytes of the table, which begins behind this line, */
    int64_t copies_at;    /* offset of the copies, not before its end, */
    int64_t size;         /* and bytes of the whole file, not before the copies' beginning */
    size_t object_at;     /* offset of the record, which nobody has looked into; 0: there is none */
    size_t object_length;
    size_t length; /* of the line */
    size_t sealed; /* bytes before the seal, which covers them */
    uint32_t table_crc;
    uint32_t seal;
};

/* `text` is one line with its end. False: it is no such line, or the numbers cannot be. */
bool fc_parse_head(const char *text, size_t length, struct fc_head *head);

#endif
