"""The benchmark on a terminal: a bar while it runs, tables when it is done; into a pipe lines with tabs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fastckpt.bench.bars import ABSENT
from fastckpt.bench.catalogue import INDEXED, KEPT, LIMIT, OURS
from fastckpt.bench.figures import BAR_HEADINGS, HEADINGS, OPS, bar_cells, figures, missing, verdicts
from fastckpt.rendering import Column, print_table

__all__ = ["print_document", "watched"]

_STYLES = {"pass": "green", "short": "bold red", "not measured": "dim"}
_SIDES = {OURS: "bold green", INDEXED: "green", LIMIT: "cyan", KEPT: "cyan"}


def print_document(document: Mapping[str, Any]) -> None:
    """Print everything: all figures, then what was promised; in a pipe one record a line."""
    terminal = sys.stdout.isatty()
    titles = {workload["name"]: workload["title"] for workload in document["workloads"]}
    for workload, op, found in figures(document):
        cells = [(workload, op, *figure.cells()) for figure in found]
        if terminal:
            title = Text(f"\n{titles[workload]}: {OPS[op]}", style="bold")
            Console(highlight=False).print(title)
            styles = [_SIDES.get(figure.side, "") for figure in found]
            rows = [(Text(row[2], style=style), *row[3:]) for row, style in zip(cells, styles, strict=True)]
            print_table([Column(name, right=at > 0) for at, name in enumerate(HEADINGS)], rows, "")
        else:
            print_table((), cells, "")
    _print_bars(
        document, terminal, "" if document["size"] == "full" else f" (of the full sizes; this is {document['size']})"
    )
    for line in missing(document):
        click.echo(f"not measured: {line}")


def _print_bars(document: Mapping[str, Any], terminal: bool, of_size: str) -> None:
    rows, summary = verdicts(document)
    cells: list[tuple[Any, ...]] = [("bar", *bar_cells(row)) for row in rows]
    if terminal:
        Console(highlight=False).print(Text(f"\nWhat was promised{of_size}", style="bold"))
        measured = (row for row, of in zip(cells, rows, strict=True) if of.why != ABSENT or of.got is not None)
        cells = [(*row[1:-1], Text(row[-1], style=_STYLES[row[-1]])) for row in measured]
    headings = [Column(name, right=name == "bar") for name in BAR_HEADINGS]
    print_table(headings, cells, summary)


@contextmanager
def watched(total: int) -> Iterator[Callable[[str], None]]:
    """Give what shows which measurement is running: a bar on a terminal, nothing elsewhere."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2)
    task = bar.add_task("starting", total=total)
    if sys.stderr.isatty():
        bar.start()
    try:
        yield lambda what: bar.update(task, advance=1, description=what)
    finally:
        if bar.live.is_started:
            bar.stop()
