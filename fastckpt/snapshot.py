"""open(): look into a snapshot and take single tensors, or parts of them, out of it."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from fastckpt import _core
from fastckpt.choosing import look_for_open
from fastckpt.codec import NUMPY, Codec, codec_for, default_framework
from fastckpt.contents import MAP_LIMIT, TENSORS, Contents, Entry, reading
from fastckpt.fetching import fetch, map_files, read_runs
from fastckpt.loading import flat, nested
from fastckpt.slicing import Parts, boxed, spell_out, touched

__all__ = ["Snapshot", "TensorHandle", "open"]

_EXACT = 64 << 20  # bytes in one run that are asked for at once; longer ones come by read-ahead
_HINT = 128 << 10  # bytes: of one hint the kernel takes no more than it reads ahead, which is seldom less than that
_LONG_RUN = 256 << 10  # bytes in one run among gaps that are worth the kernel's read-ahead
_GAP = 16 << 10  # bytes that are read along over a network, instead of asking the server once more
_GONE = "the snapshot was replaced or deleted after it was opened; open it again"


def open(
    path: str | os.PathLike[str], *, as_: str | None = None, max_bytes: int | None = None, max_tensors: int = TENSORS
) -> Snapshot:
    """Open a snapshot without loading it.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot; or a single file of OneFlow, whose tensors are read into memory now.
    as_ : {"torch", "numpy"}, optional
        What slices of its tensors become: torch tensors where torch is installed, else numpy arrays.
    max_bytes, max_tensors : int
        As in `load`: refuse what is larger.

    Returns
    -------
    Snapshot
        It stays what it is when a save replaces the snapshot at `path`, but for two kinds, which raise
        FileNotFoundError for what they have not handed out by then: one of over 30,000 tensors, more than a process can
        have mapped at once, and one on a network file system or FUSE. There nothing is mapped: each index reads the
        bytes that it asks for, into memory of their own.

    Raises
    ------
    NotCommittedError, CorruptError, FormatError
        The folder is no complete, sound snapshot; the message names the file.
    LimitError
        There is more than `max_bytes` or `max_tensors` allow.

    Notes
    -----
    Its tensors are maps. No save changes a file that is mapped; but if others can write to the folder, and cut a file
    in place, whoever touches the lost pages is killed by the system. ``load(mode="read")`` maps nothing.
    """
    framework = codec_for(as_ or default_framework()).name
    look = look_for_open(path)

    def act(contents: Contents) -> Snapshot:
        entries = contents.select(None, max_bytes)
        if contents.looked != (look != "none"):
            contents.look_at({e.blob: e.meta.nbytes for e in entries if e.blob not in contents.blobs}, look)
        return Snapshot(contents, framework)

    return reading(path, act, look=look if max_bytes is None else "none", max_tensors=max_tensors)


class _Maps:
    """The maps of a snapshot: all made now, so that they outlive it; one by one where they would be too many."""

    def __init__(self, contents: Contents) -> None:
        entries = list(contents.entries.values())
        self._contents = contents
        inside = [entry for entry in entries if entry.blob in contents.parts]
        self._inside = dict(zip([entry.blob for entry in inside], fetch(contents, inside, "read"), strict=True))
        self._maps: MutableMapping[str, _core.Mapping] = weakref.WeakValueDictionary()
        if len(entries) <= MAP_LIMIT:
            self._maps = dict(zip([entry.blob for entry in entries], fetch(contents, entries, "mmap"), strict=True))
        else:
            contents.keep_open()

    def give(self, entry: Entry, parts: Parts) -> tuple[_core.Mapping, tuple[int, ...], Parts]:
        """Give memory with an array that has what is wanted, its shape, and the parts that pick it."""
        meta = entry.meta
        blob = self._inside.get(entry.blob) or self._maps.get(entry.blob)
        if blob is None:
            with _gone_is_said():
                (blob,) = map_files(self._contents.fd, {entry.blob: meta.nbytes}, self._contents.path)
            self._maps[entry.blob] = blob
        _announce(blob, *(elements * meta.dtype.itemsize for elements in touched(parts, meta.shape)))
        return blob, meta.shape, parts


class _Reads:
    """The same by reading, when somebody asks. A copy that came with the index is there already."""

    def __init__(self, contents: Contents) -> None:
        contents.keep_open()
        self._contents = contents

    def give(self, entry: Entry, parts: Parts) -> tuple[_core.Mapping, tuple[int, ...], Parts]:
        copy = self._contents.blobs.get(entry.blob)
        if copy is not None:
            return copy, entry.meta.shape, parts
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


class TensorHandle:
    """One tensor of an open snapshot. Nothing is read before it is indexed, and then only what is touched.

    Attributes
    ----------
    name : str
        Its key.
    shape : tuple of int
        Its shape.
    nbytes : int
        Its size in bytes.
    tied_to : str or None
        Key of the tensor that it shares its memory with.
    """

    __slots__ = ("_blobs", "_codec", "_entry", "name", "nbytes", "shape", "tied_to")

    def __init__(self, entry: Entry, blobs: _Maps | _Reads, codec: Codec) -> None:
        self.name = entry.key
        self.shape = entry.meta.shape
        self.nbytes = entry.meta.nbytes
        self.tied_to = entry.meta.same_as
        self._entry = entry
        self._blobs = blobs
        self._codec = codec

    @property
    def dtype(self) -> Any:
        """Its dtype, as the framework's own object (``torch.float32``, ``numpy.dtype("float32")``)."""
        return self._codec.dtype(self._entry.meta.dtype, self.name)

    @property
    def dtype_name(self) -> str:
        """Its dtype as a word, whatever the framework ("float32", "bfloat16")."""
        return self._entry.meta.dtype.name

    @property
    def digest(self) -> str | None:
        """Its digest ``<algorithm>:<hex>``, where the snapshot has one."""
        return self._entry.meta.digest

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Give a tensor or a basic slice of one, mapped privately or read: it may be changed, the file never is.

        Parameters
        ----------
        index : int, slice, Ellipsis, None, or a tuple of them
            As numpy's basic indexing. Torch has no backward steps: there, such a slice is a copy.
        """
        buffer, shape, parts = self._blobs.give(self._entry, spell_out(index, self.shape, self.name))
        part = self._codec.part(self._codec.make(buffer, self._entry.meta.dtype, shape, self.name), parts)
        self._codec.sound(part)
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Give all of it to numpy, which would otherwise ask for every element."""
        buffer, shape, _ = self._blobs.give(self._entry, spell_out(..., self.shape, self.name))
        array = NUMPY.make(buffer, self._entry.meta.dtype, shape, self.name)
        NUMPY.sound(array)
        return array.astype(array.dtype if dtype is None else dtype, copy=bool(copy))

    def __repr__(self) -> str:
        return f"TensorHandle({self.name!r}, shape={self.shape}, dtype={self.dtype_name}, nbytes={self.nbytes})"


class Snapshot(Mapping[str, Any]):
    """An open snapshot: its tensors by name, as lazy handles.

    Iteration and length go over the flat names of all tensors. ``snap[key]`` takes a flat name, or a key of the saved
    object: for a nested one, ``snap["model"]`` is its part with handles for tensors.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    nbytes : int
        Bytes of all tensors, ties counted once.
    """

    def __init__(self, contents: Contents, framework: str) -> None:
        self.path = contents.path
        codec = codec_for(framework)
        blobs = _Maps(contents) if contents.looked else _Reads(contents)
        self._handles = {key: TensorHandle(entry, blobs, codec) for key, entry in contents.entries.items()}
        self._contents = contents
        self._tree: Any = None
        self.nbytes = sum({entry.blob: entry.meta.nbytes for entry in contents.entries.values()}.values())

    @property
    def is_nested(self) -> bool:
        """Whether more than a flat dict of tensors was saved."""
        return self._contents.marker.nested

    @property
    def record(self) -> Any:
        """The nested object as plain JSON (FORMAT.md); None for a flat one."""
        return self._contents.marker.record

    @property
    def tree(self) -> Any:
        """The saved object, with a handle in the place of every tensor."""
        if self._tree is None:
            whole = self._contents
            known = dict(self._handles)
            self._tree = nested(whole, lambda key, _: known[key]) if self.is_nested else flat(whole, known)
        return self._tree

    def __getitem__(self, key: str) -> Any:
        if key in self._handles:
            return self._handles[key]
        if self.is_nested and isinstance(self.tree, dict) and key in self.tree:
            return self.tree[key]
        raise KeyError(f"{self.path}: no tensor, and nothing at the top of the saved object, is called {key!r:.200}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: the maps live as long as the tensors over them."""

    def __repr__(self) -> str:
        return f"Snapshot({self.path!r}: {len(self)} tensors, {self.nbytes} bytes)"
