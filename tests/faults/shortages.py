"""The process in which memory runs out: it forks a child for every single fault, and looks at what the child left.

As a program it does as told by one JSON order and prints a JSON report. It needs a C library in front of the real one
(`shim.c`) for all but the kind "python".
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt

with contextlib.suppress(ImportError):
    import _testcapi  # CPython's own; some builds lack it

_SHIM = {"c": 1, "short": 2}
_NEVER = 1 << 40
# Requests that Python itself is refused in a row. Not all for ever: the interpreter then begins to handle the same
# exception again and again, because it has no memory for the number of the instruction that raised it (3.11).
_LASTING = 300
_PATIENCE = 20  # seconds
# What a child ends with.
RIGHT, REFUSED, UNCERTAIN, OTHER, WRONG, COUNTED = 0, 10, 11, 12, 13, 14
_GROUPS = Path("/sys/fs/cgroup/memory")


class Fault:
    """One fault of a kind: the request number `at` for memory fails, or a count is short; or many from there on."""

    def __init__(self, kind: str, at: int, lasts: bool) -> None:
        self.kind, self.at, self.lasts = kind, at, lasts

    def arm(self) -> None:
        if self.kind == "python":
            _testcapi.set_nomemory(self.at, self.at + (_LASTING if self.lasts else 1))
        else:
            ctypes.CDLL(None).fault_arm(_SHIM[self.kind], ctypes.c_long(self.at), int(self.lasts))

    def disarm(self) -> None:
        if self.kind == "python":
            _testcapi.remove_mem_hooks()
        else:
            _DISARM()

    def __str__(self) -> str:
        return f"{self.kind} {self.at} {'and more' if self.lasts else 'alone'}"


_DISARM = getattr(ctypes.CDLL(None), "fault_seen", lambda: 0)


def forked(work: Callable[[], int]) -> int:
    """Do something in a child; give how it ended, as ``waitstatus_to_exitcode`` says it."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(_PATIENCE)
        try:
            os._exit(work())
        finally:
            os._exit(OTHER)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attempt(fault: Fault, act: Callable[[], Any], want: Any) -> int:
    """Act with a fault, and tell how that went."""
    result, found = RIGHT, None
    fault.arm()
    try:
        found = act()
    except fastckpt.CommitUncertain:
        result = UNCERTAIN
    except rig.REFUSALS:
        result = REFUSED
    except BaseException:  # noqa: BLE001
        result = OTHER
    fault.disarm()
    return WRONG if found is not None and not rig.equal(found, want) else result


class Sweep:
    """All faults of one kind in one act: a save, or a way of reading."""

    def __init__(self, folder: Path, kind: str, case: str, way: str, share: float) -> None:
        self.scene = rig.Scene(folder, case, way)
        self.kind, self.share = kind, share
        self.path = self.scene.set_up()
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.random = random.Random(3)

    def faults(self, act: Callable[[], Any]) -> Iterator[Fault]:
        """Every one, up to the first that an act does not meet any more; or a share of them."""
        for at in range(1, self.count(act) + 2):
            if self.random.random() < self.share:
                yield Fault(self.kind, at, False)
                yield Fault(self.kind, at, True)

    def count(self, act: Callable[[], Any]) -> int:
        """How many requests one undisturbed act makes."""
        if not hasattr(self, "_count"):
            self._count = counted(self.kind, act)
            self.path = self.scene.set_up()
        return self._count

    def save(self) -> None:
        old, new = rig.CASES[self.scene.case]

        def act() -> None:
            fastckpt.save(new, self.path)

        for fault in self.faults(act):
            code = forked(lambda fault=fault: attempt(fault, act, None))  # type: ignore[misc]
            self.note("save", fault, code)
            now = rig.tree_of(self.path) if self.path.exists() else rig.tree_of(self.path.parent / ".s.previous")
            if now != self.scene.new and (code in (RIGHT, UNCERTAIN) or now != self.scene.old):
                self.violations.append(f"save, {fault}: neither the old nor the new snapshot, or not the one promised")
            if code == REFUSED and now == self.scene.new:
                self.outcomes["save refused when it was done"] += 1
            fastckpt.save(old, self.path)
            if (
                set(os.listdir(self.path.parent)) - self.scene.others != {"s"}
                or rig.tree_of(self.path) != self.scene.old
            ):
                self.violations.append(f"save, {fault}: the next save did not clear up")
                self.path = self.scene.set_up()

    def load(self, how: str) -> None:
        old = rig.CASES[self.scene.case][0]

        def act() -> Any:
            return rig.read(how, self.path, old)

        for fault in self.faults(act):
            self.note("load", fault, forked(lambda fault=fault: attempt(fault, act, old)))  # type: ignore[misc]

    def note(self, verb: str, fault: Fault, code: int) -> None:
        names = {RIGHT: "right", REFUSED: "refused", UNCERTAIN: "uncertain", OTHER: "another error"}
        self.outcomes[f"{verb} {names.get(code, 'bad')}"] += 1
        if code not in names:
            how = "wrong values" if code == WRONG else f"ended by signal {-code}" if code < 0 else f"exit status {code}"
            self.violations.append(f"{verb}, {fault}: {how}")


def counted(kind: str, act: Callable[[], Any]) -> int:
    """Let a child act undisturbed and say how many requests that took; Python does not count its own: try."""
    if kind != "python":
        source, sink = os.pipe()

        def tell() -> int:
            fault = Fault(kind, _NEVER, False)
            fault.arm()
            act()
            os.write(sink, str(_DISARM()).encode())
            return RIGHT

        ctypes.CDLL(None).fault_seen.restype = ctypes.c_long
        forked(tell)
        number = int(os.read(source, 99))
        os.close(source)
        os.close(sink)
        return number

    def is_met(at: int) -> bool:
        return forked(lambda: attempt(Fault(kind, at, True), lambda: act() and None, None)) != RIGHT

    return next(at for at in itertools.count(300, 300) if not is_met(at))


# --- killed for memory ------------------------------------------------------------------------------------------------


def out_of_memory(folder: Path, kills: int) -> dict[str, Any]:
    """Saves in a control group that may have a little more memory each time, until nobody is killed any more."""
    rig.prepare("threads", setattr)
    group = _GROUPS / f"fastckpt-faults-{os.getpid()}"
    group.mkdir()
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    old, new = {"w": np.full(900_000, 1.0), "b": np.arange(5)}, {"w": np.full(1_000_000, 2.0), "c": np.arange(7)}
    olds, news, path = rig.written(old), rig.written(new), folder / "s"
    fastckpt.save(old, path)
    need, at = 14 << 20, 0
    try:
        while outcomes["killed"] < kills and at < 3 * kills:
            at += 1
            limit = 1 << 20 if not at else (64 << 10) + need * (at % kills) // kills
            (group / "memory.limit_in_bytes").write_text(str(limit + usage(group)))
            code = forked(lambda: save_in(group, new, path))
            outcomes["killed" if code == -signal.SIGKILL else "saved" if code == RIGHT else "refused"] += 1
            now = rig.tree_of(path)
            if now != news and (code == RIGHT or now != olds):
                violations.append(f"{limit} bytes: neither the old nor the new snapshot")
            fastckpt.save(old, path)
            if rig.tree_of(path) != olds or os.listdir(folder) != ["s"]:
                violations.append(f"{limit} bytes: the next save did not clear up")
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()
    return {
        "outcomes": {f"out of memory: {what}": number for what, number in outcomes.items()},
        "violations": violations,
    }


def usage(group: Path) -> int:
    """Bytes that the dead have left behind there."""
    (group / "memory.limit_in_bytes").write_text("-1")
    with contextlib.suppress(OSError):
        (group / "memory.force_empty").write_text("0")
    return int((group / "memory.usage_in_bytes").read_text())


def save_in(group: Path, obj: Any, path: Path) -> int:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        fastckpt.save(obj, path)
    except rig.REFUSALS:
        return REFUSED
    return RIGHT


def main(order: dict[str, Any]) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with rig.fast_folder("direct") as folder:
        for case in ("nested", "large"):
            fastckpt.save(rig.CASES[case][1], folder / "s")
            for how in rig.READS:
                rig.read(how, folder / "s", rig.CASES[case][1])
        shutil.rmtree(folder / "s")
        if order["kind"] == "oom":
            return out_of_memory(folder, order["kills"])
        rig.prepare(order["way"], setattr)
        sweep = Sweep(folder, order["kind"], order["case"], order["way"], order["share"])
        if order["act"] == "save":
            sweep.save()
        else:
            sweep.load(order["act"])
        outcomes = {f"{order['kind']}: {what}": number for what, number in sweep.outcomes.items()}
        return {"outcomes": outcomes, "violations": sweep.violations}


if __name__ == "__main__":
    json.dump(main(json.loads(sys.argv[1])), sys.stdout)
