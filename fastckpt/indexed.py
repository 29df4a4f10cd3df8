"""The index of a snapshot: one file with all metas and all small blobs, read or mapped as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.digests import crc32, digest_text
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import FormatError
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import DONE
from fastckpt.marker import ALIGN, LINE_LIMIT, SMALL, Marker, parse_index
from fastckpt.meta import Meta

__all__ = ["How", "MarkerReader", "read_index", "read_table"]

_PIECE = 1 << 20  # bytes

#: What of an index to take: all, mapped; all, read into memory; the metas only.
How = Literal["map", "read", "table"]


def read_index(
    fd: int, path: str, marker: Marker, how: How
) -> tuple[dict[str, Meta], dict[str, _core.Mapping], dict[str, int]]:
    """Give all metas, the copies of the small blobs, and the sizes of those that are not copied, by folder.

    Parameters
    ----------
    fd : int
        Descriptor of the snapshot.
    path : str
        Its folder, for errors.
    marker : Marker
        Its marker, which has an index.
    how : {"map", "read", "table"}
        A map brings in what is touched only, but whoever makes the file shorter meanwhile kills who touches it.
        ``table``: no copies.

    Returns
    -------
    dict of str to Meta, dict of str to Mapping, dict of str to int
        The copies are private: they may be changed. Sizes are in bytes; a tie has none.

    Raises
    ------
    FormatError
        The index has changed since it was saved, or says what cannot be.
    OSError
        It cannot be read.
    """
    assert marker.index is not None, "the caller has seen it"
    where = f"{path}/{DONE}"
    with _told(where):
        whole = _core.share_file(fd, DONE, marker.index[2]) if how == "map" and not filesystem_of(fd).remote else None
        metas, sizes, places = _rows(read_table(fd, where, marker), where)
        _check_places(places, sizes, marker, where)
        copied = None if how == "table" else _copied(fd, marker, whole, len(metas))
    if copied is None:
        return metas, {}, sizes
    copies = copied.parts(places, sizes)
    if len(copies) == len(sizes):
        return metas, copies, {}
    return metas, copies, {folder: nbytes for folder, nbytes in sizes.items() if folder not in copies}


def _rows(table: bytes, where: str) -> tuple[dict[str, Meta], dict[str, int], dict[str, int]]:
    """Give the metas, the bytes of what is no tie, and where the copies lie, by folder."""
    metas, sizes, places, odd = _core.parse_table(table, Meta, BY_NUMBER) or _in_json(table, where)
    for folder in odd:
        meta = metas[folder] = meta_file.parse(metas[folder], where)
        if meta.nbytes != sizes[folder]:
            raise FormatError(
                f"{where}: the index gives {folder!r} {sizes[folder]} bytes, its meta wants {meta.nbytes}"
            )
        if meta.same_as is not None and folder not in places:
            del sizes[folder]
    return metas, sizes, places


def _in_json(table: bytes, where: str) -> tuple[dict[str, Any], dict[str, int], dict[str, int], list[str]]:
    """Give the same as ``_core.parse_table``, of a table in any spelling."""
    entries = parse_index(table, where)
    metas = {entry.folder: entry.meta for entry in entries}
    places = {entry.folder: entry.copy_at for entry in entries if entry.copy_at is not None}
    return metas, {entry.folder: entry.nbytes for entry in entries}, places, [*metas]


def _check_places(places: dict[str, int], sizes: dict[str, int], marker: Marker, where: str) -> None:
    """Refuse copies that lie outside the file; the last is the one that lies farthest behind."""
    assert marker.index is not None, "the caller has seen it"
    _, copies_at, size = marker.index
    last = next(reversed(places), None)
    if last is not None and (copies_at % ALIGN or copies_at + places[last] + sizes[last] > size):
        raise FormatError(f"{where}: the copy of {last!r} lies where none can be")


def _copied(fd: int, marker: Marker, whole: _core.Mapping | None, rows: int) -> _core.Mapping | None:
    """Give memory that has the copies: part of the map of the whole file, or read; None where there are none."""
    assert marker.index is not None, "the caller has seen it"
    _, at, size = marker.index
    if size <= at:
        return None
    if whole is not None:
        return whole.part(at, size - at)
    if size - at > rows * (SMALL + ALIGN):  # a hole, perhaps: memory is not taken for more than copies can be
        return None
    (memory,) = _core.allocate([size - at])
    _core.read_into(fd, DONE, at, memory, size=size)
    return memory


def read_table(fd: int, where: str, marker: Marker) -> bytes:
    """Give the second line of the marker `where`, in the open folder `fd`; it has the digest that the first names."""
    assert marker.index is not None, "the caller has seen it"
    table_length, _, size = marker.index
    table = bytearray(max(min(table_length, LINE_LIMIT, size - marker.table_at), 0))
    with _told(where):
        _core.read_into(fd, DONE, marker.table_at, table, size=size)
    if marker.table is not None and marker.table != digest_text(crc32(table)):
        raise FormatError(f"{where}: the index has changed since it was saved; save the snapshot anew")
    return bytes(table)


class MarkerReader:
    """Reads a marker from front to back, many of its copies at a time.

    Parameters
    ----------
    fd : int
        Descriptor of the snapshot.
    where : str
        Path of the marker, for errors.
    size : int
        Its bytes.
    """

    def __init__(self, fd: int, where: str, size: int) -> None:
        self._fd, self._where, self._size = fd, where, size
        self._room = memoryview(bytearray(min(size, _PIECE)))
        self._piece = self._room[:0]
        self._at = 0  # of the piece

    def pieces(self, at: int, end: int) -> Iterator[memoryview]:
        """Give the bytes between two places, in pieces, each of which is good until the next is asked for.

        Raises
        ------
        FormatError
            The file has another size.
        OSError
            It cannot be read.
        """
        while at < min(end, self._size):
            if not self._at <= at < self._at + len(self._piece):
                self._at, self._piece = at, self._room[: self._size - at]
                with _told(self._where):
                    _core.read_into(self._fd, DONE, at, self._piece, size=self._size)
            piece = self._piece[at - self._at : end - self._at]
            at += len(piece)
            yield piece


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Name the marker in errors of reading it."""
    try:
        yield
    except _core.SizeChanged as change:
        raise FormatError(f"{where}: {change}") from None
    except OSError as problem:
        problem.filename = where
        raise
