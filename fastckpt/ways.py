"""How a save writes: by what the file system is, what the kernel can do, and what others have yet to write."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from fastckpt import _core
from fastckpt.filesystems import FileSystem, filesystem_of, kernel
from fastckpt.memory import unwritten

__all__ = ["Way", "way_for"]

_WRITERS = 15  # threads: most of their time is waiting for the device
_OTHERS = 256 << 20  # bytes of other programs that a sync of the whole file system may have to wait for,
_EACH = 1 << 20  # and so many more for each tensor: what a device writes while its two files and its folder are synced


@dataclass(frozen=True, slots=True)
class Way:
    """How a save writes.

    Attributes
    ----------
    threads : int
        How many write.
    direct : bool
        Large blobs pass the page cache.
    sync : bool
        Every file and folder is made durable by the thread that wrote it; else somebody syncs all of them at the end.
    writeback : bool
        What goes through the page cache is sent to the device at once.
    digest : bool
        Digests are taken.
    """

    threads: int
    direct: bool
    sync: bool
    writeback: bool
    digest: bool


def way_for(fd: int, threads: int | None, *, durable: bool, digest: bool, tensors: int = 0) -> Way:
    """Choose by what the file system is, and by how much others have yet to write to it.

    Parameters
    ----------
    fd : int
        Descriptor of the folder that will be filled.
    threads : int or None
        How many the caller wants.
    durable, digest : bool
        As for ``save``.
    tensors : int
        How many will be written.
    """
    system = filesystem_of(fd)
    direct = durable and not (system.remote or system.in_memory)
    busy = len(os.sched_getaffinity(0))
    return Way(
        threads=threads or (_WRITERS if durable else min(_WRITERS, busy)),
        direct=direct,
        sync=durable and not _can_sync_whole(system, tensors),
        writeback=durable,
        digest=digest,
    )


def _can_sync_whole(system: FileSystem, tensors: int) -> bool:
    """One sync of the whole file system costs less than three a tensor. But it tells of errors since Linux 5.8 only,
    does nothing on some remote file systems, and waits for what all other programs have written there."""
    if kernel() < (5, 8) or system.remote:
        return False
    return unwritten() < _OTHERS + tensors * _EACH and _has_syncfs()


def _has_syncfs() -> bool:
    """A sandbox may forbid the call; what it says of a descriptor that is none tells, and nothing is synced by it."""
    try:
        _core.syncfs(-1)
    except OSError as problem:
        return problem.errno == errno.EBADF
    return True
