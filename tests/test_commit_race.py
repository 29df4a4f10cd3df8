"""Several processes save to one path and load from it at the same time."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np
import pytest

import fastckpt

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]  # by the clock, in which four processes must have begun

NAMES = [f"t{number}" for number in range(6)]


def state(number: int) -> dict[str, Any]:
    """Something that tells which save wrote each part of it; every other one is nested."""
    tensors = {name: np.full(20 + number % 7, number) for name in NAMES[: 3 + number % 4]}
    return {"model": tensors, "number": number} if number % 2 else tensors


def number_of(found: Any) -> int:
    """Which state this is; wrong if it is none in whole."""
    tensors = found.get("model", found)
    number = int(tensors["t0"][0])
    assert rig.equal(found, state(number)), found
    return number


def write(path: str, way: str, first: int, until: float) -> dict[str, int]:
    rig.prepare(way, setattr, for_good=True)
    number = first
    while time.time() < until:
        fastckpt.save(state(number), path, threads=2)
        number += 1
    return {"saves": number - first}


def read(path: str, until: float) -> dict[str, Any]:
    numbers: list[int] = []
    while time.time() < until:
        numbers.append(number_of(rig.loaded(Path(path))))
    changes = sum(one != other for one, other in itertools.pairwise(numbers))
    return {"loads": len(numbers), "changes": changes}


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, problem = process.communicate(timeout=60)
    assert process.returncode == 0, problem
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.mark.parametrize("way", ["each", "renames", "lockfile"])
def test_two_writers_and_two_readers(way: str) -> None:
    """No load is refused and none mixes two saves; no save finds its stage swept away by the other."""
    with rig.fast_folder() as folder:
        path, until = folder / "s", time.time() + 3
        fastckpt.save(state(0), path)
        writers = [start("write", path, way, first, until) for first in (1_000_000, 2_000_000)]
        readers = [start("read", path, until) for _ in range(2)]
        saves = sum(finish(writer)["saves"] for writer in writers)
        reads = [finish(reader) for reader in readers]
        assert saves > 2
        assert sum(read["changes"] for read in reads) > 2
        assert number_of(rig.loaded(path)) >= 1_000_000
        assert set(os.listdir(folder)) - {".s.lock"} == {"s"}


@pytest.mark.parametrize("way", ["each", "renames"])
def test_writers_that_are_killed(way: str) -> None:
    """What a killed one leaves is recovered by readers and swept by the next save, while others live."""
    with rig.fast_folder() as folder:
        path, until = folder / "s", time.time() + 4
        fastckpt.save(state(0), path)
        reader = start("read", path, until)
        steady = start("write", path, way, 1_000_000, until)
        first = 2_000_000
        while time.time() < until:
            victim = start("write", path, way, first, until + 60)
            time.sleep(0.25 + 0.01 * (first % 17))
            os.kill(victim.pid, signal.SIGKILL)
            victim.communicate()
            first += 10_001
        assert finish(steady)["saves"] > 2
        assert finish(reader)["changes"] > 2
        fastckpt.save(state(1), path)
        assert set(os.listdir(folder)) == {"s"}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    told = write(where, rest[0], int(rest[1]), float(rest[2])) if what == "write" else read(where, float(rest[0]))
    sys.stdout.write(json.dumps(told))
