"""The benchmark's own folder: what it wrote there, and how it makes room.

ext4 steps over inodes that were just freed, and whoever creates files after a deletion pays for it. So nothing is
deleted before the end: what has to make room is emptied, and keeps its names; the rest leaves the page cache only.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from fastckpt.bench.measuring import files_under

__all__ = ["Room"]

_NAME = 4096  # bytes that a folder takes also when its files are empty


class Room:
    """A fresh folder with so many bytes to use; deleted when left."""

    def __init__(self, folder: Path, space: int | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fastckpt-bench-", dir=folder))
        self._left = shutil.disk_usage(folder).free * 4 // 5 if space is None else space
        self._space = self._left
        self._written: dict[Path, int] = {}

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *problem: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def check(self, nbytes: int, what: str) -> None:
        """Refuse what does not fit, before it is begun."""
        if nbytes > self._space:
            reason = f"{what} needs {nbytes / 1e9:.1f} GB here, and {self._space / 1e9:.1f} GB may be used"
            raise OSError(errno.ENOSPC, f"{reason} (of what is free 80 %, or --space)", str(self.path.parent))

    def take(self, path: Path, nbytes: int, keep: set[Path]) -> None:
        """Count what will be written; empty the oldest that nobody needs when there is no room else."""
        short = nbytes > self._left
        for old in [old for old in self._written if old not in keep]:
            if self._left >= nbytes:
                break
            self._left += self._written.pop(old) - _emptied(old)
        if short:
            os.sync()  # so that nobody pays for what this has left to write
        self._written[path] = nbytes
        self._left -= nbytes


def _emptied(path: Path) -> int:
    """Make a file, or all files in a folder, empty; give the bytes that the rest takes."""
    for file in files_under(path) if path.exists() else ():
        os.truncate(file, 0)
    return _NAME * sum(1 for _ in os.walk(path))  # none when it is a file
