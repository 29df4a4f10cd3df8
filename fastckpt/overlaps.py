"""Which tensors share some of their memory without being one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastckpt.blobs import Blob

__all__ = ["Shared", "sharing"]

_EFFORT: Any = 1_000  # candidate solutions that numpy may try; its stubs know -1 and 0 only
_COMPARISONS = 4_000  # pairs of tensors that are compared: more are not worth seconds


class Shared(NamedTuple):
    """What is known of tensors that share memory.

    Attributes
    ----------
    pairs : list of tuple of int
        The different tensors, by their numbers, that have an element in common, as far as they were compared.
    complete : bool
        Whether all were compared that can have any; not so of very many that lie close to each other.
    """

    pairs: list[tuple[int, int]]
    complete: bool


def sharing(blobs: Sequence[Blob]) -> Shared:
    """Find the pairs of different tensors that have an element in common."""
    close = _close_pairs(blobs)
    first = itertools.islice(close, _COMPARISONS)
    pairs = [(one, other) for one, other in first if _share(blobs[one], blobs[other])]
    return Shared(pairs, next(close, None) is None)


def _close_pairs(blobs: Sequence[Blob]) -> Iterator[tuple[int, int]]:
    """Give pairs of tensors, each in order, where one begins before the other ends."""
    spans = sorted([(b.memory.device, *_span(b), at) for at, b in enumerate(blobs) if b.memory is not None])
    reaching: list[tuple[int, int]] = []  # end and number of the spans of this device that may still be overlapped
    here, furthest = "", 0
    for device, low, high, at in spans:
        if device != here or furthest <= low:  # for nearly all: nothing reaches so far
            reaching, here, furthest = [], device, high
        else:
            reaching = [span for span in reaching if span[0] > low]
            yield from ((min(n, at), max(n, at)) for _, n in reaching)
            furthest = max(furthest, high)
        reaching.append((high, at))


def _span(blob: Blob) -> tuple[int, int]:
    """Lowest address, and the one behind the highest."""
    assert blob.memory is not None
    low = blob.memory.address
    if blob.memory.strides is None:
        return low, low + blob.nbytes
    high = low + blob.dtype.itemsize
    for stride, n in zip(blob.memory.strides, blob.shape, strict=True):
        if stride < 0:
            low += stride * (n - 1)
        else:
            high += stride * (n - 1)
    return low, high


class _Addresses:
    """An array interface over addresses that are compared and never read."""

    def __init__(self, blob: Blob) -> None:
        assert blob.memory is not None
        self.__array_interface__ = {
            "version": 3,
            "data": (blob.memory.address, True),
            "shape": blob.shape,
            "strides": blob.memory.strides,
            "typestr": f"|V{blob.dtype.itemsize}",
        }


def _share(one: Blob, other: Blob) -> bool:
    """Tell whether any element is common; where that is hard to say, yes."""
    try:
        return np.shares_memory(np.asarray(_Addresses(one)), np.asarray(_Addresses(other)), max_work=_EFFORT)
    except (np.exceptions.TooHardError, ValueError):  # ValueError: more dimensions than this numpy has
        return True
