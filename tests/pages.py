"""What of a file is in the page cache; and out with it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest


def resident(file: Path) -> int:
    """Bytes of a file that are in memory."""
    size = file.stat().st_size
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        address = np.frombuffer(view, np.uint8).ctypes.data
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def evict(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(file):
        pytest.skip("this file system does not let go of what it has read, or has read itself")


def maps_of(path: Path) -> int:
    """How many maps this process has of files below a folder."""
    return Path("/proc/self/maps").read_text().count(f" {path}")
