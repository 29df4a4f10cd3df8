"""The command line: ls, show and diff; the other commands are in files of their own.

On a terminal it prints for people; into a pipe or a file it prints one record a line with tabs between the fields, no
headings, no colours, nothing shortened to a width; with --json one JSON document.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from io import TextIOWrapper
from typing import Any

import click

import fastckpt
from fastckpt import documents
from fastckpt.bench.command import bench
from fastckpt.cli_checking import rescue, verify
from fastckpt.cli_doctor import doctor
from fastckpt.contents import Entry, reading
from fastckpt.diffing import diff
from fastckpt.dtypes import BY_NAME
from fastckpt.errors import CheckpointError
from fastckpt.nodetext import human, node_text, plural, safe
from fastckpt.outline import outline, outline_of_names
from fastckpt.rendering import (
    Column,
    complain,
    print_difference,
    print_json,
    print_table,
    print_tree,
    reason,
    watched,
)

__all__ = ["commands", "main"]

_EXIT = (
    "Exit status: 0 all is well; 1 a snapshot is not sound (verify), something is lost (salvage), or the two differ \
(diff); 2 wrong usage, or a snapshot cannot be read."
)
_LISTING = (
    Column("name"),
    Column("shape", "cyan"),
    Column("dtype", "green"),
    Column("bytes", right=True),
    Column("tied to", "dim"),
)
_ORDERS: dict[str, Callable[[Entry], Any]] = {
    "name": lambda entry: entry.key,
    "size": lambda entry: -entry.meta.nbytes,
    "dtype": lambda entry: entry.meta.dtype.name,
    "place": lambda _: 0,
}


class _Commands(click.Group):
    """Whatever is refused ends as one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            try:
                return super().invoke(ctx)
            except (CheckpointError, OSError) as problem:
                complain(reason(problem))
                ctx.exit(2)
            except KeyboardInterrupt:
                ctx.exit(130)
            finally:
                for note in notes:
                    complain(str(note.message))


def main() -> None:
    """Run the command line in a process of its own."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, as head, ends us without a word
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    commands(prog_name="fastckpt")


@click.group(cls=_Commands, epilog=_EXIT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastckpt.__version__, message="fastckpt %(version)s")
def commands() -> None:
    """Look into snapshots, check them, compare them; and ask a folder what it is good for.

    On a terminal the output is for people. Into a pipe or a file go plain lines with tabs between the fields: no
    headings, no colours, numbers in full. A name with characters that a terminal may act on is shown as Python's repr.
    """


commands.add_command(verify)
commands.add_command(rescue)
commands.add_command(doctor)
commands.add_command(bench)

_folder = click.argument("path", metavar="DIR", type=click.Path())
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def _known_dtypes(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in BY_NAME:
            raise click.BadParameter(f"{name!r} is none of {', '.join(sorted(BY_NAME))}", ctx, param)
    return names


@commands.command("ls", short_help="List tensors: name, shape, dtype, bytes, ties.")
@_folder
@click.option("--sort", type=click.Choice([*_ORDERS]), default="place", show_default=True, help="size: largest first.")
@click.option("--reverse", is_flag=True, help="Turn the order round.")
@click.option("--filter", "globs", multiple=True, metavar="GLOB", help="Only names like this; repeat it for more.")
@click.option("--dtype", "dtypes", multiple=True, metavar="NAME", callback=_known_dtypes, help="Only of this dtype.")
@_json
def list_tensors(
    path: str, sort: str, reverse: bool, globs: tuple[str, ...], dtypes: tuple[str, ...], as_json: bool
) -> None:
    """List tensors: name, shape, dtype, bytes, and the tensor that it is tied to.

    \b
    --json: {"path",
             "tensors": [{"name", "shape", "dtype", "bytes", "place", "tied_to",
                          "digest", "folder"}],
             "totals": {"tensors", "elements", "bytes"}}
    The totals count once what is tied.
    """
    entries = [
        entry
        for entry in reading(path, lambda contents: list(contents.entries.values()), index="table")
        if (not globs or any(fnmatchcase(entry.key, glob) for glob in globs))
        and (not dtypes or entry.meta.dtype.name in dtypes)
    ]
    entries.sort(key=_ORDERS[sort])
    entries = entries[::-1] if reverse else entries
    if as_json:
        print_json({"path": path, **documents.listing(entries)})
    else:
        print_table(_LISTING, [_row(entry) for entry in entries], _totals_text(entries))


@commands.command("show", short_help="Show the saved object as a tree.")
@_folder
@click.option("--full", is_flag=True, help="Shorten nothing.")
@_json
def show(path: str, full: bool, as_json: bool) -> None:
    """Show the saved object as a tree with its values; a flat snapshot as a tree of names, by their dots.

    Neither torch nor any class of yours is needed for it. In a pipe: path, tab, value.

    \b
    --json: {"path", "nested": whether it is more than a flat dict of tensors,
             "object": then its record as in FORMAT.md, else null,
             "tensors", "totals": as by ls}
    """
    marker, entries, top = reading(path, lambda c: (c.marker, list(c.entries.values()), outline(c)), index="table")
    if as_json:
        found = {"path": path, "nested": marker.nested, "object": marker.record}
        print_json({**found, **documents.listing(entries)})
        return
    kind = node_text(top) if marker.nested else top.value
    title = f"{safe(path)}: {kind}, {_totals_text(entries)}"
    print_tree(top if marker.nested else outline_of_names(entries), title, full)


@commands.command("diff", short_help="Tell what differs, and by how much.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@_json
@click.pass_context
def compare(ctx: click.Context, a: str, b: str, as_json: bool) -> None:
    """Compare two snapshots: their tensors, and by how much these differ, and all other values.

    Bits decide: 0.0 and -0.0 differ (by 0), and a NaN is equal to a NaN of the same bits at the same place. Between two
    dtypes values decide. Over the numbers among the elements that differ the largest absolute change |b-a| and the
    largest relative one |b-a|/max(|a|,|b|) are taken: of whole numbers exactly, of others in float64. NaNs that
    appeared, vanished or changed their bits are counted. The order of names is no difference.

    In a pipe a tensor is: change, name, before, after, elements that differ, largest absolute change, largest relative
    change, NaNs that appeared, vanished, changed. Another value is: "value", path, before, after.

    \b
    --json: {"a", "b", "same",
             "equal": number of tensors that are,
             "tensors": [{"name", "before", "after": as by ls, or null,
                          "change": added, removed, reshaped, dtype, changed,
                                    or tied where only the ties differ,
                          "differing", "max_abs", "max_rel", "nan_appeared",
                          "nan_vanished", "nan_rewritten"}],
             "values": [{"path", "change": added, removed or changed,
                         "before", "after": text, or null}]}
    Numbers that were not taken are null; an infinite one is "Infinity".
    """
    with watched("comparing") as watch:
        found = diff(a, b, progress=watch)
    if as_json:
        print_json({"a": a, "b": b, **documents.difference(found)})
    else:
        print_difference(found)
    ctx.exit(1 if found else 0)


def _row(entry: Entry) -> tuple[Any, ...]:
    meta = entry.meta
    tie = None if meta.same_as is None else safe(meta.same_as)
    return safe(entry.key), [*meta.shape], meta.dtype.name, meta.nbytes, tie


def _totals_text(entries: Sequence[Entry]) -> str:
    found = documents.totals(entries)
    rounded = f" ({human(found['bytes'])})" if found["bytes"] >= 1024 else ""
    words = (plural(found[f"{noun}s"], noun) for noun in ("tensor", "element", "byte"))
    return ", ".join(words) + rounded
