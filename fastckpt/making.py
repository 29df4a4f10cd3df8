"""Tensors over the bytes of a snapshot: at once where nothing about them is unusual, else one by one; each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastckpt import _core
from fastckpt.choosing import Mode
from fastckpt.codec import NUMPY, Codec, codec_for, default_framework
from fastckpt.contents import Contents, Entry
from fastckpt.errors import UnsupportedError
from fastckpt.fetching import Allocate
from fastckpt.lanes import Lane
from fastckpt.sending import send

__all__ = ["FarMaker", "Maker"]


class Maker:
    """Makes tensors over buffers; the same blob gives the same tensor, so that ties stay ties."""

    def __init__(self, as_: str | None, device: Any = None) -> None:
        self._as = as_
        self._default = codec_for(as_ or default_framework())
        self._device = device
        self._made: dict[tuple[str, str], Any] = {}

    def lane(self) -> Lane | None:
        """Give the lane to the device that was asked for."""
        return self._default.lane(self._device)

    def locked_memory(self, mode: Mode) -> Allocate:
        """Give what allocates page-locked memory; refuse where no tensor can have any."""
        if mode == "mmap":
            raise UnsupportedError("pin=True: a map of a file cannot be pinned; leave mode and mmap out")
        if self._device is not None and str(self._device).partition(":")[0] != "cpu":
            raise UnsupportedError(f"pin=True is for tensors on the CPU, not on {self._device}; leave one of them out")
        self._default.locked_memory([])
        return self._default.locked_memory

    def __call__(self, entry: Entry, buffer: Any, framework: str) -> Any:
        """Make one tensor; an array that was saved in a nested object stays one, unless all shall be something else."""
        codec = NUMPY if framework == "numpy" and not self._as else self._default
        made = self._made.get((entry.blob, codec.name))
        if made is None:
            made = self._make(codec, entry, buffer)
            self._made[entry.blob, codec.name] = made
        return made

    def prepare(self, entries: Sequence[Entry], buffers: Sequence[Any]) -> None:
        """Make what can be made in one call, before each is asked for."""
        for entry, made in zip(entries, self._at_once(entries, buffers), strict=True):
            if made is not None:
                self._made.setdefault((entry.blob, self._default.name), made)

    def all(self, entries: Sequence[Entry], buffers: Sequence[Any]) -> dict[str, Any]:
        """Make the tensors of a flat object, by key."""
        tensors: dict[str, Any] = {}
        tied: dict[str, Any] = {entry.blob: None for entry in entries if entry.blob is not entry.folder}
        for entry, buffer, made in zip(entries, buffers, self._at_once(entries, buffers), strict=True):
            tensor = tied.get(entry.blob) if tied else None
            if tensor is None:
                tensor = self._make(self._default, entry, buffer) if made is None else made
                if entry.blob in tied:
                    tied[entry.blob] = tensor
            tensors[entry.key] = tensor
        return tensors

    def _at_once(self, entries: Sequence[Entry], buffers: Sequence[Any]) -> list[Any]:
        """Make those about which nothing is unusual; None for each of the others."""
        take = self._default.take
        if take is None or (self._device is not None and str(self._device) != "cpu"):
            return [None] * len(entries)
        return _core.hand_over(buffers, [entry.meta for entry in entries], take)

    def _make(self, codec: Codec, entry: Entry, buffer: Any) -> Any:
        key, _, meta, _ = entry
        made = codec.make(buffer, meta.dtype, meta.shape, key)
        if meta.dtype.name == "bool":
            codec.sound(made)
        stays = self._device is None or codec is not self._default  # an array among tensors has no other place
        return made if stays else codec.to_device(made, self._device)


class FarMaker(Maker):
    """Makes tensors on a device, and fills them when all are made: the object they are in need not wait for them.

    Parameters
    ----------
    near : Maker
        What it is instead of.
    fetch : callable
        Gives the bytes of an array among the tensors, which has no other place than the host.
    """

    def __init__(self, near: Maker, fetch: Callable[[Entry], Any]) -> None:
        super().__init__(near._as, near._device)
        self._fetch = fetch
        self._empty: list[tuple[Entry, Any]] = []

    def _make(self, codec: Codec, entry: Entry, buffer: Any) -> Any:
        if codec is not self._default:
            return super()._make(codec, entry, self._fetch(entry) if buffer is None else buffer)
        made = codec.empty(entry.meta.dtype, entry.meta.shape, self._device, entry.key)
        self._empty.append((entry, made))
        return made

    def fill(self, contents: Contents, lane: Lane, **how: Any) -> None:
        """Send the bytes of all that was made."""
        fars = [(entry, self._default.far(made)) for entry, made in self._empty if entry.meta.nbytes]
        send(contents, [(entry, far.flat) for entry, far in fars if far is not None], lane, **how)
        for entry, made in self._empty:
            if entry.meta.dtype.name == "bool":
                self._default.sound(made)
