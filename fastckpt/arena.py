"""A copy of what a plan will write, in memory that is kept for the next copy.

Fresh memory costs three times as much as the copy itself, which is what the caller of ``save_async`` waits for.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastckpt import _core
from fastckpt.codec import NUMPY, Codec
from fastckpt.plan import WriteItem, WritePlan, check_size
from fastckpt.ways import LARGE

__all__ = ["Arena", "Places", "copied", "places_of"]

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
_Pair: TypeAlias = tuple[Bytes, Bytes]

_ALIGN = 64  # bytes; every dtype is content with that
_RUN = 1 << 30  # bytes: what one call copies


class Arena:
    """Memory for one copy, which whoever takes it has alone until it is given back.

    What is kept serves again when at most an eighth of it is more than needed; and when no more than an eighth is
    needed: what is saved in between says nothing about the next copy that is large. Else it is returned to the system
    before other memory is taken. So it is one copy's memory, the last large one's, of which at most an eighth is spare.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: the memory is its parent's, and so may be whoever held the lock."""
        self._lock = threading.Lock()
        self._free: Bytes | None = None

    def take(self, nbytes: int) -> Bytes:
        """Give at least `nbytes`, of any content."""
        memory = self._taken()
        if memory is None or not _fits(len(memory), nbytes):
            del memory  # before more is asked for
            (mapping,) = _core.allocate([max(nbytes, 1)], inherited=False)
            memory = np.frombuffer(memoryview(mapping), np.uint8)
        return memory

    def give(self, memory: Bytes) -> None:
        """Keep it for the next copy."""
        self._free = memory

    def release(self) -> None:
        """Return to the system what is not in use."""
        self._taken()

    def _taken(self) -> Bytes | None:
        with self._lock:
            memory, self._free = self._free, None
            return memory


def _fits(kept: int, nbytes: int) -> bool:
    return nbytes <= kept and (nbytes <= kept // 8 or kept - nbytes <= kept // 8)


class Places(NamedTuple):
    """Where in a copy its tensors lie.

    Attributes
    ----------
    room : int
        Bytes of it all.
    of : dict of str to tuple of int
        Begin and end of each tensor that is no tie, by folder.
    """

    room: int
    of: dict[str, tuple[int, int]]


def places_of(plan: WritePlan) -> Places:
    """Say where the tensors of a copy go."""
    places, at = {}, 0
    for item in plan.items:
        if item.twin is None:
            align = _core.DIRECT_ALIGN if item.nbytes > LARGE else _ALIGN  # those are written with O_DIRECT
            start = -(-at // align) * align
            at = start + item.nbytes
            places[item.folder] = start, at
    return Places(at, places)


def copied(plan: WritePlan, places: Places, memory: Bytes, path: str) -> WritePlan:
    """Give the same plan over a copy of its tensors, each once, in `memory`; `path` is what errors name."""
    parts = {folder: memory[start:stop] for folder, (start, stop) in places.of.items()}
    in_order: list[_Pair] = []
    others = defaultdict(list)
    for item in plan.items:
        if item.twin is None:
            source, part = item.codec.whole(item.value), parts[item.folder]
            if source is None:
                others[item.codec].append((item, part))
            else:
                check_size(path, item.folder, item.nbytes, len(source))
                in_order.append((part, source))
    for codec, pairs in others.items():
        _collect(codec, pairs, memory, path)
    for run in _runs(in_order):
        _core.copy(run, threads=len(os.sched_getaffinity(0)))
    items = (
        WriteItem(folder, meta, nbytes, parts[twin or folder], NUMPY, twin)
        for folder, meta, nbytes, _, _, twin in plan.items
    )
    return replace(plan, items=tuple(items))


def _collect(codec: Codec, pairs: Sequence[tuple[WriteItem, Bytes]], memory: Bytes, path: str) -> None:
    """Copy what a framework has to gather. Of a tensor that another thread has resized, it says shapes and no name."""
    try:
        codec.collect([(item.value, part) for item, part in pairs], memory)
    except (ValueError, RuntimeError):
        for item, _ in pairs:
            check_size(path, item.folder, item.nbytes, codec.describe(item.value).nbytes)
        raise


def _runs(pairs: Iterable[_Pair]) -> Iterator[list[_Pair]]:
    """Cut and gather into runs of about so many bytes that an interrupt can wait for their end."""
    run: list[_Pair] = []
    size = 0
    for part, source in pairs:
        for at in range(0, len(part), _RUN):
            run.append((part[at : at + _RUN], source[at : at + _RUN]))
            size += len(run[-1][0])
            if size >= _RUN:
                yield run
                run, size = [], 0
    yield run
