/*
 * How every function of this library says that it failed.
 *
 * A function that can fail returns 0 (or something >= 0) when it did its work and -1 when it did not; then it has
 * filled `struct fc_error`. The struct says which step failed and why; the path is known to the caller, who named it.
 * Keeping errno here, at the moment of failure, means that no clean-up afterwards can overwrite it.
 */
#ifndef FC_ERROR_H
#define FC_ERROR_H

#include <errno.h>

/* In `code`: the system refused nothing, but the size of the file is not the one that the caller knows. */
#define FC_SIZE_CHANGED (-1)

struct fc_error {
    int code;                /* errno, or FC_SIZE_CHANGED */
    const char *op;          /* the step that failed, a string literal */
    long long wanted, found; /* sizes in bytes, of fc_check_size alone */
};

/* Both return -1, so that a function can end with `return fc_fail(err, "fsync");`. */

static inline int fc_fail_with(struct fc_error *err, const char *op, int code)
{
    err->code = code;
    err->op = op;
    return -1;
}

static inline int fc_fail(struct fc_error *err, const char *op)
{
    return fc_fail_with(err, op, errno);
}

#endif
