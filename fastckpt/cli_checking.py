"""The commands verify and salvage: is a snapshot sound, and what is intact of one that is not."""

from __future__ import annotations

import click

import fastckpt
from fastckpt import documents
from fastckpt.nodetext import plural, printable, safe
from fastckpt.problems import Problem
from fastckpt.rendering import complain, print_json, reason, watched
from fastckpt.salvaged import Salvage
from fastckpt.verifying import Report

__all__ = ["rescue", "verify"]

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


@click.command("verify", short_help="Check that snapshots are sound.")
@click.argument("paths", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@_json
@click.pass_context
def verify(ctx: click.Context, paths: tuple[str, ...], as_json: bool) -> None:
    """Check snapshots: that they are whole, that every byte can be read, and the digests where there are any.

    A line on stdout for each that is sound; what is wrong with the others, and what to do, on stderr.

    \b
    --json: {"snapshots": [{"path", "ok", "tensors", "bytes", "digests",
                            "problems": [{"file", "what", "remedy"}]}]}
    """
    status, reports = 0, []
    for path in paths:
        report, unreadable = _verified(path)
        status = max(status, 2 if unreadable else 0 if report else 1)
        reports.append(report)
        for problem in report.problems:
            complain(problem)
        if report and not as_json:
            tensors, read = plural(report.tensors, "tensor"), plural(report.nbytes, "byte")
            click.echo(f"{safe(path)}: OK ({tensors}, {report.digests:,} with a digest, {read} read)")
    if as_json:
        print_json({"snapshots": [*map(documents.report, reports)]})
    ctx.exit(status)


@click.command("salvage", short_help="Save what is intact of a damaged snapshot.")
@click.argument("path", metavar="DIR", type=click.Path())
@click.argument("new", metavar="NEW_DIR", type=click.Path())
@_json
@click.pass_context
def rescue(ctx: click.Context, path: str, new: str, as_json: bool) -> None:
    """Take out of DIR what is intact, hold it against its digests, and save it as a new snapshot NEW_DIR.

    A line on stdout for each tensor that is lost, and a last one for all others; what is wrong with DIR, which is left
    as it is, on stderr. In a nested object null stands where a tensor is lost. All that is intact must fit in memory.

    \b
    --json: {"path", "new": null where nothing was saved,
             "complete": whether nothing is lost, "intact": [name, ...],
             "unchecked": [name, ...] of those without a digest,
             "lost": [{"name", "file", "what", "remedy"}],
             "problems": [{"file", "what", "remedy"}]}
    """
    with watched(f"salvaging {printable(path)}") as watch:
        found = fastckpt.salvage(path, progress=watch)
    saved = bool(found.tensors or found.record)
    if saved:
        found.save(new)
    for problem in found.problems:
        complain(problem)
    if as_json:
        print_json({"new": new if saved else None, **documents.salvage(found)})
    else:
        _tell(found, new if saved else None)
    ctx.exit(0 if found else 1)


def _tell(found: Salvage, new: str | None) -> None:
    for name, why in found.lost.items():
        click.echo(f"lost\t{safe(name)}\t{printable(why.what)}")
    intact, unchecked = plural(len(found.tensors), "tensor"), len(found.unchecked)
    doubt = f", {unchecked:,} of them without a digest and so unchecked" if unchecked else ""
    click.echo(f"{safe(new)}: saved, {intact} intact{doubt}" if new is not None else "nothing is intact, nothing saved")


def _verified(path: str) -> tuple[Report, bool]:
    """Give the report, and whether the folder could not be looked at."""
    with watched(f"verifying {printable(path)}") as watch:
        try:
            return fastckpt.verify(path, progress=watch), False
        except OSError as problem:
            why = Problem.said(reason(problem), path, problem.strerror or str(problem), "give the folder of a snapshot")
            return Report(path, problems=(why,)), True
