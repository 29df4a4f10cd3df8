"""Look at snapshots: draw their folders, compare two of them bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import fastckpt as flow


def tree(folder: Path) -> Iterator[str]:
    """Draw a folder line by line, as the tool `tree` does."""
    yield f"{folder.name}/"
    yield from branches(folder)


def branches(folder: Path) -> Iterator[str]:
    """Draw what is in a folder."""
    entries = sorted(folder.iterdir())
    for entry in entries:
        last = entry == entries[-1]
        yield f"{'└──' if last else '├──'} {entry.name}"
        if entry.is_dir():
            yield from (f"{'    ' if last else '│   '}{line}" for line in branches(entry))


def differences(one: str, other: str) -> list[str]:
    """Name the tensors in which two snapshots differ, and "the record" when anything that is no tensor differs."""
    with flow.open(one) as a, flow.open(other) as b:
        differ = sorted(a.keys() ^ b.keys())
        differ += [key for key in a if key in b and not same_bits(a[key][...], b[key][...])]
        return differ if a.record == b.record else [*differ, "the record"]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors byte by byte: NaN equals NaN here, and 0.0 is not -0.0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
