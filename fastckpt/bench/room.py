"""The benchmark's own folder: what it wrote there, and when that is deleted.

ext4 steps over inodes that were just freed, and whoever saves after a deletion pays for it. So nothing is deleted while
there is room, and what is many small files not before the end; what was written leaves the page cache instead.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["Room"]


class Room:
    """A fresh folder with so many bytes to use; deleted when left."""

    def __init__(self, folder: Path, space: int | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fastckpt-bench-", dir=folder))
        self._left = shutil.disk_usage(folder).free * 4 // 5 if space is None else space
        self._space = self._left
        self._written: dict[Path, int] = {}
        self._lasting: set[Path] = set()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *problem: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def check(self, nbytes: int, what: str) -> None:
        """Refuse what does not fit, before it is begun."""
        if nbytes > self._space:
            reason = f"{what} needs {nbytes / 1e9:.1f} GB here, and {self._space / 1e9:.1f} GB may be used"
            raise OSError(errno.ENOSPC, f"{reason} (of what is free 80 %, or --space)", str(self.path.parent))

    def lacks(self, nbytes: int) -> float:
        """Say how many gigabytes more there would have to be for so many, if nothing that lasts is deleted."""
        rest = self._left + sum(size for path, size in self._written.items() if path not in self._lasting)
        return max(0, nbytes - rest) / 1e9

    def take(self, path: Path, nbytes: int, keep: set[Path], lasting: bool = False) -> None:
        """Count what will be written; delete the oldest that nobody needs when there is no room else. What is `lasting`
        stays to the end."""
        short = nbytes - self._left
        self._lasting |= {path} if lasting else set()
        for old in [old for old in self._written if old not in keep | self._lasting]:
            if self._left >= nbytes:
                break
            self._delete(old)
        if short > 0:
            os.sync()  # so that nobody pays for what deleting has left to write
        self._written[path] = nbytes
        self._left -= nbytes

    def _delete(self, path: Path) -> None:
        self._left += self._written.pop(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
