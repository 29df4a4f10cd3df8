"""A disk that notes every write and every flush.

As a program: ``python -m faults.noting_disk FOLDER IMAGE LOG`` serves the file ``FOLDER/disk`` until the folder is
unmounted. Whoever looks for another file there has its name put into the log, as a mark behind all that was answered
before.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from faults.served_file import ServedFile, serve

__all__ = ["Record", "records"]

_RECORD = struct.Struct("<cQI")


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


class _Disk(ServedFile):
    def __init__(self, image: Path, log: Path) -> None:
        super().__init__(image, keep=True)
        self.log = log.open("wb")

    def _note(self, kind: bytes, at: int = 0, data: bytes = b"") -> None:
        self.log.write(_RECORD.pack(kind, at, len(data)) + data)

    def write(self, at: int, data: bytes) -> None:
        super().write(at, data)
        self._note(b"W", at, data)

    def flush(self) -> None:
        self._note(b"F")

    def asked(self, name: str) -> None:
        self._note(b"M", 0, name.encode())
        self.log.flush()


if __name__ == "__main__":
    serve(_Disk(Path(sys.argv[2]), Path(sys.argv[3])), sys.argv[1])
