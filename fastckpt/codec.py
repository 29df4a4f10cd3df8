"""Which codec knows what: by the name of a framework, and for every leaf and small value of an object.

torch's codec lies in ``fastckpt.torch.tensors`` and is imported by name, late: only when a program that uses torch
saves, or when a load is to give torch tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

from fastckpt.arrays import NUMPY
from fastckpt.blobs import Blob, Codec
from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.tree import Leaf

__all__ = ["KINDS", "NUMPY", "Blob", "Codec", "codec_for", "default_framework", "described"]


@functools.cache
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


def described(leaf: Leaf) -> tuple[Codec, Blob]:
    """Give the codec of a leaf, and what a plan needs to know of it.

    Raises
    ------
    UnsupportedError
        It cannot be stored; the message says where it stands.
    """
    codec = codec_for(leaf.framework)
    try:
        return codec, codec.describe(leaf.value)
    except UnsupportedError as refused:
        raise UnsupportedError(f"{leaf.path}: {refused}") from None


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
