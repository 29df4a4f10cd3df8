"""What a salvage gives, and how it becomes a snapshot again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastckpt import tree
from fastckpt.codec import KINDS
from fastckpt.errors import UnsupportedError
from fastckpt.plan import WritePlan
from fastckpt.problems import Problem
from fastckpt.saving import save, write_plan
from fastckpt.tree import Leaf

__all__ = ["Salvage"]


@dataclass(frozen=True, slots=True)
class Salvage:
    """What `salvage` took out of a snapshot.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    object : object
        The object that was saved, with None in the place of every tensor that is lost; where what it was is lost too,
        a flat dict of the tensors.
    tensors : dict
        Those that are intact, by their flat names, in saved order.
    lost : dict of str to Problem
        The others, as far as anything is known of them, by their flat names: why.
    unchecked : tuple of str
        Names of those `tensors` that have no digest: as many bytes as were saved, but nobody can say whether the same.
    problems : tuple of Problem
        All that is wrong with the snapshot, also what another copy made up for.
    complete : bool
        Nothing that was saved is missing here.
    record : tuple of JSON
        The record of a nested object, with null for what is lost; empty for a flat one.
    """

    path: str
    object: Any = field(repr=False)
    tensors: dict[str, Any] = field(repr=False)
    lost: dict[str, Problem]
    unchecked: tuple[str, ...]
    problems: tuple[Problem, ...]
    complete: bool
    record: tuple[Any, ...] = field(repr=False)

    def __bool__(self) -> bool:
        return self.complete

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what is intact as a new snapshot, which gets the names and the record of the old one.

        No class of the program is needed for it, which `object` may be.

        Parameters
        ----------
        path : str or os.PathLike
            Folder to create.

        Raises
        ------
        UnsupportedError
            Nothing is intact.
        OSError
            What the system refused; FileExistsError where there is something already.
        """
        if not self.record:
            if not self.tensors:
                raise UnsupportedError(f"{self.path}: nothing in it is intact; there is nothing to save")
            save(self.object, path, overwrite=False)
            return
        leaves = [Leaf(key, (key,), self.tensors[key], KINDS.framework(self.tensors[key])) for key in self._keys()]
        plan = WritePlan.of(leaves, self.record[0], flat=False, index=True)
        write_plan(plan, path, threads=None, overwrite=False, durable=True, digest=True)

    def _keys(self) -> Iterator[str]:
        """Give the names that the record has: a tensor without a place in the object cannot be saved with it."""
        named: dict[str, None] = {}
        tree.describe(self.record[0], lambda key, _: named.setdefault(key))
        return (key for key in self.tensors if key in named)
