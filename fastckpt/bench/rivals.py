"""fastckpt and its rivals, each behind the same few verbs; one process holds one of them.

Whoever cannot save a nested object is handed its tensors by dotted names. `load` may be lazy; what it returns keeps
everything alive that it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

import fastckpt
from fastckpt.bench.side import NotAvailable, Side
from fastckpt.bench.states import flat
from fastckpt.choosing import forget_loads

__all__ = ["make"]


def _module(name: str) -> Any:
    return importlib.import_module(name)


class Fastckpt(Side):
    """This library."""

    nested = True
    index = verify = False
    digest = True

    def save(self, state: Any, path: Path, durable: bool) -> None:
        fastckpt.save(state, path, durable=durable, index=self.index, digest=self.digest)

    def load(self, path: Path, device: str | None = None) -> Any:
        return fastckpt.load(path, device=device, verify=self.verify)

    def first(self) -> None:
        forget_loads()

    def save_async(self, state: Any, path: Path) -> Callable[[], Any]:
        return fastckpt.save_async(state, path).result

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        return fastckpt.load(path, keys=[key])[key] if rows is None else fastckpt.open(path, keys=[key])[key][rows]

    def load_into(self, path: Path, state: Any) -> None:
        fastckpt.load_into(state, path)


class Indexed(Fastckpt):
    """This library, with copies of the metas and small tensors in one file."""

    index = True


class Verified(Fastckpt):
    """This library, holding every byte against its digest as it is read."""

    verify = True


class Bare(Fastckpt):
    """This library, taking no digests."""

    digest = False


class Safetensors(Side):
    """The usual way: save_file and load_file."""

    def save(self, state: Any, path: Path, durable: bool) -> None:
        _module("safetensors.torch").save_file(state, path)

    def load(self, path: Path, device: str | None = None) -> Any:
        return _module("safetensors.torch").load_file(path, **({"device": device} if device else {}))


class SafeOpen(Side):
    """The lazy way: safe_open and get_tensor."""

    def _open(self, path: Path) -> Any:
        return _module("safetensors").safe_open(path, framework="pt")

    def load(self, path: Path, device: str | None = None) -> Any:
        with self._open(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        with self._open(path) as file:
            return file.get_tensor(key) if rows is None else file.get_slice(key)[rows]

    def load_into(self, path: Path, state: Any) -> None:
        with self._open(path) as file:
            for name, tensor in flat(state).items():
                tensor.copy_(file.get_tensor(name))


class Torch(Side):
    """A zip of raw storages and a pickle."""

    nested = True
    mmap = False

    def save(self, state: Any, path: Path, durable: bool) -> None:
        torch.save(state, path)

    def load(self, path: Path, device: str | None = None) -> Any:
        return torch.load(path, mmap=self.mmap, weights_only=True, map_location=device)

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        tensor = self.load(path)[key]
        return tensor if rows is None else tensor[rows]


class TorchMapped(Torch):
    """The same file, mapped."""

    mmap = True


class Dcp(Side):
    """torch.distributed.checkpoint in a single process without a process group."""

    nested = True
    _stager: Any = None  # its own, a new one each time

    def save(self, state: Any, path: Path, durable: bool) -> None:
        dcp = _module("torch.distributed.checkpoint")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=durable), no_dist=True)

    def load(self, path: Path, device: str | None = None) -> Any:
        dcp = _module("torch.distributed.checkpoint")
        reader = dcp.FileSystemReader(path)
        known = reader.read_metadata().state_dict_metadata
        state = {
            key: torch.empty(meta.size, dtype=meta.properties.dtype)
            for key, meta in known.items()
            if hasattr(meta, "size")
        }
        dcp.load(state, storage_reader=reader, no_dist=True)
        return state

    def save_async(self, state: Any, path: Path) -> Callable[[], Any]:
        dcp = _module("torch.distributed.checkpoint")
        writer = dcp.FileSystemWriter(path, sync_files=True)
        saving = dcp.async_save(state, storage_writer=writer, no_dist=True, async_stager=self._stager)
        result: Callable[[], Any] = saving.result
        return result

    def load_into(self, path: Path, state: Any) -> None:
        dcp = _module("torch.distributed.checkpoint")
        dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=True)


class DcpKept(Dcp):
    """The same, with a stager that keeps its copy of the tensors from one save to the next."""

    def __init__(self) -> None:
        staging = _module("torch.distributed.checkpoint.staging")
        self._stager = staging.DefaultStager(staging.StagingOptions(False, False, False, False))

    def ready(self, state: Any) -> None:
        self._stager.stage(state)  # its copies go with the tensors


class TensorDict(Side):
    """A folder of memory-mapped files."""

    def save(self, state: Any, path: Path, durable: bool) -> None:
        _module("tensordict").TensorDict(state, batch_size=[]).memmap(path, copy_existing=True)

    def load(self, path: Path, device: str | None = None) -> Any:
        return dict(_module("tensordict").TensorDict.load_memmap(path).items())

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        tensor = self.load(path)[key]
        return tensor if rows is None else tensor[rows]


class _Kept(dict[str, Any]):
    """Tensors, and what they need as long as they live."""

    owner: Any = None

    def __del__(self) -> None:
        self.clear()
        if self.owner is not None:
            self.owner.close()


class FastSafetensors(Side):
    """Its own reader of safetensors' files; on a CPU without GPUDirect Storage."""

    def load(self, path: Path, device: str | None = None) -> Any:
        module = _module("fastsafetensors")
        loader = module.SafeTensorsFileLoader(module.SingleGroup(), device=device or "cpu", nogds=True)
        loader.add_filenames({0: [str(path)]})
        buffer = loader.copy_files_to_device()
        kept = _Kept({name: buffer.get_tensor(name) for name in loader.get_keys()})
        kept.owner = buffer
        return kept


class Prefetch(Side):
    """safetensors' own way to a GPU, since 0.9: threads read ahead, and tensors come in the order of arrival."""

    def load(self, path: Path, device: str | None = None) -> Any:
        module = _module("safetensors")
        if not hasattr(module.safe_open, "prefetch"):
            raise NotAvailable(
                f"safetensors {module.__version__} has no prefetch; pip install --pre 'safetensors>=0.9'"
            )
        with module.safe_open(path, framework="pt", device=device) as file, file.prefetch() as loader:
            return dict(loader)


class InstantTensor(Side):
    """A loader of safetensors' files to GPUs; since 0.2 its tensors have memory of their own."""

    def load(self, path: Path, device: str | None = None) -> Any:
        with _module("instanttensor").safe_open(str(path), framework="pt", device=0, copy=True) as file:
            return dict(file.tensors())


class Numpy(Side):
    """A folder with a .npy file for each tensor, read as maps; bfloat16, which numpy does not know, as int16."""

    def save(self, state: Any, path: Path, durable: bool) -> None:
        path.mkdir()
        for name, tensor in state.items():
            np.save(_npy(path, name), _array(tensor))

    def load(self, path: Path, device: str | None = None) -> Any:
        return {file.stem: np.load(file, mmap_mode="r") for file in path.iterdir()}

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        array = np.load(_npy(path, key), mmap_mode="r")
        return array if rows is None else array[rows]

    def load_into(self, path: Path, state: Any) -> None:
        for name, tensor in flat(state).items():
            np.copyto(_array(tensor), np.load(_npy(path, name), mmap_mode="r"))


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _npy(path: Path, name: str) -> Path:
    return path / f"{quote(name, safe='')}.npy"


_SIDES: dict[str, type[Side]] = {
    "fastckpt": Fastckpt,
    "fastckpt-index": Indexed,
    "fastckpt-verify": Verified,
    "fastckpt-bare": Bare,
    "safetensors": Safetensors,
    "safe_open": SafeOpen,
    "torch": Torch,
    "torch-mmap": TorchMapped,
    "dcp": Dcp,
    "dcp-kept": DcpKept,
    "tensordict": TensorDict,
    "fastsafetensors": FastSafetensors,
    "prefetch": Prefetch,
    "instanttensor": InstantTensor,
    "numpy": Numpy,
}


def make(name: str) -> Side:
    """Give the rival of this name."""
    return _SIDES[name]()
