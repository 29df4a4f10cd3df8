"""The bytes of a pickle: taken in order, in pieces, each length held against what is there; and what its numbers and
texts look like."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.picklenodes import Span

__all__ = ["LIMIT", "REFUSED", "Source", "number_of"]

LIMIT = 64 << 20  # bytes of a pickle besides those of its arrays and byte strings
_PIECE = 64 << 10  # bytes read at a time, or what one text takes
_INT_BYTES = 1024  # of one integer
_INT = re.compile(rb"-?[0-9]{1,2467}")  # as many digits as that many bytes can have
_FLOAT = re.compile(rb"[-+.0-9a-z]{1,40}")
_PROTOCOLS = 5

_OF_NO_DATA = "it is for objects whose class has its own way to be made; save a state dict and plain values"
_NOT_WRITTEN = "Python's pickler never writes it for data"
_OF_PYTHON_2 = "it holds a byte string of Python 2"

#: Opcodes that exist and are not read: their names, and why not.
REFUSED: dict[bytes, tuple[str, str]] = {
    b"i": ("INST", _OF_NO_DATA),
    b"o": ("OBJ", _OF_NO_DATA),
    b"\x92": ("NEWOBJ_EX", _OF_NO_DATA),
    b"P": ("PERSID", "it refers to something outside of the pickle"),
    b"Q": ("BINPERSID", "it refers to something outside of the pickle"),
    b"\x97": ("NEXT_BUFFER", "it refers to something outside of the pickle"),
    b"\x98": ("READONLY_BUFFER", "it refers to something outside of the pickle"),
    b"\x82": ("EXT1", "it stands for a class by a number of one program"),
    b"\x83": ("EXT2", "it stands for a class by a number of one program"),
    b"\x84": ("EXT4", "it stands for a class by a number of one program"),
    b"0": ("POP", "it is written for objects that contain themselves"),
    b"1": ("POP_MARK", "it is written for objects that contain themselves"),
    b"2": ("DUP", _NOT_WRITTEN),
    b"S": ("STRING", _OF_PYTHON_2),
    b"T": ("BINSTRING", _OF_PYTHON_2),
    b"U": ("SHORT_BINSTRING", _OF_PYTHON_2),
}


class Source:
    """The bytes of a pickle.

    Parameters
    ----------
    read : callable
        Gives exactly so many bytes from an offset on.
    size : int
        How many there are.
    where : str
        The file, for errors.

    Attributes
    ----------
    at : int
        Where the next byte stands.
    op_at : int
        Where the opcode stands that is being read, for errors.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, where: str) -> None:
        self.read = read
        self.size = size
        self.where = where
        self.at = self.op_at = 0
        self._piece, self._piece_at = b"", 0
        self._frame_end = 0
        self._skipped = 0

    def place(self) -> str:
        return f"{self.where}: byte {self.op_at:,}"

    def wrong(self, what: str) -> FormatError:
        """Say where something is that no pickler writes."""
        return FormatError(f"{self.place()}: {what}; it is damaged, or no pickle of data: take another copy")

    def take(self, count: int) -> bytes:
        """Give the next bytes."""
        end = self._end(count)
        begin = self._have(count)
        self.at = end
        return self._piece[begin : begin + count]

    def _have(self, count: int) -> int:
        """Read the next bytes unless that is done; tell where they begin in what was read."""
        at = self.at
        begin = at - self._piece_at
        if begin < 0 or begin + count > len(self._piece):
            if at + count - self._skipped > LIMIT:
                raise UnsupportedError(
                    f"{self.place()}: more than {LIMIT >> 20} MiB besides the bytes of arrays; keep long texts and "
                    "lists of numbers as tensors"
                )
            self._piece, self._piece_at, begin = self.read(at, min(max(count, _PIECE), self.size - at)), at, 0
        return begin

    def skip(self, width: int) -> Span:
        """Pass over bytes whose number is told first, in `width` bytes."""
        length = self.little(width)
        span = Span(self.at, length)
        self.at = self._end(length)
        self._skipped += length
        return span

    def _end(self, count: int) -> int:
        end = self.at + count
        if end > self.size:
            raise self.wrong(f"wants {count:,} bytes more, {self.size - self.at:,} are left")
        if self.at < self._frame_end < end:
            raise self.wrong("reaches over the end of its frame")
        return end

    def line(self, limit: int) -> bytes:
        """Give the next bytes up to a line's end, which is passed over."""
        found = bytearray()
        while len(found) <= limit:
            self._end(1)
            begin = self._have(1)
            stop = self._piece.find(b"\n", begin)
            part = self._piece[begin : len(self._piece) if stop < 0 else stop]
            self.at = self._end(len(part) + (stop >= 0))
            found += part
            if stop >= 0:
                break
        if len(found) > limit:
            raise self.wrong(f"a line of more than {limit:,} bytes")
        return bytes(found)

    def protocol(self) -> None:
        number = self.little(1)
        if self.op_at or number > _PROTOCOLS:
            raise self.wrong(f"wanted a protocol up to {_PROTOCOLS} at the beginning, found {number}")

    def frame(self) -> None:
        length = self.little(8)
        if self.at <= self._frame_end or length > self.size - self.at:
            raise self.wrong(f"a frame of {length:,} bytes does not fit here")
        self._frame_end = self.at + length

    def little(self, width: int, *, signed: bool = False) -> int:
        """Give an integer of so many bytes."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def integer(self, width: int) -> int:
        """Give an integer whose number of bytes is told first."""
        length = self.little(width)
        if length > _INT_BYTES:
            raise self.wrong(f"an integer of {length:,} bytes, wants at most {_INT_BYTES:,}")
        return self.little(length, signed=True)

    def text(self, width: int) -> str:
        """Give a text whose number of bytes is told first."""
        try:
            return self.take(self.little(width)).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.wrong("a text that is no UTF-8") from None

    def escaped(self) -> str:
        try:
            return codecs.raw_unicode_escape_decode(self.line(LIMIT))[0]  # decode() would import the codec
        except UnicodeDecodeError:
            raise self.wrong("a text with an escape that means nothing") from None

    def decimal(self) -> float:
        line = self.line(40)
        try:
            if _FLOAT.fullmatch(line):
                return float(line)
        except ValueError:
            pass
        raise self.wrong(f"wanted a number, found {line!r}")


def number_of(source: Source, booleans: bool = False) -> int:
    """Read an integer in decimal, with or without Python 2's ``L``; 00 and 01 are booleans in one opcode."""
    line = source.line(2500)
    if booleans and line in (b"00", b"01"):
        return line == b"01"
    digits = line.removesuffix(b"L")
    if not _INT.fullmatch(digits):
        raise source.wrong(f"wanted an integer, found {line[:80]!r}")
    return int(digits)
