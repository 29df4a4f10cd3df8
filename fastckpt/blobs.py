"""What a tensor is to a plan, and what a codec can do for a framework: recognise, describe, give bytes, make again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fastckpt.dtypes import DType
from fastckpt.lanes import Far, Lane
from fastckpt.slicing import Parts

__all__ = ["GATHER", "PIECE", "Blob", "Codec", "Memory", "row_pieces"]

PIECE = 4 << 20  # bytes of one write, where they are many
GATHER = 1 << 20  # bytes gathered at a time, a thread, from a tensor that does not lie in one run of host memory


class Memory(NamedTuple):
    """Where a tensor's elements live; two tensors with equal Memory, dtype and shape are one tensor.

    Attributes
    ----------
    device : str
        Device that the address belongs to.
    address : int
        Address of the first element.
    strides : tuple of int or None
        Bytes from one element to the next, a dimension; 0 where the dimension has one element. None: in C order.
    lazy : str
        What a framework would still do to the bytes when reading them (conjugate, negate, swap).
    """

    device: str
    address: int
    strides: tuple[int, ...] | None
    lazy: str = ""


class Blob(NamedTuple):
    """What a plan needs to know of a leaf. ``memory`` is None for a tensor without elements or known address."""

    dtype: DType
    shape: tuple[int, ...]
    memory: Memory | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Codec(Protocol):
    """One framework's tensors.

    Attributes
    ----------
    name : str
        What `codec_for` knows it by.
    """

    name: str

    @property
    def take(self) -> Callable[[Any], Any] | None:
        """What makes a tensor of a DLPack capsule, where the framework does that faster than `make`."""

    def is_leaf(self, obj: object) -> bool:
        """Tell whether this is a tensor of the framework, storable or not."""

    def describe(self, obj: Any) -> Blob:
        """Say dtype, shape and memory; raise UnsupportedError for what cannot be stored."""

    def pieces(self, obj: Any, room: Any = None) -> Iterator[Any]:
        """Give the elements in C order as contiguous buffers: the tensor's own memory where it is in order, else
        always the same room, so that a buffer is good until the next one is asked for. A `room` that is given is an
        aligned buffer of GATHER bytes."""

    def whole(self, obj: Any) -> Any:
        """Give the tensor's own memory as one buffer, if that is its elements in C order and the host's; else None."""

    def collect(self, pairs: Sequence[tuple[Any, Any]], memory: Any) -> None:
        """Copy the elements of each tensor, in C order, into an array of bytes, 64-aligned: parts of `memory`."""

    def make(self, buffer: Any, dtype: DType, shape: tuple[int, ...], where: str) -> Any:
        """Make a tensor over a writable buffer, without a copy."""

    def part(self, tensor: Any, parts: Parts) -> Any:
        """Take a basic slice: a view, but for torch a copy where it goes backward."""

    def obstacle(self, target: Any) -> str:
        """Say why a target cannot be filled; nothing where it can."""

    def one(self, target: Any) -> Any:
        """Make a tensor of one element of a target's dtype, to try a conversion with."""

    def sound(self, tensor: Any) -> None:
        """Turn every byte of a bool tensor that is neither 0 nor 1 into 1: frameworks take it for granted."""

    def dtype(self, dtype: DType, where: str) -> Any:
        """Give the framework's own dtype object; raise UnsupportedError where it has none."""

    def memory_of(self, target: Any) -> Any:
        """Give the target's memory as a buffer if bytes in C order may be read straight into it, else None."""

    def fill(self, target: Any, source: Any) -> None:
        """Copy into an existing tensor, converting the dtype if it differs."""

    def lane(self, device: Any) -> Lane | None:
        """Give a lane to a device; None where there is none, so that `to_device` is the way there."""

    def far(self, obj: Any) -> Far | None:
        """Give the tensor's own memory, if that is its elements in C order, on a device that has a lane; else None."""

    def empty(self, dtype: DType, shape: tuple[int, ...], device: Any, where: str) -> Any:
        """Make a tensor on a device that has a lane, for its elements to be sent there."""

    def settle(self, objs: Sequence[Any]) -> None:
        """Wait until what the calling thread has asked of these tensors' devices is done."""

    def locked_memory(self, sizes: Sequence[int]) -> list[Any]:
        """Give page-locked memory as ``_core.allocate`` gives memory; UnsupportedError where there is none."""

    def to_device(self, tensor: Any, device: Any) -> Any:
        """Move to a device."""

    def state_of(self, obj: object) -> Any:
        """Give the state dict of a module of the framework, anything else as it is."""

    def pack(self, obj: object) -> tuple[str, Any] | None:
        """Encode a small value of the framework (a dtype, a device, a scalar) as a tag and JSON."""

    def unpack(self, tag: str, data: Any) -> Any:
        """Undo `pack`."""


def row_pieces(shape: tuple[int, ...], itemsize: int, limit: int = GATHER) -> Iterator[tuple[Any, ...]]:
    """Give indices that cut an array, in C order, into blocks of at most `limit` bytes (one element at least)."""
    if not shape or math.prod(shape) * itemsize <= limit:
        yield ()
        return
    row = math.prod(shape[1:]) * itemsize
    if row > limit:
        for at in range(shape[0]):
            for rest in row_pieces(shape[1:], itemsize, limit):
                yield (at, *rest)
        return
    step = limit // row
    for at in range(0, shape[0], step):
        yield (slice(at, at + step),)
