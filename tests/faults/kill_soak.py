"""Two processes save to one path and are killed at any moment, again and again, while four read from it.

Every snapshot says its number in each of its tensors, so a reader notices when two are mixed. The processes are forked
from one that has imported everything: a new saver begins at once. Every other kill takes both savers, so that nobody is
left who could help; then a save must come through soon, which none does that waits for the lock of a dead one.

As a program: ``python -m faults.kill_soak WAY KILLS READS SECONDS`` soaks once and prints what it counted.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt
from faults.programs import told
from faults.verdict import Verdict

ABOUT = "saves that are killed at any moment: no load is refused or mixed, no lock stays, all rests are swept"

KILLS, READS, SECONDS = 1_050, 105_000, 480
#: How it is saved, and its share of the kills.
WAYS = {"threads": 0.4, "each": 0.2, "renames": 0.25, "lockfile": 0.15}
READERS, WRITERS = 4, 2
_MODES = ("auto", "mmap", "read", "direct", "open", "into")
_SOON = 20.0  # seconds


class Soak:
    """The processes, and what they count in memory that all of them share."""

    def __init__(self, folder: Path, way: str) -> None:
        self.path, self.way = folder / "s", way
        self.problems = folder / "problems"
        self.counts = np.frombuffer(mmap.mmap(-1, 4096), np.int64)  # saves, then the reads and changes of each reader
        self.random = random.Random(7)
        self.first = 1
        self.kills = 0
        fastckpt.save(rig.state(0), self.path)

    def fork(self, work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:  # noqa: BLE001
                with self.problems.open("a") as file:
                    file.write(traceback.format_exc(limit=-4) + "\n")
            finally:
                os._exit(0)
        return pid

    def writer(self) -> int:
        self.first += 1_000_000

        def write() -> None:
            rig.prepare(self.way, setattr, for_good=True)
            number = self.first
            while True:
                fastckpt.save(rig.state(number), self.path, threads=2, durable=number % 3 != 0)
                self.counts[0] += 1
                number += 1

        return self.fork(write)

    def reader(self, place: int) -> int:
        def read() -> None:
            last, reads = 0, 0
            while True:
                number = self._read_once(_MODES[reads % len(_MODES)], last)
                self.counts[place + 1] += number != last
                self.counts[place] += 1
                last, reads = number, reads + 1

        return self.fork(read)

    def _read_once(self, how: str, last: int) -> int:
        if how == "into":
            try:
                found = rig.read(how, self.path, rig.state(last), checked=True)
            except fastckpt.MismatchError:  # another form stands there by now
                how = "auto"
            else:
                if "number" in found:  # plain values are left alone
                    found["number"] = int(found["model"]["t0"][0])
                return rig.number_of(found)
        return rig.number_of(rig.read(how, self.path, None, checked=True))

    def run(self, kills: int, reads: int, seconds: float) -> dict[str, Any]:
        writers = [self.writer() for _ in range(WRITERS)]
        readers = [self.reader(8 * (at + 1)) for at in range(READERS)]
        end = time.monotonic() + seconds
        stale = 0
        while (self.kills < kills or self.reads < reads) and time.monotonic() < end and not self.problems.exists():
            time.sleep(self.random.uniform(0.0, 0.08))
            all_of_them = self.kills % 2 == 0
            for at in range(WRITERS) if all_of_them else [self.random.randrange(WRITERS)]:
                kill(writers[at])
                self.kills += 1
                writers[at] = self.writer()
            stale += not self._goes_on()
        for pid in writers + readers:
            kill(pid)
        return self._told(stale)

    @property
    def reads(self) -> int:
        return int(self.counts[8 : 8 * (READERS + 1) : 8].sum())

    def _goes_on(self) -> bool:
        """Wait until somebody has saved; False when nobody does."""
        saves, end = self.counts[0], time.monotonic() + _SOON
        while self.counts[0] == saves and time.monotonic() < end and not self.problems.exists():
            time.sleep(0.002)
        return bool(self.counts[0] > saves) or self.problems.exists()

    def _told(self, stale: int) -> dict[str, Any]:
        began = time.monotonic()
        fastckpt.save(rig.state(1), self.path)
        took = time.monotonic() - began
        problems = self.problems.read_text().split("\n\n") if self.problems.exists() else []
        left = set(os.listdir(self.path.parent)) - {"s", "problems", ".s.lock"}
        problems += [f"no save for {_SOON} s after a kill, {stale} times"] * bool(stale)
        problems += [f"left behind: {left}"] * bool(left) + [f"the last save took {took:.1f} s"] * (took > _SOON)
        changes = int(self.counts[9 : 8 * (READERS + 1) : 8].sum())
        numbers = {"kills": self.kills, "reads": self.reads, "other snapshots read": changes}
        return {"figures": numbers | {"saves": int(self.counts[0])}, "problems": [text for text in problems if text]}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def soak(way: str, kills: int, reads: int, seconds: float) -> dict[str, Any]:
    """Soak in a process of its own."""
    out, problem = told("kill_soak", way, kills, reads, seconds)
    report: dict[str, Any] = {"figures": {}, "problems": [problem]} if problem else json.loads(out)
    return report


def run(scale: float) -> Verdict:
    figures: dict[str, Any] = {"kills": 0, "reads": 0, "saves": 0, "other snapshots read": 0}
    violations: list[str] = []
    for way, share in WAYS.items():
        part = scale * share
        report = soak(way, round(KILLS * part), round(READS * part), max(SECONDS * part, 5))
        for name, number in report["figures"].items():
            figures[name] += number
        violations += [f"{way}: {problem}" for problem in report["problems"]]
    if scale >= 1 and not violations and (figures["kills"] < 1000 or figures["reads"] < 100_000):
        violations.append("too slow a machine: not enough kills and reads in the time given")
    return Verdict(figures, violations)


if __name__ == "__main__":
    with rig.fast_folder() as here:
        print(json.dumps(Soak(here, sys.argv[1]).run(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
