"""Maps are brought into memory by a thread in the background, so that who touches them later need not wait."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fastckpt import _core

__all__ = ["warm"]

_STEP = 16 << 20  # bytes between two looks whether anybody still has the map


def warm(buffers: Sequence[Any]) -> threading.Thread:
    """Bring maps into memory, in order, and return at once. What is in memory already costs next to nothing.

    Parameters
    ----------
    buffers : sequence of Mapping
        They are not kept alive by this.

    Returns
    -------
    threading.Thread
        It ends by itself, and with the process.
    """
    maps = [weakref.ref(buffer) for buffer in buffers if isinstance(buffer, _core.Mapping)]
    thread = threading.Thread(target=_warm, args=(maps,), name="fastckpt-prefetch", daemon=True)
    thread.start()
    return thread


def _warm(maps: list[weakref.ref[_core.Mapping]]) -> None:
    for known in maps:
        at = 0
        while (mapping := known()) is not None and at < len(mapping):
            with suppress(OSError):  # a page that cannot be read is for whoever touches it to see
                mapping.advise(_core.MADV_POPULATE_READ, at, min(_STEP, len(mapping) - at))
            at += _STEP
