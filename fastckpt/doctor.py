"""What this machine and a folder's file system offer, and what fastckpt therefore does there."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass

from fastckpt.choosing import maps_fast
from fastckpt.contents import MAP_LIMIT
from fastckpt.measuring import Speed, measure
from fastckpt.probing import (
    Answer,
    answer,
    has_cachestat,
    has_io_uring,
    has_openat2,
    limit,
    memory,
    transparent_huge_pages,
    whole_number,
)
from fastckpt.rooms import ROOM, ROOMS
from fastckpt.trials import Folder, try_folder
from fastckpt.ways import syncs_whole
from fastckpt.writing import PART

__all__ = ["Examination", "Machine", "Software", "examine", "therefore"]

_ALIGNED_ENOUGH = 4096  # parts of files begin at its multiples


@dataclass(frozen=True)
class Machine:
    """Kernel, processors, memory and limits; in place of a fact stands Refused with the reason.

    Attributes
    ----------
    kernel, processor : str
        Release, and kind of processor.
    cpus_allowed, cpus : int
        Processors that this process may use, and all that are online.
    memory_bytes, memory_available_bytes : int
        All, and what could be had without swapping.
    transparent_huge_pages : str
        always, madvise or never.
    max_map_count : int
        Maps that a process may have.
    open_files, locked_memory_bytes : int or "unlimited"
        Limits of this process.
    openat2, cachestat, io_uring : bool
        System calls that may be missing or forbidden.
    """

    kernel: str
    processor: str
    cpus_allowed: int
    cpus: int
    memory_bytes: Answer[int]
    memory_available_bytes: Answer[int]
    transparent_huge_pages: Answer[str]
    max_map_count: Answer[int]
    open_files: Answer[int | str]
    locked_memory_bytes: Answer[int | str]
    openat2: Answer[bool]
    cachestat: Answer[bool]
    io_uring: Answer[bool]


@dataclass(frozen=True)
class Software:
    """Python and what is installed beside fastckpt.

    Attributes
    ----------
    python : str
        Version.
    gil : bool
        Whether threads of Python run one at a time.
    torch : str
        Version of the torch that was imported.
    cuda_devices : tuple of str
        Names of the devices that it can use.
    packages : dict
        Versions of what fastckpt can make use of; None where it is not installed.
    """

    python: str
    gil: bool
    torch: Answer[str]
    cuda_devices: Answer[tuple[str, ...]]
    packages: dict[str, str | None]


@dataclass(frozen=True)
class Examination:
    """All that was found; `speed` is None if nobody wanted to wait."""

    path: str
    machine: Machine
    folder: Folder
    speed: Speed | None
    software: Software


def examine(path: str, software: Software, *, quick: bool = False) -> Examination:
    """Look at this machine and at a folder, which is left as it was.

    Parameters
    ----------
    path : str
        The folder.
    software : Software
        What is installed: only the command line may import torch to know it.
    quick : bool
        Measure nothing.

    Returns
    -------
    Examination
        Every fact, or the reason why it is not known.

    Raises
    ------
    OSError
        There is no such folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = try_folder(fd)
        speed = measure(fd) if folder.writable and not quick else None
    finally:
        os.close(fd)
    return Examination(path, _machine(), folder, speed, software)


def _machine() -> Machine:
    system = os.uname()
    return Machine(
        kernel=system.release,
        processor=system.machine,
        cpus_allowed=len(os.sched_getaffinity(0)),
        cpus=os.cpu_count() or 1,
        memory_bytes=answer(memory, "MemTotal"),
        memory_available_bytes=answer(memory, "MemAvailable"),
        transparent_huge_pages=answer(transparent_huge_pages),
        max_map_count=answer(whole_number, "/proc/sys/vm/max_map_count"),
        open_files=answer(limit, resource.RLIMIT_NOFILE),
        locked_memory_bytes=answer(limit, resource.RLIMIT_MEMLOCK),
        openat2=answer(has_openat2),
        cachestat=answer(has_cachestat),
        io_uring=answer(has_io_uring),
    )


def therefore(found: Examination) -> list[str]:
    """Say what fastckpt does here.

    Parameters
    ----------
    found : Examination
        The facts.

    Returns
    -------
    list of str
        A sentence each; what is as everywhere is not mentioned.
    """
    return [
        *_saves(found.folder),
        *_loads(found.folder),
        *_maps(found.machine),
        *_others(found),
    ]


def _is_direct(folder: Folder) -> bool:
    """Tell whether O_DIRECT is allowed, useful, and content with how files are cut."""
    steps = folder.direct_offset_alignment or _ALIGNED_ENOUGH
    return bool(folder.direct_io) and not folder.file_system.in_memory and steps <= _ALIGNED_ENOUGH


def _saves(folder: Folder) -> Iterator[str]:
    if not folder.writable:
        yield f"saves: none into this folder: {_why(folder.writable)}"
        return
    if folder.file_system.in_memory:
        yield f"saves: into memory; nothing on {folder.file_system.name} survives a restart"
    elif folder.file_system.remote:
        yield f"saves: through the page cache: {folder.file_system.name} is a network file system, or a program's"
    elif _is_direct(folder):
        aligned = f", {folder.direct_memory_alignment}-byte aligned" if folder.direct_memory_alignment else ""
        yield f"saves: O_DIRECT in parts of {PART >> 20} MiB{aligned}"
    else:
        why = f"is refused ({_why(folder.direct_io)})"
        if folder.direct_io:
            why = f"wants pieces in steps of {folder.direct_offset_alignment:,} bytes"
        yield f"saves: through the page cache: O_DIRECT {why}"
    if not folder.file_system.in_memory:
        yield f"durable saves: {_sync(folder)}"
    if not folder.exchange:
        why = _why(folder.exchange)
        yield f"no exchange of folders here ({why}): two renames, readers look at .NAME.previous in between"
    if not folder.folder_lock:
        yield f"folders cannot be locked here ({_why(folder.folder_lock)}): a lock file .NAME.lock for the whole save"
    if not folder.hard_links:
        yield f"no hard links here ({_why(folder.hard_links)}): tied tensors are stored once for each name"


def _sync(folder: Folder) -> str:
    if syncs_whole(folder.file_system):
        return "one sync of the whole file system at the end; of every file, while others write much there"
    return f"every file and folder is synced on its own: a sync of all of {folder.file_system.name} cannot be relied on"


def _loads(folder: Folder) -> Iterator[str]:
    kind = folder.file_system
    if kind.remote:
        yield f"loads: {kind.name} is a network file system, or a program's: no maps by default, large parallel reads"
    elif kind.in_memory:
        yield "loads: maps, since all of it is in memory"
    elif maps_fast(kind):
        yield "loads: maps, and what is not in the page cache comes in huge pages when it is touched"
    elif _is_direct(folder):
        yield "loads: maps what is in the page cache, reads the rest with O_DIRECT"
    else:
        yield "loads: maps what is in the page cache, reads the rest through it"


def _maps(machine: Machine) -> Iterator[str]:
    yield f"at most {MAP_LIMIT:,} tensors of a snapshot are mapped, and of more than that no small ones"
    if isinstance(machine.max_map_count, int) and machine.max_map_count < 2 * MAP_LIMIT:
        yield f"vm.max_map_count allows only {machine.max_map_count:,} maps: what does not fit is read"


def _others(found: Examination) -> Iterator[str]:
    if not found.machine.openat2:
        yield f"files are opened step by step, so that no link is followed ({_why(found.machine.openat2)})"
    if isinstance(found.software.cuda_devices, tuple) and found.software.cuda_devices:
        yield f"CUDA: files are read into {ROOMS} page-locked rooms of {ROOM >> 20} MiB, copied while more are read"
    if not found.software.packages.get("torch"):
        yield "torch is not installed: what was saved from it loads as numpy arrays"


def _why(fact: object) -> str:
    """Give the reason for what is not so."""
    return getattr(fact, "reason", "no")
