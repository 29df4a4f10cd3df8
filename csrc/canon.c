/* See canon.h. A cursor that is moved over what it expects; the first surprise ends it. */
#include "canon.h"

#include <string.h>

#include "cursor.h"

#define LIMIT 65536
#define ITEM_MAX 16 /* complex128, the largest element */

/* OneFlow's names and numbers, only of types that a tensor on disk can have; what they mean is the caller's table. */
static const struct {
    const char *name;
    int number;
} types[] = {
    {"kChar", 1},    {"kFloat", 2},   {"kDouble", 3},     {"kInt8", 4},       {"kInt32", 5},       {"kInt64", 6},
    {"kUInt8", 7},   {"kFloat16", 9}, {"kBFloat16", 11},  {"kBool", 12},      {"kUInt16", 13},     {"kUInt32", 14},
    {"kUInt64", 15}, {"kInt16", 17},  {"kComplex32", 19}, {"kComplex64", 20}, {"kComplex128", 21},
};

static bool take_dims(struct fc_cursor *cursor, struct fc_meta *meta)
{
    int64_t room = INT64_MAX / ITEM_MAX; /* what is left for the dims that come */
    meta->ndim = 0;
    while (fc_take(cursor, "  dim: ")) {
        int64_t dim;
        if (meta->ndim == FC_DIMS_MAX || !fc_take_number(cursor, &dim) || !fc_take(cursor, "\n") || dim > room)
            return false;
        if (dim > 0)
            room /= dim;
        meta->dims[meta->ndim++] = dim;
    }
    return true;
}

static bool take_type(struct fc_cursor *cursor, int *number)
{
    const char *stop = memchr(cursor->at, '\n', (size_t)(cursor->end - cursor->at));
    if (stop == NULL)
        return false;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        size_t length = strlen(types[i].name);
        if ((size_t)(stop - cursor->at) == length && memcmp(cursor->at, types[i].name, length) == 0) {
            *number = types[i].number;
            cursor->at = stop + 1;
            return true;
        }
    }
    return false;
}

/* A digest, and perhaps the seal behind it, which is left to whoever wants it checked. */
static bool take_digest(struct fc_cursor *cursor, struct fc_meta *meta)
{
    const char *start = cursor->at;
    uint32_t crc;
    if (!fc_take_crc(cursor, &crc))
        return false;
    memcpy(meta->digest, start, FC_DIGEST_LENGTH);
    return !fc_take(cursor, ",\"self\":\"") || fc_take_crc(cursor, &crc);
}

/* Exactly `{"place":P,"count":C}\n`, perhaps with digests behind, and then the end: nearly every meta of ours. */
static bool take_place(struct fc_cursor *cursor, struct fc_meta *meta)
{
    if (!fc_take(cursor, "{\"place\":") || !fc_take_number(cursor, &meta->place) || !fc_take(cursor, ",\"count\":") ||
        !fc_take_number(cursor, &meta->count) || meta->place >= meta->count)
        return false;
    if (fc_take(cursor, ",\"digest\":\"") && !take_digest(cursor, meta))
        return false;
    return fc_take(cursor, "}\n") && cursor->at == cursor->end;
}

/* One line that could be a JSON object, and then the end. */
static bool is_comment(const struct fc_cursor *cursor)
{
    const char *last = cursor->end - 1;
    if (last - cursor->at < 2 || *cursor->at != '{' || last[-1] != '}' || *last != '\n')
        return false;
    for (const char *at = cursor->at; at < last; at++)
        if (*at < ' ' || *at > '~')
            return false;
    return true;
}

static bool take_comment(struct fc_cursor *cursor, const char *data, struct fc_meta *meta)
{
    struct fc_cursor copy;
    meta->place = meta->count = meta->comment_at = -1;
    meta->digest[0] = '\0';
    if (cursor->at == cursor->end)
        return true;
    if (!fc_take(cursor, "# fastckpt: "))
        return false;
    copy = *cursor;
    if (take_place(&copy, meta))
        return true;
    meta->place = meta->count = -1;
    meta->digest[0] = '\0';
    meta->comment_at = cursor->at - data;
    return is_comment(cursor);
}

bool fc_parse_canon(const char *data, size_t length, struct fc_meta *meta)
{
    struct fc_cursor cursor = {data, data + length};
    return length <= LIMIT && fc_take(&cursor, "shape {\n") && take_dims(&cursor, meta) &&
           fc_take(&cursor, "}\ndata_type: ") && take_type(&cursor, &meta->number) && take_comment(&cursor, data, meta);
}
