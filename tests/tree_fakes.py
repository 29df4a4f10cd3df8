"""A framework of two kinds of tensor and one small value, for the tests of tree; and an exact comparison."""

from __future__ import annotations

import json
import struct
from collections import Counter, OrderedDict
from datetime import datetime, time, timezone
from enum import Enum, Flag, IntEnum
from pathlib import PurePath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from fastckpt import tree
from fastckpt.errors import FormatError, UnsupportedError


class Tensor:
    framework = "torch"


class Array(Tensor):
    framework = "numpy"


class Device:
    def __init__(self, name: str) -> None:
        self.name = name


class FakeKinds:
    def is_leaf(self, obj: object) -> bool:
        return isinstance(obj, Tensor)

    def framework(self, obj: object) -> str:
        assert isinstance(obj, Tensor)
        return obj.framework

    def pack(self, obj: object) -> tuple[str, Any] | None:
        return ("torch.device", obj.name) if type(obj) is Device else None

    def unpack(self, tag: str, data: Any) -> Any:
        if tag != "torch.device" or type(data) is not str:
            raise FormatError(f"unknown kind {tag!a}")
        if data == "missing":
            raise UnsupportedError("no such framework")
        return Device(data)


KINDS = FakeKinds()


class Color(Enum):
    RED = 1
    GREEN = "two"
    CRIMSON = 1  # an alias


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mood(str, Enum):
    CALM = "calm"


class Access(Flag):
    READ = 1
    WRITE = 2


class Outer:
    class Inner(Enum):
        ONE = 1


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Nothing(NamedTuple):
    pass


def there_and_back(obj: object) -> Any:
    """Take apart, through the text of the record, and put together."""
    leaves, record = tree.flatten(obj, KINDS)
    tensors = {leaf.key: leaf for leaf in leaves}
    assert len(tensors) == len(leaves)

    def leaf(key: str, framework: str) -> Any:
        assert tensors[key].framework == framework
        return tensors[key].value

    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    return tree.unflatten(json.loads(text), leaf, KINDS.unpack)


def exactly(value: Any) -> Any:
    """Something that is equal only for values that nobody could tell apart."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is complex:
        return kind, exactly(value.real), exactly(value.imag)
    if kind in (dict, OrderedDict, Counter):
        pairs = [(exactly(key), exactly(item)) for key, item in value.items()]
        return kind, pairs, exactly(getattr(value, "_metadata", None))
    if isinstance(value, (list, tuple)):
        return kind, [exactly(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(map(exactly, value), key=repr)
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, exactly(value.tzinfo)
    return kind, hex(value) if kind is int else _exactly_one(value)  # repr() of an int has a limit of digits


def _exactly_one(value: Any) -> Any:
    if type(value) is timezone:
        return value.utcoffset(None), value.tzname(None)
    if isinstance(value, PurePath):
        return value.drive, value.root, value.parts
    if type(value) is Device:
        return value.name
    if isinstance(value, (Tensor, Enum, ZoneInfo)):
        return id(value)
    return value
