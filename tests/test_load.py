"""What load, open, load_into and verify give, what they leave alone, and what they notice."""

from __future__ import annotations

import gc
import math
import mmap
import os
import pkgutil
import shutil
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import evict, resident
from torch import nn

import fastckpt
import fastckpt.contents
from fastckpt.slicing import boxed, forward, spell_out, touched


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {
        "big": torch.arange(90_000.0).reshape(300, 300),
        "small": torch.arange(6).reshape(2, 3),
        "half": torch.arange(40_000).to(torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def path(weights: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    fastckpt.save(weights, tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def nested(weights: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    fastckpt.save({"model": weights, "epoch": 3, "list": [torch.ones(2), {"deep": torch.zeros(3)}]}, tmp_path / "n")
    return tmp_path / "n"


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def assert_equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
        assert found[key].dtype == tensor.dtype


# ---- load ----


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"mmap": False}, {"verify": True}, {"as_": "torch"}], ids=str)
def test_training_in_place_leaves_the_file_as_it_is(options: Any, path: Path, weights: dict[str, torch.Tensor]) -> None:
    before = content(path)
    found = fastckpt.load(path, **options)
    assert_equal(found, weights)
    for tensor in found.values():
        tensor.requires_grad_(tensor.is_floating_point())
        with torch.no_grad():
            tensor.add_(1)
    assert content(path) == before
    assert_equal(fastckpt.load(path), weights)


def test_loads_do_not_see_each_other(path: Path) -> None:
    one, other = fastckpt.load(path), fastckpt.load(path)
    one["big"].zero_()
    one["small"].zero_()
    assert other["big"][1, 1] == 301
    assert other["small"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_loaded_tensor_outlives_the_snapshot(path: Path, weights: dict[str, torch.Tensor]) -> None:
    kept, opened = fastckpt.load(path), fastckpt.open(path)
    fastckpt.save({key: torch.zeros_like(tensor) for key, tensor in weights.items()}, path)
    assert_equal(kept, weights)
    assert_equal({key: opened[key][...] for key in opened}, weights)
    shutil.rmtree(path)
    assert_equal(kept, weights)
    assert_equal({key: opened[key][...] for key in opened}, weights)


def test_a_part_keeps_the_whole_alive(path: Path) -> None:
    row = fastckpt.load(path)["big"][7]
    handle = fastckpt.open(path)["big"]
    part = handle[8]
    del handle
    for _ in range(100):
        fastckpt.load(path)
    assert row[0] == 2100
    assert part[0] == 2400


def test_keys_are_found_without_a_look_at_other_tensors(tmp_path: Path) -> None:
    tied = np.arange(3.0)
    state = {"a": np.arange(4), "b": tied, "c": tied, "d/e": np.ones(2), "f": np.ones(5)}
    fastckpt.save(state, tmp_path / "s")
    (tmp_path / "s/f/meta").write_bytes(b"no meta at all")
    assert fastckpt.load(tmp_path / "s", keys=["a"])["a"].tolist() == [0, 1, 2, 3]
    for key in ("c", "d/e"):  # what these are is not said by their folders' names alone
        with pytest.raises(fastckpt.FormatError, match="/f/meta"):
            fastckpt.load(tmp_path / "s", keys=[key])
    (tmp_path / "s/f/meta").unlink()
    (tmp_path / "s/f/out").unlink()
    (tmp_path / "s/f").rmdir()
    with pytest.raises(fastckpt.CorruptError, match="1 of 5 tensor folders are missing"):
        fastckpt.load(tmp_path / "s", keys=["a"])


def test_keys(path: Path, nested: Path, weights: dict[str, torch.Tensor]) -> None:
    for keys in (
        ["scalar", "big"],
        ("big", "scalar"),
        {"big", "scalar"},
        iter(["big", "scalar"]),
        dict.fromkeys(["scalar", "big"]),
    ):
        assert list(fastckpt.load(path, keys=keys)) == ["big", "scalar"]
    assert list(fastckpt.load(path, keys="small")) == ["small"]
    assert fastckpt.load(path, keys=[]) == {}
    assert list(fastckpt.load(nested, keys=["list.1.deep", "model.big"])) == ["model.big", "list.1.deep"]
    assert list(fastckpt.load(path, keys=["half"], mmap=False, verify=True, device="cpu")) == ["half"]
    with pytest.raises(KeyError, match=r"no tensor 'nope' \(nor 1 more\)"):
        fastckpt.load(path, keys=["big", "nope", "nope2"])


def test_open_some_tensors(path: Path, nested: Path, weights: dict[str, torch.Tensor]) -> None:
    with fastckpt.open(path, keys=["scalar", "big"]) as some:
        assert list(some) == ["big", "scalar"]
        assert list(some.tree) == ["big", "scalar"]
        assert some.nbytes == weights["big"].nbytes + weights["scalar"].nbytes
        assert torch.equal(some["big"][1:3], weights["big"][1:3])
        with pytest.raises(KeyError, match="called 'half'"):
            some["half"]
    part = fastckpt.open(nested, keys="model.big")
    assert (list(part), part.is_nested, part.record) == (["model.big"], False, None)
    for where in (path, nested):
        with pytest.raises(KeyError, match="no tensor 'nope'"):
            fastckpt.open(where, keys=["nope"])


def test_open_some_looks_at_no_other_folder(tmp_path: Path) -> None:
    fastckpt.save({"a": np.arange(4), "f": np.ones(5)}, tmp_path / "s")
    (tmp_path / "s/f/meta").write_bytes(b"no meta at all")
    assert fastckpt.open(tmp_path / "s", keys=["a"])["a"][1:3].tolist() == [1, 2]
    with pytest.raises(fastckpt.FormatError, match="/f/meta"):
        fastckpt.open(tmp_path / "s", keys=["f"])


@pytest.mark.parametrize("index", [False, True])
def test_open_some_maps_no_other(tmp_path: Path, index: bool) -> None:
    fastckpt.save({key: np.ones(3000) for key in "abc"}, tmp_path / "s", index=index)
    snapshot = fastckpt.open(tmp_path / "s", keys=["b"])
    maps = Path("/proc/self/maps").read_text()
    assert [maps.count(f"{tmp_path}/s/{key}/out") for key in "abc"] == [0, 1, 0]
    assert snapshot["b"][:].sum() == 3000


def test_rows_of_one_among_many_are_read_and_hardly_more(tmp_path: Path) -> None:
    """Of 4 rows of 64 KiB, in a cold snapshot of 600 tensors, whose metas alone would take 2.4 MB."""
    state = {f"t{at}": np.full(3, at) for at in range(600)} | {"x": np.arange(256 << 13).reshape(256, -1)}
    fastckpt.save(state, tmp_path / "s")
    for file in (tmp_path / "s").rglob("*"):
        if file.is_file() and file.stat().st_size:
            evict(file)
    part = fastckpt.open(tmp_path / "s", keys=["x"], as_="numpy")["x"][100:104]
    assert np.array_equal(part, state["x"][100:104])
    read = sum(resident(file) for file in (tmp_path / "s").rglob("*") if file.is_file() and file.stat().st_size)
    assert read <= part.nbytes + (1 << 20)


def test_only_what_is_asked_for_is_mapped(path: Path) -> None:
    def mapped() -> set[str]:
        return {
            part.parent.name
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(path) in line and (part := Path(line.split()[-1])).name == "out"
        }

    one = fastckpt.load(path, keys=["half"])
    assert mapped() == {"half"}
    copies = fastckpt.load(path, mmap=False)
    assert mapped() == {"half"}
    everything = fastckpt.load(path)
    assert mapped() == {"big", "half"}, "small ones are copied"
    del one, copies, everything
    assert mapped() == set()


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"},
        {"device": torch.device("cpu")},
        {"map_location": "cpu"},
        {"map_location": torch.device("cpu")},
        {"map_location": {"cuda:0": "cpu"}},
        {"map_location": {"cpu": "cpu"}},
        {"map_location": None},
        {"weights_only": True},
        {"global_src_rank": 0},
        {"support_pytorch_format": False},
    ],
    ids=str,
)
def test_arguments_of_torch_and_oneflow(options: Any, path: Path, weights: dict[str, torch.Tensor]) -> None:
    assert_equal(fastckpt.load(path, **options), weights)


def test_map_location_moves(path: Path, nested: Path) -> None:
    for options in ({"device": "meta"}, {"map_location": "meta"}, {"map_location": {"cpu": "meta"}}):
        assert all(tensor.is_meta for tensor in fastckpt.load(path, **options).values())
    found = fastckpt.load(nested, torch.device("meta"))
    assert found["model"]["big"].is_meta
    assert found["epoch"] == 3


def test_numpy_on_the_cpu_only(path: Path) -> None:
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        assert type(fastckpt.load(path, as_="numpy", device=device)["big"]) is np.ndarray
    with pytest.raises(fastckpt.UnsupportedError, match="numpy arrays live on the cpu, not on cuda"):
        fastckpt.load(path, as_="numpy", device="cuda")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"weights_only": False}, fastckpt.UnsupportedError, "nothing in a snapshot is ever executed"),
        ({"pickle_module": None}, fastckpt.UnsupportedError, "pickle_module"),
        ({"map_location": lambda storage, where: storage}, fastckpt.UnsupportedError, "cannot be a function"),
        ({"map_location": "cpu", "device": "cpu"}, TypeError, "give one of them"),
        ({"global_src_rank": 1}, fastckpt.UnsupportedError, "global_src_rank=1"),
        ({"as_": "jax"}, fastckpt.UnsupportedError, "no framework 'jax'"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_here(options: Any, kind: type[Exception], words: str, path: Path) -> None:
    with pytest.raises(kind, match=words):
        fastckpt.load(path, **options)


def test_paths(path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    (path.parent / "link").symlink_to("s")
    for way in ("s", "./s", "s/", Path("s"), "link", str(path), "../" + path.parent.name + "/s"):
        assert_equal(fastckpt.load(way), weights)
    with open(path / "snapshot_done", "rb") as file, pytest.raises(fastckpt.UnsupportedError, match="path of a folder"):
        fastckpt.load(file)
    for wrong in (b"s", 3, None):
        with pytest.raises(TypeError, match=r"path must be a str or os\.PathLike"):
            fastckpt.load(wrong)
    for call in (fastckpt.load, fastckpt.open, fastckpt.verify, lambda path: fastckpt.load_into({}, path)):
        with pytest.raises(FileNotFoundError) as missing:
            call("nowhere")
        assert missing.value.filename == "nowhere"


# ---- open ----


def test_handles_say_what_they_are(path: Path, weights: dict[str, torch.Tensor]) -> None:
    for as_ in ("torch", "numpy"):
        snapshot = fastckpt.open(path, as_=as_)
        for key, tensor in weights.items():
            handle = snapshot[key]
            assert (handle.name, handle.shape, handle.ndim) == (key, tuple(tensor.shape), tensor.ndim)
            digest = f"crc32:{zlib.crc32((path / key / 'out').read_bytes()):08x}"
            assert (handle.nbytes, handle.tied_to, handle.digest) == (tensor.nbytes, None, digest)
            assert handle.dtype_name == str(tensor.dtype).removeprefix("torch.")
            assert str(handle.dtype).removeprefix("torch.") == handle.dtype_name
            assert key in repr(handle)
        assert len(snapshot["big"]) == 300
        with pytest.raises(TypeError, match="0-d"):
            len(snapshot["scalar"])
        assert [int(row[0]) for row in snapshot["small"]] == [0, 3]


def test_a_snapshot_is_a_mapping(path: Path, nested: Path, weights: dict[str, torch.Tensor]) -> None:
    with fastckpt.open(path) as snapshot:
        assert isinstance(snapshot, Mapping)
        assert isinstance(snapshot, fastckpt.Snapshot)
        assert list(snapshot) == list(snapshot.keys()) == list(weights)
        assert len(snapshot) == 5
        assert "big" in snapshot
        assert "nope" not in snapshot
        assert 3 not in snapshot
        assert snapshot.get("nope", 7) == 7
        assert [handle.name for handle in snapshot.values()] == list(weights)
        assert [key for key, _ in snapshot.items()] == list(weights)
        assert snapshot.nbytes == sum(tensor.nbytes for tensor in weights.values())
        assert not snapshot.is_nested
        assert list(snapshot.tree) == list(weights)
        assert snapshot.record is None
        assert repr(snapshot) == f"Snapshot({str(path)!r}: 5 tensors, {snapshot.nbytes} bytes)"
        with pytest.raises(KeyError, match="nope"):
            snapshot["nope"]
    assert torch.equal(snapshot["big"][:], weights["big"])


def test_into_a_nested_object(nested: Path, weights: dict[str, torch.Tensor]) -> None:
    snapshot = fastckpt.open(nested)
    assert snapshot.is_nested
    assert list(snapshot) == [*(f"model.{key}" for key in weights), "list.0", "list.1.deep"]
    assert torch.equal(snapshot["model"]["big"][3:5], weights["big"][3:5])
    assert snapshot["model"]["big"] is snapshot["model.big"]
    assert snapshot["epoch"] == 3
    assert snapshot["list"][1]["deep"].shape == (3,)
    assert snapshot.tree["list"][0][:].tolist() == [1, 1]
    assert [name for name in ("epoch", "model", "model.big", "big") if name in snapshot] == [
        "epoch",
        "model",
        "model.big",
    ]


def test_numbers_as_keys_of_a_nested_object(tmp_path: Path) -> None:
    fastckpt.save({0: torch.ones(1), "0": {1: torch.zeros(2)}}, tmp_path / "s")
    snapshot = fastckpt.open(tmp_path / "s")
    assert snapshot[0].shape == (1,)
    assert snapshot["0"][1].shape == (2,)
    assert {snapshot[name].shape for name in snapshot} == {(1,), (2,)}


INDICES: list[Any] = [
    ...,
    (),
    0,
    -1,
    np.int64(2),
    torch.tensor(1),
    slice(None),
    slice(1, 3),
    slice(None, None, 2),
    slice(-2, None),
    slice(5, 1),
    slice(-100, 100),
    slice(None, None, -1),
    slice(3, 0, -2),
    (0, 0, 0),
    (1, -1),
    (slice(None), 1),
    (..., 1),
    (slice(1, 3), slice(None), slice(0, 4, 3)),
    (slice(None, None, -1), 0, slice(None, None, -2)),
    (0, slice(None, None, -1)),
    (None, 1),
    (slice(None), None, ..., None, slice(None, None, -1)),
    (..., slice(1, 1)),
    (slice(0, 0, -1), ...),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bool, torch.bfloat16, torch.complex128, torch.uint16, torch.float8_e5m2], ids=str
)
def test_slices_are_as_numpy_s(index: Any, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = np.arange(4 * 3 * 5).reshape(4, 3, 5)
    folder = tmp_path_factory.getbasetemp() / f"slices-{dtype}"
    if not folder.exists():
        fastckpt.save({"x": torch.from_numpy(base % 2 if dtype == torch.bool else base).to(dtype)}, folder)
    wanted = (
        base[tuple(int(p) if torch.is_tensor(p) else p for p in index)]
        if isinstance(index, tuple)
        else base[int(index) if torch.is_tensor(index) else index]
    )
    wanted = torch.from_numpy(np.array(wanted % 2 if dtype == torch.bool else wanted)).to(dtype)
    found = fastckpt.open(folder, as_="torch")["x"][index]
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert found.to(torch.complex128).tolist() == wanted.to(torch.complex128).tolist()
    array = fastckpt.open(folder, as_="numpy")["x"][index]
    assert array.shape == wanted.shape
    assert array.astype(np.complex128).tolist() == wanted.to(torch.complex128).tolist()


def draw_index(data: st.DataObject, shape: list[int]) -> tuple[Any, ...]:
    bounds = st.none() | st.integers(-9, 9)
    slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 3, -1, -2]))
    parts: list[Any] = [data.draw(st.integers(-dim, dim - 1) | slices) for dim in shape]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(parts))] * 2)))
    short: list[Any] = [*parts[:begin], ..., *parts[end:]] if data.draw(st.booleans()) else parts[:end]
    for place in data.draw(st.lists(st.integers(0, len(short)), max_size=2)):
        short.insert(place, None)
    return tuple(short)


@given(st.lists(st.integers(1, 6), max_size=4), st.sampled_from([0, 8, 40, 1000]), st.data())
def test_what_a_slice_is_said_to_touch_is_what_it_touches(shape: list[int], gap: int, data: st.DataObject) -> None:
    index = draw_index(data, shape)
    base = np.arange(math.prod(shape)).reshape(shape)
    parts = spell_out(index, shape, "x")
    assert np.array_equal(base[tuple(parts)], base[index])
    onward, turned = forward(parts, shape)
    assert np.array_equal(np.flip(base[tuple(onward)], turned), base[index])
    box = boxed(parts, shape, base.itemsize, gap)
    raw = b"".join(base.tobytes()[at : at + length] for at, length in box.runs)
    assert np.array_equal(np.frombuffer(raw, base.dtype).reshape(box.shape)[tuple(box.parts)], base[index])
    assert gap or len(raw) == base[index].nbytes
    assert len(box.runs) <= 1 or base[index].size < base.size
    picked = np.sort(base[index], axis=None)
    first, run, count = touched(parts, shape)
    assert count == picked.size
    if count:
        assert first == picked[0]
        assert run == count if count == 1 else run == np.argmax(np.diff(picked, append=-1) != 1) + 1


@pytest.mark.parametrize("index", ["x", 1.0, [0, 1], np.array([0, 1]), torch.tensor([1]), (0, [1]), {}], ids=str)
def test_other_indices_are_refused(index: Any, path: Path) -> None:
    with pytest.raises(TypeError, match=r"^big: index with integers, slices"):
        fastckpt.open(path)["big"][index]


@pytest.mark.parametrize(
    "index", [True, np.True_, np.array(True), torch.tensor(True), (0, torch.tensor(False))], ids=str
)
def test_a_bool_is_no_index_whosever_it_is(index: Any, path: Path) -> None:
    with pytest.raises(TypeError, match=r"^big: index with integers, slices"):
        fastckpt.open(path)["big"][index]


@pytest.mark.parametrize("index", [1, np.int8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)])
def test_whole_numbers_of_all_kinds_are_indices(index: Any, path: Path) -> None:
    assert fastckpt.open(path)["big"][index, index] == 301


@pytest.mark.parametrize("index", [300, -301, (0, 300), (0, 0, 0), (..., ...), (0, 0, None, 0)], ids=str)
def test_indices_beyond_the_end(index: Any, path: Path) -> None:
    for as_ in ("torch", "numpy"):
        with pytest.raises(IndexError, match=r"^big: "):
            fastckpt.open(path, as_=as_)["big"][index]


def test_slices_of_the_odd_shapes(path: Path) -> None:
    snapshot = fastckpt.open(path)
    assert snapshot["scalar"][()] == snapshot["scalar"][...] == 3.5
    assert snapshot["scalar"][None].shape == (1,)
    assert snapshot["empty"][:, 1].shape == (0,)
    with pytest.raises(IndexError):
        snapshot["empty"][0]
    with pytest.raises(IndexError):
        snapshot["scalar"][0]


@pytest.mark.parametrize("as_", ["torch", "numpy"])
def test_numpy_takes_a_handle_whole(as_: str, path: Path, weights: dict[str, torch.Tensor]) -> None:
    handle = fastckpt.open(path, as_=as_)["big"]
    assert np.array_equal(np.asarray(handle), weights["big"].numpy())
    assert np.asarray(handle, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(handle), np.asarray(handle))
    assert np.asarray(fastckpt.open(path)["scalar"]).shape == ()


def test_a_slice_may_be_changed_and_the_file_is_not(path: Path) -> None:
    before = content(path)
    handle = fastckpt.open(path)["big"]
    part = handle[1:3, 5:7]
    part.zero_()
    assert handle[1, 5] == 0
    assert content(path) == before
    assert fastckpt.open(path)["big"][1, 5] == 305


SIDE = 3072  # of a matrix of 36 MiB, in rows of 12 KiB: three pages


@pytest.mark.parametrize(
    ("index", "pages"),
    [
        (5, 3),
        (slice(100, 200), 300),
        (slice(200, 100, -1), 300),
        (slice(None, None, 100), 31 * 3),
        ((slice(None, None, 30), slice(7, 9)), 103),
        ((slice(0, 64), 7), 64),
        ((3, 7), 1),
        (..., 9 * 1024),
    ],
    ids=str,
)
def test_only_what_a_slice_needs_is_read(index: Any, pages: int, tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(SIDE, SIDE)}, tmp_path / "s")
    out = tmp_path / "s" / "x" / "out"
    evict(out)
    for as_ in ("numpy", "torch"):
        view = fastckpt.open(tmp_path / "s", as_=as_)["x"][index]
        assert float(view.sum()) == np.broadcast_to(1, (SIDE, SIDE))[index].size
        assert resident(out) <= (pages + 2) * mmap.PAGESIZE
        del view
        evict(out)


def test_nothing_is_read_before_it_is_touched(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(SIDE, SIDE), "y": torch.ones(8)}, tmp_path / "s")
    out = tmp_path / "s" / "x" / "out"
    evict(out)
    tensor, handle = fastckpt.load(tmp_path / "s", mode="mmap")["x"], fastckpt.open(tmp_path / "s")["x"]
    views = [tensor.T, tensor[5:900], handle[...], handle[:, ::2], handle[:].view(-1)]
    fastckpt.load(tmp_path / "s", keys=["y"])
    assert resident(out) == 0
    assert views[0][3, 4] == 1
    assert 0 < resident(out) <= 16 << 20, "read-ahead, not all"


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(1 << 20)}, tmp_path / "s")
    evict(tmp_path / "s" / "x" / "out")
    fastckpt.open(tmp_path / "s")
    fastckpt.load(tmp_path / "s")
    fastckpt.load(tmp_path / "s", keys=[])
    assert resident(tmp_path / "s" / "x" / "out") == 0


@pytest.fixture
def few_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a process could have two maps at once."""
    for module in ("folders", "fetching", "lazy", "quick"):
        monkeypatch.setattr(f"fastckpt.{module}.MAP_LIMIT", 2)


@pytest.mark.usefixtures("few_maps")
def test_more_tensors_than_a_process_can_map(path: Path, weights: dict[str, torch.Tensor]) -> None:
    assert_equal(fastckpt.load(path), weights)
    snapshot = fastckpt.open(path)
    assert_equal({key: snapshot[key][...] for key in snapshot}, weights)
    part = snapshot["big"][:]
    part.zero_()
    assert snapshot["big"][3, 3] == 0, "one map as long as somebody has it"
    targets = {key: torch.zeros_like(tensor, dtype=torch.float64) for key, tensor in weights.items()}
    assert fastckpt.load_into(targets, path) == ([], [])
    assert_equal(targets, {key: tensor.double() for key, tensor in weights.items()})
    descriptors = len(os.listdir("/proc/self/fd"))
    del snapshot
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1


@pytest.mark.usefixtures("few_maps")
@pytest.mark.parametrize("index", [False, True])
def test_no_load_maps_more_than_it_may(tmp_path: Path, index: bool) -> None:
    """Also not one that finds files cold for the second time, which are worth a map then."""
    state = {f"{at}": torch.full((3000 if at % 3 else 9000,), float(at)) for at in range(20)}
    fastckpt.save(state, tmp_path / "s", index=index)
    for _ in range(4):
        for at in state:
            evict(tmp_path / "s" / at / "out")
        loaded = fastckpt.load(tmp_path / "s")
        assert_equal(loaded, state)
        assert Path("/proc/self/maps").read_text().count(f"{tmp_path}/s/") <= 3, "two blobs, and the index"
        del loaded
        gc.collect()


def test_files_that_changed_since_they_were_looked_at(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(fastckpt.CorruptError, match=f"{path}: .*changed while being read"):
            fastckpt.fetching.map_files(fd, {"big": 5}, str(path))
        with pytest.raises(FileNotFoundError) as missing:
            fastckpt.fetching.map_files(fd, {"gone": 5}, str(path))
        assert missing.value.filename == str(path / "gone" / "out")
    finally:
        os.close(fd)


def test_nothing_stays_open(path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    kept = [fastckpt.load(path), fastckpt.load(path, mmap=False), fastckpt.open(path), fastckpt.verify(path)]
    (path / "big" / "meta").write_bytes(b"nonsense")
    for call in (fastckpt.load, fastckpt.open):
        with pytest.raises(fastckpt.FormatError):
            call(path)
    assert os.listdir("/proc/self/fd") == descriptors
    del kept


def test_links_in_a_folder_of_others_are_not_followed(tmp_path: Path) -> None:
    write_as_oneflow(tmp_path / "s")
    shutil.copytree(tmp_path / "s" / "b", tmp_path / "outside")
    (tmp_path / "s" / "a" / "link").symlink_to(tmp_path / "outside")
    assert list(fastckpt.load(tmp_path / "s")) == ["a", "b", "c"]


# ---- replaced while it is read ----


def write_as_oneflow(path: Path) -> None:
    """A snapshot without any line of ours, so that nothing says how many tensors there are."""
    for name in ("a", "b", "c"):
        (path / name).mkdir(parents=True)
        (path / name / "out").write_bytes(bytes(8))
        (path / name / "meta").write_text("shape {\n  dim: 2\n}\ndata_type: kFloat\n")
    (path / "snapshot_done").touch()


def replace_once(monkeypatch: pytest.MonkeyPatch, where: str, path: Path, new: Any) -> None:
    """Save over the snapshot just before a step of the reading, the first time that it comes to it."""
    step = pkgutil.resolve_name(where)

    def first(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(where, step)
        fastckpt.save(new, path)
        return step(*args, **options)

    monkeypatch.setattr(where, first)


STEPS = ("read_marker", "Folders._scan", "entries_of", "check_count")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("foreign", [False, True])
def test_a_load_gives_the_old_or_the_new(step: str, foreign: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"epoch": 1, "t": [torch.ones(5000), torch.zeros(3)]}
    for call in (
        lambda: fastckpt.load(path),
        lambda: fastckpt.open(path).tree,
        lambda: fastckpt.load(path, mmap=False),
        lambda: fastckpt.verify(path),
    ):
        if foreign:
            shutil.rmtree(path)
            write_as_oneflow(path)
        else:
            fastckpt.save({"a": torch.ones(4), "b": torch.zeros(9000)}, path)
        old = fastckpt.load(path).keys()
        replace_once(monkeypatch, f"fastckpt.contents.{step}", path, new)
        found = call()
        if isinstance(found, dict):
            assert found.keys() in (old, new.keys())
            assert len(found.get("t", new["t"])) == 2
        else:
            assert found, found.problems


def test_verify_and_load_into_begin_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"big": torch.ones(4)}
    replace_once(monkeypatch, "fastckpt.verifying.crcs", path, new)
    report = fastckpt.verify(path)
    assert (bool(report), report.tensors) == (True, 1)
    fastckpt.save({"big": torch.zeros(4)}, path)
    replace_once(monkeypatch, "fastckpt.filling._fill", path, new)
    target = torch.full((4,), 7.0)
    fastckpt.load_into({"big": target}, path)
    assert target.tolist() == [1, 1, 1, 1]


def replace_half_way(monkeypatch: pytest.MonkeyPatch, path: Path, new: Any) -> None:
    """Save over the snapshot, the first time, when the first tensor is filled and the others are not."""
    fill = fastckpt.filling._fill

    def half(pairs: Any, contents: Any, **options: Any) -> None:
        monkeypatch.setattr("fastckpt.filling._fill", fill)
        fill(pairs[:1], contents, **options)
        fastckpt.save(new, path)
        fill(pairs[1:], contents, **options)

    monkeypatch.setattr("fastckpt.filling._fill", half)


def test_a_snapshot_replaced_half_way_by_one_that_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"a": torch.ones(4), "b": torch.ones(5)}, path)
    for strict in (True, False):
        state = {"a": torch.zeros(4), "b": torch.zeros(5)}
        replace_half_way(monkeypatch, path, {"a": torch.full((4,), 2.0), "b": torch.full((5,), 2.0)})
        assert fastckpt.load_into(state, path, strict=strict) == ([], [])
        assert torch.cat([*state.values()]).unique().tolist() == [2]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            {"a": torch.ones(3), "b": torch.zeros(5)},
            "size mismatch for a: the snapshot has (3,), the target wants (4,).",
        ),
        ({"b": torch.zeros(5)}, 'Missing key(s) in snapshot: "a".'),
    ],
    ids=["other shapes", "fewer keys"],
)
def test_a_snapshot_replaced_half_way_by_one_that_does_not_fit(
    new: Any, words: str, strict: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither said that nothing was changed, nor that a mixture is what was wanted."""
    fastckpt.save({"a": torch.ones(4), "b": torch.ones(5)}, path)
    replace_half_way(monkeypatch, path, new)
    state = {"a": torch.zeros(4), "b": torch.zeros(5)}
    with pytest.raises(fastckpt.MismatchError) as refused:
        fastckpt.load_into(state, path, strict=strict)
    assert (state["a"].tolist(), state["b"].tolist()) == ([1] * 4, [0] * 5)
    head, *lines = str(refused.value).split("\n\t")
    assert head == (
        f"Error(s) in loading {path} into dict, which may have values of a snapshot that was replaced there; "
        "load one that fits all of it, or make it anew:"
    )
    assert lines == [words]


def test_keys_that_neither_snapshot_had_are_missing_and_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"a": torch.ones(4), "b": torch.ones(5)}, path)
    replace_half_way(monkeypatch, path, {"a": torch.ones(4), "b": torch.ones(5), "d": torch.ones(1)})
    state = {"a": torch.zeros(4), "b": torch.zeros(5), "c": torch.zeros(6)}
    assert fastckpt.load_into(state, path, strict=False) == (["c"], ["d"])
    assert not state["c"].any()


def test_a_snapshot_that_is_deleted_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write_as_oneflow(path)
    scan = fastckpt.folders.Folders._scan

    def deleting(*args: Any) -> Any:
        for name in ("snapshot_done", "a", "b"):
            (shutil.rmtree if (path / name).is_dir() else os.unlink)(path / name)
        return scan(*args)

    monkeypatch.setattr("fastckpt.folders.Folders._scan", deleting)
    with pytest.raises(fastckpt.NotCommittedError, match="snapshot_done vanished during the look at it"):
        fastckpt.load(path)


# ---- load_into ----


class Net(nn.Module):
    def __init__(self, hidden: int = 120) -> None:
        super().__init__()
        self.l1 = nn.Linear(100, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.l2 = nn.Linear(hidden, 10)


def test_into_a_module(tmp_path: Path) -> None:
    trained, fresh = Net(), Net()
    fastckpt.save(trained, tmp_path / "s")
    before = dict(fresh.named_parameters())
    keys = fastckpt.load_into(fresh, tmp_path / "s")
    assert keys == ([], [])
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    assert_equal(fresh.state_dict(), trained.state_dict())
    assert all(before[name] is parameter and parameter.requires_grad for name, parameter in fresh.named_parameters())


def test_into_a_nested_state(nested: Path, weights: dict[str, torch.Tensor]) -> None:
    state = {
        "model": {key: torch.zeros_like(tensor) for key, tensor in weights.items()},
        "epoch": 9,
        "list": [np.zeros(2, np.float32), {"deep": torch.ones(3)}],
    }
    array = state["list"][0]
    assert fastckpt.load_into(state, nested) == ([], [])
    assert_equal(state["model"], weights)
    assert state["epoch"] == 9
    assert state["list"][0] is array
    assert array.tolist() == [1, 1]
    assert state["list"][1]["deep"].tolist() == [0, 0, 0]


TARGETS: dict[str, Any] = {
    "plain": lambda: torch.zeros(300, 300),
    "transposed": lambda: torch.zeros(300, 300).T,
    "strided": lambda: torch.zeros(600, 900)[::2, ::3],
    "column": lambda: torch.zeros(300, 300, 2)[:, :, 1],
    "double": lambda: torch.zeros(300, 300, dtype=torch.float64),
    "half": lambda: torch.zeros(300, 300, dtype=torch.float16),
    "parameter": lambda: nn.Parameter(torch.zeros(300, 300)),
    "negative": lambda: torch._neg_view(torch.zeros(300, 300)),
    "expanded by one": lambda: torch.zeros(300, 300).expand(1, 300, 300)[0],
    "array": lambda: np.zeros((300, 300), np.float32),
    "fortran array": lambda: np.zeros((300, 300), np.float32, order="F"),
    "flipped array": lambda: np.zeros((300, 300), np.float32)[::-1],
    "big-endian array": lambda: np.zeros((300, 300), ">f4"),
    "int array": lambda: np.zeros((300, 300), np.int64),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_into_targets_of_any_layout_and_dtype(kind: str, path: Path, weights: dict[str, torch.Tensor]) -> None:
    target = TARGETS[kind]()
    dtype, kept = target.dtype, target
    assert fastckpt.load_into({"big": target}, path, strict=False).missing_keys == []
    assert kept.dtype == dtype
    with np.errstate(over="ignore"):
        wanted = weights["big"].numpy().astype(str(dtype).removeprefix("torch."))
    assert (np.asarray(target.detach().resolve_neg() if isinstance(target, torch.Tensor) else target) == wanted).all()


@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", ">f8", "i2", "c16", "?"])
def test_into_an_array_without_dimensions(dtype: str, tmp_path: Path) -> None:
    fastckpt.save({"big": np.ones(9, np.float32), "x": np.array(1, np.float32)}, tmp_path / "s")
    state = {"big": np.zeros(9, np.float32), "x": np.zeros((), dtype)}
    array = state["x"]
    fastckpt.load_into(state, tmp_path / "s")
    assert (array.dtype, array.shape, array == 1) == (np.dtype(dtype), (), True)
    tensor = torch.zeros((), dtype=torch.float64)
    fastckpt.load_into({"x": tensor}, tmp_path / "s", strict=False)
    assert tensor == 1


def test_a_dimension_of_one_has_no_stride_that_matters(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(1, 3), "y": torch.full((3, 1), 2.0)}, tmp_path / "s")
    state = {"x": torch.zeros(3).expand(1, 3), "y": torch.zeros(3).as_strided((3, 1), (1, 0))}
    fastckpt.load_into(state, tmp_path / "s")
    assert (state["x"].tolist(), state["y"].tolist()) == ([[1, 1, 1]], [[2], [2], [2]])


def test_only_the_part_that_is_a_target_changes(path: Path) -> None:
    around = torch.full((302, 302), -1.0)
    fastckpt.load_into({"big": around[1:-1, 1:-1]}, path, strict=False)
    assert around[1, 1] == 0
    assert around[300, 300] == 89_999
    assert (around[0] == -1).all()
    assert (around[:, -1] == -1).all()


@pytest.mark.parametrize(
    "source", [torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.uint16, torch.complex64], ids=str
)
@pytest.mark.parametrize("goal", [torch.float32, torch.float8_e4m3fn, torch.int64, torch.complex128], ids=str)
def test_dtypes_are_converted_as_torch_does(source: torch.dtype, goal: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(source)
    target, wanted = torch.zeros(2, 2, dtype=goal), torch.zeros(2, 2, dtype=goal)
    fastckpt.save({"x": values}, tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex to real
        wanted.copy_(values)
        fastckpt.load_into({"x": target}, tmp_path / "s")
    assert target.to(torch.complex64).tolist() == wanted.to(torch.complex64).tolist()


def test_ties_in_the_target_and_in_the_snapshot(tmp_path: Path) -> None:
    base = torch.arange(20_000.0)
    fastckpt.save({"a": base, "b": base}, tmp_path / "s")
    tied = torch.zeros(20_000)
    fastckpt.load_into({"a": tied, "b": tied}, tmp_path / "s")
    assert torch.equal(tied, base)
    apart = {"a": torch.zeros(20_000), "b": torch.zeros(20_000)}
    fastckpt.load_into(apart, tmp_path / "s")
    apart["a"].zero_()
    assert torch.equal(apart["b"], base)


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_tied_target_the_last_one_counts(turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with torch's copies, one after the other; and nobody fills what another thread is filling."""
    saved = {key: torch.full((300, 5000), float(at)) for at, key in enumerate("abcd")}
    fastckpt.save(saved, tmp_path / "s")
    tied = torch.zeros(5000, 300).T if turned else torch.zeros(300, 5000)
    read, paths = fastckpt._core.read_parts, []

    def spy(fd: int, parts: Any, **options: Any) -> None:
        paths.extend(part[0] for part in parts)
        read(fd, parts, **options)

    monkeypatch.setattr(fastckpt._core, "read_parts", spy)
    fastckpt.load_into({"a": tied, "b": torch.zeros(300, 5000), "c": tied, "d": tied}, tmp_path / "s")
    assert tied.unique().tolist() == [3.0]
    assert not {"a/out", "c/out"} & {*paths}


@pytest.mark.parametrize("turned", [False, True])
def test_of_targets_that_overlap_the_last_one_counts(turned: bool, tmp_path: Path) -> None:
    """They are filled one after the other: never a mixture of what two threads write."""
    base = torch.zeros(2100, 900)
    cut = [base[:2000], base[50:2050], base[100:]]
    rows = [part.T for part in cut] if turned else cut
    fastckpt.save({f"{at}": torch.full(part.shape, float(at)) for at, part in enumerate(rows)}, tmp_path / "s")
    for _ in range(10):
        base.zero_()
        fastckpt.load_into({f"{at}": part for at, part in enumerate(rows)}, tmp_path / "s")
        assert [part.unique().tolist() for part in (base[:50], base[50:100], base[100:])] == [[0], [1], [2]]


def test_of_more_views_than_are_compared_the_last_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not compared may overlap: it is filled one after the other, too."""
    runs: list[int] = []
    fill = fastckpt.filling._fill

    def noted(pairs: Any, *args: Any, **options: Any) -> None:
        runs.append(len(pairs))
        fill(pairs, *args, **options)

    monkeypatch.setattr("fastckpt.filling._fill", noted)
    base = torch.zeros(600, 100)
    targets = {f"c{n}": base[:, n] for n in range(100)} | {"x": base[:500, 99]}
    fastckpt.save(
        {key: torch.full(part.shape, float(n)) for n, (key, part) in enumerate(targets.items())}, tmp_path / "s"
    )
    fastckpt.load_into(targets, tmp_path / "s")
    assert runs == [1] * 101
    assert (base[:500, 99].unique().tolist(), base[500:, 99].unique().tolist()) == ([100], [99])
    runs.clear()
    fastckpt.load_into({f"c{n}": base[:, n] for n in range(80)}, tmp_path / "s", strict=False)
    assert runs == [80], "3,160 pairs are compared, and none overlaps"


@pytest.mark.parametrize("turned", [False, True])
def test_the_last_name_of_a_tensor_counts_where_others_overlap_it(turned: bool, tmp_path: Path) -> None:
    base = torch.zeros(300, 200).T if turned else torch.zeros(200, 300)
    targets = {"a": base, "b": base[:100], "c": base}
    fastckpt.save(
        {key: torch.full(part.shape, float(n)) for n, (key, part) in enumerate(targets.items())}, tmp_path / "s"
    )
    fastckpt.load_into(targets, tmp_path / "s")
    assert base.unique().tolist() == [2]


def test_autograd_notices(path: Path) -> None:
    weight = torch.zeros(300, 300, requires_grad=True)
    result = (weight.exp() * weight).sum()
    fastckpt.load_into({"big": weight}, path, strict=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_autograd_notices_whatever_the_layout(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(30, 20), "b": torch.ones(30, 20, dtype=torch.bool)}, tmp_path / "s")
    state = {"x": torch.zeros(20, 30).T, "b": torch.zeros(20, 30, dtype=torch.bool).T}
    for mode in (torch.no_grad, torch.enable_grad):
        before = {key: tensor._version for key, tensor in state.items()}
        with mode():
            fastckpt.load_into(state, tmp_path / "s")
        assert all(tensor._version > before[key] for key, tensor in state.items())


def read_only() -> np.ndarray[Any, Any]:
    array = np.zeros((2, 3))
    array.flags.writeable = False
    return array


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(2, 3, dtype=torch.int64)


WRONG: dict[str, tuple[Any, str]] = {
    "shape": (
        lambda: torch.zeros(3, 2),
        r"size mismatch for small: the snapshot has \(2, 3\), the target wants \(3, 2\)",
    ),
    "read-only": (read_only, "small cannot be filled: it is read-only"),
    "expanded": (
        lambda: torch.zeros(1, 3).expand(2, 3),
        "small cannot be filled: several of its elements lie in one place",
    ),
    "inference": (inference, "small cannot be filled: it was made in inference mode"),
    "dtype": (
        lambda: torch.zeros(2, 3, dtype=torch.float4_e2m1fn_x2),
        "dtype mismatch for small: int64 cannot become float4",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_nothing_changes_when_anything_is_wrong(kind: str, path: Path, weights: dict[str, torch.Tensor]) -> None:
    make, words = WRONG[kind]
    state = {key: torch.zeros_like(tensor) for key, tensor in weights.items()} | {"small": make()}
    for strict in (True, False):
        with pytest.raises(fastckpt.MismatchError, match=f"(?s)into dict, which is unchanged:\n.*{words}"):
            fastckpt.load_into(state, path, strict=strict)
    assert not any(state[key].any() for key in ("big", "half", "scalar"))


@pytest.mark.parametrize("make", [lambda: torch.zeros(2, 3, device="meta"), lambda: torch.zeros(2, 3).to_sparse()])
def test_targets_that_hold_nothing_are_refused(make: Any, path: Path) -> None:
    state = {"big": torch.zeros(300, 300), "small": make()}
    with pytest.raises(fastckpt.UnsupportedError, match=r'^obj\["small"\]: '):
        fastckpt.load_into(state, path, strict=False)
    assert not state["big"].any()


def test_in_inference_mode_its_tensors_can_be_filled(path: Path) -> None:
    with torch.inference_mode():
        target = torch.zeros(300, 300)
        fastckpt.load_into({"big": target}, path, strict=False)
        assert target[1, 1] == 301


def test_in_inference_mode_other_threads_can_fill_them_too(
    path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is a thread's own."""

    def never_here(work: Any, jobs: Any, _threads: int, **_options: Any) -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            return [*pool.map(work, jobs)]

    monkeypatch.setattr("fastckpt.filling.parallel.run", never_here)
    normal = torch.zeros(300, 300).T
    with torch.inference_mode():
        state = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
        state["half"] = torch.zeros(*weights["half"].shape, 2, dtype=torch.float64)[..., 0]
        fastckpt.load_into(state, path)
        assert all(torch.equal(state[key], tensor.to(state[key].dtype)) for key, tensor in weights.items())
        fastckpt.load_into({"big": normal}, path, strict=False)
    assert torch.equal(normal, weights["big"])


def test_keys_that_do_not_meet(path: Path, weights: dict[str, torch.Tensor]) -> None:
    state = {key: torch.zeros_like(tensor) for key, tensor in weights.items() if key != "half"} | {
        "extra": torch.ones(2)
    }
    with pytest.raises(RuntimeError) as refused:
        fastckpt.load_into(state, path)
    assert isinstance(refused.value, fastckpt.MismatchError)
    lines = str(refused.value).split("\n\t")
    assert lines[0] == f"Error(s) in loading {path} into dict, which is unchanged:"
    assert lines[1:] == ['Missing key(s) in snapshot: "extra".', 'Unexpected key(s) in snapshot: "half".']
    assert not state["big"].any()
    keys = fastckpt.load_into(state, path, strict=False)
    assert keys == (["extra"], ["half"])
    assert torch.equal(state["big"], weights["big"])
    assert state["extra"].tolist() == [1, 1]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    fastckpt.save(Net(), tmp_path / "s")
    with pytest.raises(fastckpt.MismatchError) as refused:
        fastckpt.load_into(Net(hidden=7), tmp_path / "s")
    assert "into Net, which is unchanged" in str(refused.value)
    assert str(refused.value).count("size mismatch for") == 7


# ---- damage ----


SEAL = "its text has changed since it was saved"  # said instead by who looks at seals, too
CALLS = (
    fastckpt.load,
    fastckpt.open,
    lambda path: fastckpt.load(path, mmap=False),
    lambda path: fastckpt.load_into({}, path, strict=False),
)


def refused(path: Path, words: str) -> None:
    """Every way in to all tensors refuses, saying the same; so does verify."""
    for call in CALLS:
        with pytest.raises(fastckpt.CorruptError, match=words):
            call(path)
    report = fastckpt.verify(path)
    assert not report
    assert any(words.replace("\\", "") in problem or SEAL in problem for problem in report.problems)


def test_a_folder_that_is_missing_is_noticed(path: Path, nested: Path) -> None:
    shutil.rmtree(path / "scalar")
    refused(path, r"1 of 5 tensor folders are missing (the first at place 3)".replace("(", r"\(").replace(")", r"\)"))
    shutil.rmtree(nested / "list.1.deep")
    refused(nested, "1 of 7 tensor folders are missing")


def test_all_folders_of_a_nested_object_missing(nested: Path) -> None:
    for folder in nested.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    refused(nested, "7 of 7 tensor folders are missing")


def test_a_folder_too_many_is_noticed(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "small", path / "small2")
    refused(path, "6 tensor folders, wants 5")
    shutil.rmtree(path / "small2")
    fastckpt.save({"other": torch.ones(1)}, tmp_path / "t")
    shutil.copytree(tmp_path / "t" / "other", path / "other")
    refused(path, "come from different saves")
    shutil.rmtree(path / "other")
    (path / "other").mkdir()
    (path / "other" / "meta").write_text("shape { dim: 1 } data_type: kFloat")
    (path / "other" / "out").write_bytes(bytes(4))
    refused(path, "6 tensor folders, wants 5")
    shutil.rmtree(path / "small")
    refused(path, "1 of 5 tensor folders are missing")


def test_a_renamed_folder_is_another_key_and_two_keys_are_noticed(tmp_path: Path) -> None:
    fastckpt.save({"a/b": torch.ones(1), "c": torch.zeros(1)}, tmp_path / "s")
    (tmp_path / "s" / "c").rename(tmp_path / "s" / "a")
    assert list(fastckpt.load(tmp_path / "s")) == ["a/b", "a"]
    meta = tmp_path / "s" / "a" / "meta"
    meta.write_bytes(meta.read_bytes().replace(b'"count":2', b'"count":2,"name":"a/b"'))
    refused(tmp_path / "s", "the key 'a/b' stands in 'a%2Fb' too")


def test_a_folder_that_stands_there_instead_of_another(path: Path) -> None:
    shutil.rmtree(path / "scalar")
    shutil.copytree(path / "small", path / "scalar")
    refused(path, "1 of 5 tensor folders are missing")


def test_an_enormous_count_costs_nothing(path: Path) -> None:
    for folder in path.iterdir():
        if folder.is_dir():
            meta = folder / "meta"
            meta.write_bytes(meta.read_bytes().replace(b'"count":5', b'"count":9223372036854775807'))
    refused(path, "9223372036854775802 of 9223372036854775807 tensor folders are missing")


def test_metas_that_were_swapped(path: Path) -> None:
    big, half = path / "big" / "meta", path / "half" / "meta"
    texts = big.read_bytes(), half.read_bytes()
    half.write_bytes(texts[0])
    big.write_bytes(texts[1])
    refused(path, "out: meta wants ")


def test_metas_swapped_between_equal_sizes_differ_from_the_index(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.zeros(2, 3), "b": torch.zeros(3, 2)}, tmp_path / "s", index=True)
    a, b = tmp_path / "s" / "a" / "meta", tmp_path / "s" / "b" / "meta"
    texts = a.read_bytes(), b.read_bytes()
    a.write_bytes(texts[1])
    b.write_bytes(texts[0])
    problems = fastckpt.verify(tmp_path / "s").problems
    assert len(problems) == 2
    assert all("snapshot_done: the index differs from" in problem for problem in problems)


@pytest.mark.parametrize("key", ["big", "small", "empty"])
@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_a_file_that_was_cut_or_has_grown(key: str, change: int, path: Path) -> None:
    out = path / key / "out"
    size = out.stat().st_size
    if size + change < 0:
        pytest.skip("nothing to cut")
    os.truncate(out, size + change)
    refused(path, f"{key}/out: meta wants {size} bytes, file has {size + change}")


@pytest.mark.parametrize("name", ["out", "meta"])
def test_a_file_that_is_missing(name: str, path: Path) -> None:
    (path / "big" / name).unlink()
    refused(path, "big/out: No such file" if name == "out" else "1 of 5 tensor folders are missing")


def test_a_file_that_may_not_be_read_is_the_system_s_refusal(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (path / "big" / "meta").chmod(0)
    with pytest.raises(PermissionError) as denied:
        fastckpt.load(path)
    assert denied.value.filename == str(path / "big" / "meta")


def test_ties_that_lead_nowhere(tmp_path: Path) -> None:
    base = torch.ones(3)
    fastckpt.save({"a": base, "b": base}, tmp_path / "s")
    meta = tmp_path / "s" / "b" / "meta"
    text = meta.read_bytes()
    for goal in (b"c", b"b"):
        meta.write_bytes(text.replace(b'"same_as":"a"', b'"same_as":"' + goal + b'"'))
        refused(
            tmp_path / "s", "b/meta: same_as '[bc]' is no tensor of its shape and dtype".replace("[bc]", goal.decode())
        )
    meta.write_bytes(text.replace(b"kFloat", b"kInt32"))
    refused(tmp_path / "s", "b/meta: same_as 'a' is no tensor")


@pytest.mark.parametrize("nested_too", [False, True])
def test_verify_holds_the_index_against_the_folders(nested_too: bool, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a": torch.arange(3), "b": torch.ones(5000), "c": torch.zeros(0)}
    fastckpt.save({"t": tensors} if nested_too else tensors, tmp_path / "s", index=True, digest=False)
    report = fastckpt.verify(tmp_path / "s")
    assert report
    assert (report.tensors, report.nbytes, report.digests, report.problems) == (3, 20_024, 0, ())
    prefix = "t." if nested_too else ""
    out, marker = tmp_path / "s" / f"{prefix}a" / "out", tmp_path / "s" / "snapshot_done"
    kept, text = out.read_bytes(), marker.read_bytes()
    out.write_bytes(kept[:-1] + b"\1")
    assert f"the copy of '{prefix}a'/out differs" in fastckpt.verify(tmp_path / "s").problems[0]
    out.write_bytes(kept)
    assert fastckpt.verify(tmp_path / "s")
    for old, new, words in (
        (b"dim: 5000", b"dim: 5001", "the index differs from"),
        (b",20000,null", b",20001,null", "the index differs from"),
        (b",20000,null", b",2e+04,null", "an entry that cannot be"),
        (b",20000,null", b",20000,  -1", "an entry that cannot be"),
        (b"null]", b"nul }", "cannot be read"),
        (f'"{prefix}c"'.encode(), f'"{prefix}d"'.encode(), f"the index names '{prefix}d'"),
        (f'[["{prefix}a"'.encode(), b"[[" + b"7".ljust(3 + len(prefix)), "an entry that cannot be"),
    ):
        table = text.index(b"\n") + 1
        assert old in text[table:]
        marker.write_bytes(text[:table] + text[table:].replace(old, new, 1))
        problems = fastckpt.verify(tmp_path / "s").problems
        assert any(words in problem for problem in problems), (old, problems)
    marker.write_bytes(text)
    assert fastckpt.verify(tmp_path / "s")


def test_digests(path: Path, weights: dict[str, torch.Tensor]) -> None:
    assert fastckpt.verify(path).digests == 5
    fastckpt.save(weights, path, digest=False)
    assert fastckpt.verify(path).digests == 0
    meta, out = path / "big" / "meta", path / "big" / "out"
    text, data = meta.read_bytes(), out.read_bytes()
    meta.write_bytes(text.replace(b'"count":5', b'"count":5,"digest":"crc32:%08x"' % zlib.crc32(data)))
    assert fastckpt.verify(path).digests == 1
    assert fastckpt.open(path)["big"].digest == f"crc32:{zlib.crc32(data):08x}"
    for options in ({"verify": True}, {"verify": True, "mmap": False}, {"verify": True, "keys": ["big"]}):
        assert fastckpt.load(path, **options)["big"][0, 1] == 1
    out.write_bytes(data[:5] + b"\xff" + data[6:])
    assert "big/out: its bytes have changed" in fastckpt.verify(path).problems[0]
    fastckpt.load(path)
    fastckpt.load(path, verify=True, keys=["small"])
    target = torch.zeros(300, 300)
    for call in (
        lambda: fastckpt.load(path, verify=True),
        lambda: fastckpt.load_into({"big": target}, path, strict=False, verify=True),
    ):
        with pytest.raises(fastckpt.CorruptError, match="big/out: its bytes have changed"):
            call()
    assert not target.any()
    meta.write_bytes(text.replace(b'"count":5', b'"count":5,"digest":"xxh128:00"'))
    assert "digest by 'xxh128'" in fastckpt.verify(path).problems[0]
    fastckpt.load(path)


@pytest.mark.parametrize("kind", ["Maps", "Reads"])
def test_two_threads_check_the_same_tensor(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    check = fastckpt.lazy.check_memory

    def together(*args: Any) -> None:
        both.wait(30)
        check(*args)
        both.wait(30)

    if kind == "Reads":
        monkeypatch.setattr("fastckpt.snapshot.look_for_open", lambda _: "none")
    handle = fastckpt.open(path, verify=True)["big"]
    monkeypatch.setattr("fastckpt.lazy.check_memory", together)
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda at: float(handle[at, 0]), (1, 2))]
    assert found == [300, 600]
    monkeypatch.delattr("fastckpt.lazy.check_memory")
    assert handle[3, 0] == 900, "it is not looked at again"


def test_progress(path: Path, weights: dict[str, torch.Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    assert fastckpt.verify(path, progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in weights.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_warnings_point_to_the_caller(path: Path) -> None:
    (path / "stray").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in (fastckpt.load, fastckpt.open, fastckpt.verify):
            call(path)
        fastckpt.load_into({}, path, strict=False)
    assert [warning.filename for warning in caught] == [__file__] * 4
    assert all("stray: a file that belongs to no snapshot" in str(warning.message) for warning in caught)


def test_an_ordered_dict_comes_back_as_one(path: Path, weights: dict[str, torch.Tensor]) -> None:
    fastckpt.save(OrderedDict(reversed(weights.items())), path)
    found = fastckpt.load(path)
    assert type(found) is OrderedDict
    assert_equal(found, OrderedDict(reversed(weights.items())))
    assert type(fastckpt.open(path).tree) is OrderedDict
