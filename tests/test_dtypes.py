"""Every dtype, shape and layout comes back bit for bit; what cannot be stored is refused before a byte is written."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt.arrays import NUMPY
from fastckpt.blobs import row_pieces
from fastckpt.dtypes import BY_NAME
from fastckpt.torch.tensors import TORCH

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
QUANTISED = [dtype for dtype in DTYPES if str(dtype).startswith(("torch.qint", "torch.quint"))]
DENSE = [dtype for dtype in DTYPES if dtype not in QUANTISED]
COMPLEX = [dtype for dtype in DENSE if dtype.is_complex]
NUMPY_NAMES = sorted(dtype.name for dtype in BY_NAME.values() if dtype.numpy is not None)

RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_bytes(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).integers(0, 256, count, np.uint8)


def fresh(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits, so NaNs with payloads, denormals and negative zeros too; only a bool byte has to be 0 or 1."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = torch.from_numpy(random_bytes(count) % 2 if dtype == torch.bool else random_bytes(count))
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in C order, by other means than those under test."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return bytes(tensor.view(RAW[tensor.itemsize]).flatten().numpy().tobytes())


def layouts(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "0-d": fresh(dtype, 1)[0],
        "1-d": fresh(dtype, 7),
        "3-d": fresh(dtype, 4, 6, 8),
        "one of each": fresh(dtype, 1, 1, 1),
        "no elements": fresh(dtype, 0),
        "no rows": fresh(dtype, 0, 3),
        "no columns": fresh(dtype, 3, 0),
        "nothing between": fresh(dtype, 2, 0, 4),
        "transposed": fresh(dtype, 4, 6, 8).transpose(0, 2),
        "permuted": fresh(dtype, 4, 6, 8).permute(1, 2, 0),
        "channels last": fresh(dtype, 2, 3, 4, 5).permute(0, 3, 1, 2),
        "strided": fresh(dtype, 4, 6, 8)[1:, ::2, 1::3],
        "part": fresh(dtype, 4, 6, 8)[2],
        "column": fresh(dtype, 4, 6)[:, 3],
        "expanded": fresh(dtype, 1, 3, 1).expand(5, 3, 4),
        "expanded 0-d": fresh(dtype, 1)[0].expand(3, 2),
    }


def assert_same(found: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        assert type(found[name]) is torch.Tensor
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name
        assert found[name].is_contiguous()
        assert not found[name].requires_grad


@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_every_layout_of_every_torch_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = layouts(dtype)
    fastckpt.save(saved, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), saved)
    assert_same(fastckpt.load(tmp_path / "s", mmap=False), saved)
    for name, tensor in saved.items():
        assert (tmp_path / "s" / name / "out").read_bytes() == bits(tensor)


def test_no_torch_dtype_was_forgotten() -> None:
    assert {str(dtype) for dtype in DENSE} <= {f"torch.{dtype.torch}" for dtype in BY_NAME.values()}
    assert len(DENSE) >= 41


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_conjugate_and_negative_views_are_written_as_their_values(dtype: torch.dtype, tmp_path: Path) -> None:
    def finite(*shape: int) -> torch.Tensor:
        count = 2 * int(np.prod(shape))
        return torch.arange(1.0, count + 1).view(*shape, 2).to(dtype.to_real()).view(dtype).view(shape)

    saved = {
        "conj": finite(3, 4).conj(),
        "conj, transposed": finite(3, 4).mH,
        "conj, 0-d": finite(1)[0].conj(),
        "conj of conj": finite(2).conj().conj(),
        "neg": finite(3, 4).conj().imag,
        "neg, 0-d": finite(1)[0].conj().imag,
        "real": finite(3, 4).real,
    }
    assert saved["conj"].is_conj()
    assert saved["neg"].is_neg()
    fastckpt.save(saved, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), saved)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.bfloat16, torch.float64], ids=str)
def test_negative_bit_of_real_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = {
        "neg": torch._neg_view(torch.arange(6).to(dtype)),
        "strided": torch._neg_view(torch.ones(4, 4, dtype=dtype)).T,
    }
    fastckpt.save(saved, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), saved)


def test_parameters_and_what_hangs_on_a_graph(tmp_path: Path) -> None:
    leaf = torch.ones(3, requires_grad=True)
    saved = {
        "leaf": leaf,
        "result": leaf * 2,
        "parameter": torch.nn.Parameter(torch.arange(4.0)),
        "buffer": torch.nn.Buffer(torch.arange(5.0)),
        "strided": torch.nn.Parameter(torch.arange(6.0).view(2, 3)).T,
    }
    with torch.inference_mode():
        saved["inference"] = torch.arange(3.0) * 2
    fastckpt.save(saved, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_device(tmp_path: Path) -> None:
    saved = {name: tensor.cuda() for name, tensor in layouts(torch.float32).items()}
    saved |= {"transposed on the device": torch.arange(12.0, device="cuda").view(3, 4).T}
    saved |= {"conj on the device": torch.ones(3, dtype=torch.complex64, device="cuda").mul(1j).conj()}
    fastckpt.save(saved, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), {name: tensor.cpu() for name, tensor in saved.items()})
    assert {tensor.device.type for tensor in fastckpt.load(tmp_path / "s", device="cuda").values()} == {"cuda"}


# ---- numpy ----


def fresh_array(name: str, *shape: int) -> np.ndarray[Any, Any]:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    raw = random_bytes(int(np.prod(shape)) * dtype.itemsize)
    return (raw % 2 if name == "bool" else raw).view(dtype).reshape(shape)


def array_layouts(name: str) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "0-d": np.array(fresh_array(name, 1)[0]),
        "1-d": fresh_array(name, 7),
        "3-d": fresh_array(name, 4, 6, 8),
        "no elements": fresh_array(name, 2, 0, 4),
        "fortran": np.asfortranarray(fresh_array(name, 4, 6)),
        "flipped": fresh_array(name, 7)[::-1],
        "flipped twice": fresh_array(name, 4, 6)[::-1, ::-2],
        "strided": fresh_array(name, 4, 6, 8)[1:, ::2, 1::3],
        "broadcast": np.broadcast_to(fresh_array(name, 3, 1), (2, 3, 4)),
    }


@pytest.mark.parametrize("name", NUMPY_NAMES)
def test_every_layout_of_every_numpy_dtype(name: str, tmp_path: Path) -> None:
    saved = array_layouts(name)
    fastckpt.save(saved, tmp_path / "s")
    found = fastckpt.load(tmp_path / "s", as_="numpy")
    assert list(found) == list(saved)
    for key, array in saved.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].tobytes() == array.tobytes()
        assert found[key].flags.writeable
        assert np.fromfile(tmp_path / "s" / key / "out", np.uint8).tobytes() == array.tobytes()


@pytest.mark.parametrize("code", ["i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16"])
def test_big_endian_arrays_are_converted(code: str, tmp_path: Path) -> None:
    big = np.arange(24).reshape(2, 3, 4).astype(f">{code}")
    saved = {"plain": big, "turned": big.copy().T, "0-d": np.array(big[1, 1, 1]), "flipped": big.copy()[:, ::-1]}
    fastckpt.save(saved, tmp_path / "s")
    for key, array in fastckpt.load(tmp_path / "s", as_="numpy").items():
        assert array.dtype == np.dtype(f"<{code}")
        np.testing.assert_array_equal(array, saved[key], strict=False)


def test_read_only_and_mapped_arrays(tmp_path: Path) -> None:
    constant = np.arange(5)
    constant.flags.writeable = False
    mapped = np.memmap(tmp_path / "file", np.float32, "w+", shape=(2, 3))
    mapped[:] = 7
    fastckpt.save({"constant": constant, "mapped": mapped}, tmp_path / "s")
    found = fastckpt.load(tmp_path / "s", as_="numpy")
    assert type(found["mapped"]) is np.ndarray
    assert found["constant"].tolist() == [0, 1, 2, 3, 4]
    assert (found["mapped"] == 7).all()


def test_numpy_without_ml_dtypes_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"half": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "s")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(fastckpt.UnsupportedError, match=r"^half: .*bfloat16.*pip install 'fastckpt\[ml_dtypes\]'"):
        fastckpt.load(tmp_path / "s", as_="numpy")
    fastckpt.save({"packed": torch.zeros(2, dtype=torch.float4_e2m1fn_x2)}, tmp_path / "s")
    with pytest.raises(fastckpt.UnsupportedError, match=r"^packed: numpy has no float4_e2m1fn_x2"):
        fastckpt.load(tmp_path / "s", as_="numpy")


def test_torch_does_not_have_every_numpy_dtype(tmp_path: Path) -> None:
    fastckpt.save({"x": fresh_array("float8_e3m4", 3)}, tmp_path / "s")
    with pytest.raises(fastckpt.UnsupportedError, match=r"^x: torch .* has no float8_e3m4; load it with as_='numpy'"):
        fastckpt.load(tmp_path / "s", as_="torch")


def test_bool_bytes_of_others_become_0_or_1(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.zeros(4, dtype=torch.bool), "y": torch.zeros(2, 2, dtype=torch.bool)}, tmp_path / "s")
    (tmp_path / "s" / "x" / "out").write_bytes(b"\0\1\2\xff")
    for mmap in (True, False):
        assert bits(fastckpt.load(tmp_path / "s", mmap=mmap)["x"]) == b"\0\1\1\1"
    array = fastckpt.load(tmp_path / "s", as_="numpy")["x"]
    assert array.tobytes() == b"\0\1\1\1"
    assert bits(fastckpt.open(tmp_path / "s")["x"][1:]) == b"\1\1\1"
    assert fastckpt.open(tmp_path / "s", as_="numpy")["x"][::-1].tobytes() == b"\1\1\1\0"
    for target in (torch.zeros(4, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.bool)[:, 1], torch.zeros(4)):
        fastckpt.load_into({"x": target}, tmp_path / "s", strict=False)
        assert target.tolist() == [0, 1, 1, 1]


# ---- refused, before a byte is written ----


class Wrapped(torch.Tensor):
    """A tensor that dispatches for itself."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


class Named(torch.Tensor):
    """A tensor that is more than its elements to its user."""


def fake_tensor() -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


def freed_tensor() -> torch.Tensor:
    tensor = torch.ones(300)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk_tensor() -> torch.Tensor:
    tensor = torch.ones(3, 3).T
    tensor.untyped_storage().resize_(8)
    return tensor


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.ones(3).to_sparse(), "sparse_coo.*to_dense"),
    "sparse csr": (lambda: torch.ones(3, 3).to_sparse_csr(), "sparse_csr.*to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "nested tensor.*unbind"),
    "jagged": (lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "nested tensor.*unbind"),
    "meta": (lambda: torch.ones(3, device="meta"), "meta device"),
    "quantised": (quantised, "quantised.*int_repr"),
    "fake": (fake_tensor, "FakeTensor"),
    "subclass": (lambda: Wrapped(torch.ones(3)), "tensor subclass Wrapped"),
    "plain subclass": (lambda: torch.ones(3).as_subclass(Named), "tensor subclass Named"),
    "lazy": (lambda: torch.nn.LazyLinear(3).weight, "run the module once"),
    "zero tensor": (lambda: torch._efficientzerotensor(3), "clone"),
    "freed": (freed_tensor, "without memory"),
    "shrunk": (shrunk_tensor, "without memory"),
    "object array": (lambda: np.array([object()]), "dtype object"),
    "structured": (lambda: np.zeros(2, "i4,f4"), "dtype"),
    "dates": (lambda: np.zeros(2, "M8[s]"), "datetime64.*view it as an integer"),
    "spans": (lambda: np.zeros(2, "m8[ns]"), "timedelta64.*view it as an integer"),
    "longdouble": (lambda: np.zeros(2, np.longdouble), "convert it to a number type"),
    "text": (lambda: np.array(["a"]), "dtype <U1"),
    "raw": (lambda: np.zeros(2, "V3"), "V3"),
    "int4 array": (lambda: np.zeros(2, ml_dtypes.int4), "int4"),
    "int4 scalar": (lambda: ml_dtypes.int4(3), "int4"),
    "masked": (lambda: np.ma.zeros(3), "MaskedArray"),
    "matrix": (lambda: np.zeros((2, 2)).view(np.matrix), "matrix"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_naming_the_key(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    state = {"good": torch.ones(3), "layers": [torch.ones(1), {"bad": make()}]}
    with pytest.raises(fastckpt.UnsupportedError, match=rf'^obj\["layers"\]\[1\]\["bad"\]: (?s:.*){words}'):
        fastckpt.save(state, tmp_path / "s")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_quantised_dtypes_are_no_dense_ones(dtype: torch.dtype) -> None:
    assert str(dtype).removeprefix("torch.") not in BY_NAME


def test_inside_a_function_transform(tmp_path: Path) -> None:
    def save(x: torch.Tensor) -> torch.Tensor:
        fastckpt.save({"x": x}, tmp_path / "s")
        return x

    with pytest.raises(fastckpt.UnsupportedError, match=r'^obj\["x"\]: '):
        torch.vmap(save)(torch.ones(3, 2))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_distributed_tensor(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.ones(2, 2), init_device_mesh("cpu", (1,)), [Replicate()])
        with pytest.raises(fastckpt.UnsupportedError, match=r'^obj\["w"\]: a DTensor .*full_tensor'):
            fastckpt.save({"w": tensor}, tmp_path / "s")
    finally:
        dist.destroy_process_group()
    assert os.listdir(tmp_path) == []


# ---- large ----


@given(st.lists(st.integers(1, 7), max_size=4), st.sampled_from([1, 2, 8]), st.integers(1, 400))
def test_pieces_are_all_of_it_in_order_and_small(shape: list[int], itemsize: int, limit: int) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    pieces = [array[index] for index in row_pieces(tuple(shape), itemsize, limit)]
    assert np.concatenate([piece.ravel() for piece in pieces]).tolist() == array.ravel().tolist()
    assert max(piece.size for piece in pieces) <= max(limit // itemsize, 1)


def test_what_is_in_order_is_not_copied() -> None:
    tensor, array = torch.ones(300), np.ones(300)
    (piece,) = TORCH.pieces(tensor)
    assert np.shares_memory(piece, tensor.numpy())
    (piece,) = NUMPY.pieces(array)
    assert np.shares_memory(piece, array)


def test_gathered_in_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("blobs", "arrays", "torch.tensors"):
        monkeypatch.setattr(f"fastckpt.{module}.GATHER", 64)
        if module != "blobs":
            monkeypatch.setattr(f"fastckpt.{module}.row_pieces", lambda shape, size: row_pieces(shape, size, 64))
    for dtype in (torch.float32, torch.uint8, torch.complex128):
        saved = layouts(dtype)
        fastckpt.save(saved, tmp_path / "s")
        assert_same(fastckpt.load(tmp_path / "s"), saved)
    arrays = array_layouts("float64") | {"big-endian": np.arange(100, dtype=">f8")}
    fastckpt.save(arrays, tmp_path / "s")
    for key, array in fastckpt.load(tmp_path / "s", as_="numpy").items():
        np.testing.assert_array_equal(array, arrays[key])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if shutil.disk_usage(tmp_path).free < 4 << 30:
        pytest.skip("less than 4 GiB of disk")
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_over_2_gib_in_one_run_of_memory(disk: Path) -> None:
    count, marks = (2 << 30) + 4099, [0, (2 << 30) - 1, 2 << 30, (2 << 30) + 4098]
    source = torch.from_numpy(np.zeros(count, np.uint8))  # takes no memory where nothing is written
    source[marks] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    fastckpt.save({"x": source}, disk / "s")
    found = fastckpt.load(disk / "s")["x"]
    assert found.shape == (count,)
    assert os.path.getsize(disk / "s" / "x" / "out") == count
    assert found[marks].tolist() == [1, 2, 3, 4]
    assert found[[1, (2 << 30) + 1]].tolist() == [0, 0]


@pytest.mark.slow
def test_over_4_gib_of_an_expanded_element(memory_path: Path) -> None:
    """In memory: 4 GiB take a disk half a minute in a bad hour."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if min(available, shutil.disk_usage(memory_path).free) < 6 << 30:
        pytest.skip("less than 6 GiB of memory")
    count = (4 << 30) + 4099
    fastckpt.save({"x": torch.full((1,), 7, dtype=torch.int8).expand(count)}, memory_path / "s")
    handle = fastckpt.open(memory_path / "s")["x"]
    assert handle.nbytes == os.path.getsize(memory_path / "s" / "x" / "out") == count
    assert handle[count - 3 :].tolist() == handle[(4 << 30) - 1 : (4 << 30) + 2].tolist() == [7, 7, 7]


PEAK = """
import json, sys
import torch
import fastckpt

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) << 10

def growth(make, path):
    tensor = make()
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    fastckpt.save(tensor, path)
    return memory("VmHWM") - before

path = sys.argv[1] + "/s"
fastckpt.save({"x": torch.ones(3, 3).T}, path)
print(json.dumps({
    "transposed": growth(lambda: {"x": torch.ones(5000, 5000).T}, path),
    "conjugate": growth(lambda: {"x": torch.ones(3500, 3500, dtype=torch.complex64).conj()}, path),
    "expanded": growth(lambda: {"x": torch.ones(1, dtype=torch.int8).expand(100 << 20)}, path),
    "eight": growth(lambda: {str(n): torch.ones(2000, 2000).T for n in range(8)}, path),
    "plain": growth(lambda: {"x": torch.ones(5000, 5000)}, path),
}))
"""


@pytest.mark.slow
@pytest.mark.no_asan
def test_memory_does_not_grow_with_what_is_saved(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True)
    shutil.rmtree(tmp_path / "s")
    assert {name: grown for name, grown in json.loads(done.stdout).items() if grown > 64 << 20} == {}
