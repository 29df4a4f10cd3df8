"""A disk that notes every write and every flush: one file, served through /dev/fuse, for a loop device to stand on.

As a program it is the server: ``python -m faults.fuse_disk MOUNTPOINT IMAGE LOG``. Each line that it reads is a mark,
which it puts into the log behind all that it has answered before; it says so by a line of its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from faults.verdict import Skip

__all__ = ["FuseDisk", "Record", "records"]

_HEAD, _ANSWER, _RECORD = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ"), struct.Struct("<cQI")
_NAME, _ROOT, _DISK = b"disk", 1, 2
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 1, 2, 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET = (
    *(18, 20, 25, 26, 27, 29, 36, 38),
    42,
)
_LONGEST = 1 << 20
_ASYNC_READ, _BIG_WRITES, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 22
_PAST_THE_CACHE = 1  # FOPEN_DIRECT_IO
_FOR_EVER = 3600
_DETACH = 2


class Record(NamedTuple):
    """One line of the log: ``W``\\ rite, ``F``\\ lush or ``M``\\ ark."""

    kind: str
    at: int
    data: bytes


def records(log: Path) -> Iterator[Record]:
    text, place = log.read_bytes(), 0
    while place < len(text):
        kind, at, length = _RECORD.unpack_from(text, place)
        place += _RECORD.size
        yield Record(kind.decode(), at, text[place : place + length])
        place += length


class FuseDisk:
    """The server as a process, and the loop device over what it serves.

    Attributes
    ----------
    device : str
        The block device.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self.log = folder / "log"
        self._mount = folder / "fuse"
        self._mount.mkdir()
        command = [sys.executable, "-m", "faults.fuse_disk", str(self._mount), str(image), str(self.log)]
        places = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )
        self.device = ""
        try:
            if self._say("begin") != "begin":
                raise Skip("/dev/fuse cannot be mounted here")
            command = ["losetup", "--find", "--show", str(self._mount / os.fsdecode(_NAME))]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise Skip(f"no loop device: {made.stderr.strip()}")
            self.device = made.stdout.strip()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> FuseDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mark(self, text: str) -> None:
        """Note that something has happened; returns when it is in the log."""
        said = self._say(text)
        assert said == text, said

    def _say(self, text: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(text + "\n")
            self._server.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._server.stdout.readline().strip()

    def close(self) -> None:
        """Take the device and the server away; the log stays."""
        if self.device:
            subprocess.run(["losetup", "--detach", self.device], check=False)
            self.device = ""
        ctypes.CDLL(None).umount2(os.fsencode(self._mount), _DETACH)
        self._server.communicate(timeout=60)


# --- the server -------------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, image: str, log: BinaryIO) -> None:
        with open(image, "r+b") as file:
            self.disk = mmap.mmap(file.fileno(), 0)
        self.log = log
        self.busy = threading.Lock()

    def note(self, kind: bytes, at: int = 0, data: bytes = b"") -> None:
        self.log.write(_RECORD.pack(kind, at, len(data)) + data)

    def take_marks(self) -> None:
        for line in sys.stdin:
            with self.busy:
                self.note(b"M", 0, line.strip().encode())
                self.log.flush()
            print(line.strip(), flush=True)

    def attributes(self, node: int) -> bytes:
        folder = node == _ROOT
        size = 4096 if folder else len(self.disk)
        mode, links = (0o40755, 2) if folder else (0o100600, 1)
        return struct.pack("<6Q10I", node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)

    def answer(self, what: int, node: int, body: memoryview) -> bytes | int | None:
        """Give the answer to a request, an errno, or None where none is wanted."""
        if what == _INIT:
            _, minor, ahead, _ = struct.unpack_from("<4I", body)
            flags = _ASYNC_READ | _BIG_WRITES | _MAX_PAGES
            limits = (64, 48, _LONGEST, 1, _LONGEST // mmap.PAGESIZE, 0)
            return struct.pack("<4I2H2I2H8I", 7, min(minor, 31), ahead, flags, *limits, *[0] * 8)
        if what == _LOOKUP:
            if bytes(body).rstrip(b"\0") != _NAME:
                return errno.ENOENT
            return struct.pack("<4Q2I", _DISK, 0, _FOR_EVER, _FOR_EVER, 0, 0) + self.attributes(_DISK)
        if what in (_GETATTR, _SETATTR):
            return struct.pack("<Q2I", _FOR_EVER, 0, 0) + self.attributes(node)
        if what in (_OPEN, _OPENDIR):
            return struct.pack("<Q2I", 1, _PAST_THE_CACHE if what == _OPEN else 0, 0)
        if what in (_READ, _WRITE, _FSYNC, _FLUSH):
            return self.transfer(what, body)
        if what == _STATFS:
            return struct.pack("<5Q3I7I", len(self.disk) // 4096, 0, 0, 2, 0, 4096, 255, 4096, *[0] * 7)
        if what in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            return None
        return b"" if what in (_RELEASE, _RELEASEDIR, _DESTROY) else errno.ENOSYS

    def transfer(self, what: int, body: memoryview) -> bytes:
        if what == _FSYNC:
            self.note(b"F")
        if what in (_FSYNC, _FLUSH):
            return b""
        _, at, length = struct.unpack_from("<QQI", body)
        if what == _READ:
            return self.disk[at : at + length]
        data = bytes(body[40 : 40 + length])
        self.disk[at : at + length] = data
        self.note(b"W", at, data)
        return struct.pack("<2I", length, 0)

    def serve(self, fuse: int) -> None:
        room = bytearray(_LONGEST + 65536)
        while True:
            try:
                length = os.readv(fuse, [room])
            except OSError as problem:
                if problem.errno == errno.ENODEV:  # unmounted
                    return
                if problem.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise
            _, what, request, node, *_ = _HEAD.unpack_from(room)
            with self.busy:
                answer = self.answer(what, node, memoryview(room)[_HEAD.size : length])
            if answer is not None:
                code, data = (answer, b"") if isinstance(answer, int) else (0, answer)
                with suppress(FileNotFoundError):  # who asked is gone
                    os.writev(fuse, [_ANSWER.pack(_ANSWER.size + len(data), -code, request), data])


def main(mountpoint: str, image: str, log: str) -> None:
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_LONGEST}"
    if ctypes.CDLL(None, use_errno=True).mount(b"disk", mountpoint.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount", mountpoint)
    with open(log, "wb") as file:
        server = _Server(image, file)
        threading.Thread(target=server.take_marks, daemon=True).start()
        server.serve(fuse)
    os._exit(0)  # the other thread waits for a line


if __name__ == "__main__":
    main(*sys.argv[1:])
