"""A disk whose writes and flushes fail when told: one file behind /dev/fuse, to be made a loop device.

The kernel sends every write and every flush of the block device here. The image is mapped privately, so that each disk
begins with the same content; `KEEP` lets it change. The faults stand in a small shared file.

As a program: ``python -m faults.failing_disk FOLDER IMAGE FAULTS [keep]`` serves the file ``FOLDER/disk`` until the
folder is unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["FLUSHES", "WRITES", "Faults"]

WRITES, FLUSHES = 1, 2
_STATE = struct.Struct("=5q")  # what fails; from which on; how many; seen and failed so far
_IN, _OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_LARGEST = 1 << 20  # bytes of one write
# Numbers of <linux/fuse.h>.
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
_FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _FORGETS, _FALLOCATE = (
    *(20, 25, 26, 27, 29, 36, 38, 42, 43),
)
_BIG_WRITES, _MAX_PAGES, _DIRECT_IO = 1 << 5, 1 << 22, 1


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

    def fails(self, what: int) -> bool:
        wanted, first, many, seen, failed = _STATE.unpack_from(self._memory)
        if what != wanted:
            return False
        fails = first <= seen < first + many
        _STATE.pack_into(self._memory, 0, wanted, first, many, seen + 1, failed + fails)
        return fails

    @property
    def failed(self) -> int:
        """How many have failed."""
        return int(_STATE.unpack_from(self._memory)[4])


class Disk:
    """Answers the kernel's questions about a folder with one file in it."""

    def __init__(self, image: Path, faults: Faults, keep: bool) -> None:
        self.size = image.stat().st_size
        with image.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_WRITE if keep else mmap.ACCESS_COPY)
        self.faults = faults

    def serve(self, fd: int) -> None:
        buffer = bytearray(_LARGEST + 4096)
        while True:
            try:
                length = os.readv(fd, [buffer])
            except OSError as problem:
                if problem.errno == errno.ENODEV:  # unmounted
                    return
                if problem.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise
            _, what, unique, node, *_ = _IN.unpack_from(buffer)
            if what in (_FORGET, _FORGETS, _INTERRUPT):
                continue
            code, answer = self.answer(what, node, memoryview(buffer)[_IN.size : length])
            with suppress(FileNotFoundError):
                os.writev(fd, [_OUT.pack(_OUT.size + len(answer), -code, unique), answer])

    def answer(self, what: int, node: int, body: memoryview) -> tuple[int, bytes | memoryview]:
        """Give an error, and what else the kernel wants to know."""
        if what == _READ:
            _, at, count = struct.unpack_from("=QQI", body)
            return 0, memoryview(self.memory)[at : at + count]
        if what == _WRITE:
            _, at, count = struct.unpack_from("=QQI", body)
            if self.faults.fails(WRITES):
                return errno.EIO, b""
            self.memory[at : at + count] = body[40 : 40 + count]
            return 0, struct.pack("=II", count, 0)
        if what == _FSYNC:
            return errno.EIO if self.faults.fails(FLUSHES) else 0, b""
        if what in (_FLUSH, _RELEASE, _RELEASEDIR, _DESTROY):
            return 0, b""
        return self.described(what, node, body)

    def described(self, what: int, node: int, body: memoryview) -> tuple[int, bytes]:
        """Answer what is asked about the file and its folder."""
        if what == _INIT:
            (ahead,) = struct.unpack_from("=I", body, 8)
            flags = _BIG_WRITES | _MAX_PAGES
            return 0, struct.pack("=4I2H2I2H8I", 7, 31, ahead, flags, 64, 48, _LARGEST, 1, 256, 0, *[0] * 8)
        if what == _LOOKUP:
            known = node == 1 and bytes(body).rstrip(b"\0") == b"disk"
            return (
                (0, struct.pack("=4Q2I", 2, 0, 999, 999, 0, 0) + self.attributes(2)) if known else (errno.ENOENT, b"")
            )
        if what in (_GETATTR, _SETATTR):
            return 0, struct.pack("=Q2I", 999, 0, 0) + self.attributes(node)
        if what in (_OPEN, _OPENDIR):
            return 0, struct.pack("=Q2I", 1, _DIRECT_IO if what == _OPEN else 0, 0)
        if what == _STATFS:
            return 0, struct.pack("=5Q4I24x", self.size // 4096, 0, 0, 2, 0, 4096, 255, 4096, 0)
        return (errno.EOPNOTSUPP if what == _FALLOCATE else errno.ENOSYS), b""

    def attributes(self, node: int) -> bytes:
        folder = node == 1
        size, mode = (4096, 0o40755) if folder else (self.size, 0o100600)
        return _ATTRIBUTES.pack(node, size, size // 512, *[0] * 6, mode, 1 + folder, 0, 0, 0, 4096, 0)


def main(point: str, image: str, faults: str, *keep: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,max_read={_LARGEST}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"failing", os.fsencode(point), b"fuse", ctypes.c_ulong(0), options) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    Disk(Path(image), Faults(Path(faults)), bool(keep)).serve(fd)


if __name__ == "__main__":
    main(*sys.argv[1:])
