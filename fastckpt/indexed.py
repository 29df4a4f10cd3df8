"""The index of a snapshot: one file with all metas and all small blobs, read or mapped as a whole."""

from __future__ import annotations

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.errors import FormatError
from fastckpt.layout import DONE
from fastckpt.marker import ALIGN, LINE_LIMIT, Marker, parse_index
from fastckpt.meta import Meta

__all__ = ["read_index"]


def read_index(fd: int, path: str, marker: Marker, *, mapped: bool) -> tuple[dict[str, Meta], dict[str, _core.Mapping]]:
    """Give all metas, and the copies of the small blobs, by folder.

    Parameters
    ----------
    fd : int
        Descriptor of the snapshot.
    path : str
        Its folder, for errors.
    marker : Marker
        Its marker, which has an index.
    mapped : bool
        False: no copies, which are parts of a map of the file.

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
    table_length, copies_at, size = marker.index
    where = f"{path}/{DONE}"
    table = bytearray(max(0, min(table_length, LINE_LIMIT, size - marker.table_at)))
    try:
        _core.read_into(fd, DONE, marker.table_at, table, size=size)
        memory = _core.share_file(fd, DONE, size) if mapped else None
    except _core.SizeChanged as change:
        raise FormatError(f"{where}: {change}") from None
    metas: dict[str, Meta] = {}
    copies: dict[str, _core.Mapping] = {}
    for folder, text, nbytes, copy_at in parse_index(bytes(table), where):
        meta = metas[folder] = meta_file.parse(text, where)
        if meta.nbytes != nbytes:
            raise FormatError(f"{where}: the index gives {folder!r} {nbytes} bytes, its meta wants {meta.nbytes}")
        if copy_at is not None:
            if copies_at % ALIGN or copies_at + copy_at + nbytes > size:
                raise FormatError(f"{where}: the copy of {folder!r} lies where none can be")
            if memory is not None:
                copies[folder] = memory.part(copies_at + copy_at, nbytes)
    return metas, copies
