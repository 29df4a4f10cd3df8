"""The bytes of tensors: mapped where that is fast, read in large parts by many threads where it is not.

Which of the two is fast is for `fastckpt.choosing` to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastckpt import _core, parallel
from fastckpt.choosing import Mode, better_mapped, look_for
from fastckpt.contents import MAP_LIMIT, Contents, Entry
from fastckpt.digests import Crcs, compare, crc32
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import OUT
from fastckpt.mapping import map_files, map_if_possible, with_path
from fastckpt.memory import available, maps_left

__all__ = ["DEPTH", "PART", "SMALL", "WAITERS", "Allocate", "check_memory", "fetch"]
__all__ += ["read_at", "read_into", "read_runs", "runs"]

Part = tuple[str, int, Any, int, int]  # path, offset, memory, size of the file, room: as _core.read_parts wants them

Allocate = Callable[[list[int]], list[_core.Mapping]]

PART = 4 << 20  # bytes that a thread reads at a time
_RUN = 64 << 20  # bytes: blobs up to here share memory, so that they have huge pages; a larger one has its own
_BATCH = 1 << 30  # bytes that are read before an interrupt is noticed
_MAPPERS = 4  # threads that may have more mapped each: fewer maps, and still at most 64 MiB by all there can be
_HUGE = 2 << 20  # bytes of a huge page
DEPTH = 8  # threads that read from a disk: what is asked at the same time, it can do at the same time
WAITERS = 16  # threads that wait for a server
SMALL = 16 << 10  # bytes: what is not larger is read through the page cache


def fetch(
    contents: Contents,
    entries: Sequence[Entry],
    mode: Mode,
    *,
    threads: int | None = None,
    verify: bool = False,
    allocate: Allocate | None = None,
) -> list[Any]:
    """Give the bytes of some tensors as writable, private buffers; a tie gives the same buffer twice.

    Parameters
    ----------
    contents : Contents
        The snapshot; what it has mapped or read already is taken from it.
    entries : sequence of Entry
        The tensors.
    mode : {"auto", "mmap", "read", "direct"}
        ``mmap``: map all. ``read``: read through the page cache. ``direct``: read past it. ``auto``: map all where that
        is fast; elsewhere map what lies in the page cache, and read what does not past it, unless it is loaded for the
        second time or is more than there is memory; over a network read all, and so what the process cannot map.
    threads : int, optional
        That read.
    verify : bool
        Check the digests on the way.
    allocate : callable, optional
        Gives special memory, as ``_core.allocate`` gives any; all bytes are then in such memory, and nothing is mapped.

    Raises
    ------
    CorruptError
        A blob has another size by now, or, with `verify`, other bytes.
    OSError
        What the system refused, with errno and path.
    """
    if contents.copies is not None:
        contents.blobs.update(contents.at_hand([entry.blob for entry in entries], threads))
    if allocate is not None:
        _move(contents, [entry.blob for entry in entries], allocate)
    digests = {entry.blob: entry.meta.digest for entry in entries} if verify else {}
    found = [contents.blobs.get(entry.blob) for entry in entries]
    if allocate is None and not verify and None not in found:
        return found
    missing = {entry.blob: entry.meta.nbytes for entry, blob in zip(entries, found, strict=True) if blob is None}
    inside = {blob: missing.pop(blob) for blob in list(missing) if blob in contents.parts}
    _read(contents, inside, "read", threads, {}, allocate)
    if missing and allocate is None and not contents.looked:  # not all tensors are wanted
        look = look_for(mode, contents.fd)
        if look != "none":
            contents.look_at(missing, look)
            missing = {blob: nbytes for blob, nbytes in missing.items() if blob not in contents.blobs}
    if mode == "mmap":
        contents.blobs.update(zip(missing, map_files(contents.fd, missing, contents.folder), strict=True))
    elif mode == "auto" and allocate is None and 0 < len(missing) <= MAP_LIMIT and _better_mapped(contents, missing):
        contents.blobs.update(map_if_possible(contents.fd, missing, contents.folder, whole=True))
    missing = {blob: nbytes for blob, nbytes in missing.items() if blob not in contents.blobs}
    there = {blob: digest for blob, digest in digests.items() if blob not in missing}
    check_memory(contents.path, contents.blobs, there, threads)
    _read(contents, missing, mode, threads, digests, allocate)
    return [contents.blobs[entry.blob] for entry in entries]


def _better_mapped(contents: Contents, missing: dict[str, int]) -> bool:
    """Tell whether to map what is not in memory: also beyond the maps that are for others, if memory has no room."""
    size = sum(missing.values())
    return (len(missing) <= maps_left() or size > available()) and better_mapped(contents.fd, size)


def _move(contents: Contents, blobs: Sequence[str], allocate: Allocate) -> None:
    """Move the copies that the snapshot has of small blobs into other memory."""
    copies = {blob: contents.blobs[blob] for blob in dict.fromkeys(blobs) if blob in contents.blobs}
    for (blob, copy), memory in zip(copies.items(), allocate([*map(len, copies.values())]), strict=True):
        memoryview(memory)[:] = memoryview(copy)
        contents.blobs[blob] = memory


def read_into(contents: Contents, targets: Sequence[tuple[Entry, Any]], *, mapped: bool) -> None:
    """Fill memory that others own with the bytes of tensors, without any other memory for what is in the page cache.

    Parameters
    ----------
    contents : Contents
        The snapshot.
    targets : sequence of (Entry, buffer)
        A buffer has as many bytes as the tensor.
    mapped : bool
        Map, a part at a time, what the page cache of this machine has in huge pages, or can bring in so.
    """
    remote = filesystem_of(contents.fd).remote
    threads, mapped = WAITERS if remote else _readers(contents, [entry for entry, _ in targets]), mapped and not remote
    step, least = (2 * PART, _HUGE) if mapped and threads <= _MAPPERS else (PART, 1)
    parts = [part for entry, memory in targets for part in _parts(contents, entry.blob, memory, False, step, least)]
    _read_parts(contents, parts, threads, mapped=mapped)


def _readers(contents: Contents, entries: Sequence[Entry]) -> int:
    """As many threads as processors; more, if the largest is cold, so that the disk is always asked for something."""
    largest = max(entries, key=lambda entry: entry.meta.nbytes, default=None)
    processors = len(os.sched_getaffinity(0))
    if largest is None or _core.is_resident(contents.fd, contents.part(largest.blob, largest.meta.nbytes).path):
        return processors
    return max(processors, DEPTH)


def read_at(contents: Contents, entry: Entry, offset: int, buffer: Any) -> None:
    """Fill a buffer with the bytes of a tensor from `offset` on."""
    try:
        path, at, size = contents.part(entry.blob, entry.meta.nbytes)
        _core.read_into(contents.fd, path, at + offset, buffer, size=size)
    except (_core.SizeChanged, OSError) as problem:
        raise with_path(problem, contents.folder) from None


def read_runs(contents: Contents, entry: Entry, runs: Sequence[tuple[int, int]]) -> _core.Mapping:
    """Give some bytes of a tensor, one run after the other, in memory of their own.

    Parameters
    ----------
    contents : Contents
        The snapshot.
    entry : Entry
        The tensor.
    runs : sequence of tuple of int
        Offset and length of each.
    """
    path, begin, size = contents.part(entry.blob, entry.meta.nbytes)
    at = 0
    (memory,) = _core.allocate([sum(length for _, length in runs)])
    view, parts = memoryview(memory), []
    for offset, length in runs:
        for done in range(0, length, PART):
            room = view[at + done : at + min(done + PART, length)]
            parts.append((path, begin + offset + done, room, size, 0))
        at += length
    _read_parts(contents, parts, WAITERS)
    return memory


def _read_parts(contents: Contents, parts: list[Part], threads: int, *, mapped: bool = False) -> None:
    try:
        for batch in _batches(parts):
            _core.read_parts(contents.fd, batch, threads=threads, mapped=mapped)
    except (_core.SizeChanged, OSError) as problem:
        raise with_path(problem, contents.folder) from None


def _read(
    contents: Contents,
    blobs: dict[str, int],
    mode: Mode,
    threads: int | None,
    digests: dict[str, str | None],
    allocate: Allocate | None,
) -> None:
    """Read some blobs into memory of their own."""
    system = filesystem_of(contents.fd)
    direct = mode in ("auto", "direct") and not (system.remote or system.in_memory)
    threads = threads or (WAITERS if system.remote else DEPTH if direct else len(os.sched_getaffinity(0)))
    warm = {b for b in blobs if allocate and mode == "auto" and _core.is_resident(contents.fd, f"{b}/{OUT}")}
    try:
        for run in runs(blobs):
            contents.blobs.update(zip(run, (allocate or _core.allocate)([blobs[blob] for blob in run]), strict=True))
    except OSError as problem:
        raise with_path(problem, contents.folder) from None
    parts = [part for b in blobs for part in _parts(contents, b, contents.blobs[b], direct and b not in warm)]
    if digests:
        _read_and_check(contents, parts, threads, digests)
    else:
        _read_parts(contents, parts, threads)


def runs(blobs: dict[str, int]) -> Iterator[list[str]]:
    """Cut the blobs, in their order, into runs that share memory."""
    run: list[str] = []
    length = 0
    for blob, nbytes in blobs.items():
        if run and length + nbytes > _RUN:
            yield run
            run, length = [], 0
        run.append(blob)
        length += nbytes
    if run:
        yield run


def _parts(
    contents: Contents, blob: str, memory: Any, direct: bool, step: int = PART, least: int = 1
) -> Iterator[Part]:
    """Cut a blob; a rest of less than `least` bytes goes with the part before it."""
    view, nbytes = memoryview(memory).cast("B"), memoryview(memory).nbytes
    path, begin, size = contents.part(blob, nbytes)
    at = 0
    while at < nbytes:
        end = at + step if at + step + least <= nbytes else nbytes
        room = -(-(end - at) // _core.DIRECT_ALIGN) * _core.DIRECT_ALIGN if direct else 0
        yield path, begin + at, view[at:end], size, room
        at = end


def _batches(parts: list[Part]) -> Iterator[list[Part]]:
    """Some at a time: between them an interrupt is noticed."""
    step = _BATCH // PART
    return (parts[at : at + step] for at in range(0, len(parts), step))


def _read_and_check(contents: Contents, parts: list[Part], threads: int, digests: dict[str, str | None]) -> None:
    """Read parts, and take the digest of each while it is in the processor's cache."""

    def work(part: Part) -> tuple[int, int]:
        path, offset, view, size, room = part
        _core.read_into(contents.fd, path, offset, view, size=size, room=room)
        return crc32(view), len(view)

    found: Crcs = {}
    try:
        for part, crc in zip(parts, parallel.run(work, parts, threads), strict=True):
            found.setdefault(part[0].removesuffix(f"/{OUT}"), []).append(crc)
    except (_core.SizeChanged, OSError) as problem:
        raise with_path(problem, contents.path) from None
    compare(contents.path, found, digests)


def check_memory(
    path: str, blobs: Mapping[str, Any], digests: Mapping[str, str | None], threads: int | None = None
) -> None:
    """Compare blobs of the snapshot at `path` that are mapped, or were read already, with the digests of their metas.

    Raises
    ------
    CorruptError, FormatError
        They differ.
    """
    views = {blob: memoryview(blobs[blob]) for blob, digest in digests.items() if digest is not None}
    parts = [(blob, view[at : at + PART]) for blob, view in views.items() for at in range(0, len(view), PART)]

    def work(part: tuple[str, memoryview]) -> tuple[int, int]:
        return crc32(part[1]), len(part[1])

    found: Crcs = {blob: [] for blob in views}
    for part, crc in zip(parts, parallel.run(work, parts, threads or len(os.sched_getaffinity(0))), strict=True):
        found[part[0]].append(crc)
    compare(path, found, digests)
