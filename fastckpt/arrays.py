"""numpy's codec: which arrays can be stored, their bytes, and arrays over memory of ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastckpt.blobs import GATHER, Blob, Memory, row_pieces
from fastckpt.dtypes import BY_NAME, DType
from fastckpt.errors import UnsupportedError
from fastckpt.slicing import Parts

__all__ = ["NUMPY", "NumpyCodec"]


class NumpyCodec:
    """numpy's arrays; bfloat16 and float8 through ml_dtypes where it is installed."""

    name = "numpy"
    take = None

    def is_leaf(self, obj: object) -> bool:
        return isinstance(obj, np.ndarray)

    def describe(self, obj: np.ndarray[Any, Any]) -> Blob:
        if type(obj) not in (np.ndarray, np.memmap):
            raise UnsupportedError(f"{type(obj).__name__} cannot be stored; pass numpy.asarray(...) of it")
        dtype = BY_NAME.get(obj.dtype.name)
        if dtype is None or dtype.numpy is None or obj.dtype.hasobject or obj.dtype.names:
            remedy = "view it as an integer type" if obj.dtype.kind in "mM" else "convert it to a number type"
            raise UnsupportedError(f"dtype {obj.dtype} cannot be stored; {remedy}")
        if obj.size == 0:
            return Blob(dtype, obj.shape, None)
        strides = None
        if not obj.flags.c_contiguous:
            strides = tuple(s if n > 1 else 0 for s, n in zip(obj.strides, obj.shape, strict=True))
        address = obj.ctypes.data  # __array_interface__ takes longer, and dies of a lack of memory
        return Blob(dtype, obj.shape, Memory("cpu", address, strides, "" if obj.dtype.isnative else "swap"))

    def pieces(self, obj: np.ndarray[Any, Any], room: Any = None) -> Iterator[Any]:
        whole = self.whole(obj)
        if whole is not None:
            yield whole
            return
        native = obj.dtype.newbyteorder("<")
        count = min(obj.size, GATHER // obj.itemsize)
        room = np.empty(count, native) if room is None else np.ndarray(count, native, buffer=room)
        for index in row_pieces(obj.shape, obj.itemsize):
            part = obj[index]
            piece = room[: part.size].reshape(part.shape)
            np.copyto(piece, part)
            yield _bytes_of(piece)

    def whole(self, obj: np.ndarray[Any, Any]) -> Any:
        in_order = obj.flags.c_contiguous and obj.dtype == obj.dtype.newbyteorder("<")
        return _bytes_of(obj) if in_order else None

    def collect(self, pairs: Sequence[tuple[Any, Any]], memory: Any) -> None:  # noqa: ARG002
        for obj, room in pairs:
            np.copyto(room.view(obj.dtype.newbyteorder("<")).reshape(obj.shape), obj)

    def make(self, buffer: Any, dtype: DType, shape: tuple[int, ...], where: str) -> np.ndarray[Any, Any]:
        own = self.dtype(dtype, where)
        if 0 in shape:
            return np.empty(shape, own)
        return np.ndarray(shape, own, buffer=buffer)

    def part(self, tensor: np.ndarray[Any, Any], parts: Parts) -> Any:
        return tensor[tuple(parts)]

    def obstacle(self, target: np.ndarray[Any, Any]) -> str:
        return "" if target.flags.writeable else "it is read-only"

    def one(self, target: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros(1, target.dtype)

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

    def lane(self, device: Any) -> None:
        """Arrays live on the host."""

    def far(self, obj: np.ndarray[Any, Any]) -> None:
        """Arrays live on the host."""

    def empty(self, dtype: DType, shape: tuple[int, ...], device: Any, where: str) -> Any:
        """There is no lane to send it by."""

    def settle(self, objs: Sequence[Any]) -> None:
        """What is asked of the host is done."""

    def locked_memory(self, sizes: Sequence[int]) -> list[Any]:  # noqa: ARG002
        raise UnsupportedError("pin=True: numpy arrays cannot be pinned; load with as_='torch'")

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
