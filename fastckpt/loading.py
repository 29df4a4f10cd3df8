"""load(): a snapshot becomes the object that was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastckpt import tree
from fastckpt.choosing import MODES, Mode, log_remote, look_for, worth_warming
from fastckpt.codec import KINDS
from fastckpt.contents import TENSORS, Contents, Entry, Index, listed, reading
from fastckpt.errors import CorruptError, UnsupportedError
from fastckpt.fetching import fetch
from fastckpt.folders import Look
from fastckpt.garbage import collector_at_rest
from fastckpt.lanes import Lane
from fastckpt.layout import META
from fastckpt.making import FarMaker, Maker
from fastckpt.parallel import check_threads
from fastckpt.quick import load_plain
from fastckpt.warming import warm

__all__ = ["flat", "load", "nested"]

_HERE = ((None, None), ("cpu", None), (None, "cpu"))  # device and map_location, of tensors that stay where they are


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
        has no memory for it); over a network all is read, and so is what the process cannot map any more. For a folder
        that others can write to, take ``read`` or ``direct``: whoever cuts a mapped file kills the process that touches
        it (SIGBUS); what was read is safe, and what is cut while it is read is an error.
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
    check_threads(threads)
    by_default = mode == "auto" and weights_only and not (verify or pin or foreign) and (device, map_location) in _HERE
    whole = keys is None and max_bytes is None and mmap is None and prefetch is None
    if by_default and whole and (made := load_plain(path, as_, max_tensors)) is not None:
        return made
    _check_arguments(path, weights_only, foreign)
    make, way, wanted = Maker(as_, _device(map_location, device)), _mode(mode, mmap), listed(keys)
    how: dict[str, Any] = {"mode": way, "threads": threads, "verify": verify}
    lane, allocate = None if way == "mmap" else make.lane(), make.locked_memory(way) if pin else None

    def act(contents: Contents) -> Any:
        entries = contents.select(wanted, max_bytes)
        if lane is not None:
            return _sent(contents, entries, wanted, make, lane, how)
        buffers = fetch(contents, entries, allocate=allocate, **how)
        if prefetch or (prefetch is None and way == "auto" and not pin and worth_warming(contents.fd, contents.blobs)):
            warm(buffers)
        return _assemble(contents, entries, buffers, wanted, make)

    look = _look(way, path, later=bool(allocate or lane) or keys is not None or max_bytes is not None)
    with collector_at_rest():
        return reading(path, act, look=look, index=_index(way), keys=wanted, max_tensors=max_tensors, seals=verify)


def _sent(
    contents: Contents, entries: Sequence[Entry], keys: list[str] | None, make: Maker, lane: Lane, how: dict[str, Any]
) -> Any:
    """Give an object whose tensors lie on a device that has a lane."""
    far = FarMaker(make, lambda entry: fetch(contents, [entry], **how)[0])
    made = _assemble(contents, entries, [None] * len(entries), keys, far)
    far.fill(contents, lane, **how)
    return made


def _assemble(
    contents: Contents, entries: Sequence[Entry], buffers: Sequence[Any], keys: Iterable[str] | None, make: Maker
) -> Any:
    if keys is None and contents.marker.nested:
        found = {entry.key: (entry, buffer) for entry, buffer in zip(entries, buffers, strict=True)}
        make.prepare(entries, buffers)
        return nested(contents, lambda key, framework: make(*found[key], framework))
    tensors = make.all(entries, buffers)
    return tensors if keys is not None else flat(contents, tensors)


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
    if first is None:
        return items
    return tree.refill(first.meta.container, items, KINDS.unpack, where=f"{contents.path}/{first.folder}/{META}")


def _mode(mode: Mode, mmap: bool | None) -> Mode:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
    if mmap is None:
        return mode
    if mode != "auto":
        raise TypeError("mmap and mode mean the same; give one of them")
    return "mmap" if mmap else "read"


def _look(mode: Mode, path: str | os.PathLike[str], *, later: bool) -> Look:
    """Say which blobs to map at once: none where it is only known `later` which are wanted, or none ever is."""
    if mode == "auto":
        log_remote(path)
    return "none" if later else look_for(mode, path)


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
