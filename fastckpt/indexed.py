"""The index of a snapshot: one file with all metas and all small blobs, read or mapped as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import FormatError
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import DONE
from fastckpt.marker import ALIGN, LINE_LIMIT, SMALL, Marker, parse_index
from fastckpt.meta import Meta

__all__ = ["How", "read_index", "read_table"]


#: What of an index to take: all, mapped; all, read into memory; the metas only.
How = Literal["map", "read", "table"]


def read_index(fd: int, path: str, marker: Marker, how: How) -> tuple[dict[str, Meta], dict[str, _core.Mapping]]:
    """Give all metas, and the copies of the small blobs, by folder.

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
    dict of str to Meta, dict of str to Mapping
        The copies are private: they may be changed.

    Raises
    ------
    FormatError
        The index cannot be read, or says what cannot be.
    """
    assert marker.index is not None, "the caller has seen it"
    _, copies_at, size = marker.index
    where = f"{path}/{DONE}"
    try:
        whole = _core.share_file(fd, DONE, size) if how == "map" and not filesystem_of(fd).remote else None
        table = read_table(fd, where, marker)
        rows = [*_rows(table, where)]
        copied = None if how == "table" else _copied(fd, marker, whole, len(rows))
    except _core.SizeChanged as change:
        raise FormatError(f"{where}: {change}") from None
    metas: dict[str, Meta] = {}
    copies: dict[str, _core.Mapping] = {}
    for folder, meta, nbytes, copy_at in rows:
        metas[folder] = meta
        if copy_at is not None:
            if copies_at % ALIGN or copies_at + copy_at + nbytes > size:
                raise FormatError(f"{where}: the copy of {folder!r} lies where none can be")
            if copied is not None:
                copies[folder] = copied.part(copy_at, nbytes)
    if len(metas) < len(rows):
        raise FormatError(f"{where}: the index names a folder twice")
    return metas, copies


def _rows(table: bytes, where: str) -> Iterator[tuple[str, Meta, int, int | None]]:
    """Give folder, meta, bytes, and where its copy lies, of each tensor."""
    for folder, text, nbytes, copy_at in _core.parse_table(table, Meta, BY_NUMBER) or parse_index(table, where):
        meta = text if isinstance(text, Meta) else meta_file.parse(text, where)
        if meta is not text and meta.nbytes != nbytes:
            raise FormatError(f"{where}: the index gives {folder!r} {nbytes} bytes, its meta wants {meta.nbytes}")
        yield folder, meta, nbytes, copy_at


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
    """Give the second line of the marker `where`, in the open folder `fd`."""
    assert marker.index is not None, "the caller has seen it"
    table_length, _, size = marker.index
    table = bytearray(max(min(table_length, LINE_LIMIT, size - marker.table_at), 0))
    try:
        _core.read_into(fd, DONE, marker.table_at, table, size=size)
    except _core.SizeChanged as change:
        raise FormatError(f"{where}: {change}") from None
    return bytes(table)
