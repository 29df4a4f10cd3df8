"""What a pickle is made of, besides None, booleans, numbers, texts, lists and tuples, which stand for themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Call", "Name", "Pairs", "Span", "Unordered"]


class Span(NamedTuple):
    """Bytes in the pickle: where they begin, and how many."""

    at: int
    length: int


class Name(NamedTuple):
    """A class or function that the pickle names; `at` says where."""

    module: str
    name: str
    at: int


class Pairs:
    """A dict: keys and values in their order, a key perhaps twice."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []


class Unordered:
    """A set, or a frozenset; an element perhaps twice."""

    __slots__ = ("frozen", "items")

    def __init__(self, items: list[Any], frozen: bool) -> None:
        self.items = items
        self.frozen = frozen


class Call:
    """What Python would make by calling a name, and then change.

    Attributes
    ----------
    name : Name
        What would be called.
    args : tuple
        With what.
    state : object
        What it would be given then (``__setstate__``), None if nothing.
    pairs : list of tuple
        Items that would be put into it.
    """

    __slots__ = ("args", "name", "pairs", "state")

    def __init__(self, name: Name, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.pairs: list[tuple[Any, Any]] = []
