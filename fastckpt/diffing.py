"""What differs between two snapshots: their tensors by name, and the other values of their objects by path.

Both are read in pieces, so that memory does not grow with them; blobs that are one file on disk are not read at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastckpt import _core
from fastckpt.comparing import Distance, can_compare
from fastckpt.contents import Contents, Entry, reading
from fastckpt.errors import CorruptError
from fastckpt.layout import OUT
from fastckpt.outline import Node, Tensor, outline

__all__ = ["Difference", "TensorDifference", "ValueDifference", "diff"]

_PIECE = 16 << 20  # bytes read at a time from each of the two

Bytes: TypeAlias = "np.ndarray[Any, Any]"
Distances: TypeAlias = "dict[tuple[str, str], Distance]"
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One name under which the two snapshots do not hold the same tensor.

    Attributes
    ----------
    name : str
        The name.
    before, after : Entry or None
        The tensor in the first and in the second snapshot; None where it has none.
    distance : Distance or None
        How far the elements are apart; None where they were not compared.
    """

    name: str
    before: Entry | None
    after: Entry | None
    distance: Distance | None = None

    @property
    def change(self) -> str:
        """What happened: "added", "removed", "reshaped", "dtype", "changed", or "tied" if only the ties differ."""
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        if self.before.meta.shape != self.after.meta.shape:
            return "reshaped"
        if self.before.meta.dtype != self.after.meta.dtype:
            return "dtype"
        return "changed" if self.distance and self.distance.differing else "tied"


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """One place of the two objects where something else stands; None where nothing does."""

    path: str
    before: Node | None
    after: Node | None

    @property
    def change(self) -> str:
        """What happened: "added", "removed" or "changed"."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """What `diff` found; true when there is any difference.

    Attributes
    ----------
    equal : int
        Number of names that hold the same tensor in both.
    tensors : tuple of TensorDifference
        In the order of the second snapshot, those that were removed at the end.
    values : tuple of ValueDifference
        What is no tensor, in the order of the second object, what was removed at the end.
    """

    equal: int
    tensors: tuple[TensorDifference, ...]
    values: tuple[ValueDifference, ...]

    def __bool__(self) -> bool:
        return bool(self.tensors or self.values)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None) -> Difference:
    """Compare two snapshots: bit by bit, and by how much where bits differ. The order of names and keys is ignored.

    Parameters
    ----------
    a, b : str or os.PathLike
        Folders of the snapshots.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Returns
    -------
    Difference
        False when the two hold the same.

    Raises
    ------
    FileNotFoundError, NotCommittedError, CorruptError, FormatError
        One of them is no complete snapshot; the message names the file.
    """
    watch = progress or _no_progress

    def compare(before: Contents) -> Difference:
        return reading(b, lambda after: _Comparison(before, after, watch).difference(), index="table")

    return reading(a, compare, index="table")


class _Comparison:
    """Two open snapshots, and the memory through which their tensors go."""

    def __init__(self, a: Contents, b: Contents, progress: Progress) -> None:
        self.a = a
        self.b = b
        self.progress = progress
        common = [(entry, b.entries[key]) for key, entry in a.entries.items() if key in b.entries]
        self.pairs = {(one.blob, other.blob): (one, other) for one, other in common if _is_comparable(one, other)}
        self.total = sum(one.meta.nbytes for one, _ in self.pairs.values())
        largest = max((entry.meta.nbytes for pair in self.pairs.values() for entry in pair), default=0)
        self.room = np.empty((2, min(largest, _PIECE)), np.uint8)

    def difference(self) -> Difference:
        distances = self.measure_all()
        found = tuple(_tensor_differences(self.a.entries, self.b.entries, distances))
        values = tuple(_value_differences(outline(self.a), outline(self.b)))
        return Difference(len(self.a.entries.keys() | self.b.entries.keys()) - len(found), found, values)

    def measure_all(self) -> Distances:
        """Compare every pair of blobs once, however many tensors are tied to them."""
        distances, done = {}, 0
        for blobs, (before, after) in self.pairs.items():
            found = distances[blobs] = Distance()
            at = done
            for one, other in () if self.is_one_file(before, after) else self.pieces(before, after):
                found.add(one, other, before.meta.dtype, after.meta.dtype)
                at += one.size
                self.progress(at, self.total)
            done += before.meta.nbytes
            self.progress(done, self.total)
        return distances

    def is_one_file(self, before: Entry, after: Entry) -> bool:
        """Tell whether an unchanged tensor is a hard link to the earlier one."""
        if before.blob in self.a.parts or after.blob in self.b.parts:
            return False
        same = os.path.samestat(_status(self.a, before), _status(self.b, after))
        return same and before.meta.dtype == after.meta.dtype

    def pieces(self, before: Entry, after: Entry) -> Iterator[tuple[Bytes, Bytes]]:
        """Give the same elements of both, as many as fit into the memory."""
        step = _PIECE // max(before.meta.dtype.itemsize, after.meta.dtype.itemsize)
        for at in range(0, before.meta.size, step):
            count = min(step, before.meta.size - at)
            yield _read(self.a, before, at, count, self.room[0]), _read(self.b, after, at, count, self.room[1])


def _is_comparable(before: Entry, after: Entry) -> bool:
    return before.meta.shape == after.meta.shape and can_compare(before.meta.dtype, after.meta.dtype)


def _tensor_differences(a: dict[str, Entry], b: dict[str, Entry], distances: Distances) -> Iterator[TensorDifference]:
    for name in [*b, *(name for name in a if name not in b)]:
        before, after = a.get(name), b.get(name)
        if before is None or after is None:
            yield TensorDifference(name, before, after)
            continue
        distance = distances.get((before.blob, after.blob)) if _is_comparable(before, after) else None
        alike = (before.meta.dtype, before.meta.same_as) == (after.meta.dtype, after.meta.same_as)
        if distance is None or distance.differing or not alike:
            yield TensorDifference(name, before, after, distance)


def _status(contents: Contents, entry: Entry) -> os.stat_result:
    with _named(contents):
        return os.stat(f"{entry.blob}/{OUT}", dir_fd=contents.fd)


def _read(contents: Contents, entry: Entry, at: int, count: int, room: Bytes) -> Bytes:
    """Read some elements of a tensor as bytes."""
    itemsize = entry.meta.dtype.itemsize
    piece = room[: count * itemsize]
    with _named(contents):
        path, begin, size = contents.part(entry.blob, entry.meta.nbytes)
        _core.read_into(contents.fd, path, begin + at * itemsize, piece, size=size)
    return piece


@contextmanager
def _named(contents: Contents) -> Iterator[None]:
    """Errors name the file with its snapshot."""
    try:
        yield
    except _core.SizeChanged as change:
        raise CorruptError(f"{contents.path}: {change}; it was changed while being read") from None
    except OSError as problem:
        problem.filename = os.path.join(contents.folder, os.fsdecode(problem.filename or ""))
        raise


def _value_differences(a: Node | None, b: Node | None) -> Iterator[ValueDifference]:
    """Walk down both; of what only one of them has, its top is told, and a tensor is told by its name already."""
    if a is None or b is None:
        only = a or b
        if only is not None and not isinstance(only.value, Tensor):
            yield ValueDifference(only.path, a, b)
        return
    if not _is_same(a, b):
        yield ValueDifference(b.path, a, b)
    if a.children is not None and b.children is not None:
        in_a, in_b = ({child.path: child for child in node.children or ()} for node in (a, b))
        for path in [*in_b, *(path for path in in_a if path not in in_b)]:
            yield from _value_differences(in_a.get(path), in_b.get(path))


def _is_same(a: Node, b: Node) -> bool:
    if isinstance(a.value, Tensor) and isinstance(b.value, Tensor):
        frameworks = {a.value.framework, b.value.framework} - {None}
        return a.value.entry.key == b.value.entry.key and len(frameworks) <= 1
    return _identity(a) == _identity(b)


def _identity(node: Node) -> tuple[Any, ...]:
    """What makes two values one: their types, and of numbers their bits, so that a NaN is itself."""
    value = node.value
    if node.children is not None:
        return "container", value
    if isinstance(value, (float, complex)):
        return type(value), struct.pack("<dd", value.real, value.imag)
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    return type(value), value if isinstance(value, (int, str, bytes, bytearray)) else repr(value)


def _no_progress(done: int, total: int) -> None:
    """Nobody watches."""
