/*
 * libFuzzer's door to the fast paths for metas and for the table of an index. What the first accepts must be exactly what
 * a writer would write for what it says was written: the text is made again from the parsed fields and held against the
 * input. What the second gives must lie in its room.
 */
#include "canon.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
    NULL, "kChar",    "kFloat", "kDouble",    "kInt8",      "kInt32",      "kInt64",  "kUInt8",
    NULL, "kFloat16", NULL,     "kBFloat16",  "kBool",      "kUInt16",     "kUInt32", "kUInt64",
    NULL, "kInt16",   NULL,     "kComplex32", "kComplex64", "kComplex128",
};

static void must(int holds)
{
    if (!holds)
        abort();
}

/* The text that a writer writes, up to the comment. */
static size_t write_again(char *text, size_t room, const struct fc_meta *meta)
{
    size_t at = (size_t)snprintf(text, room, "shape {\n");
    for (int i = 0; i < meta->ndim; i++)
        at += (size_t)snprintf(text + at, room - at, "  dim: %lld\n", (long long)meta->dims[i]);
    at += (size_t)snprintf(text + at, room - at, "}\ndata_type: %s\n", names[meta->number]);
    if (meta->place >= 0)
        at += (size_t)snprintf(text + at, room - at, "# fastckpt: {\"place\":%lld,\"count\":%lld%s%.*s%s",
                               (long long)meta->place, (long long)meta->count, meta->digest[0] ? ",\"digest\":\"" : "",
                               meta->digest[0] ? FC_DIGEST_LENGTH : 0, meta->digest, meta->digest[0] ? "\"" : "");
    else if (meta->comment_at >= 0)
        at += (size_t)snprintf(text + at, room - at, "# fastckpt: ");
    return at;
}

/* The end of a comment, with or without a seal: whose value is not looked at here. */
static int is_end(const char *text, size_t length)
{
    static const char seal[] = ",\"self\":\"crc32:";
    const size_t before = sizeof seal - 1, digits = 8;
    if (length == 2)
        return memcmp(text, "}\n", 2) == 0;
    if (length != before + digits + 3 || memcmp(text, seal, before) != 0 || memcmp(text + length - 3, "\"}\n", 3) != 0)
        return 0;
    for (size_t i = before; i < before + digits; i++)
        if (text[i] == '\0' || strchr("0123456789abcdef", text[i]) == NULL)
            return 0;
    return 1;
}

static void check(const char *data, size_t size, const struct fc_meta *meta)
{
    char text[4096];
    __int128 bytes = 16;
    size_t length;
    must(meta->ndim >= 0 && meta->ndim <= FC_DIMS_MAX);
    for (int i = 0; i < meta->ndim; i++) {
        must(meta->dims[i] >= 0);
        bytes *= meta->dims[i] > 0 ? meta->dims[i] : 1;
        must(bytes <= INT64_MAX);
    }
    must(meta->number > 0 && meta->number < (int)(sizeof names / sizeof *names) && names[meta->number] != NULL);
    must(meta->place < 0 ? meta->count < 0 && meta->digest[0] == '\0' : meta->place < meta->count);
    must(meta->place < 0 || meta->comment_at < 0);
    length = write_again(text, sizeof text, meta);
    must(length <= size && memcmp(text, data, length) == 0);
    if (meta->comment_at < 0) {
        must(length == size || (meta->place >= 0 && is_end(data + length, size - length)));
        return;
    }
    must((size_t)meta->comment_at == length && data[length] == '{');
    must(data[size - 2] == '}' && data[size - 1] == '\n');
    for (size_t i = length; i < size - 1; i++)
        must(data[i] >= ' ' && data[i] <= '~');
}

static void check_table(const char *data, size_t size)
{
    struct fc_table table;
    struct fc_row row;
    struct fc_meta meta;
    char *room, *free_at;
    if (!fc_open_table(&table, data, size, NULL))
        return; /* before there is a room: to take one for every input would cost half the speed */
    table.room = room = free_at = malloc(size);
    must(room != NULL);
    while (fc_take_row(&table, &row) > 0) {
        must(row.folder == free_at && row.meta == row.folder + row.folder_length);
        free_at += row.folder_length + row.meta_length;
        must(free_at <= room + size && row.nbytes >= 0 && row.copy_at >= -1);
        if (fc_parse_canon(row.meta, row.meta_length, &meta))
            check(row.meta, row.meta_length, &meta);
    }
    free(room);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    struct fc_meta meta;
    memset(&meta, 0xA5, sizeof meta);
    if (fc_parse_canon((const char *)data, size, &meta))
        check((const char *)data, size, &meta);
    check_table((const char *)data, size);
    return 0;
}
