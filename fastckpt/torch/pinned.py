"""Lanes to devices: page-locked rooms, copies on a stream of their own. All that is CUDA's alone is in this file.

A `HostLane` copies at once. `CudaLane` is the same code with CUDA's streams and events around it; so what a lane is
used for can be tried on any machine, by giving the CPU a `HostLane` in `LANES`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from fastckpt import _core
from fastckpt.errors import UnsupportedError
from fastckpt.lanes import Copy, Far, Lane, Ticket
from fastckpt.rooms import Pool, Room, allocate_locked

__all__ = ["LANES", "CudaLane", "HostLane", "allocate", "copying", "far", "lane_for", "release", "settle"]

_registered: dict[int, int] = {}  # bytes by address, of memory that `copying` registered and that is alive

_PORTABLE = 1  # cudaHostRegisterPortable: locked for every device of the process

_log = logging.getLogger("fastckpt")
cuda: Any = torch.cuda  # much of which has no types


def _leave(address: int, length: int) -> None:
    """What the host copies by itself need not be locked."""


class HostLane:
    """Copies at once, by the thread that asks.

    Parameters
    ----------
    device : torch.device
        Where the tensors are.
    """

    pool = Pool(_leave)

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def take(self, count: int) -> list[Room]:
        return self.pool.take(count)

    def give_back(self, rooms: list[Room]) -> None:
        self.pool.give_back(rooms)

    def begin(self) -> None:
        """Nothing is asked of the host that is not done when it was."""

    def send(self, copies: Sequence[Copy]) -> Ticket:
        with torch.inference_mode():  # a load in inference mode has tensors that no other thread may change otherwise
            for source, flat, offset in copies:
                room = torch.frombuffer(source, dtype=torch.uint8)
                flat[offset : offset + len(room)].copy_(room, non_blocking=True)
        return self._ticket()

    def fetch(self, flat: torch.Tensor, offset: int, room: Any) -> Ticket:
        with torch.inference_mode():
            target = torch.frombuffer(room, dtype=torch.uint8)
            target.copy_(flat[offset : offset + len(target)], non_blocking=True)
        return self._ticket()

    def _ticket(self) -> Ticket:
        return None

    def wait(self, ticket: Ticket) -> None:
        """It is done."""

    def finish(self) -> None:
        """They are done."""


def _lock_pages(address: int, length: int) -> Callable[[], object] | None:
    """Tell CUDA of memory, so that a device copies it by itself; give what makes CUDA forget it."""
    runtime = cuda.cudart()
    code = int(runtime.cudaHostRegister(address, length, _PORTABLE))
    if code:
        with suppress(RuntimeError, AssertionError):  # CUDA tells of the refusal once more, to whoever calls next
            torch.zeros(1, device="cuda")
        _log.warning("CUDA does not lock %d bytes (error %d): copies to and from devices will be slower", length, code)
        return None
    return lambda: runtime.cudaHostUnregister(address)


class CudaLane(HostLane):
    """Copies on a stream of its own, beside what the program's streams do.

    The tensors were made, and are used, on the current stream of the thread that calls `begin` and `finish`. Copies
    wait for that stream first, because an allocator may give memory that work queued there still uses; and `finish`
    waits for them on the host, because rooms go to others then. So no memory need be noted as used by two streams.
    """

    pool = Pool(_lock_pages)

    def __init__(self, device: torch.device) -> None:
        if not cuda.is_available():
            raise UnsupportedError(f"device {str(device)!r}: torch sees no CUDA device here; load to the CPU instead")
        index: int | None = device.index
        super().__init__(torch.device("cuda", cuda.current_device() if index is None else index))
        self._stream = cuda.Stream(self.device)

    def take(self, count: int) -> list[Room]:
        with cuda.device(self.device):  # else locking would wake up device 0
            return super().take(count)

    def begin(self) -> None:
        self._stream.wait_stream(cuda.current_stream(self.device))

    def send(self, copies: Sequence[Copy]) -> Ticket:
        with cuda.stream(self._stream):
            return super().send(copies)

    def fetch(self, flat: torch.Tensor, offset: int, room: Any) -> Ticket:
        with cuda.stream(self._stream):
            return super().fetch(flat, offset, room)

    def _ticket(self) -> Ticket:
        event = cuda.Event(blocking=True)  # who waits for it sleeps: its processor is for those who read
        event.record(self._stream)
        return event

    def wait(self, ticket: Ticket) -> None:
        ticket.synchronize()

    def finish(self) -> None:
        self._stream.synchronize()
        cuda.current_stream(self.device).wait_stream(self._stream)


#: What makes the lane to a device, by its type. A device of another type is reached by ``Tensor.to`` and ``copy_``.
LANES: dict[str, Callable[[torch.device], Lane]] = {"cuda": CudaLane}


def lane_for(device: Any) -> Lane | None:
    """Give a lane to a device; None where there is none, or no device is given."""
    if device is None:
        return None
    where = torch.device(device)
    make = LANES.get(where.type)
    return None if make is None else make(where)


def far(tensor: torch.Tensor) -> Far | None:
    """Give the bytes of a tensor that lies in order, as it is, on a device with a lane; None for any other."""
    if tensor.device.type not in LANES or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return Far(str(tensor.device), tensor.detach().reshape(-1).view(torch.uint8))


def settle(tensors: Sequence[torch.Tensor]) -> None:
    """Wait until what the calling thread has asked of the tensors' devices is done: other threads use other streams."""
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        cuda.current_stream(device).synchronize()


@contextmanager
def copying(devices: Collection[torch.device], memory: Any) -> Iterator[None]:
    """Let copies from these devices into `memory` be non-blocking: leaving waits for them.

    Parameters
    ----------
    devices : collection of torch.device
        CUDA devices; with none of them, nothing of CUDA is touched.
    memory : numpy array of bytes
        What the targets are parts of. It is registered (pinned) until it goes away, where CUDA agrees.
    """
    if devices:
        _register(memory)
    with ExitStack() as stack:
        for device in devices:
            stream = cuda.Stream(device)
            stream.wait_stream(cuda.current_stream(device))  # what the program has computed comes first
            stack.callback(stream.synchronize)
            stack.enter_context(cuda.stream(stream))
        yield


def _register(memory: Any) -> None:
    address, nbytes = memory.ctypes.data, memory.nbytes
    if _registered.get(address) == nbytes or not nbytes:
        return
    unlock = _lock_pages(address, nbytes)
    if unlock is None:  # the copies then go through CUDA's own
        return
    _registered[address] = nbytes
    weakref.finalize(memory, _unregister, address, unlock, os.getpid()).atexit = False


def _unregister(address: int, unlock: Callable[[], object], owner: int) -> None:
    """Before the memory is unmapped. A forked child may not call CUDA."""
    del _registered[address]
    if os.getpid() == owner:
        unlock()


def allocate(sizes: Sequence[int]) -> list[_core.Mapping]:
    """Give fresh page-locked memory, one piece a size.

    Raises
    ------
    UnsupportedError
        There is no CUDA device that it could be locked for, or CUDA refuses.
    """
    if not cuda.is_available():
        raise UnsupportedError(
            "pin=True needs a CUDA device to lock memory for, and torch sees none here; leave it out"
        )
    memories = allocate_locked(sizes, _lock_pages)
    if memories is None:
        raise UnsupportedError(f"pin=True: CUDA refuses to lock {sum(sizes)} bytes; leave it out")
    return memories


def release() -> None:
    """Unlock and free the rooms that are kept for the next load or save."""
    HostLane.pool.release()
    CudaLane.pool.release()
