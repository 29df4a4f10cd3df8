"""The content of ``snapshot_done``: nothing for a flat dict of tensors, else one line of JSON and perhaps an index.

    {"format":"fastckpt","version":1,"count":2,"object":{…},"index":[411,512,8192],"table":"…","self":"…"}\\n
    [["epoch.weight","shape {\\n…",4096,0],…]\\n
    (zeros up to the next multiple of 64)
    (copies of the small blobs, each at a multiple of 64)

``index`` gives the length of the second line, where the copies begin, and the length of the whole file; ``table`` is
the digest of the second line, and ``self`` the seal of the first. An entry is the folder, the text of its ``meta``, the
bytes of its ``out``, and where its copy lies behind the beginning of the copies, or null. Anything that does not begin
as the first line does was put there by others and means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastckpt.digests import crc32, digest_text
from fastckpt.errors import CorruptError, FormatError, UnsupportedError
from fastckpt.metatext import json_text
from fastckpt.seals import has_intact_seal, refuse_unsealed, sealed
from fastckpt.texts import found

__all__ = [
    "ALIGN",
    "LINE_LIMIT",
    "PREFIX",
    "SMALL",
    "IndexEntry",
    "Marker",
    "format_marker",
    "is_nearly_ours",
    "parse_index",
    "parse_marker",
]

VERSION = 1
ALIGN = 64  # bytes: what every dtype and every vector unit is content with
SMALL = 16384  # bytes: blobs up to here are copied into an index
LINE_LIMIT = 256 << 20  # bytes of one line: it is read as a whole
PREFIX = b'{"format":"fastckpt",'
_FIELDS = frozenset({"format", "version", "count", "object", "index", "table", "self"})
_DAMAGED = 4  # bytes of the prefix in which a marker of ours may differ from it, at most


class IndexEntry(NamedTuple):
    """One tensor in the index; `copy_at` is None where its blob is not copied."""

    folder: str
    meta: bytes
    nbytes: int
    copy_at: int | None


@dataclass(frozen=True, slots=True)
class Marker:
    """What the first line of ``snapshot_done`` says; all None for a flat snapshot without an index.

    Attributes
    ----------
    count : int or None
        Number of tensors.
    record : JSON or None
        The nested object (`fastckpt.tree`); None where the metas say everything, and for a saved None.
    index : tuple of int or None
        Bytes of the table, where the copies begin, bytes of the whole file.
    nested : bool
        There is a record.
    table_at : int
        Bytes of the first line: where the table begins, if there is one.
    table : str or None
        Digest of the table.
    foreign : bool
        The file has content that is not ours.
    """

    count: int | None = None
    record: Any = None
    index: tuple[int, int, int] | None = None
    nested: bool = False
    table_at: int = 0
    table: str | None = None
    foreign: bool = False


def format_marker(entries: Sequence[IndexEntry], record: str | None = None, *, seal: bool = True) -> bytes:
    """Give the text before the copies, padded.

    Parameters
    ----------
    entries : sequence of IndexEntry
        All tensors.
    record : str, optional
        The nested object, as ``metatext.json_text`` says it; None for a flat one.
    seal : bool
        Whether a bit that flips shall be noticed.

    Raises
    ------
    UnsupportedError
        The object holds more plain values than a line may.
    """
    head = b'%b"version":%d,"count":%d' % (PREFIX, VERSION, len(entries))
    if record is not None:
        head += b',"object":%b' % record.encode("ascii")
    rows = [[e.folder, e.meta.decode("ascii"), e.nbytes, e.copy_at] for e in entries]
    table = b"%b\n" % json_text(rows).encode("ascii")
    digest = b',"table":"%b"' % digest_text(crc32(table)).encode("ascii") if seal else b""
    copies = max((e.copy_at + _aligned(e.nbytes) for e in entries if e.copy_at is not None), default=0)
    copies_at, line = 0, b""
    for _ in range(3):  # the head holds its own length: two rounds settle it
        line = b'%b,"index":[%d,%d,%d]%b}\n' % (head, len(table), copies_at, copies_at + copies, digest)
        line = sealed(line) if seal else line
        copies_at = _aligned(len(line) + len(table))
    text = line + table
    if len(text) > LINE_LIMIT:
        raise UnsupportedError(
            f"the object's names and plain values take {len(text) >> 20} MiB as JSON, more than {LINE_LIMIT >> 20}; "
            "keep long histories and bytes as tensors"
        )
    return text + bytes(copies_at - len(text))


def parse_marker(line: bytes, size: int, where: str) -> Marker:
    """Read the first line of a marker of `size` bytes; a line of others gives an empty Marker.

    Raises
    ------
    FormatError
        The line is ours and cannot be understood.
    CorruptError
        The file was cut off, or has grown.
    """
    if not line.startswith(PREFIX):
        return Marker(foreign=True)
    if not line.endswith(b"\n"):
        raise CorruptError(f"{where}: the first line has no end; the file was cut off, load an earlier snapshot")
    is_sealed = has_intact_seal(line, where)
    head = _json(line, where)
    if head.get("version") != VERSION:
        raise FormatError(
            f"{where}: version {_shown(head.get('version'))}, this fastckpt reads {VERSION}; install a newer one"
        )
    count, index = head.get("count"), head.get("index")
    if type(count) is not int or count < 0:
        raise FormatError(f"{where}: count must be a number >= 0, found {_shown(count)}")
    if index is not None and not _are_lengths(index):
        raise FormatError(f"{where}: index must be three numbers >= 0, found {_shown(index)}")
    refuse_unsealed(() if is_sealed else head.keys() - _FIELDS, where)
    wanted = len(line) if index is None else index[2]
    if size != wanted:
        raise CorruptError(f"{where}: wants {wanted} bytes, file has {size}; load an earlier snapshot")
    lengths = None if index is None else (index[0], index[1], index[2])
    return Marker(count, head.get("object"), lengths, "object" in head, len(line), head.get("table"))


def is_nearly_ours(head: bytes) -> bool:
    """Tell whether the first bytes of a marker are those of a damaged one of ours: nearly the same, or cut."""
    wrong = sum(one != other for one, other in zip(head, PREFIX, strict=False))
    return wrong <= _DAMAGED and head != PREFIX and (len(head) == len(PREFIX) or not wrong)


def parse_index(table: bytes, where: str) -> list[IndexEntry]:
    """Read the second line of a marker.

    Raises
    ------
    FormatError
        It is no table, names a folder twice, or has copies that overlap or are not aligned.
    """
    try:
        entries = [IndexEntry(f, m.encode("ascii"), n, c) for f, m, n, c in json.loads(table)]
    except (ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise FormatError(f"{where}: the index cannot be read: {problem}") from problem
    free = 0  # where the next copy may begin
    for entry in entries:
        folder, _, nbytes, at = entry
        numbers = type(nbytes) is int and nbytes >= 0 and (at is None or (type(at) is int and at >= free))
        if type(folder) is not str or not numbers or (at or 0) % ALIGN:
            raise FormatError(f"{where}: the index has an entry that cannot be: that of {_shown(folder)}")
        free = free if at is None else at + nbytes
    if len({entry.folder for entry in entries}) < len(entries):
        raise FormatError(f"{where}: the index names a folder twice")
    return entries


def _shown(value: Any) -> str:
    return str(value) if type(value) is int and abs(value) < 2**64 else found(value)


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and n >= 0 for n in value)


def _json(line: bytes, where: str) -> dict[str, Any]:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where}: the first line is no JSON: {problem}") from problem
    assert isinstance(head, dict), "a line that begins with { is an object"
    return head


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN
