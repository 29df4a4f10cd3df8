"""Make one system call fail, always: for the calling thread and what it starts, for the rest of their lives.

As a program it does that to another one: ``python seccomp.py CALL CODE ARGUMENTS-OF-PYTHON...``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

# Numbers on the two processors that this is run on.
CALLS = {
    "x86_64": {
        "cachestat": 451,
        "clone3": 435,
        "close": 3,
        "copy_file_range": 326,
        "fadvise64": 221,
        "fallocate": 285,
        "fcntl": 72,
        "flock": 73,
        "fsync": 74,
        "ftruncate": 77,
        "io_uring_setup": 425,
        "linkat": 265,
        "madvise": 28,
        "mincore": 27,
        "mkdirat": 258,
        "openat": 257,
        "openat2": 437,
        "pread64": 17,
        "preadv2": 327,
        "process_madvise": 440,
        "pwrite64": 18,
        "renameat2": 316,
        "sched_setaffinity": 203,
        "statx": 332,
        "sync_file_range": 277,
        "syncfs": 306,
    },
    "aarch64": {
        "cachestat": 451,
        "clone3": 435,
        "close": 57,
        "copy_file_range": 285,
        "fadvise64": 223,
        "fallocate": 47,
        "fcntl": 25,
        "flock": 32,
        "fsync": 82,
        "ftruncate": 46,
        "io_uring_setup": 425,
        "linkat": 37,
        "madvise": 233,
        "mincore": 232,
        "mkdirat": 34,
        "openat": 56,
        "openat2": 437,
        "pread64": 67,
        "preadv2": 286,
        "process_madvise": 440,
        "pwrite64": 68,
        "renameat2": 276,
        "sched_setaffinity": 122,
        "statx": 291,
        "sync_file_range": 84,
        "syncfs": 267,
    },
}
NUMBERS = CALLS.get(platform.machine(), {})

_SET_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_THIRD = 32  # where its lower half lies in what a filter is given
UNAVAILABLE = 77


def forbid(call: str, code: int, third: int | None = None) -> bool:
    """From now on `call` answers `code` (0: it does nothing and says so). False where the system cannot do that.

    `third`: only where that is its third argument, as a length is.
    """
    only = [] if third is None else [(_LOAD, 0, 0, _THIRD), (_IF_EQUAL, 0, 1, third)]
    steps = [
        (_LOAD, 0, 0, 0),
        (_IF_EQUAL, 0, 1 + len(only), NUMBERS[call]),
        *only,
        (_RETURN, 0, 0, _ERRNO | code),
        (_RETURN, 0, 0, _ALLOW),
    ]
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(text)))
    prctl = ctypes.CDLL(None).prctl
    return bool(prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and prctl(_SET_SECCOMP, _FILTER, program) == 0)


if __name__ == "__main__":
    if not NUMBERS or not forbid(sys.argv[1], int(sys.argv[2])):
        sys.exit(UNAVAILABLE)
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
