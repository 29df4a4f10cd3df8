"""The pickle of a snapshot that OneFlow 0.6 or later saved: read from its file, and the tensors that it names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastckpt.entries import Entry
from fastckpt.errors import CorruptError, FormatError
from fastckpt.meta import Meta
from fastckpt.oneflow import MAGIC, Saved, read_saved
from fastckpt.opening import PLAIN_FILE, no_snapshot
from fastckpt.pickletext import Source

__all__ = ["Part", "Pickled", "entries_of_saved", "has_file", "read_pickled"]

_HEAD = 256  # bytes at the beginning, in which a single file of OneFlow's names itself
_VERSION = (0o200, range(2, 6))  # its first byte, and its second


class Part(NamedTuple):
    """Where bytes lie: in which file of the folder, from where on, and how large that is."""

    path: str
    at: int
    size: int


class Pickled(NamedTuple):
    """A pickle that has been read, and the file as it was then: device, inode, size and time of the last change."""

    saved: Saved
    identity: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.identity[2]

    def is_unchanged(self, fd: int, file: str) -> bool:
        """Tell whether the file is still the same."""
        try:
            return _identity(os.stat(file, dir_fd=fd, follow_symlinks=False)) == self.identity
        except FileNotFoundError:
            return False


def has_file(fd: int, folder: str, name: str) -> bool:
    """Tell whether a folder has a plain file of this name.

    If that is a pickle, OneFlow 0.6 and later look at nothing else but the tensors that it names.
    """
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    except OSError as problem:
        problem.filename = os.path.join(folder, name)
        raise


def read_pickled(fd: int, file: str, where: str, *, single: bool) -> Pickled:
    """Read the pickle in a folder.

    Parameters
    ----------
    fd : int
        The folder.
    file : str
        Name of the pickle in it.
    where : str
        Its path, for errors.
    single : bool
        Whether it must hold all tensors itself.

    Raises
    ------
    CorruptError
        It was changed while being read.
    FormatError, UnsupportedError
        It cannot be read; the message says why, and where in it.
    """
    with _opened(fd, file, where) as (descriptor, status):

        def read(at: int, length: int) -> bytes:
            pieces = []
            while length:
                piece = os.pread(descriptor, length, at)
                if not piece:
                    raise CorruptError(f"{where}: became shorter while being read; load it again")
                pieces.append(piece)
                at, length = at + len(piece), length - len(piece)
            return b"".join(pieces)

        if single and not _is_oneflows(read(0, min(_HEAD, status.st_size))):
            raise no_snapshot(where)
        saved = read_saved(Source(read, status.st_size, where))
    folders = [place for place in saved.tensors.values() if isinstance(place, str)]
    if single and folders:
        raise FormatError(f"{where}: names the folder {folders[0]!r}, which a single file has not; take another copy")
    return Pickled(saved, _identity(status))


def entries_of_saved(
    saved: Saved, metas: dict[str, Meta], file: str, size: int
) -> tuple[dict[str, Entry], dict[str, Part]]:
    """Give key to entry, and blob to part of the pickle.

    Parameters
    ----------
    saved : Saved
        What the pickle holds.
    metas : dict of str to Meta
        Of the folders that it names; the tensors of others are left out.
    file : str
        Its name.
    size : int
        Its bytes.
    """
    entries: dict[str, Entry] = {}
    parts: dict[str, Part] = {}
    first: dict[str, str] = {}
    container = saved.container if saved.container != {"dict": []} else None
    for key, place in saved.tensors.items():
        if isinstance(place, str):
            if place not in metas:
                continue
            blob, found = place, metas[place]
        else:
            blob, found = f"{file}/{place.number}", Meta(place.shape, place.dtype)
            parts[blob] = Part(file, place.data.at, size)
        twin = first.setdefault(blob, key)
        same_as = None if twin == key else twin
        meta = Meta(found.shape, found.dtype, digest=found.digest, same_as=same_as, container=container)
        entries[key] = Entry(key, blob, meta, blob)
        container = None  # the first one says it
    return entries, parts


@contextmanager
def _opened(fd: int, file: str, where: str) -> Iterator[tuple[int, os.stat_result]]:
    try:
        descriptor = os.open(file, PLAIN_FILE, dir_fd=fd)
    except OSError as problem:
        problem.filename = where
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise no_snapshot(where)
        yield descriptor, status
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_oneflows(head: bytes) -> bool:
    first, versions = _VERSION
    return len(head) > 2 and head[0] == first and head[1] in versions and MAGIC in head
