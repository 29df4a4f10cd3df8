"""A disk that is full, at every level: the old stays, what was begun goes, and a save works when there is room again.

A file of ballast takes all the space there is and gives some of it back, a little more each time: from nothing at all
to more than a snapshot needs. Whatever a file system refuses first, a folder, a file, a block or a sync, comes up.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt
from faults.verdict import Skip, Verdict, need_programs, need_root
from faults.volumes import SYSTEMS, drop_caches, fresh, mounted

ABOUT = "on a full disk the old snapshot stays, no rest stays, and the next save works when there is room"

LEVELS = 60
_ROOM = 5 << 19  # bytes at the most; a snapshot takes some three quarters of it
_FULL = (errno.ENOSPC, errno.EDQUOT)


def state(seed: int) -> dict[str, Any]:
    """One large tensor, which has its space from the beginning, and small ones, which are written as they come."""
    small = {f"t{at}": np.full((seed + at * 1000,), seed, np.float32) for at in range(12)}
    return {"model": {"large": np.full(200_000, seed, np.float64), **small}, "epoch": seed}


OLD, NEW = state(1), state(2)


class Disk:
    """One small file system with a snapshot, and with ballast."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s"
        fastckpt.save(OLD, self.path)
        self.old, self.new = rig.tree_of(self.path), rig.written(NEW)
        self._fill("floor", _ROOM + (1 << 20))
        self.outcomes: Counter[str] = Counter()

    def _fill(self, name: str, room: int) -> None:
        """Take all space but `room`, first at one go and then by blocks, until not one is left."""
        fd = os.open(self.path.parent / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            status = os.fstatvfs(fd)
            most = max(status.f_bavail * status.f_frsize - room - (2 << 20), 0)
            with suppress(OSError):
                os.posix_fallocate(fd, 0, most)
            if name == "floor":
                return
            self._to_the_brim(fd)
            os.ftruncate(fd, max(os.fstat(fd).st_size - room, 0))
            os.fsync(fd)
        finally:
            os.close(fd)

    def _to_the_brim(self, fd: int) -> None:
        at, block = os.fstat(fd).st_size, bytes(1 << 16)
        for length in (1 << 16, 1 << 12):
            with suppress(OSError):
                while True:
                    written = os.pwrite(fd, block[:length], at)
                    at += written
                    os.fsync(fd)  # late allocation: only now it is refused

    def save_at(self, room: int) -> None:
        """Save the new snapshot with so much room; with enough; and the old one again."""
        self._fill("ballast", room)
        try:
            fastckpt.save(NEW, self.path)
            self._check(self.new, f"saved with {room} bytes")
            self.outcomes["saved"] += 1
        except OSError as problem:
            assert problem.errno in _FULL, repr(problem)
            assert str(problem.filename).startswith(str(self.path)), repr(problem)
            self._check(self.old, f"refused with {room} bytes")
            self.outcomes["refused"] += 1
        finally:
            (self.path.parent / "ballast").unlink()
            os.sync()
        for obj, tree in ((NEW, self.new), (OLD, self.old)):
            fastckpt.save(obj, self.path)
            self._check(tree, "saved when there was room again")

    def _check(self, tree: dict[str, bytes], when: str) -> None:
        assert set(os.listdir(self.path.parent)) - {"floor", "ballast", "lost+found"} == {"s"}, when
        assert rig.tree_of(self.path) == tree, when
        assert rig.equal(rig.loaded(self.path), NEW if tree is self.new else OLD), when


def run(scale: float) -> Verdict:
    need_root()
    need_programs("mount", "umount")
    figures: dict[str, Any] = {}
    violations: list[str] = []
    for name in SYSTEMS:
        try:
            figures[name] = filled(name, max(round(LEVELS * scale), 3), violations)
        except Skip as reason:
            figures[name] = f"skipped: {reason}"
    if all(str(figure).startswith("skipped") for figure in figures.values()):
        raise Skip(str(figures))
    return Verdict(figures, violations)


def filled(name: str, levels: int, violations: list[str]) -> str:
    """Save at every level on one kind of file system, and look at it again from the disk."""
    with rig.fast_folder() as folder:
        with fresh(name, folder) as (image, there):
            disk = Disk(there)
            for level in range(levels):
                note(disk, name, round(_ROOM * level / (levels - 1)), violations)
        if name != "tmpfs":
            drop_caches()
            with mounted(name, image, there):
                if rig.tree_of(disk.path) != disk.old:
                    violations.append(f"{name}: other bytes after mounting again")
    return f"{levels} levels ({', '.join(f'{n} {what}' for what, n in disk.outcomes.items())})"


def note(disk: Disk, name: str, room: int, violations: list[str]) -> None:
    try:
        disk.save_at(room)
    except Exception:  # noqa: BLE001 -- the other levels are to be seen too
        violations.append(f"{name} with {room} bytes free: {traceback.format_exc(limit=-3)}")
