"""One file, served through /dev/fuse for a loop device to stand on: what is done with its reads, writes and flushes is
up to who serves it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path

__all__ = ["NAME", "ServedFile", "serve"]

NAME = "disk"
_ROOT, _FILE = 1, 2
_IN, _OUT, _ATTRIBUTES = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ"), struct.Struct("=6Q10I")
_LARGEST = 1 << 20  # bytes of one write
_FOR_EVER = 3600
# Numbers of <linux/fuse.h>.
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
_FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _FORGETS = 20, 25, 26, 27, 29, 36, 38, 42
_BIG_WRITES, _MAX_PAGES, _PAST_THE_CACHE = 1 << 5, 1 << 22, 1


class ServedFile:
    """What to do when the file is read, written or flushed; who raises an OSError gives that for an answer.

    Parameters
    ----------
    image : Path
        What it begins with.
    keep : bool
        Write what is written into the image.
    """

    def __init__(self, image: Path, *, keep: bool) -> None:
        with image.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if keep else mmap.ACCESS_COPY)

    def read(self, at: int, count: int) -> bytes:
        return self.memory[at : at + count]

    def write(self, at: int, data: bytes) -> None:
        self.memory[at : at + len(data)] = data

    def flush(self) -> None:
        """All that was written is to be durable."""

    def asked(self, name: str) -> None:
        """Somebody looked for another file beside it, which is not there: a way to tell the server something."""


def serve(file: ServedFile, point: str) -> None:
    """Mount a folder that holds the file, and answer the kernel until it is unmounted."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,max_read={_LARGEST}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(NAME.encode(), os.fsencode(point), b"fuse", ctypes.c_ulong(0), options) < 0:
        raise OSError(ctypes.get_errno(), "mount", point)
    room = bytearray(_LARGEST + 4096)
    while length := _request(fuse, room):
        _, what, unique, node, *_ = _IN.unpack_from(room)
        if what in (_FORGET, _FORGETS, _INTERRUPT):
            continue
        try:
            code, answer = 0, _answer(file, what, node, memoryview(room)[_IN.size : length])
        except OSError as problem:
            code, answer = problem.errno or errno.EIO, b""
        with suppress(FileNotFoundError):  # who asked is gone
            os.writev(fuse, [_OUT.pack(_OUT.size + len(answer), -code, unique), answer])


def _request(fuse: int, room: bytearray) -> int:
    """Wait for one; its length, or 0 when the folder is unmounted."""
    while True:
        try:
            return os.readv(fuse, [room])
        except OSError as problem:
            if problem.errno == errno.ENODEV:
                return 0
            if problem.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                raise


def _answer(file: ServedFile, what: int, node: int, body: memoryview) -> bytes:
    if what in (_READ, _WRITE):
        _, at, count = struct.unpack_from("=QQI", body)
        if what == _READ:
            return file.read(at, count)
        file.write(at, bytes(body[40 : 40 + count]))
        return struct.pack("=2I", count, 0)
    if what == _FSYNC:
        file.flush()
    if what in (_FSYNC, _FLUSH, _RELEASE, _RELEASEDIR, _DESTROY):
        return b""
    if what == _LOOKUP and (name := bytes(body).rstrip(b"\0").decode()) != NAME:
        file.asked(name)
        raise FileNotFoundError(errno.ENOENT, name)
    return _described(what, node, body, len(file.memory))


def _described(what: int, node: int, body: memoryview, size: int) -> bytes:
    """Answer what is asked about the file and its folder."""
    if what == _INIT:
        (ahead,) = struct.unpack_from("=I", body, 8)
        limits = (64, 48, _LARGEST, 1, _LARGEST // mmap.PAGESIZE, 0)
        return struct.pack("=4I2H2I2H8I", 7, 31, ahead, _BIG_WRITES | _MAX_PAGES, *limits, *[0] * 8)
    if what == _LOOKUP:
        return struct.pack("=4Q2I", _FILE, 0, _FOR_EVER, _FOR_EVER, 0, 0) + _attributes(_FILE, size)
    if what in (_GETATTR, _SETATTR):
        return struct.pack("=Q2I", _FOR_EVER, 0, 0) + _attributes(node, size)
    if what in (_OPEN, _OPENDIR):
        return struct.pack("=Q2I", 1, _PAST_THE_CACHE if what == _OPEN else 0, 0)
    if what == _STATFS:
        return struct.pack("=5Q4I24x", size // 4096, 0, 0, 2, 0, 4096, 255, 4096, 0)
    raise OSError(errno.ENOSYS, "not served")


def _attributes(node: int, size: int) -> bytes:
    size, mode, links = (4096, 0o40755, 2) if node == _ROOT else (size, 0o100600, 1)
    return _ATTRIBUTES.pack(node, size, -(-size // 512), *[0] * 6, mode, links, 0, 0, 0, 4096, 0)
