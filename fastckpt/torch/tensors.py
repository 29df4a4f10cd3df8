"""torch's codec: which tensors can be stored, their bytes, and tensors over memory of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.dlpack import from_dlpack

from fastckpt import _core
from fastckpt.blobs import GATHER, Blob, Memory, row_pieces
from fastckpt.dtypes import BY_NAME, DType
from fastckpt.errors import UnsupportedError
from fastckpt.lanes import Far, Lane
from fastckpt.slicing import Parts, forward
from fastckpt.torch import pinned

__all__ = ["TORCH", "TorchCodec"]

_TO_TORCH = {d.name: getattr(torch, d.torch) for d in BY_NAME.values() if d.torch and hasattr(torch, d.torch)}
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_FROM_TORCH = {dtype: BY_NAME[name] for name, dtype in _TO_TORCH.items()}


class TorchCodec:
    """Dense torch tensors, on any device."""

    name = "torch"
    take: Callable[[Any], torch.Tensor] = staticmethod(getattr(torch._C, "_from_dlpack", from_dlpack))  # it calls that

    def is_leaf(self, obj: object) -> bool:
        return isinstance(obj, torch.Tensor)

    def describe(self, obj: torch.Tensor) -> Blob:
        _refuse(obj)
        shape = tuple(obj.shape)
        dtype = _FROM_TORCH[obj.dtype]
        address = obj.data_ptr() if obj.numel() else 0
        if not address:  # some devices tell no address: such tensors are never taken for one another
            return Blob(dtype, shape, None)
        strides = None
        if not obj.is_contiguous():
            step = dtype.itemsize
            strides = tuple([s * step if n > 1 else 0 for s, n in zip(obj.stride(), shape, strict=True)])
        lazy = "conj" * obj.is_conj() + "neg" * obj.is_neg()
        return Blob(dtype, shape, Memory("cpu" if obj.is_cpu else str(obj.device), address, strides, lazy))

    def pieces(self, obj: torch.Tensor, room: Any = None) -> Iterator[Any]:
        tensor = _raw(obj)
        if _in_order(tensor):
            yield _bytes_of(tensor)
            return
        if room is None:
            room = torch.empty(min(tensor.numel(), GATHER // tensor.itemsize), dtype=tensor.dtype, device="cpu")
        else:
            room = torch.frombuffer(room, dtype=tensor.dtype)
        for index in row_pieces(tuple(tensor.shape), tensor.itemsize):
            part = tensor[index]
            piece = room[: part.numel()].view(part.shape)
            piece.copy_(part)
            yield _bytes_of(piece)

    def whole(self, obj: torch.Tensor) -> Any:
        return _bytes_of(obj) if _in_order(obj) else None

    def collect(self, pairs: Sequence[tuple[torch.Tensor, Any]], memory: Any) -> None:
        with pinned.copying({obj.device for obj, _ in pairs if obj.is_cuda}, memory):
            for obj, room in pairs:
                tensor = _raw(obj)
                target = torch.from_numpy(room).view(tensor.dtype).view(tensor.shape)
                lazy = tensor.is_conj() or tensor.is_neg()  # which the host does, at once: when all of it must be there
                target.copy_(tensor, non_blocking=tensor.is_cuda and not lazy)

    def make(self, buffer: Any, dtype: DType, shape: tuple[int, ...], where: str) -> torch.Tensor:
        if dtype.dlpack is not None and isinstance(buffer, _core.Mapping) and len(buffer):
            return self.take(buffer.dlpack(dtype.dlpack, dtype.itemsize * 8, shape))
        own = _TO_TORCH.get(dtype.name) or self.dtype(dtype, where)
        if 0 in shape:
            return torch.empty(shape, dtype=own, device="cpu")
        flat = torch.frombuffer(buffer, dtype=own)
        return flat if len(shape) == 1 else flat.view(shape)

    def part(self, tensor: torch.Tensor, parts: Parts) -> torch.Tensor:
        parts, turned = forward(parts, tensor.shape)
        if not turned:
            return tensor[tuple(parts)]
        raw = tensor.view(_SAME_SIZE.get(tensor.itemsize, tensor.dtype))
        return raw[tuple(parts)].flip(turned).view(tensor.dtype)

    def obstacle(self, target: torch.Tensor) -> str:
        if target.is_inference() and not torch.is_inference_mode_enabled():
            return "it was made in inference mode"
        if 0 not in target.stride() or not target.numel():
            return ""
        shared = any(stride == 0 and n > 1 for stride, n in zip(target.stride(), target.shape, strict=True))
        return "several of its elements lie in one place" if shared else ""

    def one(self, target: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, dtype=target.dtype, device="cpu")

    def sound(self, tensor: torch.Tensor) -> None:
        if tensor.dtype == torch.bool and tensor.numel():
            raw = tensor.detach().view(torch.uint8)
            if raw.max() > 1:
                raw.clamp_(max=1)

    def dtype(self, dtype: DType, where: str) -> torch.dtype:
        own: torch.dtype | None = _TO_TORCH.get(dtype.name)
        if own is None:
            raise UnsupportedError(f"{where}: torch {torch.__version__} has no {dtype.name}; load it with as_='numpy'")
        return own

    def memory_of(self, target: torch.Tensor) -> Any:
        if not (_in_order(target) and target.numel()) or target.is_inference():
            return None
        torch.autograd.graph.increment_version(target)  # autograd cannot see what is written behind its back
        return _bytes_of(target)

    def fill(self, target: torch.Tensor, source: torch.Tensor) -> None:
        # Only in inference mode can its tensors be changed, and only outside of it do all others tell autograd of that.
        with torch.inference_mode() if target.is_inference() else torch.no_grad():
            if target.dtype == source.dtype and target.itemsize == 1:
                target, source = target.detach().view(torch.uint8), source.view(torch.uint8)
            target.copy_(source)
        pinned.settle([target])  # the caller may be a thread whose stream nobody else waits for

    def lane(self, device: Any) -> Lane | None:
        return pinned.lane_for(device)

    def far(self, obj: torch.Tensor) -> Far | None:
        return pinned.far(obj)

    def empty(self, dtype: DType, shape: tuple[int, ...], device: Any, where: str) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype(dtype, where), device=device)

    def settle(self, objs: Sequence[torch.Tensor]) -> None:
        pinned.settle(objs)

    def locked_memory(self, sizes: Sequence[int]) -> list[Any]:
        return pinned.allocate(sizes)

    def to_device(self, tensor: torch.Tensor, device: Any) -> torch.Tensor:
        return tensor.to(device)

    def state_of(self, obj: object) -> Any:
        return obj.state_dict() if isinstance(obj, torch.nn.Module) else obj

    def pack(self, obj: object) -> tuple[str, Any] | None:
        if isinstance(obj, torch.Size):
            return "torch.Size", list(obj)
        if isinstance(obj, torch.dtype):
            return "torch.dtype", str(obj).removeprefix("torch.")
        if isinstance(obj, torch.device):
            return "torch.device", str(obj)
        return None

    def unpack(self, tag: str, data: Any) -> Any:
        if tag == "torch.Size" and isinstance(data, list) and all(type(n) is int for n in data):
            return torch.Size(data)
        if tag == "torch.dtype" and isinstance(vars(torch).get(data), torch.dtype):  # getattr might import something
            return vars(torch)[data]
        if tag == "torch.device" and isinstance(data, str):
            return torch.device(data)
        raise ValueError("no such value")


def _refuse(tensor: torch.Tensor) -> None:
    """Raise for every tensor that is not a plain run of elements."""
    kind, remedy = _obstacle(tensor)
    if kind:
        raise UnsupportedError(f"a {kind} cannot be stored; {remedy}")


def _obstacle(tensor: torch.Tensor) -> tuple[str, str]:
    plain = type(tensor) in _PLAIN  # nearly all are, and need not be asked at length
    if not plain and isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return "lazy parameter without a shape", "run the module once before saving it"
    if not plain and type(tensor).__name__ == "DTensor":
        return "DTensor", "store its full_tensor()"
    if tensor.is_nested:
        return "nested tensor", "store the list of its unbind()"
    if tensor.layout != torch.strided:
        return f"tensor of layout {tensor.layout}", "store its to_dense(), or its indices and values"
    if tensor.is_quantized:
        return f"quantised tensor ({tensor.dtype})", "store its int_repr(), scale and zero point"
    if not (plain or _is_plain(tensor)):
        return f"tensor subclass {type(tensor).__name__}", "store the plain tensor that it is or is made of"
    if tensor.is_meta:
        return "tensor on the meta device", "it has no data: move the model to a real device first"
    if tensor.dtype not in _FROM_TORCH:
        return f"tensor of dtype {tensor.dtype}", "convert it to another dtype"
    if not _is_backed(tensor):
        return "tensor without memory of its own for all its elements", "clone() it, or gather it first"
    return "", ""


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether the tensor is its elements and no more; of parameters that goes without asking."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    return type(tensor) is torch.Tensor or isinstance(tensor, torch.nn.Parameter)


def _is_backed(tensor: torch.Tensor) -> bool:
    """Tell whether there is memory behind every element: a storage can be freed or shrunk under its tensors, and the
    tensors of torch's function transforms have none."""
    if tensor._is_zerotensor():
        return False
    count = tensor.numel()
    if not count or not (tensor.is_cpu or tensor.is_cuda):
        return True
    try:
        if not tensor.is_contiguous():
            count = 1 + sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
        return (tensor.storage_offset() + count) * tensor.itemsize <= tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return False


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The elements under a name that can be copied, which several dtypes of one byte cannot."""
    tensor = tensor.detach()
    return tensor if tensor.itemsize > 1 or tensor.is_neg() else tensor.view(torch.uint8)


def _in_order(tensor: torch.Tensor) -> bool:
    """Tell whether the elements lie in host memory, one after the other, as they are."""
    return tensor.is_contiguous() and tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor that lies in order; to ask torch and numpy for views of it takes five times as long."""
    return memoryview(_core.Loan(tensor.data_ptr(), tensor.nbytes, tensor))


TORCH = TorchCodec()
