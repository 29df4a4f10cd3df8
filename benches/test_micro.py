"""A small model, where every microsecond is a system call or Python: save and load, all durable, all warm.

make bench
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Rival


@pytest.mark.benchmark(group="save the MLP, durably")
def test_save(benchmark: Any, mlp: torch.nn.Module, rival: Rival, tmp_path: Path) -> None:
    state = mlp.state_dict()
    benchmark.pedantic(rival.save, (state, tmp_path / "mlp"), rounds=50, warmup_rounds=5)


@pytest.mark.benchmark(group="load the MLP")
def test_load(benchmark: Any, mlp: torch.nn.Module, rival: Rival, tmp_path: Path) -> None:
    rival.save(mlp.state_dict(), tmp_path / "mlp")
    loaded = benchmark(rival.load, tmp_path / "mlp")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in mlp.state_dict().items())


@pytest.mark.benchmark(group="load the MLP into a module")
def test_load_state_dict(benchmark: Any, mlp: torch.nn.Module, rival: Rival, tmp_path: Path) -> None:
    rival.save(mlp.state_dict(), tmp_path / "mlp")
    benchmark(lambda: mlp.load_state_dict(rival.load(tmp_path / "mlp")))
