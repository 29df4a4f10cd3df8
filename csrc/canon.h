/*
 * The fast path for `meta`: those bytes, and only those, that every protobuf writes for a shape and a type,
 *
 *     shape {\n  dim: 3\n  dim: 4\n}\ndata_type: kFloat\n
 *
 * with at most one line after them, our own comment `# fastckpt: {...}\n`. Whatever deviates in one byte is not an
 * error here: the caller has a tolerant parser, which is the one that accepts and refuses. So this one need only be
 * right when it says yes.
 */
#ifndef FC_CANON_H
#define FC_CANON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FC_DIMS_MAX 64
#define FC_DIGEST_LENGTH 14 /* of `crc32:` and eight digits */

struct fc_meta {
    int64_t dims[FC_DIMS_MAX];
    int ndim;
    int number;    /* in OneFlow's enum, one that a tensor can have */
    int64_t place; /* of `{"place":P,"count":C}`, perhaps with `"digest"`, and `"self"` behind it; or -1 */
    int64_t count; /* the same; greater than `place` */
    char digest[FC_DIGEST_LENGTH]; /* the same, not terminated; or the first byte is 0 */
    int64_t comment_at;            /* offset of the "{" when our line says anything else than these, else -1 */
};

/*
 * False: not canonical, nothing in `meta` means anything. True: no number overflowed, and neither does the product of
 * the dims that are not 0, times 16 bytes an element. The text after `comment_at`, up to the final LF, is printable
 * ASCII that begins with "{" and ends with "}"; whether it is JSON is not looked at.
 */
bool fc_parse_canon(const char *data, size_t length, struct fc_meta *meta);

#endif
