"""A disk whose writes and flushes fail when told.

The image is mapped privately, so that each disk begins with the same content; `keep` lets it change. The faults stand
in a small shared file.

As a program: ``python -m faults.failing_disk FOLDER IMAGE FAULTS [keep]`` serves the file ``FOLDER/disk`` until the
folder is unmounted.
"""

from __future__ import annotations

import errno
import mmap
import struct
import sys
from pathlib import Path

from faults.served_file import ServedFile, serve

__all__ = ["FLUSHES", "WRITES", "Faults"]

WRITES, FLUSHES = 1, 2
_STATE = struct.Struct("=5q")  # what fails; from which on; how many; seen and failed so far


class Faults:
    """What is to fail: shared between the disk and whoever tells it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_STATE.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _STATE.size)

    def set(self, what: int, first: int, many: int) -> None:
        """From now on the writes or flushes from number `first` on fail, so many of them."""
        _STATE.pack_into(self._memory, 0, what, first, many, 0, 0)

    def meet(self, what: int) -> None:
        """Count a write or a flush, and fail if its turn has come."""
        wanted, first, many, seen, failed = _STATE.unpack_from(self._memory)
        if what != wanted:
            return
        fails = first <= seen < first + many
        _STATE.pack_into(self._memory, 0, wanted, first, many, seen + 1, failed + fails)
        if fails:
            raise OSError(errno.EIO, "told to fail")

    @property
    def failed(self) -> int:
        """How many have failed."""
        return int(_STATE.unpack_from(self._memory)[4])


class _Disk(ServedFile):
    def __init__(self, image: Path, faults: Faults, *, keep: bool) -> None:
        super().__init__(image, keep=keep)
        self.faults = faults

    def write(self, at: int, data: bytes) -> None:
        self.faults.meet(WRITES)
        super().write(at, data)

    def flush(self) -> None:
        self.faults.meet(FLUSHES)


if __name__ == "__main__":
    serve(_Disk(Path(sys.argv[2]), Faults(Path(sys.argv[3])), keep=sys.argv[4:] == ["keep"]), sys.argv[1])
