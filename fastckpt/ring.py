"""A ring of rooms between files and a device: while some are copied, others are read or written by threads.

A room goes round: free, filled by a thread, copied by the device, and free again when the copy's ticket is done. No
thread ever waits for a room, since there are as many as threads; it waits for the ticket of the room that has been on
its way longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

from fastckpt import _core, parallel
from fastckpt.codec import Codec
from fastckpt.lanes import Copy, Lane, Ticket
from fastckpt.rooms import ROOM, ROOMS, Room

__all__ = ["Drawer", "Drawn", "Load", "Piece", "pack", "stream"]

Note = TypeVar("Note")

_MANY = 64  # pieces of a load: so that threads share many small ones, each of which may have to be waited for


class Piece(NamedTuple):
    """Bytes of one blob: `length` of them from `offset`, which travel at `at` in a room to the tensor `flat`."""

    blob: str
    offset: int
    length: int
    at: int
    flat: Any


class Drawn(NamedTuple):
    """How to get the bytes of a tensor: `part` gives those at an offset, so many, for a while; `aligned`: its
    address is fit for O_DIRECT."""

    part: Callable[[int, int], AbstractContextManager[Any]]
    nbytes: int
    aligned: bool


_DRAWN = 12  # rooms of a save, which needs memory also for what does not lie in order

Load: TypeAlias = list[Piece]  # what travels in one room


def pack(blobs: Iterable[tuple[str, int, Any]]) -> list[Load]:
    """Cut large blobs and put small ones together, in order, so that each room is well used.

    Parameters
    ----------
    blobs : iterable of (str, int, object)
        Name, bytes, and the bytes of the tensor on the device.

    Returns
    -------
    list of Load
        Every piece begins in its room and in its blob at a multiple of ``DIRECT_ALIGN``.
    """
    loads: list[Load] = [[]]
    at = 0
    for blob, nbytes, flat in blobs:
        for offset in range(0, nbytes, ROOM):
            length = min(ROOM, nbytes - offset)
            if loads[-1] and (at + length > ROOM or len(loads[-1]) == _MANY):
                loads.append([])
                at = 0
            loads[-1].append(Piece(blob, offset, length, at, flat))
            at += -(-length // _core.DIRECT_ALIGN) * _core.DIRECT_ALIGN
    return loads if loads[-1] else []


def stream(lane: Lane, loads: Sequence[Load], fill: Callable[[Load, memoryview], Note], threads: int) -> list[Note]:
    """Bring all loads to the device.

    Parameters
    ----------
    lane : Lane
        The way there.
    loads : sequence of Load
        In the order in which they are begun.
    fill : callable
        Puts the pieces of a load at their places in a room; called by several threads, for several rooms.
    threads : int
        That fill; at most `ROOMS`.

    Returns
    -------
    list
        What `fill` returned, in the order of the loads. All bytes have arrived.

    Raises
    ------
    BaseException
        The first error, or an interrupt. No copy is in flight any more.
    """
    with _borrowed(lane, min(len(loads), ROOMS), loads) as rooms:
        free: deque[tuple[Room, Ticket | None]] = deque((room, None) for room in rooms)

        def carry(load: Load) -> Note:
            room, ticket = free.popleft()  # who fails keeps it: a copy may have begun
            if ticket is not None:
                lane.wait(ticket)
            note = fill(load, room.view)
            copies = [Copy(room.view[p.at : p.at + p.length], p.flat, p.offset) for p in load]
            free.append((room, lane.send(copies)))
            return note

        return parallel.run(carry, loads, max(1, min(threads, len(rooms))))


_abandoned: list[object] = []  # rooms, and tensors, that a copy may still use, since nobody could wait for it


@contextmanager
def _borrowed(lane: Lane, count: int, loads: Sequence[Load]) -> Iterator[list[Room]]:
    """Give rooms for a while, at the end of which no copy of these loads is in flight."""
    rooms = lane.take(count)
    try:
        lane.begin()
        yield rooms
    finally:
        _return(rooms, [lane], loads)


def _return(rooms: list[Room], lanes: Sequence[Lane], loads: Sequence[Load] = ()) -> None:
    """Wait for all copies, and let others have the rooms; if that fails, keep what a copy may still read or write."""
    over = False
    try:
        _finish(lanes)
        over = True
    except KeyboardInterrupt:  # most likely behind the wait, when another takes no time
        _finish(lanes)
        over = True
        raise
    finally:
        if not over:
            _abandoned.append((rooms, [piece.flat for load in loads for piece in load]))
        elif rooms:
            lanes[0].give_back(rooms)


def _finish(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        lane.finish()


def _near(whole: Any) -> Drawn | None:
    """What lies with the host is there."""
    if whole is None:
        return None
    memory = memoryview(whole).cast("B")
    return Drawn(lambda at, length: nullcontext(memory[at : at + length]), memory.nbytes, aligned=False)


class Drawer:
    """Draws tensors from their devices, part by part, for any number of threads: a context manager.

    It has a room for each thread. What they do with a part, others do not wait for: copies and writes overlap.

    Parameters
    ----------
    threads : int
        How many parts are to be had at a time, at most.
    """

    def __init__(self, threads: int) -> None:
        self._count = min(threads, _DRAWN)
        self._lanes: dict[str, Lane] = {}
        self._rooms: list[Room] = []
        self._free: SimpleQueue[Room] = SimpleQueue()

    @property
    def nbytes(self) -> int:
        """Bytes of its rooms, of which it has none until a tensor is drawn from a device."""
        return len(self._rooms) * ROOM

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *_: object) -> None:
        _return(self._rooms, list(self._lanes.values()))

    def draw(self, codec: Codec, tensor: Any) -> Drawn | None:
        """Say how to get the parts of a tensor that lies in order, none of them larger than a room; None for another.

        They have what the calling thread has asked of the device before.
        """
        far = codec.far(tensor)
        if far is None:
            return _near(codec.whole(tensor))
        lane = self._lanes.get(far.device)
        if lane is None:
            lane = self._lanes[far.device] = self._lane(codec, far.device)
        return Drawn(partial(self._part, lane, far.flat), len(far.flat), aligned=True)

    def _lane(self, codec: Codec, device: str) -> Lane:
        lane = codec.lane(device)
        assert lane is not None, "what is far is on a device that has a lane"
        lane.begin()
        if not self._rooms:
            self._rooms = lane.take(self._count)
            for room in self._rooms:
                self._free.put(room)
        return lane

    @contextmanager
    def _part(self, lane: Lane, flat: Any, offset: int, length: int) -> Iterator[memoryview]:
        room = self._free.get()
        try:
            view = room.view[:length]
            lane.wait(lane.fetch(flat, offset, view))
            yield view
        finally:
            self._free.put(room)  # even after an error: what a copy may still bring, nobody will commit
