"""From an object to its tensors and the JSON record of everything else."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from enum import Enum
from itertools import count, repeat
from typing import Any, NamedTuple, Protocol

from fastckpt.classes import encode_enum, encode_named_tuple, field_names
from fastckpt.errors import UnsupportedError
from fastckpt.places import ELEMENT, KEY, METADATA, Names, Step, Walk, fields_of, show
from fastckpt.texts import Record
from fastckpt.values import ELEMENTS, ENCODERS, KEYS, WANTED, is_hashable

__all__ = ["Kinds", "Leaf", "Writer"]


class Leaf(NamedTuple):
    """A tensor within an object.

    Attributes
    ----------
    key : str
        Its name in the snapshot; no other has it.
    parts : tuple
        Keys and positions that lead to it.
    value : object
        The tensor itself.
    framework : str
        Whose tensor it is: ``"torch"`` or ``"numpy"``.
    """

    key: str
    parts: tuple[Any, ...]
    value: Any
    framework: str

    @property
    def path(self) -> str:
        """Where it stands, for people: ``obj["model"]["l1.weight"]``."""
        return show(self.parts)


class Kinds(Protocol):
    """What a tree needs to know of the frameworks."""

    def is_leaf(self, obj: object, /) -> bool:
        """Whether this is a tensor or array, to be stored as a blob; asked of one object for each type."""

    def framework(self, obj: object, /) -> str:
        """Whose leaf it is, ``"torch"`` or ``"numpy"``; asked of one object for each type."""

    def pack(self, obj: object, /) -> tuple[str, Any] | None:
        """Tag and JSON of a small value of a framework (a dtype, a device, a size, a scalar), None for all else."""

    def unpack(self, tag: str, data: Any, /) -> Any:
        """Give back what ``pack`` took; UnsupportedError without the framework, FormatError for what is unknown."""


class Writer(Walk):
    """Walks through an object; ``leaves`` grows on the way."""

    too_deep = UnsupportedError

    def __init__(self, obj: object, kinds: Kinds) -> None:
        super().__init__()
        self.kinds = kinds
        self.leaves: list[Leaf] = []
        self.names = Names(key for key in obj if type(key) is str) if isinstance(obj, dict) else Names(())
        self.open: set[int] = set()
        self.frameworks: dict[type, str | None] = {}  # None: no leaf

    def value(self, item: Any) -> Any:
        """Record of one item."""
        kind = type(item)
        if kind in ENCODERS:
            return ENCODERS[kind](item)
        write = _WRITES.get(kind)
        if write is None:
            framework = self.framework(item)
            if framework is not None:
                return self.leaf(item, framework)
            if field_names(kind) is None:
                return self.special(item)
            write = Writer.named_tuple
        if id(item) in self.open:
            raise UnsupportedError(f"this {kind.__qualname__} contains itself and cannot be stored; break the cycle")
        self.open.add(id(item))
        record = write(self, item)
        self.open.discard(id(item))
        return record

    def framework(self, item: object) -> str | None:
        kind = type(item)
        if kind not in self.frameworks:
            self.frameworks[kind] = self.kinds.framework(item) if self.kinds.is_leaf(item) else None
        return self.frameworks[kind]

    def leaf(self, item: object, framework: str) -> Record:
        name = self.names.give(self.parts)
        self.leaves.append(Leaf(name, tuple(self.parts), item, framework))
        return {"tensor": name} if framework == "torch" else {"tensor": name, "as": framework}

    def special(self, item: Any) -> Record:
        if issubclass(type(item), Enum):
            return encode_enum(item)
        packed = self.kinds.pack(item)
        if packed is None:
            raise UnsupportedError(f"{type(item).__qualname__} cannot be stored; {_remedy(item)}")
        return {packed[0]: packed[1]}

    def array(self, item: list[Any]) -> list[Any]:
        return self.each(count(), item)

    def tuple_(self, item: tuple[Any, ...]) -> Record:
        return {"tuple": self.each(count(), item)}

    def named_tuple(self, item: tuple[Any, ...]) -> Record:
        fields = field_names(type(item)) or ()
        items = tuple.__getitem__(item, slice(None))  # a class may have an __iter__ and a __len__ of its own
        if len(items) != len(fields) or getattr(item, "__dict__", None):
            raise UnsupportedError(f"{type(item).__qualname__} holds more than its fields; {_remedy(item)}")
        return encode_named_tuple(type(item), fields) | {"values": self.each(fields_of(fields), items)}

    def members(self, item: set[Any] | frozenset[Any]) -> Record:
        return {type(item).__name__: sorted(self.fixed(item, ELEMENT, ELEMENTS), key=json.dumps)}

    def pairs(self, item: dict[Any, Any]) -> Record:
        plain = all(type(key) is str and key.isascii() for key in item)
        keys = item if plain else self.fixed(item, KEY, KEYS)  # before the values, whose places show them
        values = self.each(item, item.values())
        record = {type(item).__name__: [[key, value] for key, value in zip(keys, values, strict=True)]}
        return record | self.attributes(item)

    def fixed(self, items: Collection[Any], step: Step, allowed: frozenset[type]) -> list[Any]:
        """Keys or elements: what stays fixed while it is in its container."""
        for item in items:
            if not is_hashable(item, allowed):
                raise UnsupportedError(f"{type(item).__qualname__} cannot be stored here; wanted {WANTED[allowed]}")
        return self.each(repeat(step), items)

    def attributes(self, item: dict[Any, Any]) -> Record:
        """What ``state_dict()`` hangs on its OrderedDict."""
        state = getattr(item, "__dict__", None)
        if not state:
            return {}
        if type(item) is not OrderedDict or state.keys() != {"_metadata"}:
            raise UnsupportedError(f"{type(item).__name__} has attributes ({', '.join(state)}); store them beside it")
        tensors = len(self.leaves)
        (record,) = self.each([METADATA], state.values())
        if len(self.leaves) > tensors:  # where the dict itself is flat, nobody would look for one there
            raise UnsupportedError("its _metadata holds a tensor; store that beside it")
        return {"_metadata": record}


_WRITES: dict[type, Callable[[Writer, Any], Any]] = {
    list: Writer.array,
    tuple: Writer.tuple_,
    **dict.fromkeys((dict, OrderedDict, Counter), Writer.pairs),
    **dict.fromkeys((set, frozenset), Writer.members),
}


def _remedy(item: object) -> str:
    """What to store instead of something that cannot be stored."""
    if hasattr(type(item), "state_dict"):
        return "store its state_dict() instead"
    for plain in (dict, list, tuple, set, str, int, float):
        if isinstance(item, plain):
            return f"store a plain {plain.__name__} instead, and what else it holds beside that"
    if callable(item):
        return "code is never stored; store the name or the settings it was made from instead"
    return "store its state (numbers, texts, lists, dicts, tensors) instead"
