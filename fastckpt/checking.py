"""The CRCs of blobs, taken at the speed of the device in memory that does not grow with them.

Large blobs are read in parts, by several threads: from the page cache what lies there, past it what does not, so that a
look at a snapshot pushes nothing out of memory. Small ones are read many at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastckpt import _core, parallel
from fastckpt.contents import Contents, Entry
from fastckpt.digests import Crcs, combined, compare, crc32, difference
from fastckpt.errors import CorruptError
from fastckpt.fetching import DEPTH, PART, SMALL, WAITERS
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import OUT
from fastckpt.mapping import with_path
from fastckpt.opening import unreadable
from fastckpt.problems import OUT_OF

__all__ = ["Found", "Progress", "check", "crcs", "problem_with"]

Progress = Callable[[int, int], None]
Found = dict[str, int | Exception]  # by blob, the CRC of its bytes, or why they cannot be had

_BATCH = 256  # small blobs that one thread reads at a time


class _Part(NamedTuple):
    """A part of a large blob; `direct`: read past the page cache."""

    blob: str
    size: int
    offset: int
    length: int
    direct: bool


_Job = _Part | list[str]
_Result = tuple[str, int | Exception, int]  # blob, CRC or error, bytes


def crcs(
    contents: Contents,
    blobs: Mapping[str, int],
    *,
    memory: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Take the CRC of each of some blobs.

    Parameters
    ----------
    contents : Contents
        The snapshot.
    blobs : mapping of str to int
        Folder and size of each.
    memory : mapping of str to buffer, optional
        Where the bytes of each shall be when this returns, in memory of `_core.allocate`; by default they are read
        through a few MiB.
    threads : int, optional
        That read; by default as many as the device can serve.
    progress : callable, optional
        Told the bytes that are done, and those of all; by one thread at a time.

    Returns
    -------
    dict
        Folder to CRC, or to the error that says why the bytes cannot be had.
    """
    system = filesystem_of(contents.fd)
    past = not (system.remote or system.in_memory)
    large = [blob for blob, size in blobs.items() if past and size > SMALL and blob not in contents.parts]
    cold = {blob for blob in large if not _core.is_resident(contents.fd, f"{blob}/{OUT}")}
    reader = _Reader(contents, blobs, memory, _Watched(sum(blobs.values()), progress))
    threads = threads or (WAITERS if system.remote else DEPTH if cold else len(os.sched_getaffinity(0)))
    done = parallel.run(reader, [*_jobs(blobs, cold, contents.parts.keys())], threads)
    parts: dict[str, list[tuple[int, int]]] = {blob: [] for blob in blobs}
    failed: Found = {}
    for blob, found, length in (result for results in done for result in results):
        if isinstance(found, Exception):
            failed.setdefault(blob, found)
        else:
            parts[blob].append((found, length))
    return {blob: failed[blob] if blob in failed else combined(pieces) for blob, pieces in parts.items()}


def problem_with(found: int | Exception, digest: str | None, where: str) -> Exception | None:
    """Say what is wrong with a blob of which `crcs` has found this; None when it has the digest, or there is none."""
    if isinstance(found, Exception):
        return found
    return None if digest is None else difference(digest, found, where)


def check(contents: Contents, entries: Sequence[Entry]) -> None:
    """Compare the blobs of some tensors with their digests, where there are any.

    Raises
    ------
    CorruptError, FormatError
        They differ.
    OSError
        What the system refused.
    """
    metas = {entry.blob: entry.meta for entry in entries if entry.meta.digest is not None}
    found: Crcs = {}
    for blob, crc in crcs(contents, {blob: meta.nbytes for blob, meta in metas.items()}).items():
        if isinstance(crc, Exception):
            raise crc
        found[blob] = [(crc, metas[blob].nbytes)]
    compare(contents.path, found, {blob: meta.digest for blob, meta in metas.items()})


def _jobs(blobs: Mapping[str, int], cold: Collection[str], inside: Collection[str]) -> Iterator[_Job]:
    """Give the parts of large blobs and of those inside a pickle, then the small ones."""
    small: list[str] = []
    for blob, size in blobs.items():
        if size <= SMALL and blob not in inside:
            small.append(blob)
            continue
        for at in range(0, size, PART):
            yield _Part(blob, size, at, min(PART, size - at), blob in cold)
    yield from (small[at : at + _BATCH] for at in range(0, len(small), _BATCH))


class _Watched:
    """Counts the bytes that are done."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += nbytes
                self._progress(self._done, self._total)


class _Reader(threading.local):
    """Does one job, in any thread; each has its own room."""

    def __init__(
        self, contents: Contents, blobs: Mapping[str, int], memory: Mapping[str, Any] | None, watched: _Watched
    ) -> None:
        self._contents = contents
        self._blobs = blobs
        self._memory = memory
        self._watched = watched
        self._room = memoryview(b"")

    def __call__(self, job: _Job) -> list[_Result]:
        results = [self._part(job)] if isinstance(job, _Part) else self._small(job)
        self._watched.add(job.length if isinstance(job, _Part) else sum(self._blobs[blob] for blob in job))
        return results

    def _part(self, part: _Part) -> _Result:
        blob, size, offset, length, direct = part
        view = self._view(part)
        space = -(-length // _core.DIRECT_ALIGN) * _core.DIRECT_ALIGN if direct else 0
        try:
            path, begin, whole = self._contents.part(blob, size)
            _core.read_into(self._contents.fd, path, begin + offset, view, size=whole, room=space)
        except (_core.SizeChanged, OSError) as problem:
            return blob, _fault(with_path(problem, self._contents.folder)), length
        return blob, crc32(view), length

    def _view(self, part: _Part) -> memoryview:
        """Give the memory that a part is read into."""
        if self._memory is not None:
            return memoryview(self._memory[part.blob])[part.offset : part.offset + part.length]
        if len(self._room) < part.length:
            self._room = memoryview(_core.allocate([PART])[0])
        return self._room[: part.length]

    def _small(self, blobs: list[str]) -> list[_Result]:
        """Read blobs that are so small that C reads them whole."""
        results: list[_Result] = []
        found = _core.scan(self._contents.fd, blobs, map=True, cold=_core.COLD_LEAVE, metas=False)
        for blob, (_, out) in zip(blobs, found, strict=True):
            size, where = self._blobs[blob], f"{self._contents.path}/{blob}/{OUT}"
            length = out if isinstance(out, int) else len(out)
            if length < 0:
                results.append((blob, _fault(unreadable(-length, where)), size))
            elif length != size:
                changed = CorruptError(f"{where}: had {size} bytes a moment ago, now {length}; look at it again")
                results.append((blob, changed, size))
            elif isinstance(out, int):  # there was no memory for it
                results.append(self._part(_Part(blob, size, 0, size, False)))
            else:
                if self._memory is not None:
                    memoryview(self._memory[blob])[:] = memoryview(out)
                results.append((blob, crc32(out), size))
        return results


def _fault(problem: Exception) -> Exception:
    """Give what is the snapshot's fault; raise what is the machine's."""
    if isinstance(problem, OSError) and problem.errno in OUT_OF:
        raise problem
    return problem
