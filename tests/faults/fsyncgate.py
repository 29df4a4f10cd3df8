"""A disk that fails a write or a flush, below a real file system, at every one of those that a save causes.

After such an error the kernel takes the lost pages for clean: the next fsync says that all is well, and the page cache
shows bytes that are on no disk. So what a save did is looked at when the file system was unmounted and mounted again,
with nothing in memory; and strace tells whether any sync was tried twice.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import traceback
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import commit_rig as rig

import fastckpt
from faults.failing_disk import FLUSHES, WRITES, Faults
from faults.fault_sweep import rigged
from faults.verdict import Skip, Verdict, need_programs, need_root
from faults.volumes import SYSTEMS, drop_caches, failing_disk, made, mounted

ABOUT = "a write or a flush of the disk fails: the save fails or is durable, no sync is tried twice, the old stays"

DISKS = ("ext4", "xfs", "btrfs")
CASES = (("large", "each"), ("large", "syncfs"))
_FOR_EVER = 1 << 40
FAULTS = ((WRITES, 1), (FLUSHES, 1), (WRITES, _FOR_EVER), (FLUSHES, _FOR_EVER))
_STEP = 8  # of some hundred writes, every eighth
_SYNC = re.compile(r"(?:fsync|syncfs)\((\d+)<(.*?)>\)\s+= (-1|0)")


class Bench:
    """A file system with an old snapshot, made once; each fault begins with it."""

    def __init__(self, name: str, folder: Path, scene: rig.Scene) -> None:
        self.name, self.folder, self.scene = name, folder, scene
        self.image, self.point = folder / f"{name}.image", folder / "volume"
        self.path = self.point / "s"
        if not self.image.exists():
            self._make()

    def _make(self) -> None:
        made(self.name, self.image)
        with failing_disk(self.folder, self.image, keep=True) as (device, _), mounted(self.name, device, self.point):
            fastckpt.save(rig.CASES[self.scene.case][0], self.path)

    def save(self, saver: rig.Saver, what: int, first: int, many: int) -> str:
        """Save while the disk fails; mount it again, and tell how all that went."""
        log = self.folder / "log"
        with failing_disk(self.folder, self.image) as (device, faults):
            with mounted(self.name, device, self.point):
                rig.tree_of(self.path)  # what there is to read has been read
                faults.set(what, first, many)
                strace = ("-o", str(log), "-e", "trace=fsync,syncfs")
                outcome = saver.save(self.path, self.scene.case, self.scene.way, strace=strace)
            if not faults.failed:
                return "not met"
            return self._after(device, faults, outcome, log)

    def _after(self, device: str, faults: Faults, outcome: rig.Outcome, log: Path) -> str:
        faults.set(0, 0, 0)
        assert outcome.report is not None, "crashed"
        twice = synced_again(log.read_text())
        assert not twice, f"synced again: {twice}"
        drop_caches()
        with ExitStack() as stack:
            try:
                stack.enter_context(mounted(self.name, device, self.point))
            except OSError as problem:
                raise AssertionError(f"cannot be mounted again: {problem}") from None
            return self._what_is_there(outcome.report)

    def _what_is_there(self, report: rig.Report) -> str:
        tree = rig.tree_of(self.path)
        assert tree in (self.scene.old, self.scene.new), "neither the old nor the new snapshot"
        if "text" not in report:
            assert tree == self.scene.new, "saved, but the old one came back"
            return "saved"
        assert report["uncertain"] or tree == self.scene.old, f"refused, but the new one is there: {report['text']}"
        with suppress(OSError):
            fastckpt.save(rig.CASES["older"][1], self.path)
            assert rig.tree_of(self.path) == self.scene.after, "the next save"
        return "uncertain" if report["uncertain"] else "refused"


def synced_again(log: str) -> set[str]:
    """Files of which a sync was tried after one of them had failed."""
    lost: set[str] = set()
    again: set[str] = set()
    for _, file, result in _SYNC.findall(log):
        again |= {file} & lost
        lost |= {file} if result == "-1" else set()
    return again


def run(scale: float) -> Verdict:
    need_root()
    need_programs("mount", "losetup")
    if not Path("/dev/fuse").exists():
        raise Skip("needs /dev/fuse")
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    with rigged() as (saver, memory), tempfile.TemporaryDirectory(dir=memory) as folder:
        little = scale < 0.1
        for name in DISKS[:1] if little else DISKS:
            if shutil.which(SYSTEMS[name].make[0]) is None:
                outcomes[f"{name} skipped"] += 1
                continue
            for case, way in CASES[:1] if little else CASES:
                bench = Bench(name, Path(folder), rig.Scene(Path(folder) / "scene", case, way))
                for what, many in FAULTS[:2] if little else FAULTS:
                    sweep(bench, saver, what, many, scale, outcomes, violations)
    figures: dict[str, Any] = {"runs": sum(outcomes.values()), **dict(sorted(outcomes.items()))}
    return Verdict(figures, violations)


def sweep(
    bench: Bench, saver: rig.Saver, what: int, many: int, scale: float, outcomes: Counter[str], violations: list[str]
) -> None:
    """Fail at the first write or flush, a later one, and so on, until the save does not meet the fault any more."""
    step = max(round(_STEP / scale), 1)
    for first in range(0, 400, step):
        word = f"{'writes' if what == WRITES else 'flushes'} {'once' if many == 1 else 'for ever'}"
        try:
            outcome = bench.save(saver, what, first, many)
        except AssertionError:
            violations.append(f"{bench.name} {bench.scene.way}, {word} from {first}: {traceback.format_exc(limit=-1)}")
            continue
        if outcome == "not met":
            return
        outcomes[f"{bench.name} {word} {outcome}"] += 1
