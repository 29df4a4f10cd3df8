"""``fastckpt bench``: the command."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fastckpt.bench.catalogue import QUICK, RIVALS
from fastckpt.bench.workloads import SIZES, names_of

__all__ = ["bench"]

_KINDS = ("mlp", "gpt2", "llama", "small", "adamw", "minilm", "count", "size")


@click.command("bench", short_help="Measure fastckpt against its rivals and the device.")
@click.option("--quick", is_flag=True, help="Small sizes, fewer rivals, three rounds: under a minute.")
@click.option("--workload", "workloads", multiple=True, help="Only this; repeatable: a kind, or one as count-1000.")
@click.option("--rival", "rivals", multiple=True, type=click.Choice([*RIVALS]), help="Only this; repeatable.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds that count.  [default: 5, or 3 with --quick]")
@click.option("--size", type=click.Choice(SIZES), hidden=True)
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False), help="Where to write; here by default.")
@click.option("--space", type=click.FloatRange(0), help="Gigabytes that may be used; 80 % of what is free by default.")
@click.option("--save", "file", type=click.Path(dir_okay=False), help="Keep the figures in this file, as JSON.")
@click.option("--add", type=click.Path(dir_okay=False), help="Go on with this file: measure what it lacks, and add it.")
@click.option("--plots", type=click.Path(file_okay=False), help="Draw into this folder (needs matplotlib).")
@click.option("--report", type=click.Path(exists=True, dir_okay=False), help="Only print this file's report.")
@click.option("--notes", type=click.Path(exists=True, dir_okay=False), help="Markdown to insert into the report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def bench(**options: Any) -> None:
    """Measure saves and loads against rivals and against what the device can do.

    Each rival has its own process; they take turns. Whoever is not installed is a line that says how to install it.
    Everything that is written is deleted at the end. A full run takes hours: with
    --add FILE it can be done in parts: without --workload what FILE lacks is
    measured; a workload that is named replaces all that FILE had of it. Leave
    five minutes after a run with many small files, which was deleting them.

    \b
    Workloads: the manual's MLP, GPT-2, a Llama-like model (3.8 GB), 20,000
    small tensors, GPT-2 with AdamW's state, all-MiniLM-L6-v2; then one model
    over the number of tensors (count) and over the size (size). Kinds are
    mlp, gpt2, llama, adamw, minilm, size, small and count.

    \b
    --json, --save, --add: {"format": 1, "date", "command", "machine", "versions",
      "size", "rounds",
      "workloads": [{"name", "title", "tensors", "bytes", "largest", "skipped",
                     "date", "command", "rounds", "versions"}],
      "rivals": [{"name", "title", "missing": how to get it, or null}],
      "results": [{"workload", "op", "rival", "error"?,
                   "seconds": {"median", "min", "max"},
                   "runs": [{"seconds", "peak", "anon", "read", "written", "asked",
                             "calls", "resident_before"?, "resident_after"?,
                             "sum"?, "total"?, "bytes"?, "depth"?,
                             "kept"?, "lost"?}]}],
      "bars": [{"what", "against", "need", "most", "got", "between": [least, most],
                "bare", "unit", "verdict", "why"}]}
    Memory and data are in bytes; "limit" among the rivals is what the device or
    memory can do.
    """
    from fastckpt.bench.report import markdown

    if options["report"]:
        document = json.loads(Path(options["report"]).read_text())
        if not options["plots"]:
            notes = Path(options["notes"]).read_text() if options["notes"] else ""
            click.echo(markdown(document, notes), nl=False)
            return
    else:
        document = _run(options)
    if options["plots"]:
        _draw(document, Path(options["plots"]))
    if options["as_json"]:
        click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None, allow_nan=False))
    elif not options["report"]:
        importlib.import_module("fastckpt.bench.table").print_document(document)


def _run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure, and keep what there is after every workload."""
    from fastckpt.bench import running
    from fastckpt.bench.results import joined
    from fastckpt.bench.table import watched

    old = _old(options)
    chosen = _chosen(options, old)
    if options["plots"]:
        importlib.import_module("fastckpt.bench.plots").check()  # not after an hour
    command = " ".join(["fastckpt", *map(_without_folders, sys.argv[1:])])

    def kept(document: dict[str, Any]) -> dict[str, Any]:
        own = {"command": command, "rounds": document["rounds"], "versions": document["versions"]}
        workloads = [{**workload, **own} for workload in document["workloads"]]
        document = {**document, "command": command, "workloads": workloads}
        document = joined(old, document) if old else document
        document["bars"] = _bars(document)
        for file in filter(None, (options["file"], options["add"])):
            Path(f"{file}.part").write_text(json.dumps(document))
            Path(f"{file}.part").replace(file)
        return document

    if old and not chosen.workloads:
        return old
    with watched(running.turns(chosen)) as watch:
        return kept(running.run(chosen, watch, kept))


def _without_folders(word: str) -> str:
    """Leave out of a path in the command where it lies: reports are for others to read."""
    option, equals, value = word.rpartition("=")
    return option + equals + (Path(value).name if value.startswith("/") else value)


def _old(options: dict[str, Any]) -> dict[str, Any] | None:
    """Give the document that is to be gone on with; refuse one that this run's figures cannot stand in."""
    from fastckpt.bench import machine
    from fastckpt.bench.results import obstacle

    if not options["add"] or not Path(options["add"]).exists():
        return None
    old: dict[str, Any] = json.loads(Path(options["add"]).read_text())
    problem = obstacle(old, _size(options), machine.described(Path(options["folder"] or ".")))
    if problem:
        raise click.UsageError(f"--add {options['add']}: {problem}; take another file")
    return old


def _size(options: dict[str, Any]) -> str:
    return options["size"] or ("quick" if options["quick"] else "full")


def _chosen(options: dict[str, Any], old: dict[str, Any] | None) -> Any:
    from fastckpt.bench.results import done
    from fastckpt.bench.running import Options

    quick, every = options["quick"], names_of(_size(options))
    kinds = options["workloads"] or (("mlp", "gpt2", "llama", "small", "count") if quick else ())
    for kind in kinds:
        if kind not in {*_KINDS, *every}:
            raise click.BadParameter(f"{kind!r} is none of {', '.join([*_KINDS, *every])}", param_hint="--workload")
    if old and not options["workloads"]:
        kinds = tuple(n for n in every if n not in done(old) and (not kinds or {n, n.partition("-")[0]} & {*kinds}))
    return Options(
        folder=Path(options["folder"] or "."),
        size=_size(options),
        rounds=options["rounds"] or (3 if quick else 5),
        workloads=kinds,
        rivals=options["rivals"] or (QUICK if quick else ()),
        space=None if options["space"] is None else int(options["space"] * 1e9),
    )


def _bars(document: dict[str, Any]) -> list[Mapping[str, Any]]:
    from fastckpt.bench.bars import rows

    return [row.record() for row in rows(document)]


def _draw(document: dict[str, Any], folder: Path) -> None:
    for path in importlib.import_module("fastckpt.bench.plots").draw(document, folder):
        click.echo(f"drawn: {path}", err=True)
