"""How fast a folder is: files without a name, written and read in the ways that a save and a load have."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastckpt.blobs import PIECE
from fastckpt.parallel import run
from fastckpt.probing import Answer, Refused, allocate, answer, memory
from fastckpt.trials import nameless, reopened

__all__ = ["Speed", "measure"]

_MOST = 256 << 20
_LEAST = 16 << 20  # less says nothing
_THREADS = 4
_PATIENCE = 5.0  # seconds for one of the measurements
_COPIED = 64 << 20


@dataclass(frozen=True)
class Speed:
    """What was measured; in place of a figure stands Refused with the reason.

    Attributes
    ----------
    size_bytes : int
        Size of each of the two files; a slow disk may have been spared a part.
    direct_write_bytes_per_second, direct_read_bytes_per_second : float
        With O_DIRECT in several threads; the write with its fsync.
    buffered_write_bytes_per_second : float
        Through the page cache, with its fsync.
    memory_copy_bytes_per_second : float
        In memory, one thread.
    """

    size_bytes: Answer[int]
    direct_write_bytes_per_second: Answer[float]
    direct_read_bytes_per_second: Answer[float]
    buffered_write_bytes_per_second: Answer[float]
    memory_copy_bytes_per_second: Answer[float]


def measure(fd: int) -> Speed:
    """Measure in an open folder. Nothing is left there, whatever happens: the files have no names.

    Parameters
    ----------
    fd : int
        Descriptor of the folder.

    Returns
    -------
    Speed
        All figures that could be had.
    """
    size = answer(_room, fd)
    if isinstance(size, Refused):
        return Speed(size, size, size, size, answer(_copy))
    figures = answer(_both_ways, fd, size)
    write, read, buffered = (figures,) * 3 if isinstance(figures, Refused) else figures
    return Speed(size, write, read, buffered, answer(_copy))


def _room(fd: int) -> int:
    """Choose a size that neither the disk nor the memory will feel."""
    space = os.fstatvfs(fd)
    room = min(_MOST, space.f_bavail * space.f_frsize // 20, memory("MemAvailable") // 20)  # there are two files
    if room < _LEAST:
        raise OSError(errno.ENOSPC, f"not measured: a tenth of what is free is less than {_LEAST >> 19} MiB")
    return room - room % PIECE


def _both_ways(fd: int, size: int) -> tuple[Answer[float], Answer[float], Answer[float]]:
    """One file for each way, and both stay to the end: some disks are slow while they forget the blocks of another."""
    with _file(fd, size) as first, _file(fd, size) as second:
        return *_direct(first, size), answer(_buffered, second, size)


@contextmanager
def _file(fd: int, size: int) -> Iterator[int]:
    file = nameless(fd)
    try:
        with suppress(OSError):
            allocate(file, size)
        yield file
    finally:
        os.close(file)


def _direct(file: int, size: int) -> tuple[Answer[float], Answer[float]]:
    direct = answer(reopened, file, os.O_RDWR | os.O_DIRECT)
    if isinstance(direct, Refused):
        return direct, direct
    try:
        offsets = range(0, size, PIECE)
        written = answer(_timed, _write, direct, _noise(), offsets, _THREADS)
        if isinstance(written, Refused):
            return written, written
        rate, counts = written
        there = [offset for offset, count in zip(offsets, counts, strict=True) if count]
        read = answer(_timed, _read, direct, there)
        return rate, read if isinstance(read, Refused) else read[0]
    finally:
        os.close(direct)


def _buffered(file: int, size: int) -> float:
    return _timed(_write, file, _noise(), range(0, size, PIECE), 1)[0]


def _timed(work: Callable[..., list[int]], *arguments: Any) -> tuple[float, list[int]]:
    """Give the bytes per second, and what the work gave."""
    began = time.perf_counter()
    counts = work(*arguments)
    return sum(counts) / (time.perf_counter() - began), counts


def _noise() -> mmap.mmap:
    """Make a piece that is aligned for O_DIRECT, and that no file system can compress."""
    piece = mmap.mmap(-1, PIECE)
    piece.write(os.urandom(PIECE))
    return piece


def _write(file: int, data: mmap.mmap, offsets: Sequence[int], threads: int) -> list[int]:
    """Write durably, and give the bytes written at each offset: none at those that there was no time for."""
    give_up = time.monotonic() + _PATIENCE

    def write(offset: int) -> int:
        return _whole(os.pwrite(file, data, offset)) if time.monotonic() < give_up else 0

    written = run(write, offsets, threads)
    os.fsync(file)
    return written


def _read(file: int, offsets: Sequence[int]) -> list[int]:
    mine = threading.local()
    give_up = time.monotonic() + _PATIENCE

    def read(offset: int) -> int:
        if not hasattr(mine, "room"):
            mine.room = mmap.mmap(-1, PIECE)
        return _whole(os.preadv(file, [mine.room], offset)) if time.monotonic() < give_up else 0

    return run(read, offsets, _THREADS)


def _whole(count: int) -> int:
    if count != PIECE:
        raise OSError(errno.EIO, f"{count} bytes of {PIECE} in one call")
    return count


def _copy() -> float:
    source = np.ones(_COPIED, "u1")
    target = np.ones(_COPIED, "u1")

    def copy() -> list[int]:
        np.copyto(target, source)
        return [target.nbytes]

    return max(_timed(copy)[0] for _ in range(3))
