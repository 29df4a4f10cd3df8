"""A nested object taken apart into its tensors and a record of everything else, and put together again.

The record is JSON. None, booleans, texts, numbers and lists stand for themselves; everything else is an object with one
tag, ``{"tuple": [1, 2]}``. Objects are taken by their exact type, and everything is looked at before anything is
written. Reading a record runs nothing and imports nothing: the worst that a hostile one can do is to be refused.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fastckpt.classes import FindClass, find_class
from fastckpt.decoding import Describer, Reader
from fastckpt.encoding import Kinds, Leaf, Writer
from fastckpt.errors import CorruptError
from fastckpt.layout import DONE
from fastckpt.places import located
from fastckpt.texts import is_stable

__all__ = ["Kinds", "Leaf", "describe", "find_class", "flatten", "is_flat", "refill", "unflatten"]


def is_flat(obj: object, kinds: Kinds) -> bool:
    """Whether the object is a dict of tensors under text keys, so that the metas say everything but its own type.

    Parameters
    ----------
    obj : object
        Any object.
    kinds : Kinds
        Tells which objects are tensors.

    Returns
    -------
    bool
        True for an empty dict too; False where a key is a text that JSON cannot give back as it is.
    """
    if type(obj) is not dict and type(obj) is not OrderedDict:
        return False
    one_a_type = {type(value): value for value in obj.values()}
    return all(type(key) is str and is_stable(key) for key in obj) and all(map(kinds.is_leaf, one_a_type.values()))


def flatten(obj: object, kinds: Kinds) -> tuple[list[Leaf], Any]:
    """Take an object apart.

    Parameters
    ----------
    obj : object
        A tensor, or dicts, lists, tuples and sets of plain values and tensors, at most 200 within each other.
    kinds : Kinds
        Tells which objects are tensors.

    Returns
    -------
    leaves : list of Leaf
        The tensors in the order in which they stand in the object; one that stands there twice is listed twice.
    record : JSON
        Everything else.

    Raises
    ------
    UnsupportedError
        Something in the object cannot be stored; the message says where and what to do.
    """
    writer = Writer(obj, kinds)
    with located(writer):
        record = writer.value(obj)
    return writer.leaves, record


def unflatten(
    record: Any,
    leaf: Callable[[str, str], Any],
    unpack: Callable[[str, Any], Any],
    *,
    find_class: FindClass = find_class,
    where: str = DONE,
) -> Any:
    """Put an object together again.

    Parameters
    ----------
    record : JSON
        What `flatten` gave, from anywhere: it is checked.
    leaf : callable
        Gives the tensor of a name and a framework (``"torch"`` or ``"numpy"``).
    unpack : callable
        ``Kinds.unpack``.
    find_class : callable
        Gives the class of a module's name and a qualified name, or None.
    where : str
        File that holds the record, shown in errors.

    Returns
    -------
    object
        Equal to the object that was taken apart, all types included.

    Raises
    ------
    FormatError
        The record is malformed, or names an enum that the program does not have.
    UnsupportedError
        The record is right, but this program cannot give the value back.
    """
    reader = Reader(leaf, unpack, find_class)
    with located(reader, f"{where}: "):
        return reader.value(record)


def refill(container: Any, items: dict[str, Any], unpack: Callable[[str, Any], Any], *, where: str) -> Any:
    """Put the tensors of a flat object back into the kind of dict that it was.

    Parameters
    ----------
    container : JSON
        The record of it, without the tensors; None for a plain dict. From anywhere: it is checked.
    items : dict of str to object
        The tensors, in order.
    unpack : callable
        ``Kinds.unpack``.
    where : str
        File that holds the record, shown in errors.

    Returns
    -------
    dict
        `items` itself for a plain dict.

    Raises
    ------
    CorruptError
        The record is of something else.
    FormatError, UnsupportedError
        As `unflatten`.
    """
    if container is None:
        return items
    made = unflatten(container, lambda key, _: items.get(key), unpack, where=where)
    if not isinstance(made, dict) or made:
        raise CorruptError(f"{where}: the container of a flat snapshot must be an empty dict, not {made!r:.80}")
    made.update(items)
    return made


def describe(record: Any, leaf: Callable[[str, str], Any], *, where: str = DONE) -> Any:
    """Like `unflatten`, for showing: needs no class and no framework, and gives text for what would need one.

    Parameters
    ----------
    record : JSON
        What `flatten` gave.
    leaf : callable
        Gives what to show for the tensor of a name and a framework.
    where : str
        File that holds the record, shown in errors.

    Returns
    -------
    object
        Containers as they were, a named tuple as an equal one of the same fields; an enum member as
        ``"module.Class.MEMBER"``, a moment as ISO text, a value of a framework as ``"tag(JSON)"``.
    """
    reader = Describer(leaf, lambda tag, data: f"{tag}({json.dumps(data)})", lambda *_: None)
    with located(reader, f"{where}: "):
        return reader.value(record)
