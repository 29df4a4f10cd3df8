"""The bytes of an open snapshot's tensors, when somebody asks for some: from maps, or read then."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress

from fastckpt import _core
from fastckpt.contents import MAP_LIMIT, Contents, Entry
from fastckpt.fetching import check_memory, fetch, read_runs
from fastckpt.mapping import map_if_possible
from fastckpt.memory import maps_left
from fastckpt.slicing import Parts, boxed, touched

__all__ = ["Doubts", "Maps", "Reads"]

_EXACT = 64 << 20  # bytes in one run that are asked for at once; longer ones come by read-ahead
_HINT = 128 << 10  # bytes: of one hint the kernel takes no more than it reads ahead, which is seldom less than that
_LONG_RUN = 256 << 10  # bytes in one run among gaps that are worth the kernel's read-ahead
_GAP = 16 << 10  # bytes that are read along over a network, instead of asking the server once more
_GONE = "the snapshot was replaced or deleted after it was opened; open it again"


class Doubts:
    """The digests that tensors have not been held against yet."""

    def __init__(self, contents: Contents, verify: bool) -> None:
        self._path = contents.path
        self._digests = {e.blob: e.meta.digest for e in contents.entries.values() if verify and e.meta.digest}

    def __contains__(self, blob: str) -> bool:
        return blob in self._digests

    def settle(self, blob: str, memory: _core.Mapping) -> None:
        """Compare all bytes of a blob with its digest, the first time."""
        digest = self._digests.get(blob)
        if digest is not None:
            check_memory(self._path, {blob: memory}, {blob: digest})
            self._digests.pop(blob, None)  # another thread may have compared it meanwhile


class Maps:
    """The maps of some tensors: all made now, so that they outlive the snapshot; one by one where they would be too
    many, and where the process can have no more of them, `Reads` in their place."""

    def __init__(self, contents: Contents, entries: Sequence[Entry], doubts: Doubts) -> None:
        self._contents, self._doubts = contents, doubts
        self._maps: MutableMapping[str, _core.Mapping] = weakref.WeakValueDictionary()
        fetch(contents, [entry for entry in entries if entry.blob in contents.parts], "read")
        missing = {entry.blob: entry.meta.nbytes for entry in entries if entry.blob not in contents.blobs}
        if len(entries) <= MAP_LIMIT and len(missing) <= maps_left():
            contents.blobs.update(map_if_possible(contents.fd, missing, contents.folder, whole=False))
        self._reads = None if missing.keys() <= contents.blobs.keys() else Reads(contents, doubts)

    def give(self, entry: Entry, parts: Parts) -> tuple[_core.Mapping, tuple[int, ...], Parts]:
        """Give memory with an array that has what is wanted, its shape, and the parts that pick it."""
        meta, blob = entry.meta, self._contents.blobs.get(entry.blob)
        if blob is None:
            blob = self._maps.get(entry.blob)
        if blob is None:
            blob = self._mapped(entry)
        if blob is None:
            assert self._reads is not None, "all are mapped"
            return self._reads.give(entry, parts)
        self._doubts.settle(entry.blob, blob)
        _announce(blob, *(elements * meta.dtype.itemsize for elements in touched(parts, meta.shape)))
        return blob, meta.shape, parts

    def _mapped(self, entry: Entry) -> _core.Mapping | None:
        """Map one that is not; None where the process has as many maps as it may."""
        with _gone_is_said():
            wanted = {entry.blob: entry.meta.nbytes} if maps_left() else {}
            for blob, made in map_if_possible(self._contents.fd, wanted, self._contents.path, whole=False).items():
                self._maps[blob] = made
                return made
        return None


class Reads:
    """The same by reading, when somebody asks; what the index has a copy of, from there."""

    def __init__(self, contents: Contents, doubts: Doubts) -> None:
        contents.keep_open()
        self._contents, self._doubts = contents, doubts

    def give(self, entry: Entry, parts: Parts) -> tuple[_core.Mapping, tuple[int, ...], Parts]:
        with _gone_is_said():
            whole = self._contents.at_hand([entry.blob]).get(entry.blob)
            if whole is None and entry.blob in self._doubts:
                whole = read_runs(self._contents, entry, [(0, entry.meta.nbytes)])
        if whole is not None:
            self._doubts.settle(entry.blob, whole)
            return whole, entry.meta.shape, parts
        box = boxed(parts, entry.meta.shape, entry.meta.dtype.itemsize, _GAP)
        with _gone_is_said():
            return read_runs(self._contents, entry, box.runs), box.shape, box.parts


@contextmanager
def _gone_is_said() -> Iterator[None]:
    """All files were there when the snapshot was opened: one that is missing went with the whole of it."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        raise FileNotFoundError(errno.ENOENT, _GONE, problem.filename) from None


def _announce(blob: _core.Mapping, first: int, run: int, count: int) -> None:
    """Tell the kernel which bytes will be touched: its own guess is to read what lies around each of them."""
    with suppress(OSError):  # a hint
        _advise(blob, first, run, count)


def _advise(blob: _core.Mapping, first: int, run: int, count: int) -> None:
    if run == count < min(len(blob), _EXACT):
        blob.advise(_core.MADV_RANDOM)
        for at in range(first, first + run, _HINT):
            blob.advise(_core.MADV_WILLNEED, at, min(_HINT, first + run - at))
    else:
        blob.advise(_core.MADV_RANDOM if run < min(_LONG_RUN, len(blob)) else _core.MADV_NORMAL)
