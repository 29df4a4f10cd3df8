"""Copies from CUDA devices to memory that is registered with CUDA: the only part of a save that knows of streams."""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["copying"]

cuda: Any = torch.cuda  # much of which has no types
_registered: dict[int, int] = {}  # bytes by address, of memory that is alive


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
    if int(cuda.cudart().cudaHostRegister(address, nbytes, 0)) != 0:  # the copies then go through CUDA's own
        return
    _registered[address] = nbytes
    weakref.finalize(memory, _unregister, address, os.getpid()).atexit = False


def _unregister(address: int, owner: int) -> None:
    """Before the memory is unmapped. A forked child may not call CUDA."""
    del _registered[address]
    if os.getpid() == owner:
        cuda.cudart().cudaHostUnregister(address)
