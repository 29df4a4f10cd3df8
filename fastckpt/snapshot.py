"""open(): look into a snapshot and take single tensors, or parts of them, out of it."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from typing import Any

from fastckpt import _core
from fastckpt.codec import Codec, codec_for, default_framework
from fastckpt.contents import Contents, Entry, reading
from fastckpt.loading import assemble

__all__ = ["Snapshot", "TensorHandle", "open"]


def open(path: str | os.PathLike[str], *, as_: str | None = None) -> Snapshot:
    """Open a snapshot without loading it.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot.
    as_ : {"torch", "numpy"}, optional
        What slices of its tensors become: torch tensors where torch is installed, else numpy arrays.

    Returns
    -------
    Snapshot
        It stays what it is when a save replaces the snapshot at `path`.

    Raises
    ------
    NotCommittedError, CorruptError, FormatError
        The folder is no complete, sound snapshot; the message names the file.
    """
    framework = codec_for(as_ or default_framework()).name
    return reading(path, lambda contents: Snapshot(contents, framework), map_all=True)


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

    __slots__ = ("_codec", "_entry", "_map", "name", "nbytes", "shape", "tied_to")

    def __init__(self, entry: Entry, blob: _core.Mapping, codec: Codec) -> None:
        self.name = entry.key
        self.shape = entry.meta.shape
        self.nbytes = entry.meta.nbytes
        self.tied_to = entry.meta.same_as
        self._entry = entry
        self._map = blob
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
        """Give a tensor or a basic slice of one, mapped privately: it may be changed, the file never is.

        Parameters
        ----------
        index : int, slice, Ellipsis, or a tuple of them
            As numpy's basic indexing.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is Ellipsis or isinstance(part, slice) or _is_int(part) for part in parts):
            raise TypeError(f"{self.name}: index with integers, slices and ..., or take [:] first")
        if len([part for part in parts if part is not Ellipsis]) > 1 and self.nbytes:
            self._map.advise(_core.MADV_RANDOM)  # read-ahead would fetch what lies between the parts
        return self._codec.make(self._map, self._entry.meta.dtype, self.shape, self.name)[index]

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
        entries = list(contents.entries.values())
        maps = contents.map(entries)
        self._handles = {e.key: TensorHandle(e, m, codec) for e, m in zip(entries, maps, strict=True)}
        self._contents = contents
        self._tree: Any = None
        self.nbytes = sum({e.blob: e.meta.nbytes for e in entries}.values())

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
            self._tree = assemble(self._contents, lambda key, _: self._handles[key])
        return self._tree

    def __getitem__(self, key: str) -> Any:
        if self.is_nested and isinstance(self.tree, dict) and key in self.tree:
            return self.tree[key]
        return self._handles[key]

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


def _is_int(part: object) -> bool:
    try:
        operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(part, bool)
