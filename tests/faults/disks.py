"""Real file systems on a disk that notes every write: rebuilt as a power cut may leave it, mounted, and loaded from.

The disk keeps what it was told to flush. Of what came after the last flush it keeps any part, in any order, also half
a write: blocks of 4096 bytes, and sometimes sectors of 512, come or do not come one by one. On btrfs only
blocks: half of its superblock is one with a wrong checksum, which it does not mount.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastckpt
from fastckpt import ways, writing
from faults.crash_states import Labels, allowed
from faults.mutations import MUTANTS
from faults.noting_disk import Record, records
from faults.programs import forked
from faults.shapes import many, parts
from faults.verdict import Skip, Verdict, need_programs, need_root
from faults.volumes import copied, made, mounted, noting_disk, work_folder
from faults.volumes import run as call

ABOUT = (
    "a power cut in the middle of a disk's writes leaves a file system that mounts, and the old or new snapshot on it"
)

__all__ = ["KINDS", "Kind", "look", "recorded", "run"]

_DISKS = 250  # of each kind, at scale 1
_CONTROL = 40  # disks on which a commit without its syncs must be noticed
_NEXT_SAVE = 20  # on one of so many disks, the next save is made
_VERSIONS = (many(1), {**many(2), **parts(2)}, {**parts(3), "one": np.array([3])})


@dataclass(frozen=True)
class Kind:
    """A file system, how it is mounted, how many times as many disks of it are looked at, and what a disk tears."""

    system: str
    options: str = ""
    share: float = 1
    sector: int = 512

    def __str__(self) -> str:
        return f"{self.system} {self.options}".strip()


KINDS = (
    Kind("ext4"),
    Kind("ext4", "data=writeback"),
    Kind("ext4", "noauto_da_alloc"),
    Kind("ext4", "commit=1"),
    Kind("xfs", share=2),
    Kind("btrfs", share=2, sector=4096),
)


@dataclass
class Found:
    """What was seen on the disks of one kind."""

    disks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(scale: float) -> Verdict:
    need_root()
    need_programs("losetup", "mount", "umount", "mkfs.ext4")
    disks, outcomes, violations, skipped = Counter[str](), Counter[str](), [], []
    for kind in KINDS:
        try:
            found = look(kind, max(5, int(_DISKS * kind.share * scale)))
            control = look(kind, _CONTROL, mutant="no file is synced", enough=1) if kind.options == "" else None
        except Skip as reason:
            skipped.append(f"{kind}: {reason}")
            continue
        print(f"  {kind}: {found.disks} disks, {dict(found.outcomes)}", flush=True)
        disks[kind.system] += found.disks
        outcomes += found.outcomes
        violations += [f"{kind}: {text}" for text in found.violations]
        if control is not None and not control.violations:
            violations.append(f"{kind}: a commit that syncs no file was not noticed on {control.disks} disks")
    if not disks:
        raise Skip("; ".join(skipped))
    return Verdict({**disks, **outcomes, **({"skipped": "; ".join(skipped)} if skipped else {})}, violations)


def look(kind: Kind, count: int, *, mutant: str = "", enough: int = 20) -> Found:
    """Save on a file system, and look at so many distinct disks that a cut may leave."""
    with work_folder() as folder:
        base, log = recorded(kind, folder, mutant)
        found = Found()
        say = Labels(_VERSIONS)
        for cut, kept in _cuts(log, count, kind.sector):
            _rebuilt(base, log, cut, kept, folder / "disk")
            found.disks += 1
            wanted = allowed([(0.0, *_mark(entry)) for entry in log[:cut] if entry.kind == "M"])
            label = _label(kind, folder, say, next_save=found.disks % _NEXT_SAVE == 0 and not mutant)
            word = label.partition(":")[0] if isinstance(label, str) else "old" if label == 0 else "new"
            found.outcomes[word] += 1
            if label not in wanted:
                part = f"{len(kept)} parts of" if kept is not None else "all of"
                found.violations.append(f"{label}, where {sorted(wanted)} may be; cut at {cut}, {part} the last epoch")
                if len(found.violations) >= enough:
                    break
    return found


def _mark(entry: Record) -> tuple[str, str]:
    verb, _, version = entry.data.decode().partition(" ")
    return verb, version


def recorded(kind: Kind, folder: Path, mutant: str = "") -> tuple[Path, list[Record]]:
    """Save twice over a snapshot; the disk before the first of these saves, and what was written since."""
    image = made(kind.system, folder / "image")
    base = copied(image, folder / "base")
    with (
        noting_disk(folder, image, folder / "log") as (device, mark),
        mounted(kind.system, device, folder / "there", kind.options) as there,
    ):
        fastckpt.save(_VERSIONS[0], there / "s")
        call("sync", "--file-system", there)
        mark("base 0")
        for version in (1, 2):
            mark(f"began {version}")
            status = forked(lambda version=version: _save(there / "s", version, mutant))
            mark(f"{'refused' if status else 'acked'} {version}")
            assert status == 0 or mutant, "a save failed"
        call("sync", "--file-system", there)
        mark("end 2")
    log = list(records(folder / "log"))
    begin, end = (next(at for at, entry in enumerate(log) if entry.data == text) for text in (b"base 0", b"end 2"))
    with open(base, "r+b") as file:
        _apply(file, [entry for entry in log[:begin] if entry.kind == "W"])
    return base, log[begin + 1 : end]


def _save(path: Path, version: int, mutant: str) -> None:
    """The first with a sync for every file, the second as it is chosen; large blobs in parts, past the cache."""
    writing.PART = writing.LARGE = 8192
    if version == 1:
        ways._can_sync_whole = lambda *_: False
    if mutant:
        MUTANTS[mutant].apply()
        ways._can_sync_whole = lambda *_: False
    fastckpt.save(_VERSIONS[version], path)


Piece = tuple[int, int, int]  # a record's number, and from where to where in it


def _cuts(log: list[Record], count: int, sector: int) -> Iterator[tuple[int, frozenset[Piece] | None]]:
    """Give moments, as numbers of records that were begun, and which pieces of those behind the last flush got there
    (None: all)."""
    chance = random.Random(7)
    writes = [at for at, entry in enumerate(log) if entry.kind == "W"]
    seen: set[tuple[int, frozenset[Piece]]] = set()
    regular = [at for at, entry in enumerate(log, 1) if entry.kind != "W"]  # at a flush or a mark; then behind a write
    chance.shuffle(regular)
    chosen: list[int | None] = [
        *regular[: count // 4],
        *(at + 1 for at in chance.sample(writes, min(len(writes), count // 4))),
    ]
    tries = 0
    while len(seen) < count and tries < 50 * count:
        tries += 1
        whole = chosen.pop() if chosen else None
        cut = chance.randrange(len(log)) + 1 if whole is None else whole
        flushed = max((at for at in range(cut) if log[at].kind == "F"), default=-1) + 1
        size = sector if chance.random() < 0.2 else 4096
        pieces = list(_pieces(log, flushed, cut, size))
        share = 1.0 if whole is not None else chance.choice((0.1, 0.3, 0.5, 0.7, 0.9))
        kept = frozenset(piece for piece in pieces if chance.random() < share)
        if (flushed, kept) not in seen:
            seen.add((flushed, kept))
            yield cut, None if len(kept) == len(pieces) else kept


def _pieces(log: list[Record], begin: int, end: int, size: int) -> Iterator[Piece]:
    for at in range(begin, end):
        for start in range(0, len(log[at].data) if log[at].kind == "W" else 0, size):
            yield at, start, start + size


def _rebuilt(base: Path, log: list[Record], cut: int, kept: frozenset[Piece] | None, disk: Path) -> None:
    copied(base, disk)
    flushed = max((at for at in range(cut) if log[at].kind == "F"), default=-1) + 1
    with open(disk, "r+b") as file:
        _apply(file, [entry for entry in log[: cut if kept is None else flushed] if entry.kind == "W"])
        _apply(file, [Record("W", log[at].at + lo, log[at].data[lo:hi]) for at, lo, hi in sorted(kept or ())])


def _apply(file: Any, writes: list[Record]) -> None:
    for write in writes:
        file.seek(write.at)
        file.write(write.data)


def _label(kind: Kind, folder: Path, say: Labels, *, next_save: bool) -> int | str:
    """What the loader says of a disk; and, when asked for, whether the next save does its work there."""
    try:
        with mounted(kind.system, folder / "disk", folder / "there", kind.options) as there:
            label = say.of(there / "s")
            if next_save:
                fastckpt.save(_VERSIONS[1], there / "s")
                left = {entry.name for entry in there.iterdir()} - {"s", "lost+found"}
                if left or say.of(there / "s") != 1:
                    return f"the next save: left {left}"
            return label
    except OSError as problem:
        return f"unmountable: {problem}"
