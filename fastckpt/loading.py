"""load(): a snapshot becomes the object that was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastckpt import tree
from fastckpt.choosing import MODES, Mode, look_for, worth_warming
from fastckpt.codec import KINDS, NUMPY, Codec, codec_for, default_framework
from fastckpt.contents import TENSORS, Contents, Entry, Index, listed, reading
from fastckpt.errors import CorruptError, UnsupportedError
from fastckpt.fetching import Allocate, fetch
from fastckpt.garbage import collector_at_rest
from fastckpt.lanes import Lane
from fastckpt.layout import META
from fastckpt.sending import send
from fastckpt.warming import warm

__all__ = ["Maker", "flat", "load", "nested"]


def load(
    path: str | os.PathLike[str],
    map_location: Any = None,
    *,
    as_: str | None = None,
    device: Any = None,
    keys: Iterable[str] | None = None,
    verify: bool = False,
    mode: Mode = "auto",
    mmap: bool | None = None,
    prefetch: bool | None = None,
    pin: bool = False,
    threads: int | None = None,
    max_bytes: int | None = None,
    max_tensors: int = TENSORS,
    weights_only: bool = True,
    **foreign: Any,
) -> Any:
    """Load what `save` saved, or what any release of OneFlow did.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot; of OneFlow 1.0 or later also its single file.
    map_location : str, torch.device or dict, optional
        torch's name for `device`; a dict says where what was on the "cpu" shall go.
    as_ : {"torch", "numpy"}, optional
        What every tensor becomes. By default torch tensors where torch is installed and numpy arrays elsewhere; but an
        array that was saved inside a nested object stays an array.
    device : str or torch.device, optional
        Where the tensors go; the CPU by default. To a CUDA device they go through page-locked memory, while the next
        are read; ``mode="mmap"`` makes maps and copies those.
    keys : iterable of str, optional
        Load these tensors only; the result is then a flat dict of them, in saved order. No other is looked at, where
        the folders have the names of the keys.
    verify : bool
        Check the digests of all tensors loaded that have one, on the way, and first those of the metas.
    mode : {"auto", "mmap", "read", "direct"}
        How the bytes come. ``mmap``: every tensor is a private map of its file; nothing is read until it is touched,
        it can be changed in place, and the file never changes. ``read``: all is read into memory now. ``direct``: the
        same, past the page cache. ``auto``: as ``mmap`` where the system brings in huge pages (ext4 since Linux 6.16,
        xfs since 5.18), tensors of less than 2 MiB being read ahead; elsewhere what lies in the page cache is mapped,
        and the rest read past it at the speed of the device (or mapped, if a process loads it for the second time, or
        has no memory for it); over a network all is read. For a folder that others can write to, take ``read`` or
        ``direct``: whoever cuts a mapped file kills the process that touches it (SIGBUS); what was read is safe, and
        what is cut while it is read is an error.
    mmap : bool, optional
        torch's argument: True is ``mode="mmap"``, False ``mode="read"``.
    prefetch : bool, optional
        Have what is mapped brought into memory in the background, in the order in which it was saved. By default so
        with ``auto``, where it is cold, 64 MiB or more, and no more than half of the memory that is available.
    pin : bool
        Have tensors on the CPU in page-locked memory, which a CUDA device copies from by itself. They are read, not
        mapped.
    threads : int, optional
        That read; by default as many as the device can serve.
    max_bytes : int, optional
        Refuse, before memory is taken for any, tensors of more bytes than this, ties counted once. No limit by default:
        files cost nothing to map, and are read only where there is memory.
    max_tensors : int
        Refuse a snapshot of more tensors than this before looking into them.
    weights_only : bool
        torch's argument. Nothing in a snapshot is ever executed, so only True is allowed.

    Returns
    -------
    object
        The object that was saved, with the same types in the same order; tied tensors come back as one.

    Raises
    ------
    NotCommittedError, CorruptError, FormatError
        The folder is no complete, sound snapshot; the message names the file.
    LimitError
        There is more than `max_bytes` or `max_tensors` allow.
    UnsupportedError
        A tensor cannot be given in the form asked for.
    KeyError
        A key of `keys` is not in the snapshot.
    OSError
        What the system refused, with errno and path.
    """
    _check_arguments(path, weights_only, foreign)
    make, way = Maker(as_, _device(map_location, device)), _mode(mode, mmap)
    lane = None if way == "mmap" else make.lane()
    allocate = make.locked_memory(way) if pin else None
    wanted = listed(keys)
    checked_first = pin or any(limit is not None for limit in (keys, max_bytes, lane))
    look = "none" if checked_first else look_for(way, path)

    def act(contents: Contents) -> Any:
        entries = contents.select(wanted, max_bytes)
        if lane is not None:
            far = FarMaker(make, lambda entry: fetch(contents, [entry], way, threads=threads, verify=verify)[0])
            made = _assemble(contents, entries, [None] * len(entries), wanted, far)
            far.fill(contents, lane, mode=way, threads=threads, verify=verify)
            return made
        buffers = fetch(contents, entries, way, threads=threads, verify=verify, allocate=allocate)
        if prefetch or (prefetch is None and way == "auto" and not pin and worth_warming(contents, entries, buffers)):
            warm(buffers)
        return _assemble(contents, entries, buffers, wanted, make)

    with collector_at_rest():
        return reading(path, act, look=look, index=_index(way), keys=wanted, max_tensors=max_tensors, seals=verify)


def _assemble(
    contents: Contents, entries: Sequence[Entry], buffers: Sequence[Any], keys: Iterable[str] | None, make: Maker
) -> Any:
    if keys is None and contents.marker.nested:
        found = {entry.key: (entry, buffer) for entry, buffer in zip(entries, buffers, strict=True)}
        make.prepare(entries, buffers)
        return nested(contents, lambda key, framework: make(*found[key], framework))
    tensors = make.all(entries, buffers)
    return tensors if keys is not None else flat(contents, tensors)


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
        if self._device is not None and str(self._device) != "cpu":
            return [None] * len(entries)
        return self._default.make_all(buffers, [entry.meta for entry in entries])

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


def nested(contents: Contents, leaf: Callable[[str, str], Any]) -> Any:
    """Build a nested object, asking `leaf` for each tensor by its key and the framework it was saved from."""

    def present(key: str, framework: str) -> Any:
        if key not in contents.entries:
            raise CorruptError(f"{contents.path}: the object holds a tensor {key!r} that no folder has")
        return leaf(key, framework)

    return tree.unflatten(contents.marker.record, present, KINDS.unpack, where=contents.source)


def flat(contents: Contents, items: dict[str, Any]) -> Any:
    """Put the items of a flat object into the kind of dict that was saved."""
    first = next(iter(contents.entries.values()), None)
    if first is None or first.meta.container is None:
        return items
    where = f"{contents.path}/{first.folder}/{META}"
    container: Any = tree.unflatten(first.meta.container, lambda key, _: items.get(key), KINDS.unpack, where=where)
    if not isinstance(container, dict) or container:
        raise CorruptError(f"{where}: the container of a flat snapshot must be an empty dict, not {container!r:.80}")
    container.update(items)
    return container


def _mode(mode: Mode, mmap: bool | None) -> Mode:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
    if mmap is None:
        return mode
    if mode != "auto":
        raise TypeError("mmap and mode mean the same; give one of them")
    return "mmap" if mmap else "read"


def _index(mode: Mode) -> Index:
    return "read" if mode in ("read", "direct") else "map"


def _device(map_location: Any, device: Any) -> Any:
    if device is not None and map_location is not None:
        raise TypeError("device and map_location mean the same; give one of them")
    if callable(map_location):
        raise UnsupportedError("map_location cannot be a function here: every tensor comes from the CPU; pass device=")
    if isinstance(map_location, Mapping):
        return map_location.get("cpu")
    return map_location if device is None else device


def _check_arguments(path: object, weights_only: bool, foreign: dict[str, Any]) -> None:
    if hasattr(path, "read"):
        raise UnsupportedError("a snapshot is a folder, not a file-like object: pass the path of a folder")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or os.PathLike, not {type(path).__name__}")
    if not weights_only:
        raise UnsupportedError("weights_only=False: nothing in a snapshot is ever executed; leave it out")
    for name, value in foreign.items():
        if name in ("pickle_module", "encoding"):
            raise UnsupportedError(f"{name}: nothing is unpickled here; leave it out")
        if name not in ("global_src_rank", "support_pytorch_format"):
            raise TypeError(f"load() has no argument {name!r}")
        if name == "global_src_rank" and value not in (None, 0):
            raise UnsupportedError(f"global_src_rank={value}: every process reads for itself; leave it out")
