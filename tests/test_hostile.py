"""No snapshot, however it was made, gets more than an error that names its file: no hang, no crash, no file elsewhere.

The cases are in `hostile_cases`. What each must say is the same for every way of reading it, with much memory or
little, and whether or not the kernel has openat2.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hostile_cases
import pytest
import seccomp
from hostile_cases import CASES, CHECKING, DIGEST_GROUP, RECORDS, WAYS, WELL, Case, build, read_case, runnable

import fastckpt

SANITIZED = 20 if "asan" in os.environ.get("LD_PRELOAD", "") or "tsan" in os.environ.get("LD_PRELOAD", "") else 1
CPU = 0.1 * SANITIZED  # seconds
ROOM = 12 << 20  # bytes beyond the files' own; a traceback and a warning take some
_OPENED, _NONBLOCK = 0x20 | 0x1, 0o4000  # of inotify: IN_OPEN, IN_ACCESS; IN_NONBLOCK


def name_of(case: Case) -> str:
    return f"{case.group}-{case.name}"


def check(case: Case, way: str, told: Any) -> None:
    """What a way of reading said is what it must say."""
    keys, kind, said, warned = told
    if case.group == DIGEST_GROUP and way not in CHECKING:
        assert kind == "", (way, kind, said)
        return
    if case.group in RECORDS and way == "load_into" and not kind:
        return
    if name_of(case) == "meta missing-gone" and way == "load_into":  # the target says what the tensor is
        assert (kind, warned) == ("", [])
        return
    if isinstance(case.wanted, set):
        unfit = way == "load_into" and (case.group == WELL or case.wanted != {*hostile_cases.TARGETS[case.base]()})
        assert kind == ("MismatchError" if unfit else ""), (way, kind, said)
        assert keys is None or {*keys} == case.wanted
        noted = bool(case.words and not unfit)
        assert [re.search(case.words, text) is not None for text in warned] == [True] * noted, (way, warned)
        return
    assert kind in {wanted.__name__ for wanted in case.wanted}, (way, kind, said)
    assert re.search(case.words, said), (way, said)
    assert "/snapshot" in said  # which is the folder
    assert len(said) < 5000
    assert warned == []


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the snapshot that nobody may look into; it would do as a tensor."""
    hostile_cases.folder(tmp_path, "victim", (2,), data=bytes(8))
    return tmp_path / "victim"


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Nobody opens or reads these, nor what is in them."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(_NONBLOCK)
    for path in paths:
        assert libc.inotify_add_watch(watch, os.fsencode(path), _OPENED) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            pytest.fail(f"opened: {os.read(watch, 4096)!r}")
    finally:
        os.close(watch)


def test_every_class_of_damage_has_three_cases() -> None:
    assert [group for group, count in Counter(case.group for case in CASES).items() if count < 3] == []
    assert len({name_of(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_hostile(case: Case, tmp_path: Path, victim: Path) -> None:
    if not runnable(case):
        pytest.skip("only root makes devices")
    path = build(tmp_path, case)
    size = sum(file.lstat().st_size for file in path.rglob("*") if file.lstat().st_size < 1 << 30)
    with untouched(victim, victim / "out", victim / "meta"):
        for way in WAYS:
            tracemalloc.start()
            began = time.process_time()
            told = read_case(path, case, way)
            spent = time.process_time() - began
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            check(case, way, told)
            assert peak < 30 * size + ROOM, (way, peak, size)
            assert spent < 10 * CPU, (way, spent)  # tracing takes most of it
        began = time.process_time()
        read_case(path, case, "load")
        assert time.process_time() - began < CPU
        check_report(case, path)
    assert sorted(os.listdir(tmp_path)) == ["snapshot", "victim"]


def check_report(case: Case, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = fastckpt.verify(path)
    if case.group == hostile_cases.INDEX_GROUP:
        assert not report.ok
    else:
        assert report.ok is isinstance(case.wanted, set)
    assert all(str(path) in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("memory", "without"),
    [
        pytest.param(256 << 20, "", marks=pytest.mark.no_asan),  # whose shadow takes terabytes of addresses
        (1 << 50, "ENOSYS"),
        (1 << 50, "EPERM"),
    ],
    ids=["memory", "kernel", "sandbox"],
)
def test_the_same_with_little_memory_and_without_openat2(memory: int, without: str, tmp_path: Path) -> None:
    hostile_cases.folder(tmp_path, "victim", (2,), data=bytes(8))
    forbidding = [seccomp.__file__, "openat2", str(getattr(errno, without))] if without else []
    done = subprocess.run(
        [sys.executable, *forbidding, hostile_cases.__file__, str(tmp_path), str(memory)],
        env={**os.environ, "PYTHONPATH": str(Path(fastckpt.__file__).parents[1])},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == seccomp.UNAVAILABLE:
        pytest.skip("no seccomp here")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for case in filter(runnable, CASES):
        for way in WAYS:
            check(case, way, told[f"{case.group}/{case.name}"][way])
