"""Where something stands in an object: the parts of its path, shown to people, and the name a tensor gets from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, ClassVar

from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.texts import is_stable, stable

__all__ = ["DEPTH", "ELEMENT", "KEY", "METADATA", "Names", "Step", "Walk", "fields_of", "located", "show"]

DEPTH = 200  # containers within containers; each takes three calls of the 1,000 that Python allows


class Step(str):
    """A part that is no key and no position, shown as it is: ``.exp_avg`` of a named tuple."""

    __slots__ = ()


KEY, ELEMENT, METADATA = Step(" (a key)"), Step(" (an element)"), Step("._metadata")


def fields_of(names: Iterable[str]) -> list[Step]:
    """Parts that lead to the fields of a named tuple."""
    return [Step(f".{name}") for name in names]


def show(parts: Iterable[Any]) -> str:
    """Show a path as Python would write it: ``obj["callbacks"][2]``."""
    return "obj" + "".join([part if type(part) is Step else f"[{_literal(part)}]" for part in parts])


def _literal(part: Any) -> str:
    if type(part) is str:
        plain = part.isprintable() and '"' not in part and "\\" not in part
        return f'"{part}"' if plain else json.dumps(part, ensure_ascii=not part.isprintable())
    if type(part) is tuple:
        return f"({', '.join(map(_literal, part))}{',' * (len(part) == 1)})"
    if isinstance(part, Enum):
        return f"{type(part).__qualname__}.{part._name_}"
    return _number(part) if type(part) is int else repr(part)


def _number(value: int) -> str:
    """Hexadecimal where decimal would take quadratic time and, beyond 4300 digits, be refused by Python."""
    return str(value) if abs(value) < 2**64 else hex(value)


def _word(part: Any) -> str:
    if type(part) is str and part.isascii():  # as nearly all are
        return part
    if isinstance(part, Enum):
        return part._name_
    if type(part) is Step:
        return part[1:]
    if type(part) is tuple:
        return ",".join(map(_word, part))
    return _number(part) if type(part) is int else stable(str(part))


class Names:
    """Gives every tensor a name of its own.

    A tensor right under a text key is called exactly that; one that lies deeper gets the parts of its path joined by
    dots, and never a name that is a key of the object itself.

    Parameters
    ----------
    keys : iterable of str
        Text keys of the object, whatever stands under them.
    """

    __slots__ = ("_taken", "_uses")

    def __init__(self, keys: Iterable[str]) -> None:
        self._taken = set(keys)
        self._uses: dict[str, int] = {}

    def give(self, parts: list[Any]) -> str:
        """Name the tensor at this path; each path is asked for once."""
        if len(parts) == 1 and type(parts[0]) is str and is_stable(parts[0]):
            return parts[0]
        wish = ".".join(map(_word, parts)) if parts else "tensor"
        name, uses = wish, self._uses.get(wish, 1)
        while name in self._taken:
            uses += 1
            name = f"{wish}~{uses}"
        self._uses[wish] = uses
        self._taken.add(name)
        return name


class Walk:
    """A way down through containers that knows where it stands: one part for each that is open.

    Attributes
    ----------
    too_deep : type
        What is raised where containers are nested too deep.
    plain : frozenset of type
        Items of these types stand for themselves.
    """

    too_deep: ClassVar[type[Exception]]
    plain: ClassVar[frozenset[type]] = frozenset()

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def value(self, item: Any) -> Any:
        """Walk through one item, whatever it is."""
        raise NotImplementedError

    def each(self, parts: Iterable[Any], items: Collection[Any]) -> list[Any]:
        """Walk through the items of one container; ``parts`` lead to them."""
        if len(self.parts) >= DEPTH:
            raise self.too_deep(f"containers are nested more than {DEPTH} deep; cut the object into several")
        if self.plain and {*map(type, items)} <= self.plain:
            return [*items]
        values = []
        self.parts.append(None)
        for part, item in zip(parts, items, strict=False):  # positions are counted without end
            self.parts[-1] = part
            values.append(self.value(item))
        self.parts.pop()
        return values


@contextmanager
def located(walk: Walk, where: str = "") -> Iterator[None]:
    """Say of what is refused where it stands, which is where the walk stood when it stopped."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        raise type(error)(f"{where}{show(walk.parts)}: {error}") from error
    except RecursionError:
        raise walk.too_deep(f"{where}{show(walk.parts[:3])}...: too deep for what is left of the call stack") from None
