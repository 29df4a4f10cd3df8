"""verify(): is the snapshot what was saved?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastckpt import _core, digests, tree
from fastckpt import meta as meta_file
from fastckpt.contents import Contents, reading
from fastckpt.entries import Entry
from fastckpt.errors import CheckpointError, CorruptError, FormatError, printable
from fastckpt.indexed import read_table
from fastckpt.layout import DONE, META, OUT
from fastckpt.marker import IndexEntry, parse_index

__all__ = ["Report", "check_blob", "verify"]

_PIECE = 16 << 20  # bytes read at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    tensors : int
        Number of tensors.
    nbytes : int
        Bytes of all tensors, ties counted once.
    digests : int
        How many tensors have a digest, and so had their bytes checked.
    problems : tuple of str
        What is wrong and what to do, each naming its file.
    """

    path: str
    tensors: int = 0
    nbytes: int = 0
    digests: int = 0
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok


def verify(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
    """Check a snapshot without loading it: structure, sizes, object, ties, index, digests, and that all can be read.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Returns
    -------
    Report
        True when nothing is wrong. Without a digest, bytes that changed but are of the right number go unnoticed.

    Raises
    ------
    FileNotFoundError, PermissionError
        The folder cannot be looked at.
    """
    try:
        return reading(path, lambda contents: _report(contents, progress or _no_progress), index="ignore")
    except _Unsound as unsound:
        return unsound.report
    except CheckpointError as problem:
        return Report(os.fspath(path), problems=(str(problem),))


class _Unsound(CheckpointError):
    """Problems were found: if a save replaced the snapshot meanwhile, they mean nothing, and it is read again."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report


def check_blob(contents: Contents, entry: Entry) -> None:
    """Compare a blob, read piece by piece, with the digest of its meta, if that has one; raise CorruptError."""
    if entry.meta.digest is not None:
        where = f"{contents.path}/{entry.blob}/{OUT}"
        digests.check(entry.meta.digest, _of_blob(contents, entry.blob, entry.meta.nbytes), where)


def _report(contents: Contents, progress: Progress) -> Report:
    blobs = {entry.blob: entry.meta for entry in contents.entries.values()}
    total = sum(meta.nbytes for meta in blobs.values())
    problems, done, checked = [*_object_problems(contents), *_index_problems(contents), *_tie_problems(contents)], 0, 0
    for blob, meta in blobs.items():
        where = f"{contents.path}/{blob}/{OUT}"
        try:
            pieces = _of_blob(contents, blob, meta.nbytes)
            if meta.digest is None:
                for _ in pieces:
                    pass
            else:
                checked += 1
                digests.check(meta.digest, pieces, where)
        except (CheckpointError, OSError) as problem:
            problems.append(str(problem))
        done += meta.nbytes
        progress(done, total)
    report = Report(contents.path, len(contents.entries), total, checked, tuple(map(printable, problems)))
    if problems:
        raise _Unsound(report)
    return report


def _of_blob(contents: Contents, blob: str, nbytes: int) -> Iterator[Any]:
    path, begin, size = contents.part(blob, nbytes)
    return _pieces(contents, path, nbytes, begin, size)


def _pieces(contents: Contents, name: str, nbytes: int, begin: int = 0, size: int | None = None) -> Iterator[Any]:
    """Give some bytes of a file, by default all; a piece is good until the next one is asked for."""
    buffer = np.empty(min(nbytes, _PIECE), np.uint8)
    where = os.path.join(contents.folder, name)
    for at in range(0, nbytes, _PIECE):
        piece = buffer[: min(_PIECE, nbytes - at)]
        try:
            _core.read_into(contents.fd, name, begin + at, piece, size=nbytes if size is None else size)
        except _core.SizeChanged as change:
            raise CorruptError(f"{where}: had another size a moment ago ({change}); verify it again") from None
        except OSError as problem:
            problem.filename = where
            raise
        yield piece


def _object_problems(contents: Contents) -> Iterator[str]:
    """Hold the record of the object against the tensors."""
    named: list[str] = []
    first = next(iter(contents.entries.values()), None)
    nested = contents.marker.nested
    container = {"dict": []} if first is None or first.meta.container is None else first.meta.container
    where = contents.source if nested or first is None else f"{contents.path}/{first.folder}/{META}"
    try:
        value = tree.describe(
            contents.marker.record if nested else container, lambda key, _: named.append(key), where=where
        )
    except CheckpointError as problem:
        yield str(problem)
        return
    if not nested and value != {}:
        yield f"{where}: the container of a flat snapshot must be an empty dict; save the snapshot anew"
    for key in sorted(contents.entries.keys() ^ set(named)) if nested else ():
        yield f"{where}: the object and the folders differ in the tensor {key!r}; load an earlier snapshot"


def _tie_problems(contents: Contents) -> Iterator[str]:
    """A tie that a copy has torn apart is two files, and other readers read both."""
    for entry in contents.entries.values():
        if entry.blob == entry.folder or _is_one_file(contents, entry):
            continue
        pieces = (_of_blob(contents, folder, entry.meta.nbytes) for folder in (entry.folder, entry.blob))
        if not all(np.array_equal(own, other) for own, other in zip(*pieces, strict=True)):
            where = f"{contents.path}/{entry.folder}/{OUT}"
            yield f"{where}: differs from {entry.blob!r}/{OUT}, which it is tied to; load an earlier snapshot"


def _is_one_file(contents: Contents, entry: Entry) -> bool:
    own, other = (os.stat(f"{folder}/{OUT}", dir_fd=contents.fd) for folder in (entry.folder, entry.blob))
    return os.path.samestat(own, other)


def _index_problems(contents: Contents) -> Iterator[str]:
    """Hold the index against the folders, which are the truth."""
    marker = contents.marker
    if marker.index is None:
        return
    where = f"{contents.path}/{DONE}"
    try:
        table = read_table(contents.fd, where, marker)
        index = {entry.folder: (entry, meta_file.parse(entry.meta, where)) for entry in parse_index(table, where)}
    except FormatError as problem:
        yield str(problem)
        return
    for entry in contents.entries.values():
        copy, meta = index.pop(entry.folder, (None, None))
        if copy is None or meta != entry.meta or copy.nbytes != entry.meta.nbytes:
            yield f"{where}: the index differs from {entry.folder!r}/{META}; save the snapshot anew"
        elif not _same_copy(contents, copy, marker.index):
            yield f"{where}: the copy of {entry.folder!r}/{OUT} differs from it; save the snapshot anew"
    if index:
        yield f"{where}: the index names {next(iter(index))!r}, which has no folder; save the snapshot anew"


def _same_copy(contents: Contents, copy: IndexEntry, index: tuple[int, int, int]) -> bool:
    _, copies_at, size = index
    if copy.copy_at is None:
        return True
    at = copies_at + copy.copy_at
    if at + copy.nbytes > size:
        return False
    pieces = _of_blob(contents, copy.folder, copy.nbytes)
    twins = _pieces(contents, DONE, copy.nbytes, at, size)
    return all(np.array_equal(piece, twin) for piece, twin in zip(pieces, twins, strict=True))


def _no_progress(done: int, total: int) -> None:
    """Nobody watches."""
