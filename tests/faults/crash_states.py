"""Every kind of save is traced, and every state that a crash could leave of it is given to the real loader."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import commit_rig as rig

import fastckpt
from faults.crash_model import Order, State, Trees, states
from faults.disk_model import Inode, Model
from faults.replica import Replica
from faults.shapes import SHAPES, Shape
from faults.tracing import record
from faults.verdict import Verdict, need_programs

ABOUT = "after a crash at any moment the old or the new snapshot loads, whole; once save returned, only the new one"

__all__ = ["Finding", "Labels", "allowed", "examine", "modelled", "run"]

_SAMPLES = 220  # subsets by chance at a moment, at scale 1
_FEW = 0.1  # below this scale, names change in order, as in a journal
_NEXT_SAVE = 150  # of so many states, one is saved over
_ENOUGH = 20  # findings of one shape


@dataclass
class Finding:
    """What one shape showed."""

    states: int = 0
    saved_over: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(scale: float) -> Verdict:
    need_programs("strace")
    total, violations, outcomes = Finding(), [], Counter[str]()
    for name in SHAPES:
        with modelled(name) as (model, folder):
            order: Order = "weak" if scale >= _FEW else "ordered"
            found = examine(SHAPES[name], model, folder, samples=int(_SAMPLES * scale), order=order)
        print(f"  {name}: {found.states} states, {dict(found.outcomes)}", flush=True)
        total.states += found.states
        total.saved_over += found.saved_over
        outcomes += found.outcomes
        violations += [f"{name}: {text}" for text in found.violations]
    figures = {"shapes": len(SHAPES), "distinct states": total.states, "saved over": total.saved_over, **outcomes}
    return Verdict(figures, violations)


@contextmanager
def modelled(name: str, mutant: str = "") -> Iterator[tuple[Model, Path]]:
    """Trace a shape; give what it did, and a folder in memory."""
    shape = SHAPES[name]
    with rig.fast_folder(shape.way) as folder:
        path = folder / "watched" / "s"
        path.parent.mkdir()
        if shape.versions[0] is not None:
            fastckpt.save(shape.versions[0], path)
        if shape.before is not None:
            shape.before(path)
        model = Model(path.parent)
        record(["faults.shapes", name, str(path), mutant], folder / "log", shape.inject)
        model.replay(folder / "log")
        shutil.rmtree(path.parent)
        yield model, folder


def allowed(marks: list[tuple[float, str, str]]) -> set[int]:
    """Versions that may be found after these marks."""
    certain, going_on = {0}, set()
    for _, verb, version in marks:
        number = int(version)
        if verb == "began":
            going_on.add(number)
            continue
        going_on.discard(number)
        if verb == "acked":
            certain = {number}
        elif verb == "uncertain":
            certain.add(number)
    return certain | going_on


class Labels:
    """What a loader says of a folder: the number of a version, or what is wrong in words."""

    def __init__(self, versions: tuple[Any, ...], load: Callable[[Path], Any] = rig.loaded) -> None:
        self.versions = versions
        self.load = load

    def of(self, path: Path) -> int | str:
        try:
            found = self.load(path)
        except FileNotFoundError as problem:
            missing = None in self.versions and not path.exists()
            return self.versions.index(None) if missing else f"refused: {problem}"
        except Exception as problem:  # noqa: BLE001
            return f"refused: {type(problem).__name__}: {problem}"
        for number, version in enumerate(self.versions):
            if version is not None and rig.equal(found, version):
                return number
        return "loads, and is none of the versions"


def examine(
    shape: Shape, model: Model, folder: Path, *, samples: int, order: Order = "weak", enough: int = _ENOUGH
) -> Finding:
    """Look at every state of a model; stop at `enough` violations."""
    found, replica, trees = Finding(), Replica(folder), Trees(model)
    look = _Look(shape, model, replica, trees)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for state in states(model, samples=samples, order=order):
            look.at(state, found)
            if len(found.violations) >= enough:
                break
    ends = tuple(verb for _, verb, _ in sorted(model.marks, key=lambda mark: mark[2]) if verb != "began")
    if ends != shape.ends:
        found.violations.append(f"the saves ended as {ends}, not as {shape.ends}")
    found.states = len(look.labels)
    shutil.rmtree(replica.path)
    return found


class _Look:
    """One look at a state, and what was seen in those before."""

    def __init__(self, shape: Shape, model: Model, replica: Replica, trees: Trees) -> None:
        self.model, self.replica, self.trees = model, replica, trees
        self.say = Labels(shape.versions)
        self.published = _published(model)
        self.labels: dict[int, int | str] = {}
        self.after = rig.bare(1)
        self.others = {".s.lock"} if shape.way == "lockfile" else set()

    def at(self, state: State, found: Finding) -> None:
        tree = self.trees.of(state)
        key = hash(frozenset(tree.items()))
        wanted = allowed(self.model.marks[: state.marks])
        if key not in self.labels:
            self.replica.become(tree)
            self.labels[key] = self.say.of(self.replica.path / "s")
            found.outcomes[self._word(self.labels[key])] += 1
            self._look_at_old_ones(state, found)
            if len(self.labels) % _NEXT_SAVE == 1:
                self._save_over(state, found)
        label = self.labels[key]
        if label not in wanted:
            found.violations.append(f"{label}, where {sorted(wanted)} may be, in {self._described(state)}")

    def _word(self, label: int | str) -> str:
        if isinstance(label, str):
            return label.partition(":")[0]
        return "none yet" if self.say.versions[label] is None else "old" if label == 0 else "new"

    def _look_at_old_ones(self, state: State, found: Finding) -> None:
        """What was a snapshot and has another name now is whole, or none any more."""
        for name, inode in self.trees.named(state).items():
            was_one = state.ops & self.published.get(inode, 0) == self.published.get(inode)
            if name != "s" and was_one and (self.replica.path / name / "snapshot_done").exists():
                label = self.say.of(self.replica.path / name)
                if isinstance(label, str):
                    found.violations.append(f"what was replaced, now {name}: {label}, in {self._described(state)}")

    def _save_over(self, state: State, found: Finding) -> None:
        """The next save does its work and clears up."""
        path = self.replica.path / "s"
        found.saved_over += 1
        try:
            fastckpt.save(self.after, path)
            left = {entry.name for entry in path.parent.iterdir()} - {"s"} - self.others
            if left or not rig.equal(rig.loaded(path), self.after):
                found.violations.append(f"the next save left {left or 'something else'}, in {self._described(state)}")
        except Exception as problem:  # noqa: BLE001
            found.violations.append(f"the next save: {problem!r}, in {self._described(state)}")
        self.replica.forget()

    def _described(self, state: State) -> str:
        ops = self.model.ops
        last = max((op.bit for op in ops if state.ops >> op.bit & 1), default=-1)
        lost = [op.call for op in ops[: last + 1] if not state.ops >> op.bit & 1]
        harm = f"; {state.harmed[1]}: {ops[state.harmed[0]].call}" if state.harmed else ""
        behind = ops[last].call if last >= 0 else "nothing"
        return f"the state up to {behind} without {lost[:6]}{' …' if len(lost) > 6 else ''}{harm}"


def _published(model: Model) -> dict[Inode, int]:
    """The folders that ever were the snapshot `s`, or an old one that a save moved aside; the bit that made them so."""
    found = {inode: 0 for name, inode in model.root.before.items() if name in ("s", ".s.previous")}
    for op in model.ops:
        for folder, name, inode in op.changes:
            if folder is model.root and name == "s" and inode is not None:
                found.setdefault(inode, 1 << op.bit)
    return found
