"""Real file systems whose power is cut at any time: the kernel is told to go down amid saves, time and again.

After the cut nothing more reaches the image, and the file system is mounted anew. With ``log flush`` the journal gets
there before, and so all names, but no more of the files' bytes; without, the image stays as it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt
from fastckpt import ways, writing
from faults.crash_states import allowed
from faults.mutations import MUTANTS
from faults.shapes import many
from faults.verdict import Skip, Verdict, need_programs, need_root
from faults.volumes import fresh, mounted, work_folder

ABOUT = "power cuts at any time: what the last save that returned has left, or the one that was going on, loads whole"

__all__ = ["SYSTEMS", "cut", "run", "soak", "version"]

SYSTEMS = ("ext4", "xfs")
_SECONDS = 300  # for each, at scale 1
_LONGEST = 0.12  # seconds from the begin of the saves to the cut
_GO_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_FLAGS = {"log flush": 1, "no log flush": 2}
_DIE_WITH_PARENT = 1
_BY_NUMBER = struct.Struct("<cI")


@dataclass
class Soak:
    """What was seen on one file system."""

    cuts: int = 0
    acked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(scale: float) -> Verdict:
    need_root()
    need_programs("losetup", "mount", "umount")
    cuts, outcomes, violations, skipped = Counter[str](), Counter[str](), [], []
    for system in SYSTEMS:
        try:
            found = soak(system, _SECONDS * scale)
        except Skip as reason:
            skipped.append(f"{system}: {reason}")
            continue
        print(f"  {system}: {found.cuts} cuts, {found.acked} saves returned, {dict(found.outcomes)}", flush=True)
        cuts[f"{system} cuts"] += found.cuts
        cuts["saves returned"] += found.acked
        outcomes += found.outcomes
        violations += [f"{system}: {text}" for text in found.violations]
    if not cuts:
        raise Skip("; ".join(skipped))
    return Verdict({**cuts, **outcomes, **({"skipped": "; ".join(skipped)} if skipped else {})}, violations)


def soak(system: str, seconds: float, mutant: str = "") -> Soak:
    """Save, cut, look, and again, until the time is over or something is wrong."""
    found, chance, give_up = Soak(), random.Random(11), time.monotonic() + seconds
    with work_folder() as folder:
        standing, flag = 0, ""
        with fresh(system, folder) as (image, there):
            fastckpt.save(version(standing), there / "s")
        marks: list[tuple[float, str, str]] = []
        while not found.violations:
            with mounted(system, image, there):
                if flag:
                    standing = _judge(_number(there / "s"), standing, marks, flag, found)
                if time.monotonic() > give_up or found.violations:
                    break
                flag = chance.choice([*_FLAGS])
                marks = _cut_among_saves(there, standing, chance.uniform(0, _LONGEST), flag, mutant)
    return found


def _judge(label: int | str, standing: int, marks: list[tuple[float, str, str]], flag: str, found: Soak) -> int:
    """Count a cut; give the version that stands there now."""
    found.cuts += 1
    found.acked += sum(verb == "acked" for _, verb, _ in marks)
    wanted = {standing if number == 0 else number for number in allowed(marks)}
    found.outcomes["old" if label == standing else "new" if label in wanted else "bad"] += 1
    if label not in wanted:
        found.violations.append(f"cut {found.cuts}, {flag}: {label}, where {sorted(wanted)} may be")
    return label if isinstance(label, int) else standing


def version(number: int) -> dict[str, Any]:
    return {"number": np.array([number]), **many(number, 5, 30_000)}


def _number(path: Path) -> int | str:
    """Which version stands there, to the bit; or what is wrong."""
    try:
        found = rig.loaded(path)
        number = int(found["number"][0])
    except Exception as problem:  # noqa: BLE001
        return f"{type(problem).__name__}: {problem}"
    return number if rig.equal(found, version(number)) else f"not what was saved as {number}"


def _cut_among_saves(there: Path, standing: int, after: float, flag: str, mutant: str) -> list[tuple[float, str, str]]:
    """Let a process save one version after the other, and cut; what it said meanwhile."""
    out, say = os.pipe()
    saver = os.fork()
    if saver == 0:
        _save_for_ever(there, standing, say, mutant)
    os.close(say)
    time.sleep(after)
    cut(there, flag)
    time.sleep(0.002)
    os.kill(saver, signal.SIGKILL)
    os.waitpid(saver, 0)
    with open(out, "rb") as said:
        text = said.read()
    verbs = {b"b": "began", b"a": "acked"}
    return [(0.0, verbs[verb], str(number)) for verb, number in _BY_NUMBER.iter_unpack(text)]


def cut(there: Path, flag: str) -> None:
    """Let the file system of a folder go down."""
    folder = os.open(there, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(folder, _GO_DOWN, struct.pack("<I", _FLAGS[flag]))
    os.close(folder)


def _save_for_ever(there: Path, standing: int, say: int, mutant: str) -> None:
    """In turns with a sync for every file and with one for all; until the disk is gone."""
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if mutant:
            MUTANTS[mutant].apply()
        writing.PART = writing.LARGE = 8192
        for number in range(standing + 1, standing + 1000):
            way = bool(number % 2) and not mutant
            ways._can_sync_whole = lambda *_, way=way: way
            os.write(say, _BY_NUMBER.pack(b"b", number))
            fastckpt.save(version(number), there / "s")
            os.write(say, _BY_NUMBER.pack(b"a", number))
    finally:
        os._exit(0)
