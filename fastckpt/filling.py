"""load_into(): a snapshot's values go into tensors that exist."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from fastckpt import _core, parallel, tree
from fastckpt.blobs import PIECE, Blob, Memory, row_pieces
from fastckpt.checking import check
from fastckpt.choosing import log_remote
from fastckpt.codec import KINDS, Codec, described
from fastckpt.contents import Contents, Entry, Index, reading
from fastckpt.dtypes import DType
from fastckpt.errors import MismatchError, UnsupportedError
from fastckpt.fetching import read_at, read_into
from fastckpt.garbage import collector_at_rest
from fastckpt.meta import Meta
from fastckpt.overlaps import sharing
from fastckpt.sending import send
from fastckpt.tree import Leaf

__all__ = ["IncompatibleKeys", "load_into"]

_MIXED = "may have values of a snapshot that was replaced there; load one that fits all of it, or make it anew"


class IncompatibleKeys(NamedTuple):
    """What did not meet, as torch's ``load_state_dict`` reports it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    model_or_state: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    mode: Literal["auto", "read"] = "auto",
    verify: bool = False,
) -> IncompatibleKeys:
    """Fill the tensors of a module, or of an object like the one that was saved, in place.

    Everything is checked before the first byte is changed. Plain values (an epoch, a learning rate) are left alone:
    only tensors can be filled.

    Parameters
    ----------
    model_or_state : torch.nn.Module or object
        Whose tensors (or arrays) are filled. A dtype that differs is converted, as torch does. Where a snapshot has no
        ``meta`` (OneFlow before 0.3.1), they say what shape and dtype its tensors are of.
    path : str or os.PathLike
        Folder of the snapshot, or single file of OneFlow.
    strict : bool
        Require the same keys on both sides.
    mode : {"auto", "read"}
        ``auto``: what the page cache has in huge pages, or can bring in so, is copied out of maps, which are there for
        milliseconds only. ``read``: nothing is mapped, for folders that others can write to.
    verify : bool
        Read all of it and check digests before anything is changed, so that a damaged snapshot leaves the target as it
        is; then read again. That takes twice as long where it is not in the page cache, and what is damaged between the
        two goes unnoticed.

    Returns
    -------
    IncompatibleKeys
        ``missing_keys`` (in the target, not in the snapshot) and ``unexpected_keys`` (the other way round); both empty
        with `strict`.

    Raises
    ------
    MismatchError
        Shapes differ, a tensor cannot be changed or its dtype not be converted, or, with `strict`, keys differ; nothing
        was changed. A RuntimeError, as with torch. When a save replaces the snapshot while it is loaded, and the new
        one does not fit, or has not all tensors that the old one had, some may have been filled; the message says so.
    OSError
        What the system refused. Some tensors may have been filled if a file could not be read.
    """
    if mode not in ("auto", "read"):
        raise ValueError(f"mode must be 'auto' or 'read', not {mode!r}")
    filled: set[str] = set()  # keys of a snapshot that was being filled in when a save replaced it

    def act(contents: Contents) -> IncompatibleKeys:
        contents.select(None)
        keys = _match(model_or_state, targets, contents, strict, filled)
        pairs = [(targets[key], entry) for key, entry in contents.entries.items() if key in targets]
        if verify:
            check(contents, [entry for _, entry in pairs])
        single = _single(pairs)
        shared = sharing([Blob(target.dtype, target.shape, target.memory) for target, _ in single])
        apart = shared.complete and not shared.pairs  # else two threads might fill the same memory
        filled.update(entry.key for _, entry in pairs)
        for run in [single] if apart else [[pair] for pair in single]:
            _fill(run, contents, mapped=mode == "auto")
        return keys

    if mode == "auto":
        log_remote(path)
    with collector_at_rest():
        leaves, _ = tree.flatten(KINDS.state_of(model_or_state), KINDS)
        targets = {leaf.key: _Target.of(leaf) for leaf in leaves}
        given = {key: Meta(target.shape, target.dtype) for key, target in targets.items()}
        far = any(target.codec.far(target.value) is not None for target in targets.values())
        index: Index = "read" if far else "table"  # copies are sent to a device, a room full at a time; not used here
        return reading(path, act, index=index, given=given, seals=verify)


class _Target(NamedTuple):
    """A tensor to be filled."""

    value: Any
    codec: Codec
    dtype: DType
    shape: tuple[int, ...]
    memory: Memory | None
    obstacle: str

    @classmethod
    def of(cls, leaf: Leaf) -> _Target:
        codec, blob = described(leaf)
        return cls(leaf.value, codec, blob.dtype, blob.shape, blob.memory, codec.obstacle(leaf.value))


def _match(
    target: Any, targets: dict[str, _Target], contents: Contents, strict: bool, filled: set[str]
) -> IncompatibleKeys:
    """Refuse what does not fit; `filled` are keys that a snapshot had whose place this one has taken since."""
    missing = [key for key in targets if key not in contents.entries]
    unexpected = [key for key in contents.entries if key not in targets]
    problems = [text for key, entry in contents.entries.items() if (text := _mismatch(targets.get(key), entry))]
    lost = missing if strict else [key for key in missing if key in filled]
    if lost:
        problems.append("Missing key(s) in snapshot: " + ", ".join(f'"{key}"' for key in lost) + ".")
    if strict and unexpected:
        problems.append("Unexpected key(s) in snapshot: " + ", ".join(f'"{key}"' for key in unexpected) + ".")
    if problems:
        state = _MIXED if filled else "is unchanged"
        head = f"Error(s) in loading {contents.path} into {type(target).__name__}, which {state}:"
        raise MismatchError("\n\t".join([head, *problems]))
    return IncompatibleKeys(missing, unexpected)


def _mismatch(target: _Target | None, entry: Entry) -> str:
    """Say why this tensor cannot be filled; nothing where it can, or where there is none."""
    if target is None:
        return ""
    if target.shape != entry.meta.shape:
        return f"size mismatch for {entry.key}: the snapshot has {entry.meta.shape}, the target wants {target.shape}."
    if target.obstacle:
        return f"{entry.key} cannot be filled: {target.obstacle}."
    if target.dtype == entry.meta.dtype:
        return ""
    try:
        _fill_one(
            target._replace(value=target.codec.one(target.value)), entry, bytearray(entry.meta.dtype.itemsize), (1,)
        )
    except (UnsupportedError, RuntimeError, TypeError) as problem:
        return f"dtype mismatch for {entry.key}: {entry.meta.dtype.name} cannot become {target.dtype.name} ({problem})."
    return ""


def _single(pairs: Sequence[tuple[_Target, Entry]]) -> list[tuple[_Target, Entry]]:
    """Leave each tensor once: of one that stands in several places the last counts, as it does with torch."""
    last: dict[Any, tuple[_Target, Entry]] = {}
    for target, entry in pairs:
        tensor = (target.memory, target.dtype, target.shape) if target.memory else id(target)
        last.pop(tensor, None)  # behind what was to be filled since, which may overlap it
        last[tensor] = target, entry
    return list(last.values())


def _fill(pairs: Sequence[tuple[_Target, Entry]], contents: Contents, *, mapped: bool) -> None:
    """Send to the targets on devices, and read into those on the host, that lie as their blobs do; the others get
    theirs by rows, through some room."""
    for codec in {id(target.codec): target.codec for target, _ in pairs}.values():
        codec.settle([target.value for target, _ in pairs if target.codec is codec])
    near = _send([pair for pair in pairs if pair[1].meta.nbytes], contents)
    straight = [t.codec.memory_of(t.value) if t.dtype == e.meta.dtype else None for t, e in near]
    memories = [(e, memory) for (_, e), memory in zip(near, straight, strict=True) if memory is not None]
    crooked = [pair for pair, memory in zip(near, straight, strict=True) if memory is None]
    read_into(contents, memories, mapped=mapped)
    for (target, _), memory in zip(near, straight, strict=True):
        if memory is not None:
            target.codec.sound(target.value)
    over = threading.Event()
    fill = partial(_fill_by_rows, contents=contents, over=over)
    parallel.run(lambda pair: fill(*pair), crooked, len(os.sched_getaffinity(0)), stop=over.set)


def _send(pairs: Sequence[tuple[_Target, Entry]], contents: Contents) -> list[tuple[_Target, Entry]]:
    """Fill the targets that can be sent to, one device after the other; give those that cannot."""
    near: list[tuple[_Target, Entry]] = []
    devices: dict[str, list[tuple[_Target, Entry, Any]]] = {}
    for target, entry in pairs:
        far = target.codec.far(target.value) if target.dtype == entry.meta.dtype else None
        if far is None:
            near.append((target, entry))
        else:
            devices.setdefault(far.device, []).append((target, entry, far.flat))
    for device, targets in devices.items():
        lane = targets[0][0].codec.lane(device)
        assert lane is not None, "what is far is on a device that has a lane"
        send(contents, [(entry, flat) for _, entry, flat in targets], lane)
        for target, _, _ in targets:
            target.codec.sound(target.value)
    return near


def _fill_by_rows(target: _Target, entry: Entry, contents: Contents, over: threading.Event) -> None:
    dtype, at = entry.meta.dtype, 0
    (room,) = _core.allocate([min(entry.meta.nbytes, PIECE)])
    for index in row_pieces(target.shape, dtype.itemsize, PIECE):
        if over.is_set():
            return
        part = target.value[(*index, ...)]  # () alone would give of numpy's without dimensions a scalar, no view
        view = memoryview(room)[: math.prod(part.shape) * dtype.itemsize]
        read_at(contents, entry, at, view)
        _fill_one(target._replace(value=part), entry, view, tuple(part.shape))
        at += len(view)


def _fill_one(target: _Target, entry: Entry, blob: Any, shape: tuple[int, ...]) -> None:
    source = target.codec.make(blob, entry.meta.dtype, shape, entry.key)
    target.codec.sound(source)
    target.codec.fill(target.value, source)
