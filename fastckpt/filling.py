"""load_into(): a snapshot's values go into tensors that exist."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastckpt import _core, tree
from fastckpt.codec import KINDS, codec_for
from fastckpt.contents import Contents, Entry, reading
from fastckpt.errors import MismatchError
from fastckpt.layout import OUT
from fastckpt.tree import Leaf
from fastckpt.verifying import check_digest

__all__ = ["IncompatibleKeys", "load_into"]


class IncompatibleKeys(NamedTuple):
    """What did not meet, as torch's ``load_state_dict`` reports it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    model_or_state: Any, path: str | os.PathLike[str], *, strict: bool = True, verify: bool = False
) -> IncompatibleKeys:
    """Fill the tensors of a module, or of an object like the one that was saved, in place.

    Everything is checked before the first byte is changed. Plain values (an epoch, a learning rate) are left alone:
    only tensors can be filled.

    Parameters
    ----------
    model_or_state : torch.nn.Module or object
        Whose tensors (or arrays) are filled. A dtype that differs is converted, as torch does.
    path : str or os.PathLike
        Folder of the snapshot.
    strict : bool
        Require the same keys on both sides.
    verify : bool
        Check digests before anything is changed.

    Returns
    -------
    IncompatibleKeys
        ``missing_keys`` (in the target, not in the snapshot) and ``unexpected_keys`` (the other way round); both empty
        with `strict`.

    Raises
    ------
    MismatchError
        Shapes differ, or, with `strict`, keys do; nothing was changed. A RuntimeError, as with torch.
    """
    leaves, _ = tree.flatten(KINDS.state_of(model_or_state), KINDS)

    def act(contents: Contents) -> IncompatibleKeys:
        keys, pairs = _match(model_or_state, leaves, contents, strict)
        if verify:
            entries = [entry for _, entry in pairs]
            for entry, blob in zip(entries, contents.map(entries), strict=True):
                check_digest(entry.meta.digest, blob, f"{contents.path}/{entry.blob}/{OUT}")
        for leaf, entry in pairs:
            _fill(leaf, entry, contents)
        return keys

    return reading(path, act)


def _match(
    target: Any, leaves: Sequence[Leaf], contents: Contents, strict: bool
) -> tuple[IncompatibleKeys, list[tuple[Leaf, Entry]]]:
    own = {leaf.key for leaf in leaves}
    missing = [leaf.key for leaf in leaves if leaf.key not in contents.entries]
    unexpected = [key for key in contents.entries if key not in own]
    pairs = [(leaf, contents.entries[leaf.key]) for leaf in leaves if leaf.key in contents.entries]
    problems = [text for leaf, entry in pairs if (text := _mismatch(leaf, entry))]
    if strict and missing:
        problems.append("Missing key(s) in snapshot: " + ", ".join(f'"{key}"' for key in missing) + ".")
    if strict and unexpected:
        problems.append("Unexpected key(s) in snapshot: " + ", ".join(f'"{key}"' for key in unexpected) + ".")
    if problems:
        head = f"Error(s) in loading {contents.path} into {type(target).__name__}, which is unchanged:"
        raise MismatchError("\n\t".join([head, *problems]))
    return IncompatibleKeys(missing, unexpected), pairs


def _mismatch(leaf: Leaf, entry: Entry) -> str:
    shape = codec_for(leaf.framework).describe(leaf.value, leaf.path).shape
    if shape == entry.meta.shape:
        return ""
    return f"size mismatch for {leaf.key}: the snapshot has {entry.meta.shape}, the target wants {shape}."


def _fill(leaf: Leaf, entry: Entry, contents: Contents) -> None:
    codec = codec_for(leaf.framework)
    same_dtype = codec.describe(leaf.value, leaf.path).dtype == entry.meta.dtype
    memory = codec.memory_of(leaf.value) if same_dtype else None
    if memory is not None:
        _core.read_into(contents.fd, f"{entry.blob}/{OUT}", 0, memory, size=entry.meta.nbytes)
    elif entry.meta.nbytes:
        (blob,) = contents.map([entry])
        codec.fill(leaf.value, codec.make(blob, entry.meta.dtype, entry.meta.shape, entry.key))
