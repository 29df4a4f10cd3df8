"""Maps are brought into memory by threads in the background, so that who touches them later need not wait."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fastckpt import _core

__all__ = ["warm"]

_STEP = 16 << 20  # bytes between two looks whether anybody still has the map
_THREADS = 6  # each at one file: the kernel reads ahead in it, and its end is not the others'


def warm(buffers: Sequence[Any]) -> None:
    """Bring maps into memory, in order, and return at once. What is in memory already costs next to nothing.

    Parameters
    ----------
    buffers : sequence of Mapping
        They are not kept alive by this.

    Notes
    -----
    The threads end by themselves, and with the process.
    """
    maps = deque(weakref.ref(buffer) for buffer in buffers if isinstance(buffer, _core.Mapping))
    with suppress(RuntimeError):  # the system refuses more threads, or the interpreter is about to end: touches will do
        for _ in range(_THREADS):
            threading.Thread(target=_warm, args=(maps,), name="fastckpt-prefetch", daemon=True).start()


def _warm(maps: deque[weakref.ref[_core.Mapping]]) -> None:
    with suppress(IndexError):  # all are taken
        while True:
            known, at = maps.popleft(), 0
            while (mapping := known()) is not None and at < len(mapping):
                with suppress(OSError):  # a page that cannot be read is for whoever touches it to see
                    mapping.advise(_core.MADV_POPULATE_READ, at, min(_STEP, len(mapping) - at))
                at += _STEP
