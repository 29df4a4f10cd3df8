"""Every state that a crash may leave: at each moment, what is durable and any part of what is not.

A state is a set of operations, kept as the bits of a number, and at most one write of them damaged: zeros or old
blocks instead of it, its first or last half, or every other block of it. Where too much is pending for all subsets, the
regular ones are taken (what came first, what came last, all but one or two, only one) and as many by chance as asked
for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from faults.disk_model import Inode, Model, Op

__all__ = ["HARMS", "Moment", "Order", "State", "Trees", "moments", "states"]

Order = Literal["weak", "ordered"]
_BLOCK = 4096
HARMS = ("zeros", "garbage", "short", "head lost", "tail lost", "every other block")
_ALL_SUBSETS = 12  # pending operations of which all subsets are taken
_PAIRS = 28  # and of which all but any two are


class Moment(NamedTuple):
    """One moment at which the power may go: what is durable then, what is pending, how many marks were left."""

    durable: int
    pending: tuple[Op, ...]
    marks: int


class State(NamedTuple):
    """Operations that reached the disk, and the damaged one among them."""

    ops: int
    harmed: tuple[int, str] | None
    marks: int


def moments(model: Model) -> list[Moment]:
    """Give the moments that differ: behind the beginning of a change, a sync, or a mark."""
    times = {0.0, model.end, *(op.began for op in model.ops), *model.syncs, *(at for at, _, _ in model.marks)}
    found: dict[Moment, None] = {}
    for time in sorted(times):
        issued = [op for op in model.ops if op.began <= time]
        durable = sum(1 << op.bit for op in issued if op.durable <= time)
        pending = tuple(op for op in issued if op.durable > time)
        found[Moment(durable, pending, sum(at <= time for at, _, _ in model.marks))] = None
    return list(found)


def states(model: Model, *, samples: int, order: Order = "weak", seed: int = 1) -> Iterator[State]:
    """Give the states of a model, each once for each number of marks.

    Parameters
    ----------
    model : Model
        What was done.
    samples : int
        Subsets by chance, at each moment that has too many for all.
    order : {"weak", "ordered"}
        ``"ordered"``: names change in the order in which they were changed, as a journal has it; fewer states.
    seed : int
        Of the chance.
    """
    chance = random.Random(seed)
    seen: set[State] = set()
    for moment in moments(model):
        subsets = _ordered(moment.pending) if order == "ordered" else _subsets(moment.pending, samples, chance)
        for ops in subsets:
            state = State(moment.durable | ops, None, moment.marks)
            if state not in seen:
                seen.add(state)
                yield state
        for state in _harmed(moment, samples if order == "weak" else 0, chance):
            if state not in seen:
                seen.add(state)
                yield state


def _subsets(pending: tuple[Op, ...], samples: int, chance: random.Random) -> Iterator[int]:
    bits = [1 << op.bit for op in pending]
    if len(bits) <= _ALL_SUBSETS:
        for count in range(len(bits) + 1):
            yield from map(sum, itertools.combinations(bits, count))
        return
    everything = sum(bits)
    for at in range(len(bits) + 1):
        yield sum(bits[:at])
        yield sum(bits[at:])
    for bit in bits:
        yield everything - bit
        yield bit
    if len(bits) <= _PAIRS:
        for one, other in itertools.combinations(bits, 2):
            yield everything - one - other
    for _ in range(samples):
        share = chance.choice((0.1, 0.3, 0.5, 0.7, 0.9, 0.97))
        yield sum(bit for bit in bits if chance.random() < share)


def _ordered(pending: tuple[Op, ...]) -> Iterator[int]:
    names = [1 << op.bit for op in pending if op.inode is None]
    content = [1 << op.bit for op in pending if op.inode is not None]
    for at in range(len(names) + 1):
        yield sum(names[:at])
        yield sum(names[:at]) + sum(content)
        for bit in content:
            yield sum(names[:at]) + sum(content) - bit


def _harmed(moment: Moment, samples: int, chance: random.Random) -> Iterator[State]:
    """Each pending write damaged in each way: with all else, with all names and no other write; and some by chance."""
    everything = sum(1 << op.bit for op in moment.pending)
    names = sum(1 << op.bit for op in moment.pending if op.inode is None)
    writes = [op for op in moment.pending if op.data]
    for op in writes:
        for how in HARMS:
            yield State(moment.durable | everything, (op.bit, how), moment.marks)
            yield State(moment.durable | names | 1 << op.bit, (op.bit, how), moment.marks)
    for _ in range(samples if writes else 0):
        op = chance.choice(writes)
        some = sum(1 << other.bit for other in moment.pending if chance.random() < 0.7)
        yield State(moment.durable | some | 1 << op.bit, (op.bit, chance.choice(HARMS)), moment.marks)


def harmed(data: bytes, how: str) -> bytes:
    """What a write left on the disk that did not get there whole."""
    half = len(data) // 2
    if how == "zeros":
        return bytes(len(data))
    if how == "garbage":
        return b"\xa5" * len(data)
    if how == "short":
        return data[:half]
    if how == "head lost":
        return bytes(half) + data[half:]
    if how == "tail lost":
        return data[:half] + bytes(len(data) - half)
    assert how == "every other block", how
    blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
    return b"".join(bytes(len(block)) if at % 2 else block for at, block in enumerate(blocks))


@dataclass
class Trees:
    """The folder that a state is: path to content, None for a folder.

    Equal contents are one object, so that trees compare quickly.
    """

    model: Model
    _contents: dict[bytes, bytes] = field(default_factory=dict)
    _files: dict[tuple[int, int, tuple[int, str] | None], bytes] = field(default_factory=dict)
    _folders: dict[tuple[int, int], dict[str, Inode]] = field(default_factory=dict)

    def of(self, state: State) -> dict[str, bytes | None]:
        tree: dict[str, bytes | None] = {}
        self._add(self.model.root, "", state, tree)
        return tree

    def named(self, state: State) -> dict[str, Inode]:
        """What the names at the top lead to."""
        return self._names(self.model.root, state.ops)

    def _add(self, folder: Inode, below: str, state: State, tree: dict[str, bytes | None]) -> None:
        for name, inode in self._names(folder, state.ops).items():
            path = below + name
            if inode.kind == "d":
                tree[path] = None
                self._add(inode, path + "/", state, tree)
            else:
                tree[path] = self._content(inode, state)

    def _names(self, folder: Inode, ops: int) -> dict[str, Inode]:
        key = id(folder), ops & folder.mine
        names = self._folders.get(key)
        if names is None:
            names = dict(folder.before)
            for op in self.model.ops:
                if ops >> op.bit & 1:
                    for changed, name, inode in op.changes:
                        if changed is folder and inode is not None:
                            names[name] = inode
                        elif changed is folder:
                            names.pop(name, None)
            self._folders[key] = names
        return names

    def _content(self, file: Inode, state: State) -> bytes:
        hit = state.harmed if state.harmed is not None and file.mine >> state.harmed[0] & 1 else None
        key = id(file), state.ops & file.mine, hit
        content = self._files.get(key)
        if content is None:
            made = self._make(file, state.ops, hit)
            content = self._files[key] = self._contents.setdefault(made, made)
        return content

    def _make(self, file: Inode, ops: int, hit: tuple[int, str] | None) -> bytes:
        content = bytearray(file.data)
        for op in self.model.ops:
            if op.inode is not file or not ops >> op.bit & 1:
                continue
            if op.data is None:
                content = content[: op.at] + bytes(max(0, op.at - len(content)))
                continue
            data = harmed(op.data, hit[1]) if hit is not None and hit[0] == op.bit else op.data
            content += bytes(max(0, op.at - len(content)))
            content[op.at : op.at + len(data)] = data
        return bytes(content)
