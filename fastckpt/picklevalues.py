"""From the nodes of a pickle to a record of ours: what Python itself and numpy have; others add classes of theirs.

A node may stand in many places, and in itself: nothing here looks at more nodes than the pickle could have spelled out
one by one, give or take half a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import count, repeat
from typing import Any, ClassVar, TypeAlias

from fastckpt import picklearrays
from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.picklearrays import Array
from fastckpt.picklenodes import Call, Name, Pairs, Span, Unordered
from fastckpt.pickletext import LIMIT, Source
from fastckpt.places import ELEMENT, KEY, METADATA, Names, Walk
from fastckpt.texts import found, to_base64
from fastckpt.values import ENCODERS, KEYS, WANTED, is_hashable

__all__ = ["ARRAYS", "Meaning", "PickleReader", "Place"]

Place: TypeAlias = "str | Array"  # where a tensor lies: in a folder, or in the pickle
Meaning: TypeAlias = "Callable[[Any, Call], Any]"
_ROOM = 1 << 19
_NODE = 8  # what a node costs, besides its text

ARRAYS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class PickleReader(Walk):
    """Walks through the nodes of a pickle.

    Attributes
    ----------
    tensors : dict of str to Place
        Where each tensor of the record lies; grows on the way.
    meanings : dict
        What each name that a pickle may call means: a method.
    """

    too_deep = FormatError
    meanings: ClassVar[dict[tuple[str, str], Meaning]]

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.tensors: dict[str, Place] = {}
        self.names = Names(())
        self.open: set[int] = set()
        self.numbers: dict[int, int] = {}
        self.room = _ROOM + _NODE * min(source.size, LIMIT)

    def value(self, item: Any) -> Any:
        """Record of one node."""
        kind = type(item)
        self.spend(len(item) if kind is str else item.bit_length() // 4 if kind is int else 0)
        if kind in ENCODERS:
            return ENCODERS[kind](item)
        if kind is Span:
            return {"bytes": to_base64(self.bytes_of(item))}
        if kind is Name:
            raise UnsupportedError(f"the class {item.module}.{item.name} itself cannot be given; save its name")
        if id(item) in self.open:
            raise FormatError("it contains itself, and cannot be given; break the cycle before saving")
        self.open.add(id(item))
        record = _WRITES[kind](self, item)
        self.open.discard(id(item))
        return record

    def spend(self, size: int) -> None:
        """Refuse to write out again and again what 1 KB can name again and again, until that fills any memory."""
        self.room -= size + _NODE
        if self.room < 0:
            raise FormatError("what stands in so many places is too large to be written out in each; save it once")

    def bytes_of(self, data: Any) -> bytes:
        """Read a byte string."""
        if type(data) is Span:
            self.spend(data.length)
            return self.source.read(*data)
        if type(data) is Call and data.name.name in ("encode", "bytes"):
            return self.old_bytes(data.args)
        raise FormatError(f"wanted bytes, found {found(data)}")

    def old_bytes(self, args: tuple[Any, ...]) -> bytes:
        """Undo what protocols before 3 make of a byte string: a text, or nothing."""
        if not args:
            return b""
        try:
            if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
                self.spend(len(args[0]))
                return args[0].encode("latin1")
        except UnicodeEncodeError:
            pass
        raise FormatError("wanted bytes made from a text, found something else")

    def state_of(self, item: Any) -> dict[str, Any]:
        """Give the attributes of an object, or the items of a dict, that have texts as keys."""
        pairs = (item.state.pairs if type(item.state) is Pairs else []) if type(item) is Call else item.pairs
        self.spend(len(pairs))
        return {key: value for key, value in pairs if type(key) is str}

    def texts_of(self, item: Any) -> set[str]:
        """Give the texts in a set."""
        items: Any = []
        if type(item) is Unordered:
            items = item.items
        elif type(item) is Call and item.name.name == "set" and len(item.args) == 1 and type(item.args[0]) is list:
            items = item.args[0]
        self.spend(len(items))
        return {text for text in items if type(text) is str}

    # ---- containers ----

    def list_(self, item: list[Any]) -> list[Any]:
        return self.each(count(), item)

    def tuple_(self, item: tuple[Any, ...]) -> Any:
        return {"tuple": self.each(count(), item)}

    def elements(self, tag: str, items: Collection[Any]) -> Any:
        return {tag: self.each(repeat(ELEMENT), items)}

    def unordered(self, item: Unordered) -> Any:
        return self.elements("frozenset" if item.frozen else "set", item.items)

    def dict_(self, item: Pairs) -> Any:
        return self.pairs("dict", item.pairs)

    def pairs(self, tag: str, pairs: list[tuple[Any, Any]]) -> Any:
        keys = [key for key, _ in pairs]
        records = self.each(repeat(KEY), keys)
        for key in keys:
            if not is_hashable(key, KEYS):
                raise FormatError(f"wanted {WANTED[KEYS]}, found {found(key)}")
        values = self.each(keys, [value for _, value in pairs])
        return {tag: [[key, value] for key, value in zip(records, values, strict=True)]}

    # ---- what would be called ----

    def call(self, item: Call) -> Any:
        meaning = self.meanings.get(item.name[:2])
        if meaning is None:
            raise FormatError(f"{item.name.module}.{item.name.name} cannot be made that way by any pickler")
        return meaning(self, item)

    def ordered(self, item: Call) -> Any:
        if item.args:
            raise FormatError("wanted an OrderedDict that is filled later, found one that is made from something")
        record = self.pairs("OrderedDict", item.pairs)
        if item.state is None:
            return record
        state = self.state_of(item)
        if state.keys() != {"_metadata"}:
            raise UnsupportedError("an OrderedDict with attributes cannot be given; save them beside it")
        return record | {"_metadata": self.each([METADATA], state.values())[0]}

    def counter(self, item: Call) -> Any:
        if item.pairs or len(item.args) != 1 or type(item.args[0]) is not Pairs:
            raise FormatError("wanted a Counter made from a dict, found something else")
        return self.pairs("Counter", item.args[0].pairs)

    def set_(self, item: Call) -> Any:
        if len(item.args) != 1 or type(item.args[0]) is not list:
            raise FormatError(f"wanted a {item.name.name} made from a list, found something else")
        return self.elements(item.name.name, item.args[0])

    def complex_(self, item: Call) -> Any:
        if len(item.args) != 2 or not all(type(part) is float for part in item.args):
            raise FormatError("wanted a complex number made from two floats, found something else")
        return ENCODERS[complex](complex(*item.args))

    def bytearray_(self, item: Call) -> Any:
        data = self.bytes_of(item.args[0]) if len(item.args) == 1 else self.old_bytes(item.args)
        return {"bytearray": to_base64(data)}

    def encoded(self, item: Call) -> Any:
        return {"bytes": to_base64(self.bytes_of(item))}

    # ---- numpy's ----

    def leaf(self, item: Call, place: Place, **more: str) -> Any:
        """Name a tensor after where it stands."""
        name = self.names.give(self.parts)
        if isinstance(place, Array):
            place = place._replace(number=self.numbers.setdefault(id(item), len(self.numbers)))
        self.spend(len(name))
        self.tensors[name] = place
        return {"tensor": name, **more}

    def ndarray(self, item: Call) -> Any:
        return self.leaf(item, picklearrays.array(item), **{"as": "numpy"})

    def scalar(self, item: Call) -> Any:
        kind, data = item.args if len(item.args) == 2 else (None, None)
        dtype = picklearrays.dtype(kind)
        if type(data) is not Span or data.length != dtype.itemsize:
            raise FormatError(f"wanted a {dtype.name} of {dtype.itemsize} bytes, found something else")
        return {"numpy.scalar": [dtype.name, self.bytes_of(data).hex()]}

    def dtype(self, item: Call) -> Any:
        return {"numpy.dtype": picklearrays.dtype(item).name}


_BUILTINS: dict[str, Meaning] = {
    "set": PickleReader.set_,
    "frozenset": PickleReader.set_,
    "complex": PickleReader.complex_,
    "bytes": PickleReader.encoded,
    "bytearray": PickleReader.bytearray_,
}
PickleReader.meanings = {
    ("collections", "OrderedDict"): PickleReader.ordered,
    ("collections", "Counter"): PickleReader.counter,
    **{(module, name): do for module in ("builtins", "__builtin__") for name, do in _BUILTINS.items()},
    ("_codecs", "encode"): PickleReader.encoded,
    **dict.fromkeys(ARRAYS, PickleReader.ndarray),
    **{(f"numpy.{core}.multiarray", "scalar"): PickleReader.scalar for core in ("core", "_core")},
    ("numpy", "dtype"): PickleReader.dtype,
}
_WRITES: dict[type, Callable[[PickleReader, Any], Any]] = {
    list: PickleReader.list_,
    tuple: PickleReader.tuple_,
    Pairs: PickleReader.dict_,
    Unordered: PickleReader.unordered,
    Call: lambda reader, item: reader.call(item),
}
