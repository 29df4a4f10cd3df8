"""What only a CUDA device can show. The same code is tried on any machine by test_lanes.py."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastckpt
from fastckpt.dtypes import BY_NAME
from fastckpt.rooms import ROOM
from fastckpt.torch import pinned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]
TORCH_DTYPES = [getattr(torch, d.torch) for d in BY_NAME.values() if d.torch and hasattr(torch, d.torch)]


def noise(nbytes: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8))


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())


def assert_same(found: dict[str, Any], wanted: dict[str, Any], device: str = "cuda") -> None:
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape, found[key].device.type) == (tensor.dtype, tensor.shape, device), key
        assert raw(found[key]) == raw(tensor), key


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    tied = torch.arange(50_000.0)
    return {
        "huge": noise(40 * ROOM + 4097),
        "tied": tied,
        "odd": noise(70_001),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(3, 0),
        "again": tied,
        **{f"bias.{n}": torch.full((n,), n, dtype=torch.int16) for n in range(1, 150)},
    }


@pytest.fixture
def path(weights: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    fastckpt.save(weights, tmp_path / "s", durable=False)
    return tmp_path / "s"


@pytest.mark.parametrize(
    "options", [{}, {"mode": "read"}, {"mode": "direct"}, {"mode": "mmap"}, {"verify": True}], ids=str
)
def test_what_was_saved_arrives(options: Any, path: Path, weights: dict[str, torch.Tensor]) -> None:
    for _ in range(3):
        found = fastckpt.load(path, device="cuda", **options)
        assert_same(found, weights)
        assert found["tied"] is found["again"]


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    flat = noise(48 * dtype.itemsize)
    flat = flat % 2 if dtype == torch.bool else flat
    saved = {"flat": flat.view(dtype), "0-d": flat[: dtype.itemsize].clone().view(dtype).reshape(())}
    fastckpt.save(saved, tmp_path / "s", durable=False)
    found = fastckpt.load(tmp_path / "s", device="cuda")
    assert_same(found, saved)
    fastckpt.save(found, tmp_path / "t", durable=False)
    assert_same(fastckpt.load(tmp_path / "t"), saved, "cpu")


def test_targets_are_filled(path: Path, weights: dict[str, torch.Tensor]) -> None:
    state = {key: torch.zeros_like(tensor, device="cuda") for key, tensor in weights.items()}
    state["odd"] = torch.zeros(70_001, 2, dtype=torch.uint8, device="cuda")[:, 0]
    state["tied"] = torch.zeros(50_000, dtype=torch.float64, device="cuda")
    fastckpt.load_into(state, path, verify=True)
    for key, tensor in weights.items():
        assert torch.equal(state[key].cpu(), tensor.to(state[key].dtype)), key


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("options", [{}, {"durable": False}, {"threads": 1}, {"threads": 40}], ids=str)
def test_the_bytes_are_those_of_a_save_from_the_host(
    options: Any, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    there = {key: tensor.cuda() for key, tensor in weights.items() if key != "again"}
    there = {key: there["tied" if key == "again" else key] for key in weights}
    fastckpt.save({"w": there, "n": 1}, tmp_path / "there", **options)
    fastckpt.save({"w": weights, "n": 1}, tmp_path / "here", **options)
    assert content(tmp_path / "there") == content(tmp_path / "here")


def busy(tensor: torch.Tensor) -> None:
    """Keep the current stream busy for a while."""
    wide = torch.ones(4096, 4096, device=tensor.device)
    for _ in range(50):
        wide = (wide @ wide).clamp_(max=1)
    tensor.add_(wide[0, 0].to(tensor.dtype) * 0)


@pytest.mark.parametrize("side", [False, True])
def test_what_is_queued_after_a_load_sees_the_data(side: bool, path: Path, weights: dict[str, torch.Tensor]) -> None:
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.current_stream()):
        for _ in range(5):
            found = fastckpt.load(path, device="cuda")
            total = found["huge"].to(torch.int64).sum()
            del found  # its memory may be used again while the kernel waits
            assert total.item() == weights["huge"].to(torch.int64).sum().item()


@pytest.mark.parametrize("side", [False, True])
def test_targets_are_not_filled_before_earlier_work_is_done(side: bool, path: Path, weights: Any) -> None:
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.current_stream()):
        target = torch.zeros(weights["huge"].shape, dtype=torch.uint8, device="cuda")
        busy(target)
        target.fill_(1)
        fastckpt.load_into({"huge": target}, path, strict=False)
        assert torch.equal(target.cpu(), weights["huge"])


@pytest.mark.parametrize("side", [False, True])
def test_a_save_has_what_was_queued_before_it(side: bool, tmp_path: Path) -> None:
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.current_stream()):
        saved = {"large": torch.zeros(5 << 20, device="cuda"), "small": torch.zeros(10, device="cuda")}
        saved["crooked"] = torch.zeros(1 << 10, 1 << 10, device="cuda").T
        busy(saved["large"])
        for tensor in saved.values():
            tensor.fill_(7)
        fastckpt.save(saved, tmp_path / "s")
    assert all((tensor == 7).all() for tensor in fastckpt.load(tmp_path / "s").values())


def test_pinned_tensors(path: Path, weights: dict[str, torch.Tensor]) -> None:
    found = fastckpt.load(path, pin=True)
    assert_same(found, weights, "cpu")
    assert all(tensor.is_pinned() for tensor in found.values() if tensor.numel())
    assert torch.equal(found["huge"].to("cuda", non_blocking=True).cpu(), weights["huge"])
    del found
    gc.collect()
    assert_same(fastckpt.load(path, pin=True, mode="direct"), weights, "cpu")


def test_rooms_are_locked_and_kept() -> None:
    pinned.release()
    rooms = pinned.CudaLane(torch.device("cuda")).take(2)
    assert all(room.locked for room in rooms)
    assert all(torch.frombuffer(room.view, dtype=torch.uint8).is_pinned() for room in rooms)
    pinned.CudaLane.pool.give_back(rooms)
    again = pinned.CudaLane(torch.device("cuda")).take(2)
    assert {*map(id, again)} == {*map(id, rooms)}


def test_a_refusal_to_lock_is_not_reported_to_the_next_kernel(caplog: pytest.LogCaptureFixture) -> None:
    rooms = pinned.CudaLane(torch.device("cuda")).take(1)
    address = torch.frombuffer(rooms[0].view, dtype=torch.uint8).data_ptr()
    assert pinned._lock_pages(address, ROOM) is None, "it is locked already"
    assert "CUDA does not lock" in caplog.text
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_another_device_than_the_current_one(path: Path, weights: dict[str, torch.Tensor]) -> None:
    found = fastckpt.load(path, device="cuda:1")
    assert {tensor.device.index for tensor in found.values()} == {1}
    assert_same(found, weights)


def test_the_process_ends_well_with_rooms_and_pinned_tensors(path: Path) -> None:
    code = (
        "import sys, fastckpt; a = fastckpt.load(sys.argv[1], device='cuda'); b = fastckpt.load(sys.argv[1], pin=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
