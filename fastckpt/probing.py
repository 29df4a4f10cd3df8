"""What the kernel and the C library offer, asked without changing anything: calls that must fail, and /proc.

ctypes, because only `fastckpt doctor` asks these questions, and it asks them once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

__all__ = [
    "Answer",
    "Refused",
    "allocate",
    "answer",
    "direct_alignment",
    "has_cachestat",
    "has_io_uring",
    "has_openat2",
    "limit",
    "memory",
    "transparent_huge_pages",
    "whole_number",
]

# The same on all processors: calls newer than Linux 5.0 have one number.
_IO_URING_SETUP, _OPENAT2, _CACHESTAT = 425, 437, 451
_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
_STATX_SIZE, _STATX_ALIGNMENTS = 256, 152  # bytes of struct statx, and where in it the two alignments stand
_NOT_ALLOWED = {errno.ENOSYS, errno.EPERM, errno.EACCES}  # a sandbox says any of them
_LIBC = ctypes.CDLL(None, use_errno=True)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Refused:
    """In place of a fact: why there is none. False wherever a truth is asked for."""

    reason: str

    def __bool__(self) -> Literal[False]:
        return False


Answer: TypeAlias = Value | Refused


def answer(probe: Callable[..., Value], *arguments: Any) -> Answer[Value]:
    """Ask one question.

    Parameters
    ----------
    probe : callable
        Gives the fact, or raises OSError; ValueError and AttributeError (a C library without that function) also count.
    *arguments
        Its arguments.

    Returns
    -------
    object or Refused
        The fact, or the reason why there is none.
    """
    try:
        return probe(*arguments)
    except OSError as problem:
        return Refused(problem.strerror or str(problem))
    except (ValueError, AttributeError) as problem:
        return Refused(str(problem))


def has_openat2() -> bool:
    """Tell whether files can be opened without following links: openat2(2), Linux 5.6."""
    return _known("openat2", _OPENAT2, -1, None, None, 0)


def has_cachestat() -> bool:
    """Tell whether the page cache can be asked what of a file it holds: cachestat(2), Linux 6.5."""
    return _known("cachestat", _CACHESTAT, -1, None, None, 0)


def has_io_uring() -> bool:
    """Tell whether io_uring is there and allowed: kernel.io_uring_disabled and sandboxes may forbid it."""
    return _known("io_uring_setup", _IO_URING_SETUP, 0, None)


def _known(name: str, number: int, *arguments: int | None) -> bool:
    """Call with arguments that cannot be right: whoever knows the call says so."""
    wide = (ctypes.c_void_p(one) if one is None else ctypes.c_long(one) for one in arguments)
    if _LIBC.syscall(ctypes.c_long(number), *wide) < 0 and ctypes.get_errno() in _NOT_ALLOWED:
        _fail(name)
    return True


def _fail(name: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{name}: {os.strerror(code)}")


def direct_alignment(fd: int) -> tuple[int, int]:
    """Give what addresses, and what offsets and lengths, must be multiples of for O_DIRECT: statx(2), Linux 6.1."""
    room = ctypes.create_string_buffer(_STATX_SIZE)
    if _LIBC.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, room) < 0:
        _fail("statx")
    (mask,) = struct.unpack_from("=I", room)
    memory, offset = struct.unpack_from("=II", room, _STATX_ALIGNMENTS)
    if not mask & _STATX_DIOALIGN:
        raise OSError(errno.EOPNOTSUPP, "statx: the file system does not say")
    if not (memory and offset):
        raise OSError(errno.EOPNOTSUPP, "statx: no O_DIRECT for this file")
    return memory, offset


def allocate(fd: int, size: int) -> None:
    """Take disk space for a file. Unlike os.posix_fallocate it never writes zeros where that cannot be done."""
    if _LIBC.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) < 0:
        _fail("fallocate")


def limit(which: int) -> int | str:
    """Give a limit of this process, as setrlimit(2) counts it, or "unlimited"."""
    soft = resource.getrlimit(which)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else soft


def memory(name: str) -> int:
    """Give a line of /proc/meminfo in bytes."""
    found = re.search(rf"^{name}: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/meminfo has no {name}")
    return int(found[1]) * 1024


def whole_number(path: str) -> int:
    """Read a file of /proc or /sys that holds a number."""
    return int(Path(path).read_text())


def transparent_huge_pages() -> str:
    """Give the kernel's choice: always, madvise or never."""
    text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else text.strip()
