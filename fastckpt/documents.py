"""What the command line says to programs: the JSON documents, whose keys its help tells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fastckpt.contents import Entry
from fastckpt.diffing import Difference, TensorDifference, ValueDifference
from fastckpt.doctor import Examination, therefore
from fastckpt.filesystems import FileSystem
from fastckpt.nodetext import node_text
from fastckpt.probing import Refused
from fastckpt.problems import Problem
from fastckpt.salvaged import Salvage
from fastckpt.verifying import Report

__all__ = ["SECTIONS", "difference", "examination", "facts", "listing", "problem", "report", "salvage", "totals"]

SECTIONS = ("machine", "folder", "speed", "software")

_NOT_COMPARED = dict.fromkeys(("differing", "max_abs", "max_rel", "nan_appeared", "nan_vanished", "nan_rewritten"))


def listing(entries: Sequence[Entry]) -> dict[str, Any]:
    """Tensors and their totals."""
    return {"tensors": [_tensor(entry) for entry in entries], "totals": totals(entries)}


def totals(entries: Sequence[Entry]) -> dict[str, int]:
    """Count tensors, and the elements and bytes of what is not tied to something counted already."""
    blobs = {entry.blob: entry.meta for entry in entries}.values()
    return {
        "tensors": len(entries),
        "elements": sum(meta.size for meta in blobs),
        "bytes": sum(meta.nbytes for meta in blobs),
    }


def report(found: Report) -> dict[str, Any]:
    """What `verify` found in one snapshot."""
    return {
        "path": found.path,
        "ok": found.ok,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "digests": found.digests,
        "problems": [*map(problem, found.problems)],
    }


def problem(found: Problem) -> dict[str, str]:
    """One thing that is wrong."""
    return {"file": found.file, "what": found.what, "remedy": found.remedy}


def salvage(found: Salvage) -> dict[str, Any]:
    """What `salvage` took out of a snapshot, and what not."""
    return {
        "path": found.path,
        "complete": found.complete,
        "intact": [*found.tensors],
        "unchecked": [*found.unchecked],
        "lost": [{"name": name, **problem(why)} for name, why in found.lost.items()],
        "problems": [*map(problem, found.problems)],
    }


def difference(found: Difference) -> dict[str, Any]:
    """What `diff` found."""
    return {
        "same": not found,
        "equal": found.equal,
        "tensors": [_tensor_difference(tensor) for tensor in found.tensors],
        "values": [_value_difference(value) for value in found.values],
    }


def examination(found: Examination) -> dict[str, Any]:
    """What `doctor` found; a fact that is not known is null, and `reasons` tells why."""
    known: dict[str, Any] = {section: getattr(found, section) and {} for section in SECTIONS}
    reasons: dict[str, str] = {}
    for section, name, value in facts(found):
        known[section][name] = None if isinstance(value, Refused) else value
        if isinstance(value, Refused):
            reasons[f"{section}.{name}"] = value.reason
    return {**known, "reasons": reasons, "therefore": therefore(found)}


def facts(found: Examination) -> Iterator[tuple[str, str, Any]]:
    """Section, name and value of every fact; three for the file system."""
    for section in SECTIONS:
        part = getattr(found, section)
        for name, value in vars(part).items() if part else ():
            yield section, name, value.name if isinstance(value, FileSystem) else value
            if isinstance(value, FileSystem):
                yield section, "remote", value.remote
                yield section, "in_memory", value.in_memory


def _tensor(entry: Entry) -> dict[str, Any]:
    meta = entry.meta
    return {
        "name": entry.key,
        "shape": [*meta.shape],
        "dtype": meta.dtype.name,
        "bytes": meta.nbytes,
        "place": meta.place,
        "tied_to": meta.same_as,
        "digest": meta.digest,
        "folder": entry.folder,
    }


def _tensor_difference(found: TensorDifference) -> dict[str, Any]:
    distance = found.distance
    measured = {name: _number(getattr(distance, name)) for name in _NOT_COMPARED} if distance else _NOT_COMPARED
    return {
        "name": found.name,
        "change": found.change,
        "before": found.before and _tensor(found.before),
        "after": found.after and _tensor(found.after),
        **measured,
    }


def _value_difference(found: ValueDifference) -> dict[str, Any]:
    before, after = (node and node_text(node, full=True) for node in (found.before, found.after))
    return {"path": found.path, "change": found.change, "before": before, "after": after}


def _number(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "Infinity" if value is not None and math.isinf(value) else value
