"""Saves as OneFlow does, by Python's own pickler, with classes of the names that OneFlow's have."""

from __future__ import annotations

import itertools
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastckpt.dtypes import BY_NAME
from fastckpt.meta import Meta, format_meta
from fastckpt.pickletext import Source

OLD, NEW = ("oneflow._oneflow_internal", "oneflow._oneflow_internal.nn"), ("oneflow", "oneflow.nn")
CONV = "oneflow.nn.modules.conv"


def source_of(data: bytes) -> Source:
    return Source(lambda at, length: data[at : at + length], len(data), "p")


class Written:
    """An object whose class says what is pickled of it."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state


def class_of(module: str, name: str) -> type[Any]:
    """Give a class that is pickled under this name."""
    made = type(name, (Written,), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        parent = ".".join(parts[:length])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    setattr(sys.modules[module], name, made)
    return made


@contextmanager
def oneflow(names: tuple[str, str] = NEW) -> Iterator[types.SimpleNamespace]:
    """Give classes of OneFlow's names; pickling looks for them among the modules that are loaded."""
    before = dict(sys.modules)
    internal, outer = OLD[0], names
    try:
        yield types.SimpleNamespace(
            Tensor=class_of(outer[0], "Tensor"),
            Parameter=class_of(outer[1], "Parameter"),
            dtype=class_of(internal, "dtype"),
            placement=class_of(internal, "placement"),
            Conv2d=class_of(CONV, "Conv2d"),
            Sequential=class_of("oneflow.nn.modules.container", "Sequential"),
            Model=class_of("my.project", "Model"),
        )
    finally:
        for module in sys.modules.keys() - before.keys():
            del sys.modules[module]


class Saver:
    """Makes tensors whose bytes lie in a folder each, as they are pickled; or in the pickle."""

    def __init__(self, flow: types.SimpleNamespace, folder: Path | None) -> None:
        self.flow = flow
        self.folder = folder
        self.numbers = itertools.count(3, 2)

    def __call__(self, values: Any, kind: str = "Tensor", dtype: str | None = None) -> Any:
        array = np.asarray(values)
        dtype = dtype or array.dtype.name
        if self.folder is None:
            number = self.flow.dtype(BY_NAME[dtype].number)
            return getattr(self.flow, kind)({"data": array, "dtype": number, "device": "cpu"})
        name = f"tensor_{next(self.numbers)}"
        write_tensor(self.folder / name, array, dtype)
        return getattr(self.flow, kind)({"path": name})


def write_tensor(folder: Path, array: np.ndarray[Any, Any], dtype: str | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "out").write_bytes(array.tobytes())
    (folder / "meta").write_bytes(format_meta(Meta(array.shape, BY_NAME[dtype or array.dtype.name])))


def dumped(obj: Any, protocol: int = 4, *, magic: bool = True) -> bytes:
    top = {"protocol_version": 1, "__oneflow__": None, "data": obj}
    if not magic:
        del top["__oneflow__"]
    return pickle.dumps(top, protocol)


def conv(flow: types.SimpleNamespace, weight: Any, **more: Any) -> Any:
    """A module, with all that one is pickled with."""
    state = {"training": True, "_parameters": OrderedDict(weight=weight), "_buffers": OrderedDict(), "groups": 1}
    state |= {"_non_persistent_buffers_set": set(), "_modules": OrderedDict()}
    return flow.Conv2d(state | more)


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def tensor(path: bytes) -> bytes:
    return b"coneflow\nTensor\n)\x81}" + text("path") + path + b"sb"


def top(body: bytes) -> bytes:
    """A pickle of OneFlow's around what one opcode after the other makes."""
    return (
        b"\x80\x02}(" + text("protocol_version") + b"K\x01" + text("__oneflow__") + b"N" + text("data") + body + b"u."
    )
