"""Values that are neither tensors nor containers: each one's JSON, and back.

What JSON can say exactly is said plainly: None, booleans, texts, whole numbers up to 2**53, finite floats. Every other
value is an object with one tag, so that ``{"float": "7ff8000000000001"}`` comes back with its payload. Only these exact
types are taken: a subclass may hold more than would be written. Reading trusts nothing.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from enum import Enum
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from fastckpt import moments
from fastckpt.classes import has_own_hash
from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.texts import Record, decode_text, encode_text, found, from_base64, to_base64

__all__ = ["DECODERS", "ELEMENTS", "ENCODERS", "KEYS", "WANTED", "decode", "is_hashable"]

_EXACT = 2**53  # beyond it, JSON readers that keep numbers as floats would round
_HEX_INT = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
_HEX_BITS = re.compile(r"[0-9a-f]{16}", re.ASCII)


def _encode_int(value: int) -> int | Record:
    return value if -_EXACT <= value <= _EXACT else {"int": hex(value)}


def _encode_float(value: float) -> float | Record:
    return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}


def _encode_path(path: PurePath) -> Record:
    text = str(path)
    again = type(path)(text)
    if (again.drive, again.root, again.parts) != (path.drive, path.root, path.parts):
        raise UnsupportedError(
            f"{type(path).__name__} {text!a} would come back as another path; store its parts instead"
        )
    return {type(path).__name__: encode_text(text)}


def _decode_int(record: Record) -> int:
    text = decode_text(record["int"])
    if not _HEX_INT.fullmatch(text):
        raise ValueError("not a hexadecimal number")
    return int(text, 16)


def _decode_float(data: object) -> float:
    if type(data) is float:
        return data
    if type(data) is not dict or data.keys() != {"float"} or not _HEX_BITS.fullmatch(decode_text(data["float"])):
        raise ValueError("not a float")
    value: float = struct.unpack(">d", bytes.fromhex(data["float"]))[0]
    return value


def _decode_complex(record: Record) -> complex:
    data = record["complex"]
    if type(data) is not list or len(data) != 2:
        raise ValueError("not two floats")
    return complex(_decode_float(data[0]), _decode_float(data[1]))


ENCODERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: encode_text,
    int: _encode_int,
    float: _encode_float,
    complex: lambda value: {"complex": [_encode_float(value.real), _encode_float(value.imag)]},
    bytes: lambda data: {"bytes": to_base64(data)},
    bytearray: lambda data: {"bytearray": to_base64(data)},
    PosixPath: _encode_path,
    PurePosixPath: _encode_path,
    PureWindowsPath: _encode_path,
    **moments.ENCODERS,
}

DECODERS: dict[str, Callable[[Record], Any]] = {
    "str": decode_text,
    "int": _decode_int,
    "float": _decode_float,
    "complex": _decode_complex,
    "bytes": lambda record: from_base64(record["bytes"]),
    "bytearray": lambda record: bytearray(from_base64(record["bytearray"])),
    "PosixPath": lambda record: PosixPath(decode_text(record["PosixPath"])),
    "PurePosixPath": lambda record: PurePosixPath(decode_text(record["PurePosixPath"])),
    "PureWindowsPath": lambda record: PureWindowsPath(decode_text(record["PureWindowsPath"])),
    **moments.DECODERS,
}


def decode(tag: str, record: Record) -> Any:
    """Give the value of a tagged record.

    Parameters
    ----------
    tag : str
        One of ``DECODERS``.
    record : dict
        The object that carries the tag.

    Returns
    -------
    object
        Equal to the value that was encoded, and of the same type.
    """
    try:
        return DECODERS[tag](record)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"wanted a {tag}, found {found(record[tag])}") from error


# What may be a key of a dict, and what may stand in a set: nothing whose hash anybody but Python computes.
KEYS: frozenset[type] = frozenset({str, int, bool, type(None), float, tuple})
ELEMENTS: frozenset[type] = frozenset(ENCODERS.keys() - {bytearray}) | {tuple, frozenset}
WANTED = {
    KEYS: "a text, a number, a boolean, None, an enum member, or a tuple of these as a key",
    ELEMENTS: "plain values, enum members, and tuples and frozensets of these in a set",
}


def is_hashable(value: Any, allowed: frozenset[type]) -> bool:
    """Whether the value may be a key (``KEYS``) or stand in a set (``ELEMENTS``); its depth is not checked."""
    kind = type(value)
    if kind in allowed:
        return kind not in (tuple, frozenset) or all(is_hashable(item, allowed) for item in value)
    return issubclass(kind, Enum) and not has_own_hash(kind)
