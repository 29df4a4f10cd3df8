"""What the kernel says of the machine's memory."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from functools import cache

from fastckpt import _core

__all__ = ["available", "maps_left", "unwritten", "writable"]

_MEMINFO = "/proc/meminfo"
_VMSTAT = "/proc/vmstat"
_MOST_MAPS = "/proc/sys/vm/max_map_count"
_GROUP = "/sys/fs/cgroup"  # of a container; elsewhere the root has no limit


def available() -> int:
    """Bytes that a program can have without pushing others out, of the machine or, if that has less, the container."""
    return _in_group(_meminfo("MemAvailable:"))


def maps_left() -> int:
    """How many more maps of ours the process shall have: an eighth of what the kernel allows is for all else in it. 0
    where that has taken more, and hardly any are left."""
    return max(0, _most_maps() // 8 * 7 - _core.count_maps()) if _core.hold_maps() else 0


@cache
def _most_maps() -> int:
    """``sys.maxsize`` where the kernel does not say."""
    try:
        with open(_MOST_MAPS, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return sys.maxsize


def unwritten() -> int:
    """Bytes in the page cache that some program has written and no device has yet."""
    return _meminfo("Dirty:", "Writeback:")


def writable() -> int:
    """Bytes that programs can write to the page cache before the kernel lets them wait for a device; a container has
    as much of them as of the memory. ``sys.maxsize`` where the kernel does not say.

    That begins in the middle of the kernel's two limits (``dirty_freerun_ceiling`` in mm/page-writeback.c).
    """
    limits = mmap.PAGESIZE * _sum_of(_VMSTAT, "nr_dirty_threshold ", "nr_dirty_background_threshold ") // 2
    free = _meminfo("MemAvailable:")
    return max(0, limits * _in_group(free) // free - unwritten()) if limits and free else sys.maxsize


def _in_group(free: int) -> int:
    """How much of what is free on the machine the container may have."""
    with suppress(OSError, ValueError):  # no container, or "max"
        return min(free, max(0, _number("memory.max") - _number("memory.current")))
    return free


def _meminfo(*fields: str) -> int:
    return _sum_of(_MEMINFO, *fields) << 10


def _sum_of(path: str, *fields: str) -> int:
    """The numbers of some fields together; 0 where there is no such file."""
    try:
        with open(path, encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(fields))
    except (OSError, ValueError, IndexError):
        return 0


def _number(name: str) -> int:
    with open(f"{_GROUP}/{name}", encoding="ascii") as file:
        return int(file.read())
