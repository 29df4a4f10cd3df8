"""The kinds of save whose crashes are looked at, and the process that does one of them to be traced.

As a program: ``python -m faults.shapes SHAPE PATH [MUTANT]``.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt
from fastckpt import _core, commit, writing
from faults.mutations import MUTANTS
from faults.tracing import BEGIN, END, mark

__all__ = ["SHAPES", "Shape"]

_PART = 8192  # bytes: what a part and a large blob are here, so that a few pages are several parts


def many(seed: int, count: int = 6, nbytes: int = 20_000) -> dict[str, Any]:
    """Tensors of one seed alone, so that a mixture is noticed; also of sizes that no block has."""
    random = np.random.default_rng(seed)
    sizes = [nbytes, 3, 4096, 700, 0, 9000, 130, 5000]
    return {f"t{at}": random.integers(0, 256, sizes[at % len(sizes)], np.uint8) for at in range(count)}


def grown(seed: int) -> dict[str, Any]:
    return {**many(seed, 3), **{f"new{at}": np.full(50 + at, seed) for at in range(4)}}


def tied(seed: int) -> dict[str, Any]:
    shared = np.full(700, seed, np.float64)
    return {"wte": shared, "head": shared, "third": shared, "own": shared + 1}


def training(seed: int) -> dict[str, Any]:
    return {
        "model": many(seed, 4, 3000),
        "epoch": seed,
        "rates": [0.1 * seed, (seed, None)],
        "big": np.full(2500, seed),
    }


def empty(seed: int) -> dict[str, Any]:
    return {"none": np.zeros((0, seed)), "scalar": np.array(seed + 0.5), "also": np.zeros((seed, 0), np.int8)}


def parts(seed: int) -> dict[str, Any]:
    """Large ones, in order and not, of several parts and a rest that no block has."""
    random = np.random.default_rng(seed)
    run, turned = (random.integers(0, 256, shape, np.uint8) for shape in (2 * _PART + 4096 + 100, (129, 127)))
    return {"run": run, "turned": turned.T, "small": np.array([seed]), "tied": run}


@dataclass(frozen=True)
class Shape:
    """One kind of save.

    Attributes
    ----------
    way : str
        How it writes, as in `commit_rig.WAYS`.
    versions : tuple
        What is there before (None: nothing), then what is saved.
    act : callable
        Saves at a path, leaving marks.
    ends : tuple of str
        How each save ends: ``acked``, ``refused``, or ``uncertain``: it may be found or not.
    before : callable, optional
        Changes the disk before the trace begins.
    inject : str, optional
        What strace makes fail.
    """

    way: str
    versions: tuple[Any, ...]
    act: Callable[[str, tuple[Any, ...]], None]
    ends: tuple[str, ...] = ("acked",)
    before: Callable[[Path], None] | None = None
    inject: str | None = None


def save(path: str, versions: tuple[Any, ...], number: int, **options: Any) -> None:
    """One save between its marks."""
    mark("began", number)
    try:
        fastckpt.save(versions[number], path, **options)
    except fastckpt.CommitUncertain:
        mark("uncertain", number)
    except (_Died, KeyboardInterrupt):
        mark("uncertain", number)
    except (OSError, fastckpt.CheckpointError):
        mark("refused", number)
    else:
        mark("acked", number)


class _Died(BaseException):
    """The process is gone, as far as the save can tell: nothing is cleaned up."""


def once(path: str, versions: tuple[Any, ...]) -> None:
    save(path, versions, 1)


def indexed(path: str, versions: tuple[Any, ...]) -> None:
    save(path, versions, 1, index=True)


def twice(path: str, versions: tuple[Any, ...]) -> None:
    save(path, versions, 1)
    save(path, versions, 2)


def in_background(path: str, versions: tuple[Any, ...]) -> None:
    mark("began", 1)
    handle = fastckpt.save_async(versions[1], path)
    handle.result()
    mark("acked", 1)


def one_in_the_other(path: str, versions: tuple[Any, ...]) -> None:
    """Another save of the same path begins and ends in the middle of the first one."""
    write, count = _core.write, 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            save(path, versions, 2)
        return write(*arguments)

    _core.write = counted
    save(path, versions, 1)


def dies_behind_the_exchange(path: str, versions: tuple[Any, ...]) -> None:
    """Killed before the new name is durable; the next save, without a reboot, finds what it left."""
    confirm = commit._confirm

    def dying(*_: Any) -> None:
        commit._confirm = confirm
        raise _Died

    commit._confirm = dying
    _leave_what_the_dead_left()
    twice(path, versions)


def dies_between_two_renames(path: str, versions: tuple[Any, ...]) -> None:
    rename, count = commit._rename, 0

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count in (2, 3):  # the second, and its undoing, which a dead process does not try
            raise _Died
        rename(*arguments)

    commit._rename = counted
    _leave_what_the_dead_left()
    twice(path, versions)


def _leave_what_the_dead_left() -> None:
    discard = commit._discard

    def discarding(target: Any, stage: Any, problem: BaseException) -> None:
        if not isinstance(problem, _Died):
            discard(target, stage, problem)

    commit._discard = discarding


def interrupted_behind_the_exchange(path: str, versions: tuple[Any, ...]) -> None:
    """Ctrl-C, which a save clears up after: it has succeeded, and the old snapshot is deleted."""
    confirm = commit._confirm

    def interrupted(*_: Any) -> None:
        commit._confirm = confirm
        raise KeyboardInterrupt

    commit._confirm = interrupted
    save(path, versions, 1)


def parent_not_synced(path: str, versions: tuple[Any, ...]) -> None:
    """The one sync that confirms the exchange fails; then somebody saves again."""
    real = commit.sync_folder

    def failing(_: int) -> None:
        commit.sync_folder = real
        raise OSError(errno.EIO, "refused")

    commit.sync_folder = failing
    twice(path, versions)


def stale_stage(path: Path) -> None:
    """What a killed save leaves: a stage, half filled."""
    shutil.copytree(path, path.parent / ".s.saving-0123abcd")
    (path.parent / ".s.saving-0123abcd" / "snapshot_done").unlink()
    next((path.parent / ".s.saving-0123abcd").iterdir()).joinpath("out").write_bytes(b"torn")


def only_previous(path: Path) -> None:
    """What a power cut between two renames leaves: the old snapshot under its other name, the new one as a stage."""
    shutil.copytree(path, path.parent / ".s.saving-0123abcd")
    path.rename(path.parent / ".s.previous")


def both(path: Path) -> None:
    """What one behind them leaves."""
    shutil.copytree(path, path.parent / ".s.previous")


PAIR = (many(1), many(2))
SHAPES: dict[str, Shape] = {
    "first": Shape("each", (None, many(2)), once),
    "overwrite": Shape("each", PAIR, once),
    "same name twice": Shape("each", (*PAIR, many(3, 4)), twice, ("acked", "acked")),
    "tensors come and go": Shape("each", (many(1), grown(2)), once),
    "no elements": Shape("each", (empty(1), empty(2)), once),
    "tied": Shape("each", (tied(1), tied(2)), once),
    "nested": Shape("each", (training(1), training(2)), once),
    "flat with index": Shape("each", PAIR, indexed),
    "flat to nested": Shape("syncfs", (many(1, 4), training(2)), once),
    "threads": Shape("threads", PAIR, once),
    "syncfs": Shape("syncfs", (many(1, 4), many(2, 5, 5000)), once),
    "threads, syncfs": Shape("threads-syncfs", PAIR, once),
    "two renames": Shape("renames", PAIR, once),
    "first, two renames": Shape("renames", (None, many(2)), once),
    "lock file": Shape("lockfile", PAIR, once),
    "first, lock file": Shape("lockfile", (None, many(2)), once),
    "stale stage": Shape("each", PAIR, once, before=stale_stage),
    "old one moved aside": Shape("renames", PAIR, once, before=only_previous),
    "old one still beside": Shape("renames", PAIR, once, before=both),
    "disk full": Shape("each", PAIR, once, ("refused",), inject="pwrite64:error=ENOSPC:when=6"),
    "disk full, then again": Shape(
        "each", (*PAIR, many(3, 4)), twice, ("refused", "acked"), inject="pwrite64:error=ENOSPC:when=6"
    ),
    "sync refused": Shape("each", (*PAIR, many(3, 4)), twice, ("refused", "acked"), inject="fsync:error=EIO:when=4"),
    "syncfs refused": Shape(
        "syncfs", (*PAIR, many(3, 4)), twice, ("refused", "acked"), inject="syncfs:error=EIO:when=1"
    ),
    "last sync refused": Shape("each", (many(1, 4), many(2, 4), many(3, 4)), parent_not_synced, ("uncertain", "acked")),
    "large, past the cache": Shape("direct", (parts(1), parts(2)), once),
    "large, threads": Shape("threads-direct", (parts(1), parts(2)), once),
    "large, one sync": Shape("threads-direct-syncfs", (parts(1), parts(2)), once),
    "save_async": Shape("threads-syncfs", PAIR, in_background),
    "one in the other": Shape("each", (many(1, 4), many(2, 4), many(3, 4)), one_in_the_other, ("acked", "acked")),
    "dies behind the exchange": Shape(
        "each", (many(1, 4), many(2, 4), many(3, 4)), dies_behind_the_exchange, ("uncertain", "acked")
    ),
    "dies between two renames": Shape(
        "renames", (many(1, 4), many(2, 4), many(3, 4)), dies_between_two_renames, ("uncertain", "acked")
    ),
    "dies behind two renames": Shape(
        "renames", (many(1, 4), many(2, 4), many(3, 4)), dies_behind_the_exchange, ("uncertain", "acked")
    ),
    "interrupted": Shape("each", PAIR, interrupted_behind_the_exchange, ("uncertain",)),
}


def main(name: str, path: str, mutant: str = "") -> None:
    shape = SHAPES[name]
    rig.prepare(shape.way, setattr)
    if "direct" in shape.way:
        writing.PART = writing.LARGE = _PART
    if mutant:
        MUTANTS[mutant].apply()
    below = [fd for fd, what in rig.descriptors().items() if what.startswith(os.path.dirname(path))]
    assert not below, "opened before the trace began"
    mark(BEGIN)
    with suppress(*([Exception] if mutant else [])):
        shape.act(path, shape.versions)
    mark(END)


if __name__ == "__main__":
    main(*sys.argv[1:])
