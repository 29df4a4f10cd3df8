"""From a JSON record, wherever it may come from, to the object it describes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import count, repeat
from typing import Any, ClassVar

from fastckpt.classes import FindClass, find_member, named_tuple
from fastckpt.errors import FormatError
from fastckpt.places import ELEMENT, KEY, METADATA, Step, Walk, fields_of
from fastckpt.texts import Record, array_of, found
from fastckpt.values import DECODERS, ELEMENTS, KEYS, WANTED, decode, is_hashable

__all__ = ["Describer", "Reader"]

_DICTS: dict[str, Callable[[dict[Any, Any]], Any]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_SETS: dict[str, Callable[[list[Any]], Any]] = {"set": set, "frozenset": frozenset}


_COMPANIONS = {
    "OrderedDict": {"_metadata"},
    "namedtuple": {"fields", "values"},
    "datetime": {"fold", "tz"},
    "time": {"fold", "tz"},
    "timezone": {"name"},
    "tensor": {"as"},
}
_LISTS, _TEXTS, _TWO = {list}, {str}, {2}
_ALIKE = 1000  # numbers of one hash, of which each is compared with all others
_ALL_COMPANIONS = frozenset().union(*_COMPANIONS.values())


class Reader(Walk):
    """Walks through a record; what no Writer could have written is a FormatError."""

    too_deep = FormatError
    plain = frozenset({str, int, float, bool, type(None)})
    reads: ClassVar[dict[str, Callable[[Any, Record, str], Any]]]

    def __init__(
        self, leaf: Callable[[str, str], Any], unpack: Callable[[str, Any], Any], find_class: FindClass
    ) -> None:
        super().__init__()
        self.leaf = leaf
        self.unpack = unpack
        self.find_class = find_class

    def value(self, item: Any) -> Any:
        """Give the value of one record."""
        kind = type(item)
        if kind in self.plain:
            return item
        if kind is list:
            return self.each(count(), item)
        if kind is not dict:
            raise FormatError(f"wanted JSON, found {found(item)}")
        tag = _tag_of(item)
        read = self.reads.get(tag)
        if read is not None:
            return read(self, item, tag)
        return decode(tag, item) if tag in DECODERS else self.unpack(tag, item[tag])

    def tensor(self, record: Record, tag: str) -> Any:
        name, framework = array_of([record[tag], record.get("as", "torch")], str, 2)
        if framework not in ("torch", "numpy"):
            raise FormatError(f'wanted "torch" or "numpy", found {found(framework)}; written by a newer fastckpt?')
        return self.leaf(name, framework)

    def enum(self, record: Record, tag: str) -> Any:
        module, qualname, name = array_of(record[tag], str, 3)
        return find_member(module, qualname, name, self.find_class)

    def tuple_(self, record: Record, tag: str) -> tuple[Any, ...]:
        return tuple(self.each(count(), _array(record[tag])))

    def named_tuple(self, record: Record, tag: str) -> tuple[Any, ...]:
        module, qualname = array_of(record[tag], str, 2)
        values = _array(record.get("values"))
        fields = tuple(array_of(record.get("fields"), str, len(values)))
        cls = named_tuple(module, qualname, fields, self.find_class)
        return tuple.__new__(cls, self.each(fields_of(fields), values))

    def members(self, record: Record, tag: str) -> Any:
        elements = self.fixed(_array(record[tag]), ELEMENT, ELEMENTS)
        made = _SETS[tag](elements)
        if len(made) != len(elements):
            raise FormatError(f"wanted a {tag}, found an element twice")
        return made

    def pairs(self, record: Record, tag: str) -> Any:
        pairs = _array(record[tag])
        if not ({*map(type, pairs)} <= _LISTS and {*map(len, pairs)} <= _TWO):
            raise FormatError(f"wanted a {tag} as pairs of a key and a value, found something else")
        keys = self.fixed([key for key, _ in pairs], KEY, KEYS)
        values = self.each(keys, [value for _, value in pairs])
        made = _DICTS[tag](dict(zip(keys, values, strict=True)))
        if len(made) != len(pairs):
            raise FormatError(f"wanted a {tag}, found a key twice")
        if "_metadata" in record:
            (made._metadata,) = self.each([METADATA], [record["_metadata"]])
        return made

    def fixed(self, records: list[Any], step: Step, allowed: frozenset[type]) -> list[Any]:
        """Keys or elements, whose hashes nobody but Python computes."""
        if {*map(type, records)} <= _TEXTS:
            return records
        items: list[Any] = []
        hashes: set[int] = set()
        alike = 0
        for begin in range(0, len(records), _ALIKE):  # the rest is not looked at where these are refused
            some = self.each(repeat(step), records[begin : begin + _ALIKE])
            for item in some:
                if not is_hashable(item, allowed):
                    raise FormatError(f"wanted {WANTED[allowed]}, found {type(item).__qualname__}")
                if type(item) is not str:  # of texts nobody can foresee them
                    alike += hash(item) in hashes
                    hashes.add(hash(item))
            if alike > _ALIKE:
                raise FormatError("wanted different keys, found numbers that were made to have one hash")
            items += some
        return items


Reader.reads = {
    "tensor": Reader.tensor,
    "enum": Reader.enum,
    "tuple": Reader.tuple_,
    "namedtuple": Reader.named_tuple,
    **dict.fromkeys(_SETS, Reader.members),
    **dict.fromkeys(_DICTS, Reader.pairs),
}


class Describer(Reader):
    """Gives text where a Reader would give an object that needs a class, a time zone or a framework of its own."""

    def enum_text(self, record: Record, tag: str) -> str:
        return ".".join(array_of(record[tag], str, 3))

    def moment_text(self, record: Record, tag: str) -> str:
        zone = record.get("tz")
        if type(zone) is dict and "zoneinfo" in zone:
            return " ".join(array_of([record[tag], zone["zoneinfo"]], str, 2))
        return str(decode(tag, record).isoformat())

    def zone_text(self, record: Record, tag: str) -> str:
        return "".join(array_of([record[tag]], str, 1))

    reads: ClassVar = {
        **Reader.reads,
        "enum": enum_text,
        "zoneinfo": zone_text,
        **dict.fromkeys(("datetime", "date", "time"), moment_text),
    }


def _tag_of(record: Record) -> str:
    """Find the one tag, in whatever order the keys are; nothing but its companions may stand beside it."""
    if len(record) == 1:
        (tag,) = record
        if tag not in _ALL_COMPANIONS:
            return tag
    tags = record.keys() - _ALL_COMPANIONS
    if len(tags) == 1:
        (tag,) = tags
        if len(record) == 1 or record.keys() <= _COMPANIONS.get(tag, set()) | tags:
            return tag
    names = ", ".join(map(found, [*record][:5]))
    raise FormatError(f"wanted an object with one tag, found one with {names or 'none'}; written by a newer fastckpt?")


def _array(data: object) -> list[Any]:
    if type(data) is not list:
        raise FormatError(f"wanted an array, found {found(data)}")
    return data
