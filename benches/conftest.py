"""What the benchmarks share: the models, and one interface to fastckpt and its rivals."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fastckpt

torch.set_num_threads(1)  # copies of 0.4 MB would wait longer for a pool than they take


@dataclass(frozen=True)
class Rival:
    """How somebody saves durably, and loads."""

    save: Callable[[dict[str, Any], Path], None]
    load: Callable[[Path], dict[str, Any]]


def synced(write: Callable[[dict[str, Any], Path], None]) -> Callable[[dict[str, Any], Path], None]:
    """Do what fastckpt.save does on its own: write beside the target, sync, rename, sync the folder."""

    def save(state: dict[str, Any], path: Path) -> None:
        beside = path.with_suffix(".new")
        write(state, beside)
        sync(beside)
        beside.rename(path)
        sync(path.parent)

    return save


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


RIVALS = {
    "fastckpt": Rival(fastckpt.save, fastckpt.load),
    "safetensors": Rival(synced(safetensors.torch.save_file), safetensors.torch.load_file),
    "torch": Rival(synced(torch.save), lambda path: torch.load(path, mmap=True, weights_only=True)),
}


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest) -> Rival:
    return RIVALS[request.param]


@pytest.fixture
def mlp() -> torch.nn.Module:
    """The perceptron for MNIST: four tensors, 0.4 MB."""
    layers = {"l1": torch.nn.Linear(784, 128), "relu": torch.nn.ReLU(), "l2": torch.nn.Linear(128, 10)}
    model = torch.nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model
