"""How the command line shows things: tables and trees on a terminal, lines with tabs to everybody else.

Names come from anywhere, so whatever a terminal could take for a command is shown as Python's repr, and nothing is ever
read as rich's markup.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, NamedTuple, TypeAlias

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from fastckpt.comparing import Distance
from fastckpt.diffing import Difference, TensorDifference, ValueDifference
from fastckpt.errors import CheckpointError
from fastckpt.meta import Meta
from fastckpt.nodetext import folded, label, node_text, plural, printable, safe, tensor_text
from fastckpt.outline import Node, Tensor

__all__ = ["Column", "complain", "print_difference", "print_json", "print_table", "print_tree", "reason", "watched"]

_PATIENCE = 0.5  # seconds that work may take without a progress bar

_LARGEST = ("max |b-a|", "relative")

Watch: TypeAlias = Callable[[int, int], None]


class Column(NamedTuple):
    """Column of a table."""

    title: str
    style: str = ""
    right: bool = False


def complain(text: str) -> None:
    """Say on stderr what is wrong."""
    click.echo(f"fastckpt: {printable(text)}", err=True)


def reason(problem: Exception) -> str:
    """Say what the system refused as other tools do, without Python's brackets."""
    if isinstance(problem, OSError) and problem.filename is not None and not isinstance(problem, CheckpointError):
        return f"{os.fsdecode(problem.filename)}: {problem.strerror}"
    return str(problem)


def print_json(document: Any) -> None:
    """Print a document: on one line, but for people in several."""
    click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None, allow_nan=False))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], summary: str) -> None:
    """Print rows: as a table and a summary on a terminal, else the bare cells with tabs between them."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(map(_bare, row)))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    used = [at for at, column in enumerate(columns) if any(row[at] not in (None, "") for row in rows)]
    for at in used:
        title, style, right = columns[at]
        table.add_column(title, style=style, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell := row[at], Text) else Text(_fair(cell)) for at in used))
    console = _console()
    if rows:
        console.print(table)
    console.print(Text(summary))


def print_tree(top: Node, title: str, full: bool) -> None:
    """Print what an object holds: as a tree on a terminal, else one line a place, path and value."""
    if not sys.stdout.isatty():
        for line in _lines(top, full):
            click.echo(line)
        return
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    _grow(tree, top, full)
    _console().print(tree)


def print_difference(found: Difference) -> None:
    """Print what differs: what it means on a terminal, all numbers in a pipe, where no difference is no line."""
    rows: list[tuple[Any, ...]]
    if not sys.stdout.isatty():
        rows = [*map(_tensor_fields, found.tensors), *map(_value_fields, found.values)]
        print_table((), rows, "")
        return
    columns = (Column("change"), Column("name"), Column("what"), *(Column(title, right=True) for title in _LARGEST))
    rows = [*map(_tensor_row, found.tensors), *map(_value_row, found.values)]
    print_table((*columns, Column("NaNs")), rows, _summary(found))


@contextmanager
def watched(what: str) -> Iterator[Watch]:
    """Give what shows progress in bytes: a bar on a terminal once work turns out to be long, nothing elsewhere."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)
    shown, began = sys.stdout.isatty() and sys.stderr.isatty(), time.monotonic()

    def watch(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if shown and not bar.live.is_started and time.monotonic() - began > _PATIENCE:
            bar.start()

    try:
        yield watch
    finally:
        if bar.live.is_started:
            bar.stop()


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _bare(value: Any) -> str:
    """A cell for programs: numbers in full and without separators, nothing with a space that needs none."""
    if isinstance(value, list):
        return str(value).replace(" ", "")
    return "" if value is None else str(value)


def _fair(value: Any) -> str:
    """A cell for people."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else _bare(value)


def _tensor_fields(found: TensorDifference) -> tuple[Any, ...]:
    before, after = (None if entry is None else tensor_text(entry) for entry in (found.before, found.after))
    numbers = () if found.distance is None else astuple(found.distance)
    return found.change, safe(found.name), before, after, *numbers


def _value_fields(found: ValueDifference) -> tuple[Any, ...]:
    before, after = (None if node is None else node_text(node, full=True) for node in (found.before, found.after))
    return "value", safe(found.path), before, after


def _tensor_row(found: TensorDifference) -> tuple[Any, ...]:
    distance = found.distance or Distance()
    nans = (
        (distance.nan_appeared, "appeared"),
        (distance.nan_vanished, "vanished"),
        (distance.nan_rewritten, "changed"),
    )
    told = ", ".join(f"{count:,} {how}" for count, how in nans if count)
    return _styled(found.change), safe(found.name), _what_changed(found), distance.max_abs, distance.max_rel, told


def _value_row(found: ValueDifference) -> tuple[Any, ...]:
    before, after = (None if node is None else node_text(node) for node in (found.before, found.after))
    what = before if after is None else after if before is None else f"{before} → {after}"
    return _styled("value" if found.change == "changed" else found.change), safe(found.path), what, None, None, None


def _what_changed(found: TensorDifference) -> str:
    """Say what differs between two tensors, but not by how much."""
    if found.before is None or found.after is None:
        return "".join(tensor_text(entry) for entry in (found.before, found.after) if entry is not None)
    before, after, distance = found.before.meta, found.after.meta, found.distance
    told = []
    if before.dtype != after.dtype:
        told.append(f"{before.dtype.name} → {after.dtype.name}")
    if before.shape != after.shape:
        told.append(f"{list(before.shape)} → {list(after.shape)}")
    if distance is not None and distance.differing:
        told.append(f"{distance.differing:,} of {before.size:,}")
    if before.same_as != after.same_as:
        told.append(f"tied to {_tie(before)} → {_tie(after)}")
    return ", ".join(told)


def _tie(meta: Meta) -> str:
    return "none" if meta.same_as is None else safe(meta.same_as)


def _styled(change: str) -> Text:
    return Text(change, style={"added": "green", "removed": "red"}.get(change, "yellow"))


def _summary(found: Difference) -> str:
    if not found:
        return f"the same: {plural(found.equal, 'tensor')} and all else"
    values = f", {plural(len(found.values), 'other value')}" if found.values else ""
    return f"different: {plural(len(found.tensors), 'tensor')}{values}; the same: {plural(found.equal, 'tensor')}"


def _lines(node: Node, full: bool) -> Iterator[str]:
    text, children, hidden = folded(node, full)
    if node.value is not None or node.children is None:
        yield f"{safe(node.path)}\t{text}"
    for child in children:
        yield from _lines(child, full)
    if hidden:
        yield f"{safe(node.path)}\t… {hidden} more"


def _grow(branch: Tree, node: Node, full: bool) -> None:
    _, children, hidden = folded(node, full)
    for child in children:
        _grow(branch.add(_twig(child, full)), child, full)
    if hidden:
        branch.add(Text(f"… {hidden:,} more, shown by --full", style="dim"))


def _twig(node: Node, full: bool) -> Text:
    text = folded(node, full)[0]
    style = "cyan" if isinstance(node.value, Tensor) else "dim" if node.children else "green"
    return Text.assemble((label(node.part), "bold"), "  " if text else "", (text, style))
