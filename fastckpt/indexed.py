"""The index of a snapshot: one file with all metas and all small blobs, read or mapped as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import FormatError
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import DONE
from fastckpt.marker import LINE_LIMIT, Marker, parse_index
from fastckpt.meta import Meta

__all__ = ["read_index"]


def read_index(fd: int, path: str, marker: Marker) -> tuple[dict[str, Meta], dict[str, _core.Mapping]]:
    """Give all metas, and the copies of the small blobs, by folder.

    Parameters
    ----------
    fd : int
        Descriptor of the snapshot.
    path : str
        Its folder, for errors.
    marker : Marker
        Its marker, which has an index.

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
    try:
        memory = _whole(fd, size)
    except _core.SizeChanged as change:
        raise FormatError(f"{where}: {change}") from None
    table = bytes(memoryview(memory)[marker.table_at : marker.table_at + min(table_length, LINE_LIMIT)])
    metas: dict[str, Meta] = {}
    copies: dict[str, _core.Mapping] = {}
    for folder, meta, nbytes, copy_at in _rows(table, where):
        metas[folder] = meta
        if copy_at is not None:
            if copies_at + copy_at + nbytes > size:
                raise FormatError(f"{where}: the copy of {folder!r} lies behind the end of the file")
            copies[folder] = memory.part(copies_at + copy_at, nbytes)
    return metas, copies


def _rows(table: bytes, where: str) -> Iterator[tuple[str, Meta, int, int | None]]:
    """Give folder, meta, bytes, and where its copy lies, of each tensor."""
    for folder, text, nbytes, copy_at in _core.parse_table(table, Meta, BY_NUMBER) or parse_index(table, where):
        meta = text if isinstance(text, Meta) else meta_file.parse(text, where)
        if meta is not text and meta.nbytes != nbytes:
            raise FormatError(f"{where}: the index gives {folder!r} {nbytes} bytes, its meta wants {meta.nbytes}")
        yield folder, meta, nbytes, copy_at


def _whole(fd: int, size: int) -> _core.Mapping:
    """Map the file; over a network read it."""
    if not filesystem_of(fd).remote:
        return _core.share_file(fd, DONE, size)
    (memory,) = _core.allocate([size])
    _core.read_into(fd, DONE, 0, memory, size=size)
    return memory
