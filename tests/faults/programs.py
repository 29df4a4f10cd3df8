"""Work in processes of its own: a module of this folder, without threads, so that it may fork; a function."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commit_rig as rig

import fastckpt

__all__ = ["forked", "start", "told"]


def start(module: str, *words: object, **env: str) -> subprocess.Popen[str]:
    """Start ``python -m faults.MODULE`` with the package and the rigs that are in use here."""
    paths = [Path(rig.__file__).parent, Path(fastckpt.__file__).parents[1]]
    own = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-W", "error", "-m", f"faults.{module}", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **own, **env}
    )


def told(module: str, *words: object, **env: str) -> tuple[Any, str]:
    """Run it; give what it printed, and how it failed, if it did."""
    process = start(module, *words, **env)
    out, problem = process.communicate()
    return out, "" if process.returncode == 0 else f"exit status {process.returncode}: {problem}"


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own, whose module globals may be changed at will; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
