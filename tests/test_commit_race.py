"""Several processes save to one path and load from it at the same time.

They go on until the test has seen enough, and say so each time that they saved, or found another snapshot.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commit_rig as rig
import pytest

import fastckpt

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]  # by the clock, in which four processes must have begun

KILLS = 6


def write(path: Path, way: str, first: int) -> None:
    rig.prepare(way, setattr, for_good=True)
    number = first
    while not stop(path).exists():
        fastckpt.save(rig.state(number), path, threads=2)
        tell()
        number += 1


def read(path: Path) -> None:
    last = 0
    while not stop(path).exists():
        number = rig.number_of(rig.loaded(path))
        if number != last:
            tell()
        last = number


def stop(path: Path) -> Path:
    return path.parent.with_suffix(".stop")


def tell() -> None:
    os.write(1, b"!\n")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hear(process: subprocess.Popen[str], times: int = 1) -> None:
    assert process.stdout
    for _ in range(times):
        if not process.stdout.readline():
            pytest.fail(process.communicate()[1])


def finish(process: subprocess.Popen[str]) -> None:
    _, problem = process.communicate(timeout=60)
    assert process.returncode == 0, problem


@pytest.mark.parametrize("way", ["each", "renames", "lockfile"])
def test_two_writers_and_two_readers(way: str) -> None:
    """No load is refused and none mixes two saves; no save finds its stage swept away by the other."""
    with rig.fast_folder() as folder:
        path = folder / "there" / "s"
        path.parent.mkdir()
        fastckpt.save(rig.state(0), path)
        everybody = [start("read", path) for _ in range(2)]
        everybody += [start("write", path, way, first) for first in (1_000_000, 2_000_000)]
        for process in everybody:
            hear(process, 40)
        stop(path).touch()
        for process in everybody:
            finish(process)
        assert rig.number_of(rig.loaded(path)) >= 1_000_000
        assert set(os.listdir(path.parent)) - {".s.lock"} == {"s"}


@pytest.mark.parametrize("way", ["each", "renames"])
def test_writers_that_are_killed(way: str) -> None:
    """What a killed one leaves is recovered by readers and swept by the next save, while others live."""
    with rig.fast_folder() as folder:
        path = folder / "there" / "s"
        path.parent.mkdir()
        fastckpt.save(rig.state(0), path)
        reader, steady = start("read", path), start("write", path, way, 1_000_000)
        for kill in range(KILLS):
            victim = start("write", path, way, 2_000_000 + 10_001 * kill)
            hear(victim)
            time.sleep(0.003 * kill)
            os.kill(victim.pid, signal.SIGKILL)
            victim.communicate()
            hear(steady)
            hear(reader)
        stop(path).touch()
        finish(steady)
        finish(reader)
        fastckpt.save(rig.state(1), path)
        assert set(os.listdir(path.parent)) == {"s"}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "write":
        write(Path(where), rest[0], int(rest[1]))
    else:
        read(Path(where))
