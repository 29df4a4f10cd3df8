"""verify(): is the snapshot what was saved?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastckpt import meta as meta_file
from fastckpt import tree
from fastckpt.checking import Found, Progress, crcs, problem_with
from fastckpt.contents import Contents, Entry, reading
from fastckpt.digests import crc32, difference
from fastckpt.errors import CheckpointError, FormatError, NotCommittedError, printable
from fastckpt.indexed import MarkerReader, read_table
from fastckpt.layout import DONE, META, OUT
from fastckpt.marker import IndexEntry, parse_index
from fastckpt.meta import Meta
from fastckpt.parallel import check_threads
from fastckpt.problems import Problem, Unsound

__all__ = ["Report", "listed", "verify"]

_ANEW = "save the snapshot anew"
_EARLIER = "load an earlier snapshot"


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
    problems : tuple of Problem
        What is wrong: each a text that names its file and says what to do, with both as attributes.
    """

    path: str
    tensors: int = 0
    nbytes: int = 0
    digests: int = 0
    problems: tuple[Problem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok


def verify(path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None) -> Report:
    """Check a snapshot without loading it: structure, sizes, object, ties, index, digests, and that all can be read.

    It goes on past what is wrong, reads at the speed of the device in a few MiB of memory, and leaves the page cache as
    it was.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot.
    threads : int, optional
        That read; by default as many as the device can serve.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, from one of these threads at a time.

    Returns
    -------
    Report
        True when nothing is wrong. Without a digest, bytes that changed but are of the right number go unnoticed.

    Raises
    ------
    FileNotFoundError, PermissionError
        The folder cannot be looked at.
    """

    check_threads(threads)

    def act(contents: Contents) -> Report:
        return _report(contents, threads, progress)

    try:
        return reading(path, act, index="ignore", seals=True, damaged=True)
    except Unsound as unsound:
        report: Report = unsound.result
        return report
    except CheckpointError as problem:
        return Report(os.fspath(path), problems=(Problem.of(problem, os.fspath(path)),))


def listed(contents: Contents) -> list[Problem]:
    """Give what was wrong when the folder was looked at."""
    path = contents.path
    places = [f"{path}/{found.folder}" if found.folder else path for found in contents.damage]
    return [
        Problem.of(found.problem, place if str(found.problem).startswith(printable(place)) else path)
        for found, place in zip(contents.damage, places, strict=True)
    ]


def _report(contents: Contents, threads: int | None, progress: Progress | None) -> Report:
    for found in contents.damage:
        if isinstance(found.problem, NotCommittedError):  # what else would be wrong with it?
            raise found.problem
    blobs = {entry.blob: entry.meta for entry in contents.entries.values()}
    copies = {e.folder: e for e in contents.entries.values() if e.blob != e.folder and not _is_one_file(contents, e)}
    sizes = {blob: meta.nbytes for blob, meta in blobs.items()} | {f: e.meta.nbytes for f, e in copies.items()}
    taken = crcs(contents, sizes, threads=threads, progress=progress)
    problems = [
        *listed(contents),
        *_object_problems(contents),
        *_blob_problems(contents, blobs, taken),
        *_tie_problems(contents, copies, taken),
        *_index_problems(contents, taken),
    ]
    checked = sum(meta.digest is not None for meta in blobs.values())
    total = sum(meta.nbytes for meta in blobs.values())
    report = Report(contents.path, len(contents.entries), total, checked, tuple(problems))
    if problems:
        raise Unsound(report)
    return report


def _blob_problems(contents: Contents, blobs: dict[str, Meta], found: Found) -> Iterator[Problem]:
    for blob, meta in blobs.items():
        where = contents.file_of(blob)
        problem = problem_with(found[blob], meta.digest, where)
        if problem is not None:
            yield Problem.of(problem, where)


def _object_problems(contents: Contents) -> Iterator[Problem]:
    """Hold the record of the object against the tensors."""
    named: list[str] = []
    first = next(iter(contents.entries.values()), None)
    nested = contents.marker.nested
    container = {"dict": []} if first is None or first.meta.container in (None, DONE) else first.meta.container
    where = contents.source if nested or first is None else f"{contents.path}/{first.folder}/{META}"
    try:
        value = tree.describe(
            contents.marker.record if nested else container, lambda key, _: named.append(key), where=where
        )
    except CheckpointError as problem:
        yield Problem.of(problem, where)
        return
    if not nested and value != {}:
        yield Problem(where, "the container of a flat snapshot must be an empty dict", _ANEW)
    for key in sorted(contents.entries.keys() ^ (set(named) - _known_as_damaged(contents, named))) if nested else ():
        yield Problem(where, f"the object and the folders differ in the tensor {key!r}", _EARLIER)


def _known_as_damaged(contents: Contents, named: list[str]) -> set[str]:
    """Those tensors of an object about whose folder something has been said."""
    said = {found.folder for found in contents.damage}
    absent = "" in said  # that some are missing, but not which
    places = contents.places(named) if len({*named}) == len(named) else {}
    return {key for key, folder in places.items() if key not in contents.entries and (absent or folder in said)}


def _tie_problems(contents: Contents, copies: dict[str, Entry], found: Found) -> Iterator[Problem]:
    """A tie that a copy has torn apart is two files, and other readers read both."""
    for folder, entry in copies.items():
        where = f"{contents.path}/{folder}/{OUT}"
        own, other = found[folder], found[entry.blob]
        if isinstance(own, Exception):
            yield Problem.of(own, where)
        elif not _is_as_saved(own, entry.meta.digest, other):
            yield Problem(where, f"differs from {entry.blob!r}/{OUT}, which it is tied to", _EARLIER)


def _is_as_saved(copy: int, digest: str | None, blob: int | Exception) -> bool:
    """Tell whether a copy has the bytes that were saved; where no digest tells, those of the blob as it is."""
    if digest is not None and difference(digest, copy, "") is None:
        return True
    return copy == blob


def _is_one_file(contents: Contents, entry: Entry) -> bool:
    try:
        own, other = (os.stat(f"{folder}/{OUT}", dir_fd=contents.fd) for folder in (entry.folder, entry.blob))
    except FileNotFoundError:  # the reading of it will say so
        return False
    return os.path.samestat(own, other)


def _index_problems(contents: Contents, found: Found) -> Iterator[Problem]:
    """Hold the index against the folders, which are the truth."""
    marker, where = contents.marker, f"{contents.path}/{DONE}"
    if marker.index is None:
        return
    try:
        entries = parse_index(read_table(contents.fd, where, marker), where)
        index = {entry.folder: (entry, meta_file.parse(entry.meta, where)) for entry in entries}
        copies, zero = _crcs_of_copies(contents, entries)
    except (FormatError, OSError) as problem:
        yield Problem.of(problem, where)
        return
    for entry in contents.entries.values():
        copy, meta = index.pop(entry.folder, (None, None))
        if copy is None or meta != entry.meta or copy.nbytes != entry.meta.nbytes:
            yield Problem(where, f"the index differs from {entry.folder!r}/{META}", _ANEW)
        elif copy.copy_at is not None and not _is_as_saved(copies[entry.folder], entry.meta.digest, found[entry.blob]):
            yield Problem(where, f"the copy of {entry.folder!r}/{OUT} differs from it", _ANEW)
    for folder in index.keys() - {damage.folder for damage in contents.damage}:
        yield Problem(where, f"the index names {folder!r}, which has no folder", _ANEW)
    if marker.table is not None and not zero:
        yield Problem(where, "something stands between the copies, where zeros must be", _ANEW)


def _crcs_of_copies(contents: Contents, entries: list[IndexEntry]) -> tuple[dict[str, int], bool]:
    """Give the CRC of each copy by folder, and whether all bytes between them are zero."""
    marker = contents.marker
    assert marker.index is not None, "the caller has seen it"
    table_length, copies_at, size = marker.index
    reader = MarkerReader(contents.fd, f"{contents.path}/{DONE}", size)
    crcs: dict[str, int] = {}
    at, zero = marker.table_at + table_length, True
    for folder, _, nbytes, copy_at in entries:
        if copy_at is not None:
            begin = copies_at + copy_at
            zero &= not any(map(any, reader.pieces(at, begin)))
            at, crc = begin + nbytes, 0
            for piece in reader.pieces(begin, at):
                crc = crc32(piece, crc)
            crcs[folder] = crc
    return crcs, zero and not any(map(any, reader.pieces(at, size)))
