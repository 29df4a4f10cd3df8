"""What a process can learn about itself and about files: time, memory, bytes, system calls, what the page cache holds.

All of it is Linux's: /proc/self for the process, mincore(2) for the cache, posix_fadvise(2) to empty it of a file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastckpt.memory import available

__all__ = ["evict", "files_under", "measured", "resident", "sync_tree", "touch_memory", "warm"]

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_SAMPLE = 1024  # files of one snapshot that are asked what is resident of them; of more, evenly spread ones
_HUGE = 2 << 20  # bytes of a huge page, or of what one page table maps
_NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python knows since 3.11
_SMALL = 16384  # pages at most, and as many page tables
_PASSES = Path("/sys/module/page_reporting/parameters/passes")  # where the kernel counts how often it has offered
_OFFERS = 2.7  # seconds: memory is offered 2 s after it was freed, and a GB of it takes half a second
_MUCH = 256 << 20  # bytes: so many may be taken in the middle of a measurement that is over in less than 2 s
_SYNC_EACH = 1024  # files that are fsynced one by one; of more, their file system as a whole, as fastckpt does it
_STATUS = ("VmHWM", "VmRSS", "RssAnon")
_IO = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes")


def _numbers(path: str, wanted: Sequence[str]) -> dict[str, int]:
    text = Path(path).read_text()
    lines = (line.partition(":") for line in text.splitlines())
    return {name: int(value.split()[0]) for name, _, value in lines if name in wanted}


def _memory() -> dict[str, int]:
    return {name: kilobytes * 1024 for name, kilobytes in _numbers("/proc/self/status", _STATUS).items()}


def _io() -> dict[str, int]:
    return _numbers("/proc/self/io", _IO)


def _own_cost() -> dict[str, int]:
    """What looking costs: the counters count the reading of the counters."""
    first, second = _io(), _io()
    return {name: second[name] - first[name] for name in first}


def measured(work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Do something once and say what it took.

    Returns
    -------
    dict
        ``seconds``; ``peak`` and ``anon``, bytes by which VmHWM rose over what was resident before, and by which
        anonymous memory is larger afterwards, the result being alive; ``read`` and ``written``, bytes that the device
        moved; ``asked``, bytes that read calls returned; ``calls``, system calls that read or write (those of the
        kernel's counters: opening, mapping and syncing are not among them).
    object
        What `work` returned.
    """
    own = _own_cost()
    memory, io = _memory(), _io()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again from here
    begin = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - begin
    io_after, after = _io(), _memory()
    moved = {name: max(0, io_after[name] - io[name] - own[name]) for name in io}
    found = {
        "seconds": seconds,
        "peak": max(0, after["VmHWM"] - memory["VmRSS"]),
        "anon": after["RssAnon"] - memory["RssAnon"],
        "read": moved["read_bytes"],
        "written": moved["write_bytes"],
        "asked": moved["rchar"],
        "calls": max(0, moved["syscr"] + moved["syscw"] - 1),  # one resets VmHWM
    }
    return found, kept


def touch_memory(nbytes: int, *, settled: bool = False) -> None:
    """Use a quarter more memory than that, as far as it is to be had, and free it again.

    A virtual machine's host may take back what has been free for a second, and gives it again at a tenth of the speed
    of memory: whoever is measured next would pay for what the one before him has freed. Huge pages first, and then
    small ones, which the kernel takes from elsewhere: some for Python's objects, and some for its own, which it makes
    page tables of here.

    Parameters
    ----------
    nbytes : int
        What is measured next can want so much.
    settled : bool
        Keep it until the host has taken the rest of what was freed before: now it would take this instead, of which it
        has none for two seconds.
    """
    nbytes = min(nbytes * 5 // 4, available() // 2)
    if nbytes >= _PAGE:
        small = min(_SMALL, nbytes // _PAGE) * _HUGE  # each has a page table of its own
        with _used(nbytes, _PAGE, "MADV_HUGEPAGE"), _used(small, _HUGE, "MADV_NOHUGEPAGE"):
            if settled and nbytes >= _MUCH:
                _let_host_take()


@contextmanager
def _used(nbytes: int, step: int, advice: str) -> Iterator[None]:
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE) as memory:
        if hasattr(mmap, advice):
            memory.madvise(getattr(mmap, advice))
        memory[::step] = bytes(len(range(0, nbytes, step)))
        yield


def _let_host_take() -> None:
    """Wait until the kernel has offered its host what is free, if it says when it does."""
    with suppress(OSError):
        before, end = _PASSES.read_bytes(), time.monotonic() + _OFFERS
        while time.monotonic() < end and _PASSES.read_bytes() == before:
            time.sleep(0.01)


def files_under(path: Path) -> list[Path]:
    """Give a file itself, or all files in a folder."""
    if not path.is_dir():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def resident(path: Path) -> float:
    """Say which part of a file's or folder's bytes is in the page cache; of many files some are asked."""
    files = files_under(path)
    held = total = 0
    for file in files[:: len(files) // _SAMPLE + 1 | 1]:  # an odd step, or of pairs of files only one kind were asked
        pages, of = _resident_pages(file)
        held, total = held + pages, total + of
    return held / total if total else 0.0


def _resident_pages(file: Path) -> tuple[int, int]:
    size = file.stat().st_size
    if not size:
        return 0, 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        pages = -(-size // _PAGE)
        states = (ctypes.c_ubyte * pages)()
        first = ctypes.c_char.from_buffer(mapped)
        status = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), states)
        del first  # or the map could not be closed
        if status:
            raise OSError(ctypes.get_errno(), "mincore", str(file))
        return pages - bytes(states).count(0), pages


def evict(path: Path) -> None:
    """Write a file or folder back and drop it from the page cache. What is mapped or was not written stays."""
    sync_tree(path)
    for file in files_under(path):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    """Bring a file or folder into the page cache by reading it."""
    buffer = bytearray(1 << 20)
    for file in files_under(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def sync_tree(path: Path) -> None:
    """Make a file or folder durable, and its name: what a careful program does after a library has written."""
    files = files_under(path)
    if len(files) > _SYNC_EACH:
        _with_descriptor(path, _sync_file_system)
        return
    folders = [Path(folder) for folder, _, _ in os.walk(path)]  # none when it is a file
    for each in (*files, *folders, path.parent):
        _with_descriptor(each, os.fsync)


def _sync_file_system(fd: int) -> None:
    if _LIBC.syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


def _with_descriptor(path: Path, act: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        act(fd)
    finally:
        os.close(fd)
