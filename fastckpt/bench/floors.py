"""The bare work under a load or a save: the files of a snapshot opened, or made once more, in C and in threads."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastckpt.bench.measuring import measured, touch_memory

__all__ = ["PRIVATE", "Floors", "plain_memory"]

_THREADS = (6, 12, 24)  # that wait for the device, besides as many as there are processors

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # what is shared gets no huge pages

_FUNCTIONS: dict[str, dict[str, list[Any]]] = {  # of C, which take this and give a size or a number of files
    "floor.c": {"floor_read": [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]},
    "save_floor.c": {
        "save_like": [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_bool],
        "save_write": [ctypes.c_char_p, ctypes.c_void_p],
    },
}


class Floors:
    """What C alone takes, built where it is first asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}  # by file of C
        self._threads: dict[int, int] = {}  # by the bytes of what was made durably

    def opened(self, path: Path, nbytes: int, threads: int, most: int) -> dict[str, Any]:
        """Open both files of every tensor of a snapshot; read what has at most so many bytes, and map the rest."""
        floor = self._library("floor", path.parent)
        touch_memory(nbytes)  # as much as a load has at hand
        found, files = measured(lambda: floor.floor_read(os.fsencode(path), threads, most))
        floor.floor_forget()
        if files % 2 or not files:
            raise RuntimeError(f"{files} files could be read: two a tensor were expected")
        return {**found, "bytes": nbytes, "depth": f"{threads} threads, {files:,} files"}

    def made(self, path: Path, nbytes: int, *, durable: bool) -> dict[str, Any]:
        """Make the folders and files of a snapshot once more, from unaligned memory that holds all of it: durably and
        past the page cache, with the best number of threads, or through it, with as many as there are processors."""
        processors = len(os.sched_getaffinity(0))
        if not durable:
            return self._made(path, nbytes, processors, durable=False)
        if nbytes not in self._threads:
            tried = {many: self._tried(path, nbytes, many) for many in dict.fromkeys((processors, *_THREADS))}
            self._threads[nbytes] = min(tried, key=lambda many: tried[many])
            os.sync()
        return self._made(path, nbytes, self._threads[nbytes], durable=True)

    def _tried(self, path: Path, nbytes: int, threads: int) -> float:
        os.sync()  # what the last one has emptied
        seconds: float = self._made(path, nbytes, threads, durable=True)["seconds"]
        return seconds

    def _made(self, path: Path, nbytes: int, threads: int, *, durable: bool) -> dict[str, Any]:
        """Make them in so many threads; afterwards they are emptied, and keep their names."""
        target = Path(tempfile.mkdtemp(prefix="files-", dir=path.parent))
        floor = self._library("save_floor", path.parent)
        try:
            size = floor.save_like(os.fsencode(path), threads, durable)
            source = plain_memory(max(1, size))
            touch_memory(nbytes, settled=True)  # as much as a save has at hand
            found, files = measured(lambda: floor.save_write(os.fsencode(target), source.ctypes.data))
        finally:
            floor.save_forget()
        made = [*target.glob("*/*")]
        for file in made:
            os.truncate(file, 0)
        if not files == len(made) == len([*path.glob("*/*")]):
            raise RuntimeError(f"{files} files could be written: two a tensor were expected")
        return {**found, "bytes": nbytes, "depth": f"{threads} threads, {files:,} files"}

    def _library(self, name: str, folder: Path) -> Any:
        if name not in self._built:
            self._built[name] = _built(f"{name}.c", folder / f"{name}.so")
        return self._built[name]


def plain_memory(size: int) -> Any:
    """Give touched memory of ordinary pages, as torch's allocator does; numpy's own would ask for huge ones."""
    memory = np.frombuffer(mmap.mmap(-1, size, flags=PRIVATE), np.uint8)
    memory[:] = 1
    return memory


def _built(source: str, library: Path) -> Any:
    """Build a file of C that lies beside this one."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("needs a C compiler (cc, or what CC names)")
    code = Path(__file__).with_name(source)
    command = [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(library), str(code)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    floor = ctypes.CDLL(str(library))
    for name, types in _FUNCTIONS[source].items():
        function = getattr(floor, name)
        function.argtypes, function.restype = types, ctypes.c_size_t
    return floor
