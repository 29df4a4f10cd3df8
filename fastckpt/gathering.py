"""What a save holds beside the object: rooms, which its threads share, and how tensors that are gathered fill them.

However many threads a caller allows, and however many tensors do not lie in order, all of it stays below 64 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from fastckpt import _core
from fastckpt.blobs import GATHER

__all__ = ["Room", "Rooms", "packed"]

_MOST = 56 << 20  # bytes: the rest is for stacks and the like. No thread gathers in memory of its own, of which the C
# library would keep some for each after it was given back.


class Room(NamedTuple):
    """Aligned memory for one thread: what is written comes out of `out`, and a codec gathers in `gather`."""

    out: _core.Mapping
    gather: _core.Mapping


class Rooms:
    """Rooms, each for one thread at a time. Who finds none waits until another's part is written.

    Parameters
    ----------
    wanted : int
        How many there would be, one a thread, if memory were no matter.
    size : int
        Bytes of `out` in each.
    taken : int
        Bytes of the rooms that parts from devices come into.
    """

    def __init__(self, wanted: int, size: int, taken: int) -> None:
        count = min(wanted, (_MOST - taken) // (size + GATHER))
        self._free: SimpleQueue[Room] = SimpleQueue()
        memory = _core.allocate([size] * count + [GATHER] * count)  # in one run, and so in huge pages
        for room in map(Room, memory[:count], memory[count:]):
            self._free.put(room)

    @contextmanager
    def lent(self) -> Iterator[Room]:
        """Give one for a while."""
        room = self._free.get()
        try:
            yield room
        finally:
            self._free.put(room)


def packed(pieces: Iterator[Any], room: _core.Mapping) -> Iterator[Any]:
    """Give pieces of any length as full rooms, and a last one that is not."""
    view, filled = np.frombuffer(memoryview(room), np.uint8), 0
    for piece in pieces:
        source = np.frombuffer(piece, np.uint8)
        while len(source):
            if not len(view):  # of a tensor that was empty, and is not any more
                yield source
                break
            count = min(len(view) - filled, len(source))
            np.copyto(view[filled : filled + count], source[:count])
            source, filled = source[count:], filled + count
            if filled == len(view):
                yield view
                filled = 0
    if filled:
        yield view[:filled]
