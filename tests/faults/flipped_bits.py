"""One bit that flips anywhere in any file of a snapshot: `verify` says so, and no checked load gives wrong values."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastckpt
from faults.verdict import Verdict

ABOUT = "a bit that flips anywhere in a snapshot is noticed by verify, and no load(verify=True) gives a wrong value"
_LARGE_FLIPS = 2_000


def run(scale: float) -> Verdict:
    figures: dict[str, Any] = {"flips in metas and markers": 0, "flips in blobs": 0, "refused by a plain load": 0}
    violations: list[str] = []
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        for name, (obj, options) in shapes(scale).items():
            fastckpt.save(obj, root / name, durable=False, **options)
            wanted = values(fastckpt.load(root / name, as_="numpy"))
            for file, at, bit in flips(root / name, scale, large=name == "large"):
                text = try_one(root / name, file, at, bit, wanted, figures)
                if text:
                    violations.append(f"{name}/{file.relative_to(root / name)} byte {at} bit {bit}: {text}")
    finally:
        shutil.rmtree(root)
    return Verdict(figures, violations)


def shapes(scale: float) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Give small objects of every kind that a snapshot can be, and a large one."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    flat = {"w": weight, "a/b": np.array([True, False]), "tied": weight, "none": np.zeros((0, 4)), "i": np.arange(5)}
    nested = {"model": {"w": weight, "b": weight[0].copy()}, "epoch": 3, "rate": 0.1, "name": "run", "list": [None, 1]}
    large = {f"t{n}": np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in enumerate(SIZES)}
    return {
        "flat": (flat, {}),
        "one": ({"w": weight}, {}),
        "ordered": (OrderedDict(reversed(flat.items())), {}),
        "indexed": (flat, {"index": True}),
        "nested": (nested, {}),
        "plain": ({"epoch": 3, "history": [1.5, "x", (2, 3)]}, {}),
        "large": (large, {"index": True}),
    }


SIZES = (0, 1, 100, 16_384, 16_385, 70_001, (1 << 20) + 1, (9 << 20) + 13)


def flips(path: Path, scale: float, *, large: bool) -> Iterator[tuple[Path, int, int]]:
    """Every bit of a meta and of a marker's text, one bit of every byte of a blob; of the large one at random."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    if large:
        lengths = [file.stat().st_size for file in files]
        for file in random.choices(files, lengths, k=int(_LARGE_FLIPS * scale)):
            yield file, random.randrange(file.stat().st_size), random.randrange(8)
        return
    for file in files:
        for at in range(file.stat().st_size):
            bits = [random.randrange(8)] if file.name == "out" else range(8)
            yield from ((file, at, bit) for bit in bits if random.random() < scale * 10)


def try_one(path: Path, file: Path, at: int, bit: int, wanted: Any, figures: dict[str, Any]) -> str:
    """Flip a bit, ask, and flip it back; give what is not as it must be."""
    flip(file, at, bit)
    try:
        figures["flips in blobs" if file.name == "out" else "flips in metas and markers"] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fastckpt.verify(path):
                return "verify noticed nothing"
            try:
                if values(fastckpt.load(path, as_="numpy", verify=True)) != wanted:
                    return "load(verify=True) gave something else"
            except fastckpt.CheckpointError:
                pass
            try:
                fastckpt.load(path, as_="numpy")
            except fastckpt.CheckpointError:
                figures["refused by a plain load"] += 1
        return ""
    finally:
        flip(file, at, bit)


def flip(file: Path, at: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


def values(obj: Any) -> Any:
    """Give an object that can be compared, by types and bits."""
    if isinstance(obj, np.ndarray):
        return str(obj.dtype), obj.shape, obj.tobytes()
    if isinstance(obj, dict):
        return type(obj), [(key, values(value)) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        return type(obj), [*map(values, obj)]
    return obj
