"""How a save writes: by what the file system is, what the kernel can do, and what others have yet to write."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastckpt import _core
from fastckpt.filesystems import FileSystem, filesystem_of, kernel
from fastckpt.memory import unwritten, writable

__all__ = ["LARGE", "PageCache", "Way", "syncs_whole", "way_for"]

LARGE = 1 << 20  # bytes; a smaller blob is written whole, through the page cache

_WRITERS = 24  # threads: most of their time is waiting for the device, which has to do
_EACH_WRITER = 1 << 20  # for one more with so many bytes of large blobs; to create files takes processors only
_DIRECT = 16  # threads more where the page cache cannot take all without waiting
_ROOM = 7 / 8  # of what it can take: others write too, and our small files
_LITTLE = 64 << 20  # bytes, for which nobody asks how much it can take
_OTHERS = 256 << 20  # bytes of other programs that a sync of the whole file system may have to wait for,
_EACH = 1 << 20  # and so many more for each tensor: what a device writes while its two files and its folder are synced

# They lie over another file system, and a sync of all of theirs does not hear that a write was lost there; that of a
# file does. What is unknown may be one of them, or remote.
_OVER_ANOTHER = {"overlay", "aufs", "ecryptfs", "shiftfs", "unknown"}


@dataclass(frozen=True, slots=True)
class Way:
    """How a save writes.

    Attributes
    ----------
    threads : int
        How many write.
    cached : int
        How many bytes of large blobs go through the page cache at most. What is beyond that passes it meanwhile.
    copiers : int
        How many threads write to it at a time.
    sync : bool
        Every file and folder is made durable by the thread that wrote it; else somebody syncs all of them at the end.
    writeback : bool
        What goes through the page cache is sent to the device at once.
    digest : bool
        Digests are taken.
    """

    threads: int
    cached: int
    copiers: int
    sync: bool
    writeback: bool
    digest: bool

    @property
    def direct(self) -> bool:
        """Whether all large blobs pass the page cache."""
        return self.cached == 0


class PageCache:
    """Says of large blobs, one by one, whether they go through the page cache, as a save is being written.

    Parameters
    ----------
    way : Way
        Of the save.
    """

    def __init__(self, way: Way) -> None:
        self._lock = threading.Lock()
        self._left = way.cached
        self._copiers = way.copiers

    @contextmanager
    def passed(self, nbytes: int) -> Iterator[bool]:
        """Tell whether a blob passes it, which is written meanwhile."""
        with self._lock:
            through = self._copiers > 0 and nbytes <= self._left
            if through:
                self._left -= nbytes
                self._copiers -= 1
        try:
            yield not through
        finally:
            with self._lock:
                self._copiers += through


def way_for(
    fd: int,
    threads: int | None,
    *,
    durable: bool,
    digest: bool,
    tensors: int = 0,
    nbytes: int = 0,
    large: int = 0,
) -> Way:
    """Choose by what the file system is, and by how much others have yet to write to it.

    Parameters
    ----------
    fd : int
        Descriptor of the folder that will be filled.
    threads : int or None
        How many the caller wants.
    durable, digest : bool
        As for ``save``.
    tensors, nbytes, large : int
        How many will be written, their bytes, and those of the large ones among them.
    """
    system = filesystem_of(fd)
    on_disk = not (system.remote or system.in_memory)
    busy = len(os.sched_getaffinity(0))
    cached = _cached(on_disk, durable, nbytes)
    sync = durable and not _can_sync_whole(system, tensors)
    more = _DIRECT if cached < nbytes and not durable else 0
    waiting = _WRITERS if sync else -(-large // _EACH_WRITER) if durable else 0
    threads = threads or min(_WRITERS, busy + waiting) + more
    return Way(
        threads=threads,
        cached=cached,
        copiers=busy if more else threads,
        sync=sync,
        writeback=durable,
        digest=digest,
    )


def _cached(on_disk: bool, durable: bool, nbytes: int) -> int:
    """How many bytes go through the page cache: none where the device is waited for anyway."""
    if not on_disk or (nbytes <= _LITTLE and not durable):
        return sys.maxsize
    return 0 if durable else int(writable() * _ROOM)


def syncs_whole(system: FileSystem) -> bool:
    """Tell whether a sync of a whole file system can be relied on: it tells of errors since Linux 5.8 only, of none
    that happen in a file system below, and does nothing on some remote ones."""
    return kernel() >= (5, 8) and not system.remote and system.name not in _OVER_ANOTHER and _has_syncfs()


def _can_sync_whole(system: FileSystem, tensors: int) -> bool:
    """One sync of all costs less than three a tensor, but waits for what all other programs have written there."""
    return syncs_whole(system) and unwritten() < _OTHERS + tensors * _EACH


def _has_syncfs() -> bool:
    """A sandbox may forbid the call; what it says of a descriptor that is none tells, and nothing is synced by it."""
    try:
        _core.syncfs(-1)
    except OSError as problem:
        return problem.errno == errno.EBADF
    return True
