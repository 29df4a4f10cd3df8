"""The words for what stands in a snapshot: names, tensors, values, and lists that are too long to be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastckpt.contents import Entry
from fastckpt.errors import printable
from fastckpt.outline import Described, Node, Tensor
from fastckpt.places import METADATA, Step

__all__ = ["folded", "human", "label", "node_text", "plural", "printable", "safe", "tensor_text"]

_LONG = 60  # characters of a text or of a list on one line
_SHORT = 40  # characters shown of a text that is longer than that
_MANY = 10  # items of a list
_FEW = 8  # items shown of a list that has more than that
_NUMBER = re.compile(r"-?\.?[0-9]")
_BRACKETS = {"list": ("[", "]"), "tuple": ("(", ")"), "set": ("{", "}"), "frozenset": ("frozenset({", "})")}


def safe(name: str) -> str:
    """Give a name as it is if that shows it fully, else as Python's repr."""
    if name.isprintable() and name == name.strip() and name and name[0] not in "'\"":
        return name
    return repr(name)


def label(part: Any) -> str:
    """Show what leads to a node: a text key as it is unless it could be taken for another key."""
    if type(part) is str:
        return repr(part) if part in ("True", "False", "None") or _NUMBER.match(part) else safe(part)
    return safe(part) if type(part) is Step else _leaf_text(part, True)


def human(nbytes: int) -> str:
    """Round bytes for people."""
    size, unit = float(nbytes), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{nbytes:,} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """Count things."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def tensor_text(entry: Entry) -> str:
    """Say dtype, shape and tie."""
    tie = "" if entry.meta.same_as is None else f", tied to {safe(entry.meta.same_as)}"
    return f"{entry.meta.dtype.name}{list(entry.meta.shape)}{tie}"


def node_text(node: Node, full: bool = False) -> str:
    """Say in a line what stands at a node, shortened unless it shall be full."""
    if isinstance(node.value, Tensor):
        return tensor_text(node.value.entry)
    if node.children is None:
        return _leaf_text(node.value, full)
    if node.value is None:
        tensors = [below.value.entry for below in node.walk() if isinstance(below.value, Tensor)]
        return f"{plural(len(tensors), 'tensor')}, {human(sum(entry.meta.nbytes for entry in tensors))}"
    return f"{safe(node.value)} of {sum(child.part is not METADATA for child in node.children):,}"


def folded(node: Node, full: bool) -> tuple[str, Sequence[Node], int]:
    """Give the text for a node, the children that are to be shown below it, and how many are not."""
    text, children = node_text(node, full), node.children or ()
    if node.part is METADATA and not full:
        return f"{text}, shown by --full", (), 0
    if node.children is None or node.value not in _BRACKETS:
        return text, children, 0
    shown = children if full or len(children) <= _MANY else children[:_FEW]
    line = _on_one_line(node, shown, full)
    if line is not None:
        return line, (), 0
    return text, shown, len(children) - len(shown)


def _on_one_line(node: Node, shown: Sequence[Node], full: bool) -> str | None:
    if any(child.children is not None or isinstance(child.value, Tensor) for child in shown):
        return None
    first, last = _BRACKETS[node.value]
    hidden = len(node.children or ()) - len(shown)
    text = ", ".join(node_text(child, full) for child in shown)
    comma = "," if node.value == "tuple" and len(shown) == 1 else ""
    return f"{first}{text}{comma}{f', … {hidden:,} more' if hidden else ''}{last}" if len(text) <= _LONG else None


def _leaf_text(value: Any, full: bool) -> str:
    if isinstance(value, Described):
        return _cut(printable(value), full)
    if isinstance(value, (str, bytes, bytearray)) and len(value) > _LONG and not full:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:_SHORT]!r}… ({len(value):,} {unit})"
    if isinstance(value, int) and abs(value) >= 2**64:
        return _cut(hex(value), full)  # in decimal it could take Python minutes
    if isinstance(value, np.generic):
        return f"numpy.{type(value).__name__}({value})"
    return _cut(repr(value), full)


def _cut(text: str, full: bool) -> str:
    return text if full or len(text) <= 2 * _LONG else f"{text[:_LONG]}… ({len(text):,} characters)"
