"""BENCHMARKS.md, made from the document of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastckpt.bench.figures import BAR_HEADINGS, HEADINGS, OPS, bar_cells, figures, missing, verdicts

__all__ = ["markdown"]

_HOW = """\
Each side in its own process, taking turns round by round, each round in another order; medians, and ratios taken within
a round ("times ours": above 1 is slower than fastckpt). A first round is not counted. Every save has a new path, and
each round fresh values, but where they are those of a real model; before it everything is synced.

- **durable**: data, names and folders are on the device, by the library itself (fastckpt; DCP, which leaves out the
  folders) or by an fsync of all of it, which is in the time.
- **cold**: evicted with posix_fadvise after a sync; mincore says how much was left (`resident_before` in the JSON), and
  where it is more than 1 % nothing is measured. Names and inodes stay in the kernel's memory. **warm**: at least 99.9 %
  in the page cache, by its library's loads, or nothing is measured.
- **touch**: one byte of every page is read; all sides must come to the same sum.
- **peak MiB**: growth of VmHWM, which counts mapped pages; **anon MiB**: of anonymous memory, the result being alive.
- **read MB**: what the device gave; **calls**: system calls that read or write, by the kernel's counters (opening,
  mapping and syncing are not among them); **cached**: the part of the files in the page cache afterwards, near 0 %
  where it was passed by.
- **memory**: before saves, loads of all and what bare C takes, 1.25 times the workload's bytes are used and freed, or
  whoever comes next would pay for what the host of a virtual machine has taken back meanwhile. Before saves and cold
  loads of 256 MiB and more it is freed when the host has just taken other memory, where the kernel tells when it does:
  it takes what was freed last, and then takes nothing for two seconds. What `save_async` keeps
  from one save to the next, a copy of the state, is there before the clock starts, and so in no peak of it; DCP makes a
  new one each time, or has it made before as well ("its copy kept").
- **limits** are measured in the same rounds, with as many bytes (to a GPU: at most 1 GiB); the device's at the best of
  five depths: with a few buffers that are used again and again, which no save or load can do, and into memory for all
  of it. For small files it is opening, reading and closing each, in 16 threads of bare C; for untouched loads
  the same in as many threads as processors, files of more than 16 KiB being mapped. For saves without sync it is files
  of 16 MiB, written in as many threads.
- **the same folders and files, in C**: as many as a snapshot of ours has, each of as many bytes: for durable saves as
  many threads as turned out best (the processors, 6, 12 or 24) copy them to where O_DIRECT can write from, and one
  syncs all; for others as many threads as processors write them through the page cache. No digests, no checks, no
  interpreter.
- **bare work**, of a promise: what such a limit reaches in the same rounds: for saves the same folders and files in C,
  for cold loads the device with memory for all of it; where a workload was measured without it, the limit itself. It is
  what the machine gives in this layout.
- **median in**, of a promise: the interval that the median of the rounds lies in with at least 90 % certainty, by the
  sign test: of five rounds from the least to the most, of fifteen from the fourth to the twelfth. It says what the
  scatter within one run leaves open; from one hour to another the machine differs by more. Where the bar lies in it,
  another run may come to the other verdict.
- **beside a thread that trains**: another thread of the process makes small steps of training, before, during and after
  the save; **training kept** is the part of its undisturbed rate that it kept during the save, **training lost** the
  seconds that it did not get. The time is the save's, with the training beside it."""


def markdown(document: Mapping[str, Any], notes: str = "") -> str:
    """Write the report.

    Parameters
    ----------
    document : dict
        What ``running.run`` gave.
    notes : str
        Markdown by hand, inserted as it is.

    Returns
    -------
    str
        Markdown with the machine, the date and the command.
    """
    by_hand = [notes.strip(), ""] if notes.strip() else []
    return "\n".join([*_head(document), *_bars(document), *by_hand, *_all(document)])


def _head(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    yield from ("# What was measured", "", "Made by `fastckpt bench --report`; not to be edited by hand.", "")
    yield (
        f"Machine: {machine['processor']}, {machine['processors']} processors, {machine['memory'] / 2**30:.0f} GiB, "
        f"{machine['file_system']}, Linux {machine['kernel']}, Python {machine['python']}, numpy {machine['numpy']}. "
    )
    yield f"Versions: {versions}. "
    yield f"Date: {document['date']}. Size: {document['size']}; rounds: as each workload says."
    commands = dict.fromkeys(_run_of(document, workload)[1] for workload in document["workloads"])
    yield from ("", *(f"    {command}" for command in commands), "", _HOW, "")
    absent = missing(document)
    yield from (f"- Not measured: {line}" for line in absent)
    yield from [""] if absent else []


def _bars(document: Mapping[str, Any]) -> Iterator[str]:
    rows, summary = verdicts(document)
    size = document["size"]
    of_size = "" if size == "full" else f" The promises are of the full sizes, and this run is {size}."
    yield from ("## What was promised", "", f"{summary}.{of_size}", "")
    yield from _table(BAR_HEADINGS, [_emphasised(bar_cells(row)) for row in rows])


def _emphasised(cells: tuple[str, ...]) -> tuple[str, ...]:
    return (*cells[:-1], f"**{cells[-1]}**" if cells[-1] == "short" else cells[-1])


def _all(document: Mapping[str, Any]) -> Iterator[str]:
    """Give every figure; those over numbers and sizes as one table a sweep."""
    titles = {workload["name"]: workload for workload in document["workloads"]}
    last = ""
    for workload, op, found in figures(document):
        if workload != last:
            of = titles[workload]
            yield from (f"## {of['title']}", "", f"{of['tensors']:,} tensors, {of['bytes'] / 1e6:,.1f} MB. ")
            yield from (_measured(document, of), "")
            last = workload
        yield from (f"**{OPS[op]}**", "")
        yield from _table(HEADINGS, [figure.cells() for figure in found])


def _run_of(document: Mapping[str, Any], workload: Mapping[str, Any]) -> tuple[str, str, int, Mapping[str, str]]:
    """Give the date, command, rounds and versions of the run that a workload is from."""
    own = {**document, **{name: value for name, value in workload.items() if value is not None}}
    return own["date"], own["command"], own["rounds"], own["versions"]


def _measured(document: Mapping[str, Any], workload: Mapping[str, Any]) -> str:
    date, command, rounds, versions = _run_of(document, workload)
    other = [f"{name} {version}" for name, version in versions.items() if document["versions"].get(name) != version]
    with_others = f" With {', '.join(other)}." if other else ""
    return f"Measured {date}, rounds: {rounds}, by `{command}`.{with_others}"


def _table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    rows = [*cells]
    used = [at for at in range(len(headings)) if at < 2 or any(row[at] for row in rows)]
    yield _line(headings[at] for at in used)
    yield _line("---" for _ in used)
    yield from (_line(row[at] for at in used) for row in rows)
    yield ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
