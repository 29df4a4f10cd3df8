"""What the device and the memory allow, measured in the same rounds as everybody else.

Direct writes and reads go around the page cache in several threads, from and to huge pages, at the depth (threads,
bytes of a piece) that is the best for as many bytes: with a few buffers that are used again and again, and with memory
for all of it. memcpy is numpy's, in as many threads as there are processors, between touched memory of ordinary pages
like a tensor's.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastckpt.bench.floors import PRIVATE, Floors, plain_memory
from fastckpt.bench.measuring import measured, touch_memory
from fastckpt.marker import SMALL
from fastckpt.memory import available

__all__ = ["Limits"]

_MIB = 1 << 20
_PINNED = 1024 * _MIB  # bytes copied to a GPU at most; what is larger is compared by rate
_SHARE = 4  # of the memory that is available a fourth is copied at most, to as much again
_DEPTHS = tuple((threads, mebibytes * _MIB) for threads, mebibytes in ((2, 16), (4, 16), (8, 4), (16, 4), (16, 1)))
_TRIES = 2  # with each depth, before the first round; the better one counts
_FILE, _PIECE = 16 * _MIB, 4 * _MIB  # bytes of a file, and of a write, through the page cache
_OPENERS = 16  # threads that open small files
_ALL = 1 << 62  # bytes: no file has more
_ALIGNMENT = 4096
_HUGE = 2 * _MIB  # a huge page
_Place: TypeAlias = Callable[[int, int], memoryview]  # where a thread has the bytes at an offset
_Memory: TypeAlias = Callable[[int], _Place]
_Move: TypeAlias = Callable[[int, tuple[int, int], _Place], dict[str, Any]]  # size, depth, place
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Limits:
    """The limits of a machine, each as an operation that can be asked for like those of a rival."""

    def __init__(self) -> None:
        self._depths: dict[tuple[str, int], tuple[int, int]] = {}  # by operation and size
        self._buffers: list[memoryview] = []
        self._floors = Floors()

    def direct_write(self, path: Path, nbytes: int) -> dict[str, Any]:
        """Write a new file around the page cache, and make it durable."""
        return self._at_best_depth("direct_write", nbytes, partial(self._write, path))

    def files(self, path: Path, nbytes: int) -> dict[str, Any]:
        """Make the folders and files of a snapshot once more in C, durably, with the best number of threads."""
        return self._floors.made(path, nbytes, durable=True)

    def cached_files(self, path: Path, nbytes: int) -> dict[str, Any]:
        """The same through the page cache, a thread to a file, in as many as there are processors, without a sync."""
        return self._floors.made(path, nbytes, durable=False)

    def direct_read(self, path: Path, nbytes: int) -> dict[str, Any]:
        """Read a file around the page cache; the first time it is written before."""
        return self._at_best_depth("direct_read", nbytes, partial(self._read, path))

    def direct_read_kept(self, path: Path, nbytes: int) -> dict[str, Any]:
        """The same into memory that can hold all of it, touched before, as that of who loads must."""
        return self._at_best_depth("direct_read", nbytes, partial(self._read, path), _for_all_of_it)

    def cached_write(self, path: Path, nbytes: int) -> dict[str, Any]:
        """Write empty files through the page cache, a thread to a file, in as many as there are processors."""
        size, threads = _whole(nbytes), len(os.sched_getaffinity(0))
        whole = _for_all_of_it(size)
        share = max(_ALIGNMENT, min(_FILE, _whole(size // threads)))
        files = [path.with_name(f"cached-{at}") for at in range(0, size, share)]
        fds = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for file in files]
        try:

            def write(worker: int, number: int) -> None:
                at, end = number * share, min(number * share + share, size)
                for done in range(at, end, _PIECE):
                    view = whole(worker, done)[: min(_PIECE, end - done)]
                    assert os.pwrite(fds[number], view, done - at) == len(view)

            touch_memory(size, settled=True)  # the page cache's
            with _sharing(threads, range(len(fds))) as shared:
                found, _ = measured(lambda: shared(write))
        finally:
            for fd in fds:
                os.ftruncate(fd, 0)  # nobody has to write it any more
                os.close(fd)
        return {**found, "bytes": size, "depth": f"{threads} threads, {len(fds)} files"}

    def memcpy(self, path: Path, nbytes: int) -> dict[str, Any]:  # noqa: ARG002
        """Copy memory to memory, all of it touched before."""
        size = min(nbytes, available() // _SHARE)  # as much as others move: pages far apart are slower
        source, target = plain_memory(size), plain_memory(size)
        threads = len(os.sched_getaffinity(0))
        step = max(1, -(-size // threads))

        def copy(worker: int, at: int) -> None:  # noqa: ARG001
            np.copyto(target[at : at + step], source[at : at + step])

        with _sharing(threads, range(0, size, step)) as shared:
            found, _ = measured(lambda: shared(copy))
        return {**found, "bytes": size, "depth": f"{threads} threads"}

    def floor(self, path: Path, nbytes: int) -> dict[str, Any]:
        """Open and read both files of every tensor of a snapshot, in threads of C, and nothing else."""
        return self._floors.opened(path, nbytes, _OPENERS, _ALL)

    def opens(self, path: Path, nbytes: int) -> dict[str, Any]:
        """The same in as many threads as there are processors; what is larger than a load reads at once is mapped."""
        return self._floors.opened(path, nbytes, len(os.sched_getaffinity(0)), SMALL)

    def pinned(self, path: Path, nbytes: int) -> dict[str, Any]:  # noqa: ARG002
        """Copy pinned memory to a GPU."""
        if not any(map(os.path.exists, _GPUS)):  # torch need not be imported to know it
            raise RuntimeError("not measured on a GPU")
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("not measured on a GPU")
        size = min(nbytes, _PINNED)
        source = torch.ones(size, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(size, dtype=torch.uint8, device="cuda")
        target.copy_(source)
        torch.cuda.synchronize()

        def copy() -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        found, _ = measured(copy)
        return {**found, "bytes": size, "depth": "pinned"}

    def _at_best_depth(self, op: str, nbytes: int, work: _Move, memory: _Memory | None = None) -> dict[str, Any]:
        size = _whole(nbytes)
        if (op, size) not in self._depths:
            tried = {
                depth: min(work(size, depth, self._some_buffers(*depth))["seconds"] for _ in range(_TRIES))
                for depth in _DEPTHS
            }
            self._depths[op, size] = min(tried, key=lambda depth: tried[depth])
        depth = self._depths[op, size]
        place = self._some_buffers(*depth) if memory is None else memory(size)
        return {**work(size, depth, place), "bytes": size, "depth": f"{depth[0]} threads of {depth[1] // _MIB} MiB"}

    def _write(self, path: Path, size: int, depth: tuple[int, int], place: _Place) -> dict[str, Any]:
        path.unlink(missing_ok=True)
        threads, piece = depth

        def open_file() -> int:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
            os.posix_fallocate(fd, 0, size)
            return fd

        def write(fd: int, worker: int, at: int) -> None:
            view = place(worker, at)[: min(piece, size - at)]
            assert os.pwrite(fd, view, at) == len(view)

        return _moved(open_file, write, range(0, size, piece), threads)

    def _read(self, path: Path, size: int, depth: tuple[int, int], place: _Place) -> dict[str, Any]:
        if not path.exists() or path.stat().st_size != size:
            self._write(path, size, _DEPTHS[0], self._some_buffers(*_DEPTHS[0]))
        threads, piece = depth

        def read(fd: int, worker: int, at: int) -> None:
            view = place(worker, at)[: min(piece, size - at)]
            assert os.preadv(fd, [view], at) == len(view)

        return _moved(lambda: os.open(path, os.O_RDONLY | os.O_DIRECT), read, range(0, size, piece), threads)

    def _some_buffers(self, threads: int, piece: int) -> _Place:
        """Give each thread a buffer; the same ones as long as they are large enough."""
        if len(self._buffers) < threads or len(self._buffers[0]) < piece:
            whole = _huge_pages(threads * piece)
            self._buffers = [whole[at : at + piece] for at in range(0, threads * piece, piece)]
        buffers = self._buffers
        return lambda worker, at: buffers[worker]  # noqa: ARG005


def _for_all_of_it(size: int) -> _Place:
    """Give each byte a place of its own."""
    if size > available() // 2:
        raise RuntimeError(f"needs {size:,} bytes of memory")
    whole = _huge_pages(size)
    return lambda worker, at: whole[at:]  # noqa: ARG005


def _whole(nbytes: int) -> int:
    """Bytes to move: a multiple of what direct reads and writes take."""
    return max(_ALIGNMENT, nbytes // _ALIGNMENT * _ALIGNMENT)


def _huge_pages(size: int) -> memoryview:
    """Give touched memory in huge pages where there are any: devices move data between them twice as fast."""
    mapped = mmap.mmap(-1, size + _HUGE, flags=PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapped, np.uint8)
    first = -memory.ctypes.data % _HUGE
    memory[:] = np.resize(np.random.default_rng(0).integers(0, 256, _HUGE, np.uint8), len(memory))
    return memoryview(mapped)[first : first + size]


def _moved(
    open_file: Callable[[], int], move: Callable[[int, int, int], None], places: range, threads: int
) -> dict[str, Any]:
    """Open a file, move its pieces, sync, close; the threads exist before the clock starts."""

    def all_of_it() -> None:
        fd = open_file()
        try:
            shared(lambda worker, at: move(fd, worker, at))
            os.fsync(fd)
        finally:
            os.close(fd)

    with _sharing(threads, places) as shared:
        return measured(all_of_it)[0]


@contextmanager
def _sharing(threads: int, jobs: Iterable[int]) -> Iterator[Callable[[Callable[[int, int], None]], None]]:
    """Give what lets threads work at jobs: each takes the next one when it is free."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(time.sleep, [0.001] * threads))  # they exist now
        left = iter(jobs)

        def shared(work: Callable[[int, int], None]) -> None:
            def loop(worker: int) -> None:
                for job in left:
                    work(worker, job)

            list(pool.map(loop, range(threads)))

        yield shared
