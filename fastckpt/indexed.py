"""The index of a snapshot: one file with all metas and all small blobs. The metas are read; the blobs are mapped, or
read when somebody asks for them."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.digests import crc32, digest_text
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import FormatError
from fastckpt.filesystems import filesystem_of
from fastckpt.layout import DONE
from fastckpt.marker import ALIGN, LINE_LIMIT, SMALL, Marker, parse_index
from fastckpt.meta import Meta

__all__ = ["Copies", "How", "Indexed", "MarkerReader", "read_index", "read_table"]

_PIECE = 1 << 20  # bytes
_PART = 4 << 20  # bytes that a thread reads at a time
_READERS = 8  # threads
_GAP = 16 << 10  # bytes that are read along, instead of asking once more

#: What of an index to take: all, mapped; the metas, and copies as they are asked for; the metas only.
How = Literal["map", "read", "table"]


class Copies:
    """Copies of small blobs that are not mapped: those that are asked for are read, then.

    Parameters
    ----------
    where : str
        Path of the marker, for errors.
    size : int
        Its bytes.
    places, sizes : dict of str to int
        Where in it the copies are, and their bytes, by folder.
    """

    def __init__(self, where: str, size: int, places: dict[str, int], sizes: dict[str, int]) -> None:
        self._where, self._size, self._places, self._sizes = where, size, places, sizes

    def read(
        self, fd: int, folders: Iterable[str] | None = None, threads: int | None = None
    ) -> dict[str, _core.Mapping]:
        """Give those that there are of some blobs, or of all, in memory of their own.

        Parameters
        ----------
        fd : int
            Descriptor of the snapshot.
        folders : iterable of str, optional
            Whose.
        threads : int, optional
            That read.

        Raises
        ------
        FormatError
            The marker has another size by now.
        OSError
            It cannot be read.
        """
        wanted = self._places if folders is None else {folder for folder in folders if folder in self._places}
        runs = [*self._runs(sorted(wanted, key=self._places.__getitem__))]
        memories = _core.allocate([max(1, end - begin) for _, begin, end in runs])  # parts want a byte to be parts of
        parts, found = [], dict[str, _core.Mapping]()
        for (places, begin, end), memory in zip(runs, memories, strict=True):
            for at in range(begin, end, _PART):
                room = memoryview(memory)[at - begin : min(at + _PART, end) - begin]
                parts.append((DONE, at, room, self._size, 0))
            found.update(memory.parts(places, self._sizes))
        with _told(self._where):
            _core.read_parts(fd, parts, threads=threads or _READERS)
        return found

    def _runs(self, folders: Iterable[str]) -> Iterator[tuple[dict[str, int], int, int]]:
        """Give those that lie together, as places in their run, and where it begins and ends."""
        run, begin, end = dict[str, int](), 0, 0
        for folder in folders:
            at = self._places[folder]
            if run and at > end + _GAP:
                yield run, begin, end
                run = {}
            if not run:
                begin = end = at
            run[folder] = at - begin
            end = max(end, at + self._sizes[folder])  # an empty one may lie where another begins
        if run:
            yield run, begin, end


class Indexed(NamedTuple):
    """What an index says, by folder.

    Attributes
    ----------
    metas : dict of str to Meta
        All of them.
    mapped : dict of str to Mapping
        The copies of the small blobs, if they are mapped; they are private, and may be changed.
    copies : Copies or None
        The same if they are not.
    sizes : dict of str to int
        Bytes of the blobs that are not copied; a tie has none.
    """

    metas: dict[str, Meta]
    mapped: dict[str, _core.Mapping]
    copies: Copies | None
    sizes: dict[str, int]


def read_index(fd: int, path: str, marker: Marker, how: How) -> Indexed:
    """Give all metas, the copies of the small blobs, and the sizes of those that are not copied.

    Parameters
    ----------
    fd : int
        Descriptor of the snapshot.
    path : str
        Its folder, for errors.
    marker : Marker
        Its marker, which has an index.
    how : {"map", "read", "table"}
        A map brings in what is touched only, but whoever makes the file shorter meanwhile kills who touches it: where
        that is asked for, and the system grants one. ``table``: no copies.

    Raises
    ------
    FormatError
        The index has changed since it was saved, or says what cannot be.
    OSError
        It cannot be read.
    """
    assert marker.index is not None, "the caller has seen it"
    where, (_, copies_at, size) = f"{path}/{DONE}", marker.index
    with _told(where):
        whole = _mapped(fd, size) if how == "map" and not filesystem_of(fd).remote else None
        metas, sizes, places = _rows(read_table(fd, where, marker), where)
        _check_places(places, sizes, marker, where)
    if how == "table" or size <= copies_at:
        return Indexed(metas, {}, None, sizes)
    rest = {folder: nbytes for folder, nbytes in sizes.items() if folder not in places}
    if whole is not None:
        return Indexed(metas, whole.part(copies_at, size - copies_at).parts(places, sizes), None, rest)
    if size - copies_at > len(metas) * (SMALL + ALIGN):  # a hole, perhaps: no memory for more than copies can be
        return Indexed(metas, {}, None, sizes)
    return Indexed(metas, {}, Copies(where, size, {f: copies_at + at for f, at in places.items()}, sizes), rest)


def _mapped(fd: int, size: int) -> _core.Mapping | None:
    """Map the marker; None where the process has as many maps as it may."""
    try:
        return _core.share_file(fd, DONE, size)
    except OSError as problem:
        if problem.errno != errno.ENOMEM:
            raise
        return None


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
