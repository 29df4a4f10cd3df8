"""What a leaf is for a framework: recognise it, describe it, give its bytes, make it again; and numpy's codec.

torch's codec lies in ``fastckpt.torch.tensors`` and is imported by name, late: only when a program that uses torch
saves, or when a load is to give torch tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastckpt.dtypes import BY_NAME, DType
from fastckpt.errors import FormatError, UnsupportedError

__all__ = ["KINDS", "NUMPY", "PIECE", "Blob", "Codec", "Memory", "codec_for", "default_framework", "row_pieces"]

PIECE = 4 << 20  # bytes gathered at a time, a thread, from a tensor that does not lie in one run of host memory


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a tensor's elements live; two tensors with equal Memory, dtype and shape are one tensor.

    Attributes
    ----------
    device : str
        Device that the address belongs to.
    address : int
        Address of the first element.
    strides : tuple of int
        Bytes from one element to the next, a dimension; 0 where the dimension has one element.
    lazy : str
        What a framework would still do to the bytes when reading them (conjugate, negate, swap).
    """

    device: str
    address: int
    strides: tuple[int, ...]
    lazy: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    """What a plan needs to know of a leaf. ``memory`` is None for a tensor without elements or known address."""

    dtype: DType
    shape: tuple[int, ...]
    memory: Memory | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Codec(Protocol):
    """One framework's tensors."""

    name: str

    def is_leaf(self, obj: object) -> bool:
        """Tell whether this is a tensor of the framework, storable or not."""

    def describe(self, obj: Any, path: str) -> Blob:
        """Say dtype, shape and memory; raise UnsupportedError naming `path` for what cannot be stored."""

    def pieces(self, obj: Any) -> Iterator[Any]:
        """Give the elements in C order as contiguous buffers: the tensor's own memory where it is in order, else
        always the same room, so that a buffer is good until the next one is asked for."""

    def make(self, buffer: Any, dtype: DType, shape: tuple[int, ...], where: str) -> Any:
        """Make a tensor over a writable buffer, without a copy."""

    def sound(self, tensor: Any) -> None:
        """Turn every byte of a bool tensor that is neither 0 nor 1 into 1: frameworks take it for granted."""

    def dtype(self, dtype: DType, where: str) -> Any:
        """Give the framework's own dtype object; raise UnsupportedError where it has none."""

    def memory_of(self, target: Any) -> Any:
        """Give the target's memory as a buffer if bytes in C order may be read straight into it, else None."""

    def fill(self, target: Any, source: Any) -> None:
        """Copy into an existing tensor, converting the dtype if it differs."""

    def to_device(self, tensor: Any, device: Any) -> Any:
        """Move to a device."""

    def state_of(self, obj: object) -> Any:
        """Give the state dict of a module of the framework, anything else as it is."""

    def pack(self, obj: object) -> tuple[str, Any] | None:
        """Encode a small value of the framework (a dtype, a device, a scalar) as a tag and JSON."""

    def unpack(self, tag: str, data: Any) -> Any:
        """Undo `pack`."""


def row_pieces(shape: tuple[int, ...], itemsize: int, limit: int = PIECE) -> Iterator[tuple[Any, ...]]:
    """Give indices that cut an array, in C order, into blocks of at most `limit` bytes (one element at least)."""
    if not shape or math.prod(shape) * itemsize <= limit:
        yield ()
        return
    row = math.prod(shape[1:]) * itemsize
    if row > limit:
        for at in range(shape[0]):
            for rest in row_pieces(shape[1:], itemsize, limit):
                yield (at, *rest)
        return
    step = limit // row
    for at in range(0, shape[0], step):
        yield (slice(at, at + step),)


class NumpyCodec:
    """numpy's arrays; bfloat16 and float8 through ml_dtypes where it is installed."""

    name = "numpy"

    def is_leaf(self, obj: object) -> bool:
        return isinstance(obj, np.ndarray)

    def describe(self, obj: np.ndarray[Any, Any], path: str) -> Blob:
        if type(obj) not in (np.ndarray, np.memmap):
            raise UnsupportedError(f"{path}: {type(obj).__name__} cannot be stored; pass numpy.asarray(...) of it")
        dtype = BY_NAME.get(obj.dtype.name)
        if dtype is None or dtype.numpy is None or obj.dtype.hasobject or obj.dtype.names:
            remedy = "view it as an integer type" if obj.dtype.kind in "mM" else "convert it to a number type"
            raise UnsupportedError(f"{path}: dtype {obj.dtype} cannot be stored; {remedy}")
        if obj.size == 0:
            return Blob(dtype, obj.shape, None)
        strides = tuple(s if n > 1 else 0 for s, n in zip(obj.strides, obj.shape, strict=True))
        address = int(obj.__array_interface__["data"][0])
        return Blob(dtype, obj.shape, Memory("cpu", address, strides, "" if obj.dtype.isnative else "swap"))

    def pieces(self, obj: np.ndarray[Any, Any]) -> Iterator[Any]:
        native = obj.dtype.newbyteorder("<")
        if obj.flags.c_contiguous and obj.dtype == native:
            yield _bytes_of(obj)
            return
        room = np.empty(min(obj.size, PIECE // obj.itemsize), native)
        for index in row_pieces(obj.shape, obj.itemsize):
            part = obj[index]
            piece = room[: part.size].reshape(part.shape)
            np.copyto(piece, part)
            yield _bytes_of(piece)

    def make(self, buffer: Any, dtype: DType, shape: tuple[int, ...], where: str) -> np.ndarray[Any, Any]:
        own = self.dtype(dtype, where)
        if 0 in shape:
            return np.empty(shape, own)
        return np.ndarray(shape, own, buffer=buffer)

    def sound(self, tensor: Any) -> None:
        if isinstance(tensor, np.ndarray) and tensor.dtype == np.bool_:
            raw = tensor.view(np.uint8)
            if raw.max(initial=0) > 1:
                np.minimum(raw, 1, out=raw)

    def dtype(self, dtype: DType, where: str) -> np.dtype[Any]:
        if dtype.numpy is None:
            raise UnsupportedError(f"{where}: numpy has no {dtype.name}; load it with as_='torch'")
        try:
            return _numpy_dtype(dtype.numpy)
        except (TypeError, AttributeError, ImportError):
            hint = "pip install 'fastckpt[ml_dtypes]', or load it with as_='torch'"
            raise UnsupportedError(f"{where}: numpy has {dtype.name} only with ml_dtypes: {hint}") from None

    def memory_of(self, target: np.ndarray[Any, Any]) -> Any:
        if not (target.flags.c_contiguous and target.flags.writeable and target.dtype.isnative and target.size):
            return None
        return _bytes_of(target)

    def fill(self, target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
        np.copyto(target, source, casting="unsafe")

    def to_device(self, tensor: Any, device: Any) -> Any:
        if str(device).partition(":")[0] != "cpu":
            raise UnsupportedError(f"numpy arrays live on the cpu, not on {device}; load with as_='torch'")
        return tensor

    def state_of(self, obj: object) -> Any:
        return obj

    def pack(self, obj: object) -> tuple[str, Any] | None:
        if isinstance(obj, np.dtype) and obj.name in BY_NAME and obj.isnative:
            return "numpy.dtype", obj.name
        if isinstance(obj, np.generic) and (known := BY_NAME.get(obj.dtype.name)) and known.numpy:
            return "numpy.scalar", [obj.dtype.name, obj.tobytes().hex()]
        return None

    def unpack(self, tag: str, data: Any) -> Any:
        name, text = (data, None) if tag == "numpy.dtype" else data
        if name not in BY_NAME:
            raise ValueError(f"no dtype {name!r:.80}")
        dtype = self.dtype(BY_NAME[name], tag)
        if text is None:
            return dtype
        (scalar,) = np.frombuffer(bytes.fromhex(text), dtype)
        return scalar


def _bytes_of(array: np.ndarray[Any, Any]) -> Any:
    """One run of bytes; through uint8, since memoryview knows nothing of ml_dtypes' types."""
    return array.reshape(-1).view(np.uint8)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name.startswith(("bfloat", "float8")):
        name = getattr(importlib.import_module("ml_dtypes"), name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


NUMPY = NumpyCodec()


def codec_for(framework: str) -> Codec:
    """Give the codec of "numpy" or "torch".

    Raises
    ------
    UnsupportedError
        When the framework is not installed, or is none of the two.
    """
    if framework == "numpy":
        return NUMPY
    if framework != "torch":
        raise UnsupportedError(f"no framework {framework!r}; as_ is 'torch' or 'numpy'")
    try:
        codec: Codec = importlib.import_module("fastckpt.torch.tensors").TORCH
    except ImportError as missing:
        raise UnsupportedError(f"torch cannot be imported ({missing}): pip install 'fastckpt[torch]'") from missing
    return codec


def default_framework() -> str:
    """Tell what `load` gives when nobody asks: torch tensors where torch is installed, else numpy arrays."""
    return "torch" if sys.modules.get("torch") or importlib.util.find_spec("torch") else "numpy"


class Kinds:
    """All frameworks that the running program uses, for the walk through an object."""

    def codec_of(self, obj: object) -> Codec | None:
        """Give the codec that knows this leaf, None where it is no leaf."""
        return next((codec for codec in self._active() if codec.is_leaf(obj)), None)

    def is_leaf(self, obj: object) -> bool:
        return any(codec.is_leaf(obj) for codec in self._active())

    def framework(self, obj: object) -> str:
        codec = self.codec_of(obj)
        assert codec is not None, "framework() is asked of leaves only"
        return codec.name

    def state_of(self, obj: object) -> Any:
        for codec in self._active():
            obj = codec.state_of(obj)
        return obj

    def pack(self, obj: object) -> tuple[str, Any] | None:
        packed = (codec.pack(obj) for codec in self._active())
        return next((pair for pair in packed if pair is not None), None)

    def unpack(self, tag: str, data: Any) -> Any:
        framework = tag.partition(".")[0]
        if framework not in ("numpy", "torch"):
            raise FormatError(f"unknown kind {tag!r:.80}; was it written by a newer fastckpt?")
        try:
            return codec_for(framework).unpack(tag, data)
        except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
            raise FormatError(f"{tag} cannot be {data!r:.80}; was it written by a newer fastckpt?") from problem

    def _active(self) -> tuple[Codec, ...]:
        return (codec_for("torch"), NUMPY) if sys.modules.get("torch") else (NUMPY,)


KINDS = Kinds()
