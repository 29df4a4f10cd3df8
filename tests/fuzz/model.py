"""Saves, loads, edits, deletions and crashes in any order, against a dict that says what must be there.

A crash is a process that saves and ends, without a word, at a step of its choice: then the old snapshot or the new one
is there, and whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from faults.verdict import Verdict
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import fastckpt
from fastckpt import _core
from fuzz.limits import Limit, explored, findings, scratch

ABOUT = "any sequence of saves, loads, edits, deletions and crashes leaves what a dict would"
USUAL = Limit(runs=200)

STEPS = 50
_DTYPES = ["float32", "float64", "int8", "uint16", "bool", "complex64", "float16"]
_arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.sampled_from(_DTYPES),
    st.lists(st.sampled_from([0, 1, 2, 3, 70]), max_size=3).map(tuple),
    st.integers(0, 1000),
)
_keys = st.sampled_from(["a", "A", "a/b", "", "..", "snapshot_done", "w.b", "ü", "x" * 300])
_flat = st.dictionaries(_keys, _arrays, max_size=4)
_nested = st.recursive(
    st.one_of(_arrays, st.integers(-5, 5), st.none(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=5,
)
_objects = st.one_of(_flat, st.builds(lambda inner, n: {"state": inner, "epoch": n}, _nested, st.integers(0, 9)))
_names = st.sampled_from(["one", "two", "three"])
_STEPS = {
    os: ("mkdir", "rename", "unlink", "rmdir", "link", "listdir"),
    _core: ("write", "write_tensors", "renameat2", "sync_dir", "syncfs"),
}


def same(found: Any, wanted: Any) -> bool:
    """Whether two objects are of the same types, values and bits."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, np.ndarray):
        return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
    if isinstance(wanted, dict):
        return [*found] == [*wanted] and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


def end_at(step: int) -> None:
    """From now on this process ends when it has taken so many steps that others could see."""
    left = [step]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(0)
            return function(*arguments, **options)

        return call

    for module, names in _STEPS.items():
        for name in names:
            setattr(module, name, counted(getattr(module, name)))


class Model(RuleBasedStateMachine):
    """A folder of snapshots, and the dict."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.held = ExitStack()
        self.folder = self.held.enter_context(scratch("fuzz-model-"))
        self.saved: dict[str, Any] = {}

    def teardown(self) -> None:
        self.held.close()

    def path(self, name: str) -> Path:
        return self.folder / name

    @rule(name=_names, obj=_objects, index=st.booleans(), durable=st.booleans())
    def save(self, name: str, obj: Any, index: bool, durable: bool) -> None:
        fastckpt.save(obj, self.path(name), index=index, durable=durable, threads=1)
        self.saved[name] = obj

    @rule(name=_names, mode=st.sampled_from(["auto", "mmap", "read", "direct"]), verify=st.booleans())
    def load(self, name: str, mode: Any, verify: bool) -> None:
        try:
            found = fastckpt.load(self.path(name), as_="numpy", mode=mode, verify=verify)
        except FileNotFoundError:
            assert name not in self.saved
        else:
            assert same(found, self.saved[name])

    @rule(name=_names)
    def edit(self, name: str) -> None:
        """What is done to loaded tensors stays in memory."""
        if name not in self.saved:
            return
        snapshot = fastckpt.open(self.path(name), as_="numpy")
        for array in [snapshot[key][...] for key in snapshot if snapshot[key].ndim]:
            array[...] = 1

    @rule(name=_names, other=_names)
    def rename(self, name: str, other: str) -> None:
        """A snapshot is a folder and can be moved as one."""
        if name in self.saved and other not in self.saved:
            os.rename(self.path(name), self.path(other))
            self.saved[other] = self.saved.pop(name)

    @rule(name=_names)
    def delete(self, name: str) -> None:
        if self.saved.pop(name, None) is not None:
            shutil.rmtree(self.path(name))

    @rule(name=_names, obj=_objects, step=st.integers(0, 40))
    def crash(self, name: str, obj: Any, step: int) -> None:
        child = os.fork()
        if child == 0:
            try:
                end_at(step)
                fastckpt.save(obj, self.path(name), threads=1)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        try:
            found = fastckpt.load(self.path(name), as_="numpy")
        except FileNotFoundError:
            assert name not in self.saved
            return
        assert same(found, obj) or (name in self.saved and same(found, self.saved[name])), "neither old nor new"
        self.saved[name] = found

    @rule(name=_names)
    def verify(self, name: str) -> None:
        if name in self.saved:
            assert fastckpt.verify(self.path(name)).problems == ()

    @invariant()
    def all_that_was_saved_is_there(self) -> None:
        Model.steps += 1
        there = {entry for entry in os.listdir(self.folder) if not entry.startswith(".")}
        assert there == {*self.saved}


def explore(runs: int, steps: int, seed: int) -> list[str]:
    """Run the machine so often, so many steps each; give what it found."""
    return findings(
        lambda how: run_state_machine_as_test(hypothesis.seed(seed)(Model), settings=how),
        seed,
        max_examples=runs,
        stateful_step_count=steps,
    )


def run(limit: Limit) -> Verdict:
    Model.steps = 0
    runs, violations = explored(limit, 50, lambda batch, seed: explore(batch, STEPS, seed))
    return Verdict({"runs": runs, "steps": Model.steps}, violations)
