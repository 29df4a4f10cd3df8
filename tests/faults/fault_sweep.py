"""Every system call on files that a save or a load makes answers an error, lies, or is the last: one at a time.

strace answers in the kernel's place. It is told which call by its name and number, from the log of an undisturbed run;
everything runs in one thread, so that the number is the same each time.

A call that fails "for ever" fails from there on. An interruption and a short count come twenty times in a row instead,
since they may be tried again for ever; and nobody is killed twice. A short count is a lie: strace answers it, nothing
is done, and the bytes are lost. What is wrong then no program can notice when it happens, and the digest must.
"""

from __future__ import annotations

import errno
import itertools
import random
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import commit_rig as rig

import fastckpt
from faults.verdict import Skip, Verdict, need_programs

ABOUT = (
    "every call on files of a save and of a load fails in every way: the old snapshot or the right values, or an error"
)

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EACCES")
COUNTING = {"pwrite64", "pread64", "read"}
#: What is saved, and how: small with a record and an index; large past the page cache; all synced at once; by renames.
SAVES = (("nested", "each"), ("large", "direct"), ("large", "direct-syncfs"), ("overwrite", "renames"))
#: What is read, and how: small tensors out of the index, large ones in every mode.
LOADS = (*(("nested", how) for how in ("auto", "into", "verify")), *(("large", how) for how in rig.READS))
PUBLISHED = re.compile(r'renameat2?\(.*"s"(, RENAME_\w+)?\) += 0')
SHORT = 3  # bytes


class Fault(NamedTuple):
    """What happens at one call."""

    kind: str
    lasts: bool
    call: rig.Call

    @property
    def inject(self) -> str:
        many = "" if not self.lasts else f"..{self.call.ordinal + 19}" if self.kind in ("EINTR", "short") else "+"
        what = {"KILL": "signal=KILL", "short": f"retval={SHORT}"}.get(self.kind, f"error={self.kind}")
        return f"inject={self.call.name}:{what}:when={self.call.ordinal}{many}"

    @property
    def strace(self) -> tuple[str, ...]:
        return "-o", "/dev/null", "-e", f"trace={self.call.name}", "-e", self.inject

    def __str__(self) -> str:
        return (
            f"{self.kind} {'for ever' if self.lasts else 'once'} at {self.call.name} {self.call.ordinal}: "
            + (self.call.text[:160])
        )


def faults_at(call: rig.Call, *, lies: bool = True) -> Iterator[Fault]:
    """Every way in which one call can fail; `lies`: somebody looks at digests."""
    for kind, lasts in itertools.product(ERRORS, (False, True)):
        yield Fault(kind, lasts, call)
    if call.name in COUNTING and lies:
        yield Fault("short", False, call)
        yield Fault("short", True, call)
    yield Fault("KILL", False, call)


class Published(NamedTuple):
    """Where in the log the new snapshot is seen first, and where that is durable."""

    rename: int
    sync: int

    @classmethod
    def of(cls, calls: list[rig.Call]) -> Published:
        rename = max(call.began for call in calls if PUBLISHED.search(call.text))
        return cls(rename, min(call.began for call in calls if call.name == "fsync" and call.began > rename))


def is_vital(fault: Fault, published: Published) -> bool:
    """A save that ends well in spite of this fault would be a lie."""
    syncs, writes = fault.call.name in ("fsync", "syncfs"), fault.call.name == "pwrite64" and fault.kind != "EINTR"
    return fault.kind in ERRORS and (syncs or writes) and fault.call.began <= published.sync


class Sweep:
    """Runs faults and counts what came of them."""

    def __init__(self, saver: rig.Saver) -> None:
        self.saver = saver
        self.outcomes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.violations: list[str] = []

    def save(self, scene: rig.Scene, fault: Fault, published: Published) -> str:
        """Save with one fault, check what is there, and save without; tell how it went."""
        path = scene.set_up()
        outcome = self.saver.save(path, scene.case, scene.way, strace=fault.strace)
        result = self._outcome_of_save(scene, fault, path, outcome, fault.call.began > published.rename)
        assert result != "succeeded" or not is_vital(fault, published), "went on without a sync or a write"
        scene.check_next(self.saver, path, "the save after it")
        return result

    def _outcome_of_save(
        self, scene: rig.Scene, fault: Fault, path: Path, outcome: rig.Outcome, published: bool
    ) -> str:
        if fault.kind == "KILL":
            assert outcome.killed, "was not killed"
            scene.check(path, published, "killed")
            return "killed"
        report = reported(outcome, fault)
        if "text" in report:
            scene.check_refusal(path, report, "refused", swept=not fault.lasts and fault.call.name != "close")
            return "uncertain" if report["uncertain"] else "raised"
        if fault.kind == "short":
            return lied_to(scene, path)
        scene.check(path, True, "saved")
        return "succeeded"

    def load(self, scene: rig.Scene, how: str, fault: Fault) -> str:
        """Read with one fault; tell how it went."""
        path, checked = scene.folder / "there" / "s", fault.kind == "short"
        outcome = self.saver.save(path, scene.case, scene.way, strace=fault.strace, read=how, checked=checked)
        if fault.kind == "KILL":
            assert outcome.killed, "was not killed"
            return "killed"
        report = reported(outcome, fault)
        assert report.get("right", True), "gave wrong values"
        return "raised" if "text" in report else "succeeded"

    def note(self, kind: str, fault: Fault, run: Callable[[], str]) -> None:
        """Count one run; whatever it must not do is a violation."""
        verb = kind.partition(" ")[0]
        self.calls[f"{kind} {fault.call.name}"] += 1
        try:
            self.outcomes[f"{verb} {run()}"] += 1
        except Exception:  # noqa: BLE001 -- the others are to be run too
            self.violations.append(f"{kind}, {fault}: {traceback.format_exc(limit=-2)}")


def reported(outcome: rig.Outcome, fault: Fault) -> rig.Report:
    """What the child said; it says nothing when it crashed, or raised what is no error of ours."""
    report = outcome.report
    assert report is not None, "crashed"
    if fault.call.name != "close":  # strace answers in its place: the descriptor does stay open
        assert report["leaked"] == [], f"left open: {report['leaked']}"
    if "text" in report and report["errno"] is not None and not fault.lasts and fault.kind != "short":
        assert report["errno"] == getattr(errno, fault.kind), report
    return report


def lied_to(scene: rig.Scene, path: Path) -> str:
    """A save that lost bytes without being told: they may be wrong, but not unnoticed."""
    if rig.tree_of(path) == scene.new:
        return "succeeded"
    assert not fastckpt.verify(path), "wrong bytes went unnoticed"
    return "lied to, noticed by the digest"


def calls_of(saver: rig.Saver, scene: rig.Scene, **order: str) -> list[rig.Call]:
    """The calls of an undisturbed run that can fail."""
    log = scene.folder / "log"
    path = scene.folder / "there" / "s" if order else scene.set_up()
    saver.save(path, scene.case, scene.way, strace=("-o", str(log), "-e", "trace=%file,%desc"), **order)
    return [call for call in rig.calls_in(log) if not call.name.startswith("syscall_")]  # too new for this strace


def plan(saver: rig.Saver, sweep: Sweep, folder: Path) -> list[tuple[str, Fault, Callable[[], str]]]:
    """Every pair of a call and a fault."""
    runs: list[tuple[str, Fault, Callable[[], str]]] = []
    for case, way in SAVES:
        scene = rig.Scene(folder / f"{case}-{way}", case, way)
        calls = calls_of(saver, scene)
        published = Published.of(calls)
        for call in calls:
            for fault in faults_at(call):
                runs.append((f"save {case} {way}", fault, lambda s=scene, f=fault, p=published: sweep.save(s, f, p)))  # type: ignore[misc]
    for case, how in LOADS:
        scene = rig.Scene(folder / f"load-{case}", case, "each")
        if not (scene.folder / "there").exists():
            saver.save(scene.set_up(), case, "each")
        for call in calls_of(saver, scene, read=how):
            for fault in faults_at(call, lies=how != "open"):
                runs.append((f"load {case} {how}", fault, lambda s=scene, h=how, f=fault: sweep.load(s, h, f)))  # type: ignore[misc]
    return runs


@contextmanager
def rigged() -> Iterator[tuple[rig.Saver, Path]]:
    """A process that saves, and a folder that takes O_DIRECT; skips where strace may not trace."""
    need_programs("strace")
    with rig.Saver() as saver, rig.fast_folder("direct") as folder:
        if not rig.takes_direct(folder):
            raise Skip(f"{folder}: needs O_DIRECT")
        try:
            saver.save(folder / "s", "first", strace=("-o", "/dev/null", "-e", "trace=fsync"))
        except PermissionError as refusal:
            raise Skip(f"strace may not trace here: {refusal}") from None
        yield saver, folder


def run(scale: float) -> Verdict:
    with rigged() as (saver, folder):
        sweep = Sweep(saver)
        runs = plan(saver, sweep, folder)
        wanted = min(len(runs), int(len(runs) * scale) or 1)
        for kind, fault, go in sorted(random.Random(5).sample(runs, wanted), key=runs.index) if scale < 1 else runs:
            sweep.note(kind, fault, go)
    figures: dict[str, int] = {"pairs": len(runs), "runs": wanted, "kinds of call": len(sweep.calls)}
    figures.update(sorted(sweep.outcomes.items()))
    return Verdict(figures, sweep.violations)
