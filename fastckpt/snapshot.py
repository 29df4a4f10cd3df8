"""open(): look into a snapshot and take single tensors, or parts of them, out of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastckpt.choosing import look_for_open
from fastckpt.codec import NUMPY, Codec, codec_for, default_framework
from fastckpt.contents import TENSORS, Contents, Entry, listed, reading
from fastckpt.lazy import Doubts, Maps, Reads
from fastckpt.loading import flat, nested
from fastckpt.slicing import spell_out

__all__ = ["Snapshot", "TensorHandle", "open"]


def open(
    path: str | os.PathLike[str],
    *,
    as_: str | None = None,
    keys: Iterable[str] | None = None,
    verify: bool = False,
    max_bytes: int | None = None,
    max_tensors: int = TENSORS,
) -> Snapshot:
    """Open a snapshot without loading it.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot; or a single file of OneFlow, whose tensors are read into memory now.
    as_ : {"torch", "numpy"}, optional
        What slices of its tensors become: torch tensors where torch is installed, else numpy arrays.
    keys : iterable of str, optional
        Open these tensors only, as a flat snapshot of them. No other is looked at, where the folders have the names of
        the keys; without an index, each look costs a read of 4 KiB.
    verify : bool
        Check the metas now, and the digest of a tensor when it is indexed for the first time, which reads all of it.
    max_bytes, max_tensors : int
        As in `load`: refuse what is larger.

    Returns
    -------
    Snapshot
        It stays what it is when a save replaces the snapshot at `path`, but for two kinds, which raise
        FileNotFoundError for what they have not handed out by then: one of more tensors than the process can map
        (30,000, or fewer where it has mapped much already), and one on a network file system or FUSE. There nothing is
        mapped: each index reads the bytes that it asks for, into memory of their own.

    Raises
    ------
    NotCommittedError, CorruptError, FormatError
        The folder is no complete, sound snapshot; the message names the file.
    LimitError
        There is more than `max_bytes` or `max_tensors` allow.
    KeyError
        A key of `keys` is not in the snapshot.

    Notes
    -----
    Its tensors are maps. No save changes a file that is mapped; but if others can write to the folder, and cut a file
    in place, whoever touches the lost pages is killed by the system. ``load(mode="read")`` maps nothing.
    """
    framework = codec_for(as_ or default_framework()).name
    look = look_for_open(path)
    wanted = listed(keys)
    at_once = look if wanted is None and max_bytes is None else "none"

    def act(contents: Contents) -> Snapshot:
        entries = contents.select(wanted, max_bytes)
        if contents.looked != (look != "none"):
            there = contents.blobs.keys() | contents.parts.keys()
            contents.look_at({e.blob: e.meta.nbytes for e in entries if e.blob not in there}, look)
        return Snapshot(contents, entries, framework, verify, whole=wanted is None)

    return reading(path, act, look=at_once, keys=wanted, max_tensors=max_tensors, seals=verify)


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

    def __init__(self, entry: Entry, blobs: Maps | Reads, codec: Codec) -> None:
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
    """An open snapshot, or some tensors of one: by name, as lazy handles.

    Iteration and length go over the flat names of all tensors. ``snap[key]`` takes a flat name, or a key of the saved
    object: for a nested one, ``snap["model"]`` is its part with handles for tensors.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    nbytes : int
        Bytes of all tensors, ties counted once.
    """

    def __init__(
        self, contents: Contents, entries: Sequence[Entry], framework: str, verify: bool, *, whole: bool
    ) -> None:
        self.path = contents.path
        codec = codec_for(framework)
        doubts = Doubts(contents, verify)
        blobs = Maps(contents, entries, doubts) if contents.looked else Reads(contents, doubts)
        self._handles = {entry.key: TensorHandle(entry, blobs, codec) for entry in entries}
        self._contents = contents
        self._whole = whole
        self._tree: Any = None
        self.nbytes = sum({entry.blob: entry.meta.nbytes for entry in entries}.values())

    @property
    def is_nested(self) -> bool:
        """Whether more than a flat dict of tensors was saved, and all of it is open."""
        return self._whole and self._contents.marker.nested

    @property
    def record(self) -> Any:
        """The nested object as plain JSON (FORMAT.md); None for a flat one."""
        return self._contents.marker.record if self._whole else None

    @property
    def tree(self) -> Any:
        """The saved object, with a handle in the place of every tensor; a dict of the handles, if some are open."""
        if not self._whole:
            return dict(self._handles)
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
