"""The parent: who is asked for what, in which order, with the page cache in which state.

Round by round everybody takes a turn, so that a disk that is slow for a minute is slow for all, and ratios can be taken
within a round; each round in an order of its own, so that nobody always follows the same one. The first round warms
imports, memory and the device, and is not counted.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastckpt.bench import machine
from fastckpt.bench.catalogue import KEEPING, KEPT, LIMIT, LIMITS, OURS, RIVALS, SAVES, Rival, takes_part
from fastckpt.bench.children import Child
from fastckpt.bench.measuring import evict, resident, warm
from fastckpt.bench.results import compare_sums, summed
from fastckpt.bench.room import Room
from fastckpt.bench.workloads import Workload, find, names_of
from fastckpt.memory import available

__all__ = ["Options", "run", "turns"]

Document = dict[str, Any]
Watch = Callable[[str], None]

_COLD = ("cold", "into_cold", "gpu_cold", "one", "rows")
_GPU = ("gpu", "gpu_cold")
_OF_OURS = ("floor", "opens", "files", "cached_files")  # limits that are measured at a snapshot of ours
_WARM, _GONE = 0.999, 0.01  # of the bytes in the page cache: at least, and at most where it shall be empty
_TRIES = 3  # to bring it there
_PER_TENSOR = 16384  # bytes that a tensor may take beyond its own: blocks of small files, folders
_PER_NAME = 512  # the same, where all are in one file
_IN_USE = 4  # as much memory as this many snapshots: what a turn loads, or touches before the clock, and room to spare


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    folder: Path
    size: str = "full"
    rounds: int = 5
    workloads: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    space: int | None = None

    def chosen(self) -> list[Workload]:
        """Give the workloads to run; a name's first part stands for all of that kind."""
        every = names_of(self.size)
        names = [n for n in every if not self.workloads or {n, n.partition("-")[0]} & set(self.workloads)]
        return [find(name, self.size) for name in names]

    def sides(self) -> list[Rival]:
        """Give those who take part, whether they are there or not."""
        return [rival for rival in RIVALS.values() if not self.rivals or rival.name in self.rivals]


def run(options: Options, watch: Watch, keep: Callable[[Document], object]) -> Document:
    """Measure all that was asked for.

    Parameters
    ----------
    options : Options
        What to run, and where.
    watch : callable
        Told before every measurement what it will be.
    keep : callable
        Given the document after each workload, so that a long run leaves something when it is stopped.

    Returns
    -------
    dict
        What was measured, on what, ready to be JSON.
    """
    with Room(options.folder, options.space) as room:
        bench = _Bench(options, room, watch)
        try:
            for workload in options.chosen():
                bench.check(workload)
            bench.start()
            for workload in options.chosen():
                bench.workload(workload)
                keep(bench.document())
        finally:
            bench.close()
        return bench.document()


def turns(options: Options) -> int:
    """Say how many measurements there will be, at most."""
    return sum(
        (options.rounds + 1)
        * (sum(takes_part(side, op, w.rivals) for side in options.sides()) + (op in LIMITS) + (op in KEEPING))
        for w in options.chosen()
        for op in w.ops
    )


class _Bench:
    """A run."""

    def __init__(self, options: Options, room: Room, watch: Watch) -> None:
        self._options, self._room, self._watch = options, room, watch
        self._missing = {side.name: machine.missing(side) for side in options.sides()}
        self._sides = [side for side in options.sides() if self._missing[side.name] is None]
        self._children: dict[str, Child] = {}
        self._results: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._skipped: dict[str, str] = {}
        self._dates: dict[str, str] = {}  # of the workloads that were measured
        self._targets: dict[str, Path] = {}  # by family, of the workload at hand
        self._limit_file = room.path / "limit"
        self._count = 0

    def start(self) -> None:
        """Start everybody at once: they have a library to import."""
        self._children |= {name: self._child(name) for name in [*(side.name for side in self._sides), LIMIT]}

    def close(self) -> None:
        for child in self._children.values():
            child.dismiss()
        for child in self._children.values():
            child.close()

    def check(self, workload: Workload) -> None:
        """Refuse a workload that does not fit: one of each family, one more of the largest, and the limits' files."""
        families = {side.family for side in self._sides if not workload.rivals or side.name in workload.rivals}
        sizes = [_on_disk(workload, family) for family in families]
        needed = sum(sizes) + max(sizes, default=0) + 2 * workload.nbytes
        self._room.check(needed, f"the workload {workload.name}")

    def workload(self, workload: Workload) -> None:
        """Measure everything with one workload."""
        if workload.real and (hint := machine.has_model()):
            self._skipped[workload.name] = hint
            return
        self._targets = {}
        for op in workload.ops:
            who = [side.name for side in self._sides if takes_part(side, op, workload.rivals)]
            if op in _GPU and not self._has_gpu(workload, op):
                continue
            who += [name for name in (LIMIT, KEPT) if who and self._limit_of(workload, op, name)]
            turns = random.Random(f"{workload.name} {op}")  # noqa: S311
            for round_ in range(self._options.rounds + 1):
                for name in turns.sample(who, len(who)):
                    self._watch(f"{workload.title}: {op}, {name}")
                    self._turn(workload, op, name, round_)
        self._dates[workload.name] = machine.now()

    def document(self) -> Document:
        """Give all that is known so far."""
        results = [summed(workload, op, name, found) for (workload, op, name), found in self._results.items()]
        compare_sums(results)
        return {
            "format": 1,
            "date": machine.now(),
            "machine": machine.described(self._options.folder),
            "versions": machine.versions(),
            "size": self._options.size,
            "rounds": self._options.rounds,
            "workloads": [
                _of_workload(w, self._skipped.get(w.name), self._dates.get(w.name)) for w in self._options.chosen()
            ],
            "rivals": [
                {"name": side.name, "title": side.title, "missing": self._missing[side.name]}
                for side in self._options.sides()
            ],
            "results": results,
        }

    def _child(self, name: str) -> Child:
        return Child(name, self._room.path / f"{name}.log")

    def _limit_of(self, workload: Workload, op: str, name: str) -> str | None:
        """Name the limit that an operation is measured against; many small files have another than the device."""
        special = workload.name == "small" and op == "cold"
        if name == KEPT:
            limit = None if special or workload.name.startswith("count-") else KEEPING.get(op)
        else:
            limit = "floor" if special else LIMITS.get(op)
        return limit if limit not in _OF_OURS or self._missing.get(OURS, "") is None else None

    def _has_gpu(self, workload: Workload, op: str) -> bool:
        answer = self._ask(LIMIT, workload, "pinned", self._limit_file, 0)
        if "error" in answer:
            self._results[workload.name, op, LIMIT] = {"runs": [], "error": "not measured on a GPU"}
        return "error" not in answer

    def _turn(self, workload: Workload, op: str, name: str, round_: int) -> None:
        """Prepare, ask, and write down; who failed once is not asked again."""
        found = self._results.setdefault((workload.name, op, name), {"runs": []})
        if "error" in found:
            return
        answer = self._measure(workload, op, name, round_)
        if "error" in answer:
            found["error"] = answer["error"]
        elif round_:
            found["runs"].append(answer)

    def _measure(self, workload: Workload, op: str, name: str, round_: int) -> dict[str, Any]:
        if op in SAVES:
            os.sync()  # nobody pays for what another has left to write
        if name in (LIMIT, KEPT):
            limit = self._limit_of(workload, op, name)
            assert limit is not None
            path = self._target(OURS, workload) if limit in _OF_OURS else self._limit_file
            loads = limit in _OF_OURS and op not in SAVES
            before = self._prepared(workload, OURS, path, limit == "floor") if loads else {}
            return before if "error" in before else {**self._ask(LIMIT, workload, limit, path, round_), **before}
        if op in SAVES:
            return self._save(workload, op, name, round_)
        path = self._target(RIVALS[name].family, workload)
        before = self._prepared(workload, name, path, op in _COLD)
        if "error" in before:
            return before
        answer = self._ask(name, workload, op, path, round_)
        return {**answer, **before, "resident_after": resident(path)} if op in _COLD else {**answer, **before}

    def _save(self, workload: Workload, op: str, name: str, round_: int) -> dict[str, Any]:
        """Let a rival save to a new path; then say what of it is in the page cache, and empty that."""
        self._count += 1
        path = self._room.path / f"{self._count}-{workload.name}-{name}"
        self._room.take(path, _on_disk(workload, name), set(self._targets.values()))
        answer = self._ask(name, workload, op, path, round_)
        if "error" not in answer:
            answer["resident_after"] = resident(path)
            evict(path)
            if op == "save_durable" and RIVALS[name].family == name:
                self._targets[name] = path
        return answer

    def _target(self, family: str, workload: Workload) -> Path:
        """Give what is loaded: the last durable save of the family; where it was not measured, one made now."""
        if family not in self._targets:
            if family not in self._children:
                self._children[family] = self._child(family)
            self._save(workload, "save_durable", family, self._options.rounds)
        return self._targets.get(family, self._room.path / "nothing")

    def _prepared(self, workload: Workload, name: str, path: Path, cold: bool) -> dict[str, Any]:
        """Empty the page cache of a snapshot, or fill it by loads of its own library or, where those do not, by
        reading; and look whether that has succeeded. It is loaded also if it is there: a kernel with proactive reclaim
        (DAMON) drops what nobody has used for a minute. Where not all snapshots fit, the others make room: a kernel
        that has to search for memory finds none in large pages."""
        if not path.exists():
            return {}
        if workload.nbytes * (len(self._targets) + _IN_USE) > available():
            for other in {*self._targets.values()} - {path}:
                evict(other)
        for _ in range(_TRIES):
            if cold:
                evict(path)
            else:
                self._ask(name, workload, "warm", path, 0)
                if resident(path) < _WARM:
                    warm(path)
            held = resident(path)
            if held <= _GONE if cold else held >= _WARM:
                return {"resident_before": held}
        return {"error": f"{held:.1%} of its files were in the page cache, which should {'not' if cold else 'all'} be"}

    def _ask(self, name: str, workload: Workload, op: str, path: Path, seed: int) -> dict[str, Any]:
        if not self._children[name].alive:
            self._children[name] = self._child(name)
        return self._children[name].ask(
            op=op, workload=workload.name, size=self._options.size, path=str(path), seed=seed
        )


def _on_disk(workload: Workload, family: str) -> int:
    return workload.nbytes + workload.tensors * (_PER_TENSOR if RIVALS[family].many else _PER_NAME)


def _of_workload(workload: Workload, skipped: str | None, date: str | None) -> dict[str, Any]:
    name, shape, nbytes = workload.largest
    return {
        "name": workload.name,
        "title": workload.title,
        "tensors": workload.tensors,
        "bytes": workload.nbytes,
        "largest": {"name": name, "shape": list(shape), "bytes": nbytes},
        "skipped": skipped,
        "date": date,
    }
