"""The blobs of a plan become files: large ones in parts, by several threads, past the page cache; small ones whole.

A job is one part of a large tensor that lies in order in host memory, some small tensors, or one of any other kind.
Threads share them. Whoever comes first to a large tensor makes its file, whoever ends last finishes it. A part is
written in pieces so small that each is in the processor's cache from its digest until the device has it. Small tensors
are many to a call: threads that ask for the GIL between any two system calls mostly wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, TypeAlias

from fastckpt import _core, parallel
from fastckpt.digests import combined, crc32, digest_text
from fastckpt.gathering import Room, Rooms, packed
from fastckpt.plan import WriteItem, WritePlan
from fastckpt.ring import Drawer, Drawn
from fastckpt.seals import sealed
from fastckpt.staging import Stage
from fastckpt.ways import LARGE, PageCache, Way

__all__ = ["PART", "Progress", "write_items"]

PART = 4 << 20  # bytes: a thread's share at a time
_PIECE = 1 << 20  # bytes that it digests, copies where they are not aligned, and writes past the page cache at a time;
_MANY = 8  # but all of its share where there are fewer threads than this to keep the device busy
_AHEAD = 3  # of so many threads one has its piece ready, and waits until another's is written
_RUN = 32  # small tensors that one call writes, of together at most LARGE bytes
_OFTEN = 256  # such runs, after which what is written is synced
_EARLY = 3 / 4  # of the parts of large tensors: the runs are among these, and synced beside the others

Progress: TypeAlias = Callable[[int], None]
_Job: TypeAlias = Callable[[], None]  # what one thread does at a time


def write_items(plan: WritePlan, stage: Stage, way: Way, progress: Progress | None = None) -> dict[str, bytes]:
    """Write every tensor, of the large ones the largest first, so that no thread is left alone with one; then the ties.

    Parameters
    ----------
    plan : WritePlan
        What to write.
    stage : Stage
        Where to.
    way : Way
        How.
    progress : callable, optional
        Told the bytes of each part when it is written, by whichever thread wrote it.

    Returns
    -------
    dict of str to bytes
        What each meta says, by folder; nothing where the plan has no index to put it in.
    """
    save = _Save(stage, way, progress, keeps_texts=plan.index)
    own = [item for item in plan.items if item.twin is None]
    large = sorted((item for item in own if item.nbytes > LARGE), key=lambda item: item.nbytes, reverse=True)
    small = _runs([item for item in own if item.nbytes <= LARGE], save, alone=not large)

    with Drawer(way.threads) as drawer:
        jobs = [job for item in large for job in _jobs_of(item, save, drawer)]
        save.rooms = Rooms(way.threads, save.piece, drawer.nbytes)
        parallel.run(lambda job: job(), _mixed(jobs, small), way.threads, stop=stage.stop)
    for item in plan.items:
        if item.twin is not None:
            text = save.meta(item, save.crcs[item.twin])
            if not stage.link_tensor(item.folder, text, item.twin, sync=way.sync):
                _Small(item, save)()
    return save.texts


class _Save:
    """What the jobs of one save share."""

    rooms: Rooms

    def __init__(self, stage: Stage, way: Way, progress: Progress | None, *, keeps_texts: bool) -> None:
        self.stage = stage
        self.way = way
        self.tell = progress or (lambda _: None)
        self.crcs: dict[str, int] = {}
        self.texts: dict[str, bytes] = {}
        self._keeps_texts = keeps_texts
        self.cache = PageCache(way)
        self.gate = _core.Gate(way.threads - way.threads // _AHEAD)
        self.piece = min(_PIECE, PART) if way.threads >= _MANY else PART

    def meta(self, item: WriteItem, crc: int) -> bytes:
        """Give the content of a tensor's `meta`, when the CRC of its `out` is known, if one is taken."""
        self.crcs[item.folder] = crc
        digest = digest_text(crc) if self.way.digest else None
        text = item.text(digest)
        if self._keeps_texts:
            self.texts[item.folder] = text
        return text if digest is None else sealed(text)


def _runs(items: Sequence[WriteItem], save: _Save, *, alone: bool) -> list[_Job]:
    """Cut small tensors, in the order of the object, into jobs; each is one where they are synced one by one."""
    if save.way.sync:
        return [_Small(item, save) for item in items]
    runs: list[_Job] = []
    run, total = list[WriteItem](), 0
    for item in items:
        nbytes = item.nbytes
        if len(run) == _RUN or total + nbytes > LARGE:
            runs.append(_Run(run, total, save, syncs=save.way.writeback and len(runs) % _OFTEN == _OFTEN - 1))
            run, total = [], 0
        run.append(item)
        total += nbytes
    return [*runs, _Run(run, total, save, syncs=save.way.writeback and not alone)] if run else runs


def _jobs_of(item: WriteItem, save: _Save, drawer: Drawer) -> Sequence[_Job]:
    drawn = drawer.draw(item.codec, item.value)
    if drawn is None:
        return [_Gathered(item, save)]
    save.stage.check_written(item.folder, item.nbytes, drawn.nbytes)
    large = _Large(item, save, drawn)
    parts = [_Part(large, at) for at in range(0, item.nbytes, PART)]
    return parts if save.way.direct else [_Parts(large, parts)]


def _mixed(large: Sequence[_Job], small: Sequence[_Job]) -> list[_Job]:
    """Spread the small jobs, which make the system create files, among the large ones, which make the device write."""
    places = [at / len(large) for at in range(len(large))]
    places += [(at + 0.5) / len(small) * _EARLY for at in range(len(small))]
    return [job for _, job in sorted(zip(places, [*large, *small], strict=True), key=itemgetter(0))]


class _Run:
    """Some small tensors, each whole."""

    def __init__(self, items: Sequence[WriteItem], nbytes: int, save: _Save, *, syncs: bool = False) -> None:
        self.items = items
        self.nbytes = nbytes
        self.save = save
        self.syncs = syncs

    def __call__(self) -> None:
        outs = [item.codec.whole(item.value) for item in self.items]
        with self.save.rooms.lent() if any(out is None for out in outs) else nullcontext() as room:
            if room is not None:
                outs = self._gathered(outs, room)
            self.save.stage.write_tensors([*map(self._prepared, self.items, outs)])
        self.save.tell(self.nbytes)
        if self.syncs:  # while others go on, and the sync at the end is short
            self.save.stage.sync()

    def _gathered(self, outs: Sequence[Any], room: Room) -> list[Any]:
        """Put those that do not lie in order into the room, which has as many bytes as a run."""
        made, at = list(outs), 0
        for number, item in enumerate(self.items):
            if made[number] is None:
                made[number] = memoryview(room.out)[at : at + item.nbytes]
                parts = packed(item.pieces(room.gather), made[number])
                self.save.stage.check_written(item.folder, item.nbytes, sum(map(len, parts)))
                at += item.nbytes
        return made

    def _prepared(self, item: WriteItem, whole: Any) -> tuple[str, Any, bytes]:
        """Give folder, `out` and `meta`."""
        out = memoryview(whole)
        self.save.stage.check_written(item.folder, item.nbytes, out.nbytes)
        return item.folder, out, self.save.meta(item, crc32(out) if self.save.way.digest else 0)


class _Small:
    """One small tensor, whole."""

    def __init__(self, item: WriteItem, save: _Save) -> None:
        self.item = item
        self.save = save
        self.nbytes = item.nbytes
        self._crc = 0

    def __call__(self) -> None:
        folder, sync, ready = self.item.folder, self.save.way.sync, self.item.codec.whole(self.item.value)
        with self.save.rooms.lent() if ready is None else nullcontext() as room:
            pieces = self._pieces(room and room.gather)
            self.save.stage.write_tensor(folder, self._text, pieces, self.nbytes, sync=sync)
        if self.item.twin is None:  # else its bytes have been told
            self.save.tell(self.nbytes)

    def _pieces(self, room: Any = None) -> Iterator[Any]:
        for piece in self.item.pieces(room):
            if self.save.way.digest:
                self._crc = crc32(piece, self._crc)
            yield piece

    def _text(self) -> bytes:
        return self.save.meta(self.item, self._crc)


class _Gathered(_Small):
    """One large tensor that its framework has to copy: a part at a time, into a room."""

    def __call__(self) -> None:
        with self.save.rooms.lent() as room, self.save.cache.passed(self.nbytes) as direct:
            self._write(direct, room)

    def _write(self, direct: bool, room: Room) -> None:
        folder, stage, way, at = self.item.folder, self.save.stage, self.save.way, 0
        file = stage.create_blob(folder, self.nbytes, direct=direct, writeback=way.writeback)
        for part in packed(self._pieces(room.gather), room.out):
            end = at + len(part)
            if end > self.nbytes or len(part) < len(room.out):  # a room that is not full is the last
                stage.check_written(folder, self.nbytes, end)
            stage.write_part(folder, file, part, at, None, self.save.gate)
            self.save.tell(len(part))
            at = end
        stage.check_written(folder, self.nbytes, at)
        stage.finish_blob(folder, file, self._text(), sync=way.sync)


class _Large:
    """One large tensor that lies in order, while its parts are written."""

    def __init__(self, item: WriteItem, save: _Save, drawn: Drawn) -> None:
        self.item = item
        self.save = save
        self.drawn = drawn
        self.direct = save.way.direct
        self._lock = threading.Lock()
        self._file: _core.File | None = None
        self._crcs: dict[int, tuple[int, int]] = {}

    def opened(self) -> _core.File:
        """Give the file, which the first to ask creates."""
        with self._lock:
            if self._file is None:
                self._file = self.save.stage.create_blob(
                    self.item.folder, self.item.nbytes, direct=self.direct, writeback=self.save.way.writeback
                )
            return self._file

    def done(self, at: int, crc: int, length: int) -> None:
        """Note a part; whoever notes the last one finishes the file."""
        with self._lock:
            self._crcs[at] = crc, length
            over = len(self._crcs) == -(-self.item.nbytes // PART)
        if over:
            self._finish()

    def _finish(self) -> None:
        assert self._file is not None, "its parts were written into it"
        meta = self.save.meta(self.item, combined(self._crcs[at] for at in sorted(self._crcs)))
        self.save.stage.finish_blob(self.item.folder, self._file, meta, sync=self.save.way.sync)


class _Part:
    """One part of a large tensor."""

    def __init__(self, large: _Large, at: int) -> None:
        self.large = large
        self.at = at
        self.nbytes = min(PART, large.item.nbytes - at)

    def __call__(self) -> None:
        large = self.large
        file = large.opened()
        step = large.save.piece if file.direct else PART
        bounced = file.direct and not large.drawn.aligned
        crc = 0
        with (
            large.save.rooms.lent() if bounced else nullcontext() as room,
            large.drawn.part(self.at, self.nbytes) as part,
        ):
            bounce = None if room is None else room.out
            for at in range(0, self.nbytes, step):
                piece = part[at : at + step]
                crc = crc32(piece, crc) if large.save.way.digest else 0
                large.save.stage.write_part(large.item.folder, file, piece, self.at + at, bounce, large.save.gate)
        large.save.tell(self.nbytes)
        large.done(self.at, crc, self.nbytes)


class _Parts:
    """All parts of one large tensor, for one thread: the page cache lets no two write to one file at a time."""

    def __init__(self, large: _Large, parts: Sequence[_Part]) -> None:
        self.large = large
        self.parts = parts
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(self) -> None:
        with self.large.save.cache.passed(self.nbytes) as self.large.direct:
            for part in self.parts:
                part()
