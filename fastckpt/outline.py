"""A saved object as a tree of what can be shown: keys, values, and tensors by dtype and shape.

Nothing that a snapshot names is imported for it, neither a class of the user nor torch: what would need one is a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastckpt.codec import KINDS
from fastckpt.contents import Contents, Entry
from fastckpt.decoding import Describer
from fastckpt.errors import CorruptError, UnsupportedError
from fastckpt.layout import META
from fastckpt.places import METADATA, Step, fields_of, located, show

__all__ = ["Described", "Node", "Tensor", "outline", "outline_of_names"]

_LEVELS = 40  # a name may have as many dots as it has characters; the tree of names has no more levels than this


class Described(str):
    """A text in place of a value that needs a class or a framework."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in an object; `framework` is None in a flat one, which belongs to none."""

    entry: Entry
    framework: str | None


@dataclass(frozen=True, slots=True)
class Node:
    """One place in an object.

    Attributes
    ----------
    part : object
        What leads here from the node above: a key, a `Step`, or the position in a list.
    path : str
        What leads here from the top: ``obj["model"]["l1.weight"]``; the name itself in a tree of names.
    value : object
        A `Tensor`, a plain value, a `Described`; of a container the name of its type; None where only names begin.
    children : tuple of Node or None
        What the container holds; None where this is none.
    """

    part: Any
    path: str
    value: Any
    children: tuple[Node, ...] | None = None

    def walk(self) -> Iterator[Node]:
        """Give this node and all below it, as they stand in the object."""
        yield self
        for child in self.children or ():
            yield from child.walk()


def outline(contents: Contents) -> Node:
    """Give the tree of a saved object, flat or nested.

    Raises
    ------
    FormatError, CorruptError
        The record is malformed, or names a tensor that is not there.
    """
    entries, nested = contents.entries, contents.marker.nested

    def leaf(key: str, framework: str) -> Tensor:
        if key not in entries:
            raise CorruptError(f"{contents.path}: the object holds a tensor {key!r} that no folder has")
        return Tensor(entries[key], framework)

    record, where = (contents.marker.record, contents.source) if nested else _container(contents)
    reader = _Reader(leaf)
    with located(reader, f"{where}: "):
        value = reader.value(record)
    if not nested:
        if not isinstance(value, dict) or value:
            raise CorruptError(f"{where}: the container of a flat snapshot must be an empty dict")
        value.update((key, Tensor(entry, None)) for key, entry in entries.items())
    return _node((), value)


def outline_of_names(entries: Iterable[Entry]) -> Node:
    """Give a tree of tensors by the dots in their names; a chain without branches is one node."""
    top: dict[str, Any] = {}
    for entry in entries:
        *groups, last = entry.key.split(".", _LEVELS)
        level = top
        for group in groups:
            level = level.setdefault(f"{group}.", {})
        level[last] = Tensor(entry, None)
    return _names("", "", top)


def _names(part: str, path: str, below: Any) -> Node:
    while part and isinstance(below, dict) and len(below) == 1:
        ((name, below),) = below.items()
        part, path = part + name, path + name
    if isinstance(below, Tensor):
        return Node(Step(part), path, below)
    return Node(Step(part), path, None, tuple(_names(name, path + name, inner) for name, inner in below.items()))


class _Reader(Describer):
    """Tells the texts that stand for values from the texts that are values."""

    def __init__(self, leaf: Callable[[str, str], Tensor]) -> None:
        super().__init__(leaf, _unpack, lambda *_: None)
        self._hashing = False

    def value(self, item: Any) -> Any:
        made = super().value(item)
        if type(made) is str and type(item) is dict and "str" not in item and not self._hashing:
            return Described(made)
        return made

    def fixed(self, records: list[Any], step: Step, allowed: frozenset[type]) -> list[Any]:
        outer, self._hashing = self._hashing, True  # keys and elements must be of the exact types
        try:
            return super().fixed(records, step, allowed)
        finally:
            self._hashing = outer


def _unpack(tag: str, data: Any) -> Any:
    """What numpy alone can give is given, of the rest is told what stands there."""
    if tag.startswith("numpy."):
        with suppress(UnsupportedError):
            return KINDS.unpack(tag, data)
    return Described(f"{tag}({json.dumps(data)})")


def _container(contents: Contents) -> tuple[Any, str]:
    """Record of what a flat object is, and the file that says it."""
    first = next(iter(contents.entries.values()), None)
    if first is None or first.meta.container is None:
        return {"dict": []}, contents.source
    return first.meta.container, f"{contents.path}/{first.folder}/{META}"


def _node(parts: tuple[Any, ...], value: Any) -> Node:
    items = _items(value)
    part, path = parts[-1] if parts else "", show(parts)
    if items is None:
        return Node(part, path, value)
    children = tuple(_node((*parts, step), child) for step, child in items)
    return Node(part, path, type(value).__name__, children)


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Give what a container holds, each with the part of a path that leads to it."""
    if isinstance(value, dict):
        metadata = [(METADATA, value._metadata)] if hasattr(value, "_metadata") else []
        return [*value.items(), *metadata]
    if isinstance(value, (set, frozenset)):
        return enumerate(sorted(value, key=repr))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(fields_of(value._fields), value, strict=True)
    return enumerate(value) if isinstance(value, (list, tuple)) else None
