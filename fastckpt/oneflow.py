"""What OneFlow 0.6 and later pickled, as a record of ours and the places of its tensors. Pure.

    {"protocol_version": 1, "__oneflow__": None, "data": object}

A tensor is its class and ``{"path": folder}``, or ``{"data": array, "dtype": …}`` where one file holds everything. Of a
module of OneFlow's own its state dict is given; ``_metadata`` tells the class of every submodule.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from fastckpt import picklearrays
from fastckpt.dtypes import BY_NUMBER, DType
from fastckpt.errors import FormatError
from fastckpt.layout import NAME_LIMIT
from fastckpt.picklenodes import Call, Name, Pairs
from fastckpt.pickles import read_pickle
from fastckpt.pickletext import Source
from fastckpt.picklevalues import ARRAYS, Meaning, PickleReader, Place
from fastckpt.places import DEPTH, Names, located
from fastckpt.texts import found, is_stable

__all__ = ["MAGIC", "Saved", "is_known", "read_saved"]

VERSION = 1
MAGIC = b"__oneflow__"
_NO_FOLDERS = frozenset({"", ".", ".."})
_MODULES = ("oneflow.nn.modules.", "oneflow.nn.module.")
_DTYPES = (("oneflow._oneflow_internal", "dtype"), ("oneflow", "dtype"))


class Saved(NamedTuple):
    """What was saved.

    Attributes
    ----------
    record : JSON
        The object (`fastckpt.tree`).
    tensors : dict of str to str or Array
        Where each tensor of the record lies: in a folder, or in the pickle. A tie has one place twice.
    """

    record: Any
    tensors: dict[str, Place]

    @property
    def container(self) -> Any:
        """Record of the object without its items, where these are tensors under text keys and nothing else, so that the
        object is flat; else None."""
        tag = next(iter(self.record), None) if type(self.record) is dict else None
        if tag not in ("dict", "OrderedDict") or not self.tensors:
            return None
        pairs = self.record[tag]
        flat = [key for key, value in pairs if type(key) is str and value == {"tensor": key}]
        return {**self.record, tag: []} if len(flat) == len(pairs) == len(self.tensors) else None


def is_known(module: str, name: str) -> bool:
    """Tell whether a pickle may name this class or function."""
    return (module, name) in _Reader.meanings or (module, name) == ("numpy", "ndarray") or _is_module(module, name)


def read_saved(source: Source) -> Saved:
    """Read what ``oneflow.save`` pickled.

    Parameters
    ----------
    source : Source
        The bytes of the pickle.

    Raises
    ------
    FormatError
        It is no pickle of OneFlow's, malformed, or larger than it can be.
    UnsupportedError
        It holds something that cannot be given; the message says what, where, and what to do.
    """
    top = read_pickle(source, is_known)
    known = {key: value for key, value in top.pairs if type(key) is str} if type(top) is Pairs else {}
    version = known.get("protocol_version")
    if "data" not in known or type(version) is not int:
        raise FormatError(f"{source.where}: wanted a dict of protocol_version and data, as oneflow.save pickles it")
    if version != VERSION:
        raise FormatError(f"{source.where}: protocol_version {version}, this fastckpt reads {VERSION}; get a newer one")
    reader = _Reader(source)
    with located(reader, f"{source.where}: "):
        record = reader.all(known["data"])
    return Saved(record, reader.tensors)


def _is_module(module: str, name: str) -> bool:
    return f"{module}.".startswith(_MODULES) and "." not in name


class _Reader(PickleReader):
    """Knows what OneFlow's classes pickle."""

    meanings: ClassVar[dict[tuple[str, str], Meaning]]

    def all(self, top: Any) -> Any:
        """Record of the whole object."""
        whole = self.state_dict(top) if self.is_module(top) else top
        pairs = whole.pairs if type(whole) in (Pairs, Call) else []
        self.names = Names(key for key, _ in pairs if type(key) is str)
        return self.value(whole)

    def call(self, item: Call) -> Any:
        return self.value(self.state_dict(item)) if self.is_module(item) else super().call(item)

    # ---- tensors and small things ----

    def tensor(self, item: Call) -> Any:
        state = self.state_of(item)
        if "path" in state:
            return self.leaf(item, _folder(state["path"]))
        data = state.get("data")
        if type(data) is not Call or data.name[:2] not in ARRAYS:
            raise FormatError("wanted a tensor with a path, or with data and a dtype, found neither")
        array, stored = picklearrays.array(data), _dtype(state.get("dtype"))
        if array.dtype != stored and (array.dtype.name, stored.name) != ("float32", "bfloat16"):
            raise FormatError(f"wanted data of the tensor's dtype {stored.name}, found {array.dtype.name}")
        return self.leaf(item, array)

    def own_dtype(self, item: Call) -> Any:
        return f"oneflow.{_dtype(item).name}"

    def placement(self, item: Call) -> Any:
        if type(item.state) is not Pairs:
            raise FormatError("wanted a placement with its type and ranks, found something else")
        return self.value(item.state)

    # ---- modules ----

    def is_module(self, item: Any) -> bool:
        return type(item) is Call and item.name[:2] not in self.meanings and _is_module(*item.name[:2])

    def state_dict(self, module: Call) -> Call:
        """Make of a module the OrderedDict that its ``state_dict()`` is."""
        made, metadata = (Call(Name("collections", "OrderedDict", module.name.at), ()) for _ in range(2))
        self.gather(module, "", made.pairs, metadata.pairs)
        made.state = Pairs()
        made.state.pairs = [("_metadata", metadata)]
        return made

    def gather(self, module: Any, prefix: str, items: list[Any], classes: list[Any], depth: int = 0) -> None:
        """Collect parameters and buffers that are kept, then those of the modules within."""
        if depth > DEPTH or not self.is_module(module) or type(module.state) is not Pairs:
            raise FormatError(f"wanted a module of OneFlow at {found(prefix)}, found something else, or too deep a one")
        state = self.state_of(module)
        passing = self.texts_of(state.get("_non_persistent_buffers_set"))
        self.spend(len(prefix))
        about = Pairs()
        about.pairs = [("class", ".".join(module.name[:2]))]
        classes.append((prefix[:-1], about))
        for attribute in ("_parameters", "_buffers"):
            for key, value in self.inner(state, attribute).items():
                if value is not None and not (attribute == "_buffers" and key in passing):
                    items.append((prefix + key, value))
        for key, inner in self.inner(state, "_modules").items():
            if inner is not None:
                self.gather(inner, f"{prefix}{key}.", items, classes, depth + 1)

    def inner(self, state: dict[str, Any], attribute: str) -> dict[str, Any]:
        held = state.get(attribute)
        if type(held) is Call and held.name[:2] == ("collections", "OrderedDict"):
            plain = Pairs()
            plain.pairs = held.pairs
            held = plain
        return self.state_of(held) if type(held) is Pairs else {}


def _folder(path: Any) -> str:
    """Refuse whatever leads out of the folder of the snapshot, or deeper into it."""
    if type(path) is not str or path in _NO_FOLDERS or "/" in path or "\0" in path or not is_stable(path):
        raise FormatError(f"wanted the path of a tensor, the name of one folder, found {found(path)}")
    if len(path.encode("utf-8", "surrogatepass")) > NAME_LIMIT:
        raise FormatError(f"wanted the path of a tensor of at most {NAME_LIMIT} bytes, found {len(path)} characters")
    return path


def _dtype(item: Any) -> DType:
    """Give the element type that a pickled dtype of OneFlow stands for: a number."""
    number = item.state if type(item) is Call and item.name[:2] in _DTYPES else None
    if type(number) is not int or number not in BY_NUMBER:
        raise FormatError("wanted a dtype of OneFlow that a tensor can have, found something else")
    return BY_NUMBER[number]


_Reader.meanings = PickleReader.meanings | {
    ("oneflow", "Tensor"): _Reader.tensor,
    ("oneflow.nn", "Parameter"): _Reader.tensor,
    ("oneflow._oneflow_internal", "Tensor"): _Reader.tensor,
    ("oneflow._oneflow_internal.nn", "Parameter"): _Reader.tensor,
    **dict.fromkeys(_DTYPES, _Reader.own_dtype),
    ("oneflow._oneflow_internal", "placement"): _Reader.placement,
}
