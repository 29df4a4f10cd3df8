"""load, load_into and save through a ring of rooms, on a CPU that takes itself for a device; and pin=True."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lane_rig import FakeCuda, LateLane

import fastckpt
from fastckpt import _core, sending
from fastckpt.codec import codec_for
from fastckpt.dtypes import BY_NAME
from fastckpt.rooms import ROOM, Pool
from fastckpt.torch import pinned
from fastckpt.torch.pinned import CudaLane, HostLane

TORCH_DTYPES = [getattr(torch, d.torch) for d in BY_NAME.values() if d.torch and hasattr(torch, d.torch)]


@pytest.fixture(autouse=True)
def no_quick_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """To it the CPU is no device."""
    monkeypatch.setattr("fastckpt.loading.load_plain", lambda *_: None)


@pytest.fixture(params=["late", "host", "cuda"])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Give the CPU a lane: one that copies late, one that copies at once, CUDA's own on streams that are none."""
    made: list[Any] = []
    cuda = FakeCuda()
    monkeypatch.setattr(pinned, "cuda", cuda)
    monkeypatch.setattr(CudaLane, "pool", Pool(pinned._lock_pages))
    kind: Callable[[torch.device], Any] = {"late": LateLane, "host": HostLane, "cuda": CudaLane}[request.param]

    def make(device: torch.device) -> Any:
        made.append(kind(device))
        return made[-1]

    monkeypatch.setitem(pinned.LANES, "cpu", make)
    yield made
    CudaLane.pool.release()
    gc.collect()
    assert not cuda.locked, "everything that was locked is unlocked"


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert raw(found[key]) == raw(tensor), key


def noise(nbytes: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    tied = torch.arange(50_000.0)
    return {
        "huge": noise(3 * ROOM + 4097),
        "tied": tied,
        "odd": noise(70_001),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(3, 0),
        "again": tied,
        **{f"bias.{n}": torch.full((n,), n, dtype=torch.int16) for n in range(1, 150)},
        "room": noise(ROOM),
        "last": noise(1),
    }


@pytest.fixture
def path(weights: dict[str, torch.Tensor], memory_path: Path) -> Path:
    fastckpt.save(weights, memory_path / "s", durable=False)
    return memory_path / "s"


# ---- load ----


@pytest.mark.parametrize(
    "options", [{}, {"mode": "read"}, {"mode": "direct"}, {"verify": True}, {"threads": 1}, {"threads": 50}], ids=str
)
def test_what_was_saved_arrives(options: Any, path: Path, weights: dict[str, torch.Tensor], lanes: list[Any]) -> None:
    found = fastckpt.load(path, device="cpu", **options)
    assert_same(found, weights)
    assert len(lanes) == 1
    assert found["tied"] is found["again"]
    assert found["odd"] is not found["last"]
    assert len({t.untyped_storage().data_ptr() for t in found.values() if t.numel()}) == len(weights) - 2


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, memory_path: Path, lanes: list[Any]) -> None:
    flat = noise(48 * dtype.itemsize)
    flat = flat % 2 if dtype == torch.bool else flat
    saved = {"flat": flat.view(dtype), "0-d": flat[: dtype.itemsize].clone().view(dtype).reshape(())}
    saved |= {"3-d": flat.clone().view(dtype).reshape(2, 4, 6), "none": torch.empty(0, 2, dtype=dtype)}
    fastckpt.save(saved, memory_path / "s", durable=False)
    assert_same(fastckpt.load(memory_path / "s", device="cpu"), saved)


def test_keys_containers_and_nested_objects(path: Path, memory_path: Path, lanes: list[Any]) -> None:
    assert [*fastckpt.load(path, device="cpu", keys=["odd", "huge"])] == ["huge", "odd"]
    assert fastckpt.load(path, device="cpu", keys=[]) == {}
    ordered = OrderedDict(a=torch.ones(2), b=torch.zeros(70_000))
    fastckpt.save(ordered, memory_path / "o", durable=False)
    assert_same(fastckpt.load(memory_path / "o", torch.device("cpu")), ordered)
    tied = torch.arange(30_000)
    array = np.arange(20_000.0)
    saved = {"model": {"a": tied, "b": [tied, torch.ones(3)]}, "epoch": 3, "array": array, "tiny": array[:3].copy()}
    fastckpt.save(saved, memory_path / "n", durable=False)
    for options in ({}, {"verify": True}, {"mode": "direct"}):
        found = fastckpt.load(memory_path / "n", device="cpu", **options)
        assert found["epoch"] == 3
        assert found["model"]["a"] is found["model"]["b"][0]
        assert torch.equal(found["model"]["a"], tied)
        assert found["model"]["b"][1].tolist() == [1, 1, 1]
        assert type(found["array"]) is type(found["tiny"]) is np.ndarray
        np.testing.assert_array_equal(found["array"], array)
        np.testing.assert_array_equal(found["tiny"], array[:3])
    assert torch.equal(fastckpt.load(memory_path / "n", device="cpu", as_="torch")["array"], torch.from_numpy(array))
    some = fastckpt.load(memory_path / "n", device="cpu", keys=["model.b.1"])
    assert some["model.b.1"].tolist() == [1, 1, 1]


def test_small_ones_travel_together(path: Path, lanes: list[Any]) -> None:
    fastckpt.load(path, device="cpu", keys=[f"bias.{n}" for n in range(1, 150)])
    if isinstance(lanes[0], LateLane):
        assert sorted(len(copies) for copies in lanes[0].sent) == [21, 64, 64]


def test_without_a_lane_or_as_maps_nothing_is_sent(path: Path, lanes: list[Any]) -> None:
    fastckpt.load(path)
    fastckpt.load(path, device="meta")
    fastckpt.load(path, as_="numpy", device="cpu")
    fastckpt.load(path, device="cpu", mode="mmap")
    fastckpt.load(path, device="cpu", mmap=True)
    assert not [lane for lane in lanes if getattr(lane, "sent", None)]


def test_only_0_and_1_are_bools(memory_path: Path, lanes: list[Any]) -> None:
    fastckpt.save({"b": torch.ones(100_000, dtype=torch.bool)}, memory_path / "s", durable=False, digest=False)
    (memory_path / "s" / "b" / "out").write_bytes(bytes([0, 7] * 50_000))
    found = fastckpt.load(memory_path / "s", device="cpu")["b"]
    assert found.view(torch.uint8).unique().tolist() == [0, 1]
    target = torch.zeros(100_000, dtype=torch.bool)
    fastckpt.load_into({"b": target}, memory_path / "s")
    assert target.view(torch.uint8).unique().tolist() == [0, 1]


def test_loaded_in_inference_mode(path: Path, weights: dict[str, torch.Tensor], lanes: list[Any]) -> None:
    with torch.inference_mode():
        assert_same(fastckpt.load(path, device="cpu"), weights)


def test_damage_is_found_on_the_way(path: Path, lanes: list[Any]) -> None:
    for name, at in (("huge", 2 * ROOM + 5), ("bias.7", 3)):
        out = path / name / "out"
        before = out.read_bytes()
        out.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        with pytest.raises(fastckpt.CorruptError, match=f"{name}/out: its bytes have changed"):
            fastckpt.load(path, device="cpu", verify=True)
        out.write_bytes(before)
    fastckpt.load(path, device="cpu", verify=True)


@pytest.mark.parametrize("mode", ["auto", "read", "direct"])
@pytest.mark.parametrize("name", ["huge", "bias.9"])
def test_a_file_that_shrinks_meanwhile(
    name: str, mode: Any, path: Path, lanes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = sending._Filler.__call__

    def shrinking(self: Any, load: Any, room: memoryview) -> Any:
        if any(piece.blob == name and piece.offset >= 2 * ROOM * (name == "huge") for piece in load):
            os.truncate(path / name / "out", 1)
        return fill(self, load, room)

    monkeypatch.setattr(sending._Filler, "__call__", shrinking)
    with pytest.raises(fastckpt.CorruptError, match=rf"{path}: '{name}/out': wanted \d+ bytes, found \d+;"):
        fastckpt.load(path, device="cpu", mode=mode)


def test_what_is_refused_is_named(path: Path, lanes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(5, "read: no", "odd/out")

    monkeypatch.setattr(_core, "read_parts", refused)
    with pytest.raises(OSError, match="read: no") as raised:
        fastckpt.load(path, device="cpu")
    assert raised.value.filename == f"{path}/odd/out"


def test_what_is_cold_is_read_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pinned.LANES, "cpu", LateLane)
    fastckpt.save({"a": noise(100_001), "b": noise(200_000), "c": noise(5_000)}, tmp_path / "s", durable=False)
    rooms: dict[str, int] = {}

    def spy(fd: int, parts: Any, **options: Any) -> None:
        rooms.update({part[0]: part[4] for part in parts})
        read(fd, parts, **options)

    read = _core.read_parts
    monkeypatch.setattr(_core, "read_parts", spy)
    monkeypatch.setattr(_core, "is_resident", lambda fd, path: path == "b/out")
    aligned = 25 * 4096
    system = sending.filesystem_of(tmp_path)
    local = not (system.remote or system.in_memory)
    for mode, wanted in {
        "auto": {"a/out": aligned * local, "b/out": 0, "c/out": 0},
        "read": {"a/out": 0, "b/out": 0, "c/out": 0},
        "direct": {"a/out": aligned * local, "b/out": 49 * 4096 * local, "c/out": 8192 * local},
    }.items():
        mode_: Any = mode
        assert raw(fastckpt.load(tmp_path / "s", device="cpu", mode=mode_)["a"]) == raw(noise(100_001))
        assert rooms == wanted


def test_what_is_cold_stays_out_of_the_page_cache(tmp_path: Path, lanes: list[Any]) -> None:
    system = sending.filesystem_of(tmp_path)
    if system.remote or system.in_memory:
        pytest.skip(f"{system.name} has no page cache to pass")
    fastckpt.save({"w": noise(2 * ROOM + 5)}, tmp_path / "s")
    fd = os.open(tmp_path / "s", os.O_RDONLY)
    try:
        with open(tmp_path / "s" / "w" / "out", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _core.is_resident(fd, "w/out"):
            pytest.skip("nobody can say what lies in the page cache here")
        assert raw(fastckpt.load(tmp_path / "s", device="cpu", verify=True)["w"]) == raw(noise(2 * ROOM + 5))
        assert not _core.is_resident(fd, "w/out")
        fastckpt.load(tmp_path / "s", device="cpu", mode="read")
        assert _core.is_resident(fd, "w/out")
    finally:
        os.close(fd)


PEAK = """
import resource, sys, torch, fastckpt
from fastckpt.torch import pinned
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
fastckpt.load(sys.argv[1], device="meta", keys=["small"])
torch.ones(10).add_(1)
before = peak()
pinned.LANES["cpu"] = pinned.HostLane
found = fastckpt.load(sys.argv[1], device="cpu", mode=sys.argv[2], threads=16)
print(peak() - before - sum(t.nbytes for t in found.values()))
"""


@pytest.mark.slow
@pytest.mark.no_asan
@pytest.mark.parametrize("mode", ["read", "direct"])
def test_memory_beyond_the_tensors_is_bounded(mode: str, tmp_path: Path) -> None:
    saved = {f"w{n}": torch.full((12 << 20,), n, dtype=torch.uint8) for n in range(16)}
    fastckpt.save({**saved, "small": torch.ones(3)}, tmp_path / "s", durable=False)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "s"), mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < (64 + 8) << 20


# ---- load_into ----


def test_targets_are_filled_where_they_are(path: Path, weights: dict[str, torch.Tensor], lanes: list[Any]) -> None:
    state = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    state["odd"] = torch.zeros(70_001, 2, dtype=torch.uint8)[:, 0]
    state["tied"] = torch.zeros(50_000, dtype=torch.float64)
    addresses = {key: tensor.data_ptr() for key, tensor in state.items()}
    fastckpt.load_into(state, path, verify=True)
    assert {key: tensor.data_ptr() for key, tensor in state.items()} == addresses
    for key, tensor in weights.items():
        assert torch.equal(state[key], tensor.to(state[key].dtype)), key
    assert len(lanes) == 1


PEAK_INTO = """
import sys, numpy, torch, fastckpt
from fastckpt.torch import pinned
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
targets = {f"{n}": torch.ones(16 << 10, dtype=torch.uint8) for n in range(6000)}
if sys.argv[2] == "load_into":
    fastckpt.load_into({"0": targets["0"]}, sys.argv[1], strict=False)
    before, pinned.LANES["cpu"] = peak(), pinned.HostLane
    fastckpt.load_into(targets, sys.argv[1])
else:
    fastckpt.load(sys.argv[1], device="meta", keys=["0"])
    before, pinned.LANES["cpu"] = peak() + sum(t.nbytes for t in targets.values()), pinned.HostLane
    targets = fastckpt.load(sys.argv[1], device="cpu", mode="read")
assert not any(bool((t != int(key) % 251).any()) for key, t in targets.items())
print(peak() - before)
"""


@pytest.mark.no_asan
@pytest.mark.parametrize("how", ["load_into", "load"])
def test_copies_in_an_index_take_no_memory_on_their_way(how: str, memory_path: Path) -> None:
    """Of 96 MB of them a few rooms full are in memory at a time, beside what describes 6,000 tensors."""
    saved = {f"{n}": torch.full((16 << 10,), n % 251, dtype=torch.uint8) for n in range(6000)}
    fastckpt.save(saved, memory_path / "s", durable=False, index=True)
    command = [sys.executable, "-c", PEAK_INTO, str(memory_path / "s"), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 << 20


def test_autograd_sees_what_was_sent(path: Path, lanes: list[Any]) -> None:
    weight = torch.zeros(50_000, requires_grad=True)
    result = (weight.exp() * weight).sum()
    fastckpt.load_into({"tied": weight}, path, strict=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_tensors_of_inference_mode(path: Path, weights: dict[str, torch.Tensor], lanes: list[Any]) -> None:
    with torch.inference_mode():
        target = torch.zeros_like(weights["huge"])
        fastckpt.load_into({"huge": target}, path, strict=False)
        assert torch.equal(target, weights["huge"])


# ---- save ----


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("options", [{}, {"durable": False}, {"digest": False, "threads": 1}, {"threads": 40}], ids=str)
def test_the_bytes_are_those_of_a_save_from_the_host(
    options: Any, weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: list[Any]
) -> None:
    weights |= {"crooked": noise(3 << 20).view(3, 1 << 20).T, "conj": torch.ones(300_000, dtype=torch.complex64).conj()}
    fastckpt.save({"w": weights, "n": 1}, tmp_path / "there", **options)
    assert len(lanes) == 1
    monkeypatch.delitem(pinned.LANES, "cpu")
    fastckpt.save({"w": weights, "n": 1}, tmp_path / "here", **options)
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_copy_that_fails_ends_the_save(
    weights: dict[str, torch.Tensor], memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = LateLane()
    lane.fail_at = 2
    monkeypatch.setitem(pinned.LANES, "cpu", lambda device: lane)
    fastckpt.save({"old": torch.ones(3)}, memory_path / "s", durable=False)
    with pytest.raises(RuntimeError, match="the copy failed"):
        fastckpt.save(weights, memory_path / "s")
    assert not lane.waiting
    assert lane.calls == ["begin", "finish", "give_back"]
    assert [*fastckpt.load(memory_path / "s")] == ["old"]
    assert os.listdir(memory_path) == ["s"]


def test_the_thread_that_saves_is_the_one_whose_work_is_waited_for(
    weights: dict[str, torch.Tensor], memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[threading.Thread, bool]] = []

    def settle(tensors: Sequence[torch.Tensor]) -> None:
        settled.append((threading.current_thread(), bool(os.listdir(memory_path))))
        assert {*map(id, weights.values())} == {*map(id, tensors)}

    monkeypatch.setattr(pinned, "settle", settle)
    fastckpt.save(weights, memory_path / "s", durable=False)
    fastckpt.save_async(weights, memory_path / "s", copy=False, durable=False).result(60)
    assert settled == [(threading.current_thread(), False), (threading.current_thread(), True)]


def test_a_default_device_changes_nothing(tmp_path: Path, lanes: list[Any]) -> None:
    saved = {"crooked": noise(3 << 20).view(3, 1 << 20).T, "none": torch.zeros(0, 3), "half": torch.ones(5).half()}
    target = {"half": torch.zeros(5), "crooked": torch.zeros(3, 1 << 20, dtype=torch.uint8).T}
    with torch.device("meta"):
        fastckpt.save(saved, tmp_path / "s")
        assert_same(fastckpt.load(tmp_path / "s"), saved)
        assert_same(fastckpt.load(tmp_path / "s", device="cpu"), saved)
        fastckpt.load_into(target, tmp_path / "s", strict=False)
    assert target["half"].tolist() == [1] * 5
    assert torch.equal(target["crooked"], saved["crooked"])


# ---- CUDA's own few lines ----


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(pinned, "cuda", fake)
    monkeypatch.setattr(CudaLane, "pool", Pool(pinned._lock_pages))
    yield fake
    pinned.release()
    gc.collect()
    assert not fake.locked


def test_copies_wait_for_the_program_and_the_program_for_copies(cuda: FakeCuda, path: Path) -> None:
    pinned.LANES["cpu"] = CudaLane
    try:
        fastckpt.load(path, device="cpu", keys=["huge"], threads=1)
    finally:
        del pinned.LANES["cpu"]
    assert cuda.said == [
        "device cuda:0",
        "side waits for default",
        *["event recorded"] * 4,
        "host waits for side",
        "default waits for side",
    ]
    assert {*cuda.locked.values()} == {ROOM}
    assert len(cuda.locked) == 4
    pinned.release()
    gc.collect()
    assert not cuda.locked


def test_who_uses_a_room_again_waits_for_its_event(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setitem(pinned.LANES, "cpu", CudaLane)
    monkeypatch.setattr(fastckpt.ring, "ROOMS", 2)
    fastckpt.load(path, device="cpu", keys=["huge"], threads=1)
    said = [line for line in cuda.said if "event" in line]
    assert said == ["event recorded"] * 2 + ["host waits for event", "event recorded"] * 2


def test_the_host_waits_before_threads_look(cuda: FakeCuda) -> None:
    class Tensor:
        is_cuda = True
        device = "cuda:3"

    pinned.settle([Tensor(), Tensor(), torch.ones(2)])  # type: ignore[list-item]
    assert cuda.said == ["host waits for default"]


def test_where_cuda_locks_nothing_copies_are_as_right(
    cuda: FakeCuda, path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.code = 2
    monkeypatch.setitem(pinned.LANES, "cpu", CudaLane)
    assert_same(fastckpt.load(path, device="cpu"), weights)
    assert "CUDA does not lock 4194304 bytes (error 2)" in caplog.text
    with pytest.raises(fastckpt.UnsupportedError, match=r"pin=True: CUDA refuses to lock \d+ bytes"):
        fastckpt.load(path, pin=True)


PINNED: list[dict[str, Any]] = [{}, {"verify": True}, {"mode": "read"}, {"mode": "direct"}, {"device": "cpu"}]


@pytest.mark.parametrize("options", PINNED, ids=str)
def test_pinned_tensors(options: Any, cuda: FakeCuda, path: Path, memory_path: Path, weights: Any) -> None:
    found = fastckpt.load(path, pin=True, **options)
    assert_same(found, weights)
    spans = [(at, at + length) for at, length in cuda.locked.items()]
    assert all(any(lo <= t.data_ptr() < hi for lo, hi in spans) for t in found.values() if t.numel())
    assert found["tied"] is found["again"]
    kept = found["huge"][5:]
    del found
    gc.collect()
    assert len(cuda.locked) == 1
    del kept
    gc.collect()
    assert not cuda.locked
    fastckpt.save({"w": weights, "array": np.arange(3)}, memory_path / "n", durable=False)
    nested = fastckpt.load(memory_path / "n", pin=True, **options)
    assert_same(nested["w"], weights)
    spans = [(at, at + length) for at, length in cuda.locked.items()]
    assert all(any(lo <= t.data_ptr() < hi for lo, hi in spans) for t in nested["w"].values() if t.numel())
    del nested
    gc.collect()
    assert not cuda.locked
    assert [*fastckpt.load(path, pin=True, keys=["odd"], **options)] == ["odd"]


def test_what_cannot_be_pinned(cuda: FakeCuda, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, words in (
        ({"as_": "numpy"}, "numpy arrays cannot be pinned"),
        ({"mode": "mmap"}, "a map of a file cannot be pinned"),
        ({"mmap": True}, "a map of a file cannot be pinned"),
        ({"device": "meta"}, "for tensors on the CPU, not on meta"),
        ({"device": "cuda"}, "for tensors on the CPU, not on cuda"),
    ):
        with pytest.raises(fastckpt.UnsupportedError, match=words):
            fastckpt.load(path, pin=True, **options)
    cuda.available = False
    with pytest.raises(fastckpt.UnsupportedError, match=r"pin=True needs a CUDA device .* leave it out"):
        fastckpt.load(path, pin=True)
    with pytest.raises(fastckpt.UnsupportedError, match=r"device 'cuda': torch sees no CUDA device here"):
        fastckpt.load(path, device="cuda")


def test_other_devices_have_no_lane() -> None:
    codec = codec_for("torch")
    assert [codec.lane(device) for device in (None, "cpu", torch.device("cpu"), "meta", "xpu", "mps")] == [None] * 6
    assert codec.far(torch.ones(3)) is None
    assert codec_for("numpy").lane("cuda") is None
