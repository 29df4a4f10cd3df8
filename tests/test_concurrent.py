"""Threads, workers of a data loader and background saves at one snapshot, at the same time."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastckpt

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ROWS = 64


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Rows that say their seed: in one large tensor, which is mapped, and in a small one."""
    return {"large": torch.full((ROWS, 20_000), seed), "small": torch.full((ROWS, 2), seed)}


class Opened(Dataset[tuple[int, int]]):
    """Opened before the workers were forked."""

    def __init__(self, path: Path) -> None:
        self.snapshot = fastckpt.open(path)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[int, int]:
        rows = self.snapshot["large"][row], self.snapshot["small"][row]
        assert all(bool((row == row[0]).all()) for row in rows)
        return int(rows[0][0]), int(rows[1][0])


class Loaded(Opened):
    """Loaded anew by the worker for every row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, row: int) -> tuple[int, int]:
        way = itertools.cycle(("auto", "mmap", "read", "direct"))
        state = fastckpt.load(self.path, mode=[next(way) for _ in range(row % 4 + 1)][-1])
        return int(state["large"][row, 7]), int(state["small"][row, 1])


@pytest.mark.parametrize("background", [False, True], ids=["save", "save_async"])
def test_saves_beside_the_workers_of_a_data_loader(tmp_path: Path, background: bool) -> None:
    """Workers finish with what was opened; those that load get the old or the new; neither holds a save up."""
    path = tmp_path / "s"
    fastckpt.save(weights(1), path)
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": "fork"}
    opened, loaded = iter(DataLoader(Opened(path), **options)), iter(DataLoader(Loaded(path), **options))
    first = next(opened), next(loaded)
    for seed in (2, 3):
        if background:
            fastckpt.save_async(weights(seed), path).result(60)
        else:
            fastckpt.save(weights(seed), path)
    assert os.listdir(tmp_path) == ["s"]
    for large, small in (first[0], *opened):
        assert set(large.tolist()) == set(small.tolist()) == {1}
    for large, small in (first[1], *loaded):
        assert large.tolist() == small.tolist()
        assert set(large.tolist()) <= {1, 2, 3}
    assert int(fastckpt.load(path)["small"][0, 0]) == 3


def test_a_worker_that_outlives_a_background_save(tmp_path: Path) -> None:
    """It was forked in the middle of one, and has neither its lock nor its thread."""
    path = tmp_path / "s"
    fastckpt.save(weights(1), path)
    saving = fastckpt.save_async(weights(2), path)
    loader = iter(DataLoader(Loaded(path), batch_size=4, num_workers=2, multiprocessing_context="fork"))
    next(loader)
    saving.result(60)
    fastckpt.save(weights(3), path)
    assert all(set(large.tolist()) <= {1, 2, 3} for large, _ in loader)
    assert os.listdir(tmp_path) == ["s"]


def test_threads_that_load_and_save(tmp_path: Path) -> None:
    """Two that save, one in the background too, and four that read in every way: nothing mixed, nothing refused."""
    path, over = tmp_path / "s", threading.Event()
    fastckpt.save(rig.state(0), path)

    def save(first: int) -> int:
        for number in range(first, first + 15):
            if number % 3:
                fastckpt.save(rig.state(number), path, durable=number % 2 == 0)
            else:
                fastckpt.save_async(rig.state(number), path).result(60)
        return 15

    def read(how: str) -> int:
        reads = 0
        while not over.is_set() or not reads:
            found = rig.read(how, path, None, checked=True)
            reads += found is None or rig.number_of(found) >= 0
        return reads

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, how) for how in ("auto", "read", "open", "verify")]
        try:
            assert sum(pool.map(save, (1000, 2000))) == 30
        finally:
            over.set()
        assert all(reader.result(60) > 0 for reader in readers)
    assert os.listdir(tmp_path) == ["s"]


def test_what_was_opened_is_read_to_its_end_on_the_old_snapshot(tmp_path: Path) -> None:
    path, old = tmp_path / "s", rig.CASES["large"][0]
    fastckpt.save(old, path)
    snapshot = fastckpt.open(path, as_="numpy")
    first = np.array(snapshot["small"])
    for _ in range(3):
        fastckpt.save(rig.CASES["large"][1], path)
    found = {key: np.array(handle) for key, handle in snapshot.items()} | {"small": first}
    assert rig.equal(found, old)
    assert rig.equal(rig.loaded(path), rig.CASES["large"][1])
