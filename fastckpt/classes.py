"""Enums and named tuples: the two kinds of class that a record may name.

A record is data from anywhere, so a name in it must not make anything happen. A class is taken only from a module that
the program has loaded itself, and is looked up in the namespaces as they lie in memory: no import, no module
``__getattr__``, no metaclass, no ``__new__`` and no ``__hash__`` of a user is ever called.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from types import ModuleType, WrapperDescriptorType
from typing import Any, TypeAlias

from fastckpt.errors import FormatError, UnsupportedError

__all__ = [
    "FindClass",
    "encode_enum",
    "encode_named_tuple",
    "field_names",
    "find_class",
    "find_member",
    "has_own_hash",
    "named_tuple",
]

FindClass: TypeAlias = Callable[[str, str], "type | None"]

# Reading these through the object (``vars(cls)``, ``cls.__mro__``) would ask its metaclass or its ``__getattribute__``.
_MODULE_DICT: Any = vars(ModuleType)["__dict__"]
_CLASS_DICT: Any = vars(type)["__dict__"]
_CLASS_MRO: Any = vars(type)["__mro__"]


def find_class(module: str, qualname: str) -> type | None:
    """Look up a class without importing or calling anything.

    Parameters
    ----------
    module : str
        Name of the module, as in ``sys.modules``.
    qualname : str
        Name within the module, dotted for a class within a class.

    Returns
    -------
    type or None
        None when the module is not loaded or has no such class.
    """
    found: Any = sys.modules.get(module)
    if not issubclass(type(found), ModuleType):
        return None
    space: Mapping[str, Any] = _MODULE_DICT.__get__(found) or {}
    for name in qualname.split("."):
        found = space.get(name)
        if not issubclass(type(found), type):
            return None
        space = _CLASS_DICT.__get__(found)
    return found  # type: ignore[no-any-return]


def encode_enum(member: Enum) -> dict[str, list[str]]:
    """Record of an enum member: its class and its name; the value stays in the program."""
    cls, name = type(member), member._name_
    if _members(cls).get(name) is not member:
        raise UnsupportedError(f"{cls.__qualname__}: this member has no name of its own; store its value instead")
    if find_class(cls.__module__, cls.__qualname__) is not cls:
        raise UnsupportedError(
            f"{cls.__qualname__} is an enum that cannot be found again as {cls.__module__}.{cls.__qualname__}; "
            "define it at the top of a module, or store its value instead"
        )
    return {"enum": [cls.__module__, cls.__qualname__, name]}


def find_member(module: str, qualname: str, name: str, find: FindClass) -> Enum:
    """Give back the enum member that a record names."""
    cls = find(module, qualname)
    if cls is None or not issubclass(cls, Enum):
        raise FormatError(
            f"wanted the enum {module}.{qualname}, found no such class in the running program; "
            f"import {module} first, then load again"
        )
    member = _members(cls).get(name)
    if member is None:
        raise FormatError(f"wanted {module}.{qualname}.{name}, found no such member; was the enum changed since?")
    return member


def _members(cls: type) -> Mapping[str, Enum]:
    members: Mapping[str, Enum] = _CLASS_DICT.__get__(cls).get("_member_map_", {})
    return members


def has_own_hash(cls: type) -> bool:
    """Whether hashing or comparing instances would run code that Python itself did not bring (or is forbidden)."""
    methods = [_look_up(cls, "__hash__"), _look_up(cls, "__eq__")]
    return not all(method is Enum.__hash__ or type(method) is WrapperDescriptorType for method in methods)


def field_names(cls: type) -> tuple[str, ...] | None:
    """Fields of a named tuple class, None for any other class."""
    if not issubclass(cls, tuple) or issubclass(cls, Enum):
        return None
    fields = _look_up(cls, "_fields")
    if type(fields) is tuple and all(type(name) is str for name in fields):
        return fields
    return None


def encode_named_tuple(cls: type, fields: tuple[str, ...]) -> dict[str, list[str]]:
    """Record of a named tuple class, which another program must be able to imitate."""
    try:
        _stand_in(cls.__module__, cls.__qualname__, fields)
    except FormatError as error:
        raise UnsupportedError(f"{cls.__qualname__} is no usual named tuple; store a plain tuple instead") from error
    return {"namedtuple": [cls.__module__, cls.__qualname__], "fields": [*fields]}


def named_tuple(module: str, qualname: str, fields: tuple[str, ...], find: FindClass) -> type[tuple[Any, ...]]:
    """Class to give the named tuple of a record: its own if the program has it with these fields, else an equal one."""
    cls = find(module, qualname)
    if cls is not None and field_names(cls) == fields:
        return cls
    return _stand_in(module, qualname, fields)


@lru_cache(maxsize=256)
def _stand_in(module: str, qualname: str, fields: tuple[str, ...]) -> type[tuple[Any, ...]]:
    """Cached: a list of named tuples must come back with one class, and making it takes as long as 1,000 tuples."""
    try:
        # rename=True gives back the names like "_1" that an earlier rename=True gave; what it would change is refused.
        made = namedtuple(qualname.rpartition(".")[2], fields, rename=True, module=module)  # type: ignore[misc]
    except (ValueError, SyntaxError) as error:
        raise FormatError(
            "wanted the names of a named tuple and its fields, found what Python does not allow"
        ) from error
    if made._fields != fields:
        raise FormatError("wanted the fields of a named tuple, found names that Python does not allow")
    made.__qualname__ = qualname
    return made


def _look_up(cls: type, name: str) -> Any:
    """First ``name`` in the namespaces of the class and its bases."""
    spaces = (_CLASS_DICT.__get__(base) for base in _CLASS_MRO.__get__(cls))
    return next((space[name] for space in spaces if name in space), None)
