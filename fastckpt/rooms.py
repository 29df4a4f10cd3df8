"""Rooms: equal pieces of aligned host memory that a device was told of (page-locked), kept from one use to the next.

To lock pages takes longer than to copy through them, so a room that was used is kept for whoever comes next; but no
more of them than one load needs. Memory is unlocked before it is unmapped, and by the process that locked it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from fastckpt import _core

__all__ = ["ROOM", "ROOMS", "Pin", "Pool", "Room", "allocate_locked"]

ROOM = 4 << 20  # bytes of a room: a disk is at its full speed with reads of this size, and so is a copy to a device
ROOMS = 16  # of one load or save, and that are kept: 64 MiB

#: Lock the pages at an address, so many bytes, and give what unlocks them; None where that is refused.
Pin: TypeAlias = Callable[[int, int], Callable[[], object] | None]


class Room:
    """`ROOM` bytes of memory, aligned for O_DIRECT, locked if that was possible.

    Attributes
    ----------
    view : memoryview
        The memory, which is good as long as this object lives.
    locked : bool
        Whether its pages are.
    """

    def __init__(self, pin: Pin) -> None:
        (memory,) = _core.allocate([ROOM])
        self.view = memoryview(memory)
        self.locked = _lock(self, memory, ROOM, pin)


class Pool:
    """Rooms that nobody uses."""

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self._free: list[Room] = []
        self._guard = threading.Lock()
        _pools.add(self)

    def take(self, count: int) -> list[Room]:
        """Give that many rooms, new ones where there are too few."""
        with self._guard:
            kept = [self._free.pop() for _ in range(min(count, len(self._free)))]
        return kept + [Room(self._pin) for _ in range(count - len(kept))]

    def give_back(self, rooms: Sequence[Room]) -> None:
        """Keep them for the next, but no more than `ROOMS` in all. No copy may be in flight."""
        with self._guard:
            self._free.extend(rooms[: ROOMS - len(self._free)])

    def release(self) -> None:
        """Unlock and free what is kept."""
        with self._guard:
            self._free.clear()

    def forget(self) -> None:
        """Keep nothing: in a forked child the pages are no longer those that the device knows."""
        self._free, self._guard = [], threading.Lock()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool.forget()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)


def allocate_locked(sizes: Sequence[int], pin: Pin) -> list[_core.Mapping] | None:
    """Do what `_core.allocate` does, with pages that stay locked until the last of the memory goes.

    Parameters
    ----------
    sizes : sequence of int
        In bytes.
    pin : callable
        What locks.

    Returns
    -------
    list of Mapping or None
        One a size; None where locking is refused.
    """
    memories = _core.allocate(sizes)
    filled = [memory for memory in memories if len(memory)]
    if not filled:
        return memories
    keeper = _Keeper()
    total = _address(filled[-1]) + len(filled[-1]) - _address(filled[0])
    if not _lock(keeper, filled[0].part(0, 1), total, pin):
        return None
    for memory in filled:
        weakref.finalize(memory, _nothing, keeper).atexit = False
    return memories


class _Keeper:
    """Lives as long as some memory of one run."""


def _nothing(_: _Keeper) -> None:
    """What a piece of memory does in the end is to let go of its keeper."""


def _lock(owner: object, memory: _core.Mapping, length: int, pin: Pin) -> bool:
    """Lock memory until the owner goes; it is held until then, and so is there when it is unlocked."""
    unlock = pin(_address(memory), length)
    if unlock is not None:
        at_end = weakref.finalize(owner, _unlock, unlock, memory, os.getpid())
        at_end.atexit = isinstance(owner, Room)  # what tensors are over may be used to the very end
    return unlock is not None


def _unlock(unlock: Callable[[], object], _memory: _core.Mapping, pid: int) -> None:
    if os.getpid() == pid:
        unlock()


def _address(memory: _core.Mapping) -> int:
    return np.frombuffer(memoryview(memory), np.uint8).ctypes.data
