"""What the kernel says of the machine's memory."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["available", "unwritten"]

_MEMINFO = "/proc/meminfo"
_GROUP = "/sys/fs/cgroup"  # of a container; elsewhere the root has no limit


def available() -> int:
    """Bytes that a program can have without pushing others out: the machine's, or the container's where that has less."""
    free = _meminfo("MemAvailable:")
    with suppress(OSError, ValueError):  # no container, or "max"
        free = min(free, max(0, _number("memory.max") - _number("memory.current")))
    return free


def unwritten() -> int:
    """Bytes in the page cache that some program has written and no device has yet."""
    return _meminfo("Dirty:", "Writeback:")


def _meminfo(*fields: str) -> int:
    """Bytes in some fields together; 0 where there is no such file."""
    try:
        with open(_MEMINFO, encoding="ascii") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith(fields))
    except (OSError, ValueError, IndexError):
        return 0


def _number(name: str) -> int:
    with open(f"{_GROUP}/{name}", encoding="ascii") as file:
        return int(file.read())
