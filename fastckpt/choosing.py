"""Which way the bytes of a load come.

A map of what is in memory costs nothing to make and no memory to have. What is not there is brought in by touches: 2
MiB at a time where the page cache can have huge pages, which is as fast as the device; elsewhere by little, with a wait
each. There what is cold is read at once, past the page cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from fastckpt import _core
from fastckpt.filesystems import FileSystem, filesystem_of, kernel
from fastckpt.folders import Look
from fastckpt.layout import OUT
from fastckpt.memory import available

__all__ = ["MODES", "WORTH_WARMING", "Mode", "better_mapped", "forget_loads", "has_room", "log_remote", "look_for"]
__all__ += ["look_for_open", "maps_fast", "worth_warming"]

Mode = Literal["auto", "mmap", "read", "direct"]
MODES: tuple[Mode, ...] = ("auto", "mmap", "read", "direct")

_LARGE_FOLIOS = {"xfs": (5, 18), "ext4": (6, 16)}  # since which Linux
_REMEMBERED = 1000  # snapshots

_HUGE = 2 << 20  # bytes: what can have a huge page
WORTH_WARMING = 64 << 20  # bytes

_seen: set[tuple[int, int, int]] = set()  # snapshots that were read past the page cache; see better_mapped
_log = logging.getLogger("fastckpt")


def look_for(mode: Mode, path: int | str | os.PathLike[str]) -> Look:
    """Say which blobs a load by `mode` shall map at once."""
    if mode != "auto":
        return "huge" if mode == "mmap" else "none"
    system = _system(path)
    if system is None or system.remote:
        return "none"
    if system.in_memory:
        return "all"
    return "advise" if maps_fast(system) else "resident"


def log_remote(path: str | os.PathLike[str]) -> None:
    """Say, once a call that may choose, that the file system is why nothing is mapped."""
    system = _system(path)
    if system is not None and system.remote:
        _log.info("%s: on %s, so tensors are read in large parts and not mapped", path, system.name)


def look_for_open(path: str | os.PathLike[str]) -> Look:
    """Say which blobs `open` shall map at once: all, but none over a network."""
    system = _system(path)
    if system is None or not system.remote:
        return "all"
    _log.info("%s: on %s, so tensors are read when they are asked for, and not mapped", path, system.name)
    return "none"


def _system(path: int | str | os.PathLike[str]) -> FileSystem | None:
    """Give the file system of what is there; whoever opens what is not says so."""
    try:
        return filesystem_of(path)
    except OSError:
        return None


def maps_fast(system: FileSystem) -> bool:
    """Tell whether the page cache can have huge pages of this file system: then a touch reads 2 MiB at the speed of the
    device, and the next load finds them there."""
    since = _LARGE_FOLIOS.get(system.name)
    return since is not None and kernel() >= since


def better_mapped(fd: int, wanted: int) -> bool:
    """Tell whether `wanted` bytes of a snapshot that are cold are mapped nevertheless: when they are more than the
    memory that there is, or when this process has read them once already, so that they are worth the page cache's."""
    if filesystem_of(fd).remote:
        return False
    free = available()
    status = os.fstat(fd)
    identity = status.st_dev, status.st_ino, status.st_mtime_ns
    if wanted > free or (identity in _seen and wanted < free // 2):
        return True
    if len(_seen) >= _REMEMBERED:
        _seen.clear()
    _seen.add(identity)
    return False


def worth_warming(fd: int, blobs: Mapping[str, Any]) -> bool:
    """Tell whether blobs of an open snapshot, by folder, are worth being brought in by threads before they are touched:
    if those that can have huge pages are much, mapped, and cold by the look of three, and the memory can have twice as
    much."""
    large = {blob: len(buffer) for blob, buffer in blobs.items() if len(buffer) >= _HUGE}
    total = sum(large.values())
    if total < WORTH_WARMING or not maps_fast(filesystem_of(fd)):
        return False
    names = list(large)
    samples = {names[0], names[len(names) // 2], max(large, key=large.__getitem__)}
    cold = [blob for blob in samples if not _core.is_resident(fd, f"{blob}/{OUT}")]
    return len(cold) * 2 > len(samples) and has_room(total)


def has_room(nbytes: int) -> bool:
    """Tell whether there is memory for twice as much as shall be brought in."""
    return nbytes < available() // 2


def forget_loads() -> None:
    """Let every load be the first one again. For measurements that evict files from the page cache."""
    _seen.clear()
