"""The bytes of tensors go from files to a device: read into rooms of a ring, copied from there.

Nothing is mapped: a device copies from locked rooms by itself, and from a map only with a processor's help. What lies
in the page cache is read from it, the rest past it. Small tensors share rooms, and each is copied out of one to its
own: one copy of all to the device would want memory there to take them apart from, and tensors that are views of
one buffer would keep all of it alive.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastckpt import _core
from fastckpt.choosing import Mode
from fastckpt.contents import Contents, Entry
from fastckpt.digests import Crcs, compare, crc32
from fastckpt.fetching import DEPTH, SMALL, WAITERS
from fastckpt.filesystems import filesystem_of
from fastckpt.lanes import Lane
from fastckpt.layout import OUT
from fastckpt.mapping import with_path
from fastckpt.ring import Load, Piece, pack, stream

__all__ = ["send"]


def send(
    contents: Contents,
    targets: Sequence[tuple[Entry, Any]],
    lane: Lane,
    *,
    mode: Mode = "auto",
    threads: int | None = None,
    verify: bool = False,
) -> None:
    """Fill tensors on a device, and return when all bytes have arrived.

    Parameters
    ----------
    contents : Contents
        The snapshot; of small tensors the copies in its index are sent.
    targets : sequence of (Entry, object)
        Each with the bytes of its tensor there, as `Codec.far` gives them; with `verify`, no blob twice.
    lane : Lane
        The way there.
    mode : {"auto", "read", "direct"}
        How files are read.
    threads : int, optional
        That read.
    verify : bool
        Check the digests on the way; what is damaged is found when it has arrived.

    Raises
    ------
    CorruptError
        A blob has another size by now, or, with `verify`, other bytes.
    OSError
        What the system refused, with errno and path.
    """
    sizes = {entry.blob: entry.meta.nbytes for entry, _ in targets}
    loads = pack((entry.blob, entry.meta.nbytes, flat) for entry, flat in targets)
    filler = _Filler(contents, sizes, mode, verify)
    try:
        notes = stream(lane, loads, filler, threads or filler.threads)
    except (_core.SizeChanged, OSError) as problem:
        raise with_path(problem, contents.folder) from None
    found: Crcs = {}
    for blob, crc, length in (note for load in notes for note in load):
        found.setdefault(blob, []).append((crc, length))
    compare(contents.path, found, {entry.blob: entry.meta.digest for entry, _ in targets})


class _Filler:
    """Fills rooms with the bytes of a snapshot, in any thread."""

    def __init__(self, contents: Contents, sizes: dict[str, int], mode: Mode, verify: bool) -> None:
        system = filesystem_of(contents.fd)
        self.threads = WAITERS if system.remote else max(DEPTH, len(os.sched_getaffinity(0)))
        self._contents = contents
        self._sizes = sizes
        self._verify = verify
        self._mode: Mode = "read" if system.remote or system.in_memory else mode
        self._cold: dict[str, bool] = {}

    def __call__(self, load: Load, room: memoryview) -> list[tuple[str, int, int]]:
        """Put the pieces of a load at their places; give the digests of them, if they are wanted."""
        kept, parts = self._contents.at_hand([piece.blob for piece in load]), []
        for piece in load:
            view = room[piece.at : piece.at + piece.length]
            if piece.blob in kept:
                view[:] = memoryview(kept[piece.blob])[piece.offset : piece.offset + piece.length]
            else:
                path, at, size = self._contents.part(piece.blob, self._sizes[piece.blob])
                parts.append((path, at + piece.offset, view, size, self._space(piece)))
        _core.read_parts(self._contents.fd, parts)
        return [(p.blob, crc32(room[p.at : p.at + p.length]), p.length) for p in load if self._verify]

    def _space(self, piece: Piece) -> int:
        """Bytes of the room for a piece that is read past the page cache; 0 for one that is not."""
        return -(-piece.length // _core.DIRECT_ALIGN) * _core.DIRECT_ALIGN if self._past_cache(piece.blob) else 0

    def _past_cache(self, blob: str) -> bool:
        if blob in self._contents.parts:
            return False
        if self._mode != "auto":
            return self._mode == "direct"
        if self._sizes[blob] <= SMALL:
            return False
        cold = self._cold.get(blob)
        if cold is None:  # of two threads that ask at the same time, either may answer
            cold = self._cold[blob] = not _core.is_resident(self._contents.fd, f"{blob}/{OUT}")
        return cold
