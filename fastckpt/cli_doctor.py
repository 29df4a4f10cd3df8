"""The command doctor: what a machine and a folder offer, and what fastckpt therefore does there."""

from __future__ import annotations

import sys
from typing import Any

import click

from fastckpt import documents
from fastckpt.doctor import Examination, examine, therefore
from fastckpt.nodetext import human, printable
from fastckpt.probing import Refused
from fastckpt.rendering import Column, print_json, print_table
from fastckpt.software import installed

__all__ = ["doctor"]

_FACTS = (Column(""), Column("what"), Column("here"), Column("why not", "dim"))
_SPEED, _BYTES = "_bytes_per_second", "_bytes"


@click.command(short_help="Tell what a folder is good for, and what will be done there.")
@click.argument("path", metavar="DIR", type=click.Path())
@click.option("--quick", is_flag=True, help="Do not measure how fast it is.")
@click.option("--no-torch", is_flag=True, help="Do not import torch to look for its devices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def doctor(path: str, quick: bool, no_torch: bool, as_json: bool) -> None:
    """Tell what this machine and the file system of DIR offer, how fast DIR is, and what fastckpt does there.

    It is tried in DIR, which is left as it was: two files without a name are written, of 256 MiB each, but not more
    than a tenth of what is free, for some seconds. In a snapshot, or where nothing can be written, it only looks.

    In a pipe a fact is: section, name, value (none where it is not known), reason. A sentence is: "therefore", text.

    \b
    --json: {"path",
             "machine", "folder", "speed", "software": {name: value},
             "reasons": {"section.name": text} for each value that is null,
             "therefore": [text, ...]}
    With --quick, or where nothing can be written, "speed" is null.
    """
    found = examine(path, installed(torch=not no_torch), quick=quick)
    if as_json:
        print_json({"path": path, **documents.examination(found)})
        return
    rows = [*_rows(found)]
    print_table(_FACTS, rows, "")
    for sentence in therefore(found):
        click.echo(f"• {printable(sentence)}" if sys.stdout.isatty() else f"therefore\t{printable(sentence)}")


def _rows(found: Examination) -> list[tuple[Any, ...]]:
    """Give a row for each fact: for people if they are looking."""
    rows: list[tuple[Any, ...]] = []
    for section, name, value in documents.facts(found):
        reason = printable(value.reason) if isinstance(value, Refused) else None
        if sys.stdout.isatty():
            title = "" if rows and section in [row[0] for row in rows] else section
            rows.append((title, _label(name), _text(name, value), reason))
        else:
            rows.append((section, name, None if reason is not None else _plain(value), reason))
    return rows


def _label(name: str) -> str:
    return name.removesuffix(_SPEED).removesuffix(_BYTES).replace("_", " ")


def _text(name: str, value: Any) -> str:
    """Show a value with its unit."""
    if isinstance(value, Refused):
        return "–"
    if name.endswith(_SPEED):
        return f"{value / 1e9:.2f} GB/s"
    if name.endswith(_BYTES) and isinstance(value, int):
        return human(value)
    return f"{value:,}" if type(value) is int else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items() if version)
    if isinstance(value, tuple):
        return ", ".join(map(printable, value)) or "none"
    return f"{value:.0f}" if isinstance(value, float) else printable(str(value))
