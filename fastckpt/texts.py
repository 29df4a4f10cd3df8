"""Texts in JSON: which ones survive it, and how to quote one in an error."""

from __future__ import annotations

import base64
import re
from typing import Any, TypeAlias

from fastckpt.errors import FormatError

__all__ = [
    "Record",
    "array_of",
    "decode_text",
    "encode_text",
    "found",
    "from_base64",
    "is_stable",
    "stable",
    "to_base64",
]

Record: TypeAlias = "dict[str, Any]"

_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def is_stable(text: str) -> bool:
    """Whether JSON gives the text back: it joins two surrogates, high and low, that Python keeps apart."""
    return text.isascii() or _SPLIT_PAIR.search(text) is None


def stable(text: str) -> str:
    """Give the text as JSON would give it back."""
    return text if is_stable(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def encode_text(text: str) -> str | Record:
    """Say a text in JSON so that it comes back exactly."""
    return text if is_stable(text) else {"str": to_base64(text.encode("utf-8", "surrogatepass"))}


def decode_text(data: object) -> str:
    """Undo `encode_text`; a ValueError for anything else."""
    if type(data) is str:
        return data
    if type(data) is dict and data.keys() == {"str"}:
        return from_base64(data["str"]).decode("utf-8", "surrogatepass")
    raise ValueError("not a text")


def to_base64(data: bytes | bytearray) -> str:
    """Say bytes in JSON."""
    return base64.b64encode(data).decode("ascii")


def from_base64(data: object) -> bytes:
    """Undo `to_base64`; a ValueError for anything else."""
    if type(data) is not str:
        raise ValueError("not base64")
    return base64.b64decode(data, validate=True)


def array_of(data: object, kind: type, count: int) -> list[Any]:
    """Check that the data is an array of so many items of exactly this type."""
    if type(data) is list and len(data) == count and ({*map(type, data)} <= {kind}):
        return data
    raise FormatError(f"wanted an array of {count} {kind.__name__}, found {found(data)}")


def found(data: object) -> str:
    """Say in a few words what stands where something else was wanted."""
    if type(data) is str:
        return ascii(data if len(data) <= 60 else data[:57] + "...")
    return {type(None): "null", dict: "an object", list: "an array"}.get(type(data), f"a {type(data).__name__}")
