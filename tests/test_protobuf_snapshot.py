"""A flat snapshot read as OneFlow reads one: the real protobuf, the size, `numpy.fromfile`, and nothing of ours."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastckpt

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

from google.protobuf import text_format
from test_meta_protobuf import ENUM, VariableMetaInfo

#: The numpy types that OneFlow's loader knows; those that every release loads first.
TYPES = {
    "kFloat": "f4",
    "kDouble": "f8",
    "kInt8": "i1",
    "kInt32": "i4",
    "kInt64": "i8",
    "kUInt8": "u1",
    "kFloat16": "f2",
    "kBool": "?",
    "kInt16": "i2",
    "kComplex64": "c8",
    "kComplex128": "c16",
}


def load_as_oneflow(folder: str) -> dict[str, np.ndarray[Any, Any]]:
    """The steps of ``oneflow.load`` for a directory, in its order."""
    numbers = {ENUM[name]: np.dtype(code) for name, code in TYPES.items()}
    assert os.path.isdir(folder)
    names = os.listdir(folder)
    assert "snapshot_done" in names
    names.remove("snapshot_done")
    found = {}
    for name in names:
        path = os.path.join(folder, name)
        assert os.path.isfile(os.path.join(path, "out")), "it would warn, and hang where several processes load"
        info = VariableMetaInfo()
        with open(os.path.join(path, "meta"), encoding="ascii") as file:
            text_format.Parse(file.read(), info)
        assert info.IsInitialized()
        shape, dtype = tuple(info.shape.dim), numbers[info.data_type]
        assert os.path.getsize(os.path.join(path, "out")) == np.prod(shape).item() * dtype.itemsize
        found[name] = np.fromfile(os.path.join(path, "out"), dtype).reshape(shape)
    return found


def test_a_state_dict(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(784, 128), nn.BatchNorm1d(128), nn.Linear(128, 10))
    fastckpt.save(net.state_dict(), tmp_path / "s")
    found = load_as_oneflow(str(tmp_path / "s"))
    assert found.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("code", TYPES.values())
def test_every_dtype_that_oneflow_has(code: str, tmp_path: Path) -> None:
    base = np.arange(24).astype(code)
    saved = {
        "3-d": base.reshape(2, 3, 4),
        "0-d": np.array(base[3]),
        "none": base[:0].reshape(0, 3),
        "turned": base.reshape(4, 6).copy().T,
    }
    fastckpt.save(saved, tmp_path / "s")
    for name, array in load_as_oneflow(str(tmp_path / "s")).items():
        np.testing.assert_array_equal(array, saved[name], strict=True)


def test_a_nested_object_is_seen_as_its_tensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    fastckpt.save({"model": {"w": weight, "tied": weight}, "epoch": 3, "mask": [torch.tensor([True])]}, tmp_path / "s")
    found = load_as_oneflow(str(tmp_path / "s"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "model.w": weight.tolist(),
        "model.tied": weight.tolist(),
        "mask.0": [True],
    }


def test_the_bytes_are_those_that_protobuf_writes(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(128, 784), "b": torch.zeros((), dtype=torch.float64)}
    fastckpt.save(tensors, tmp_path / "s")
    crcs = [zlib.crc32(bytes(128 * 784 * 4)), zlib.crc32(bytes(8))]
    w, b = ((tmp_path / "s" / name / "meta").read_bytes() for name in "wb")
    ours = [b'# fastckpt: {"place":%d,"count":2,"digest":"crc32:%08x"' % (at, crc) for at, crc in enumerate(crcs)]
    texts = (
        b"shape {\n  dim: 128\n  dim: 784\n}\ndata_type: kFloat\n" + ours[0],
        b"shape {\n}\ndata_type: kDouble\n" + ours[1],
    )
    assert (w, b) == tuple(b'%b,"self":"crc32:%08x"}\n' % (text, zlib.crc32(text)) for text in texts)
    for text in (w, b):
        info = VariableMetaInfo()
        text_format.Parse(text.decode("ascii"), info)
        assert text.startswith(text_format.MessageToString(info).encode("ascii") + b"# fastckpt: ")
