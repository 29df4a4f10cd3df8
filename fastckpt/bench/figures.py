"""From the document of a run to the cells of tables: the same ones for terminals, pipes and BENCHMARKS.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fastckpt.bench.bars import rows
from fastckpt.bench.catalogue import KEPT, LIMIT, LIMITS, OURS, RIVALS, SAVES
from fastckpt.bench.verdict import Row

__all__ = ["BAR_HEADINGS", "HEADINGS", "OPS", "Figure", "bar_cells", "figures", "missing", "prefixed", "verdicts"]

#: What is measured, in words.
OPS = {
    "save_durable": "save, durable",
    "save": "save, without sync",
    "save_async": "save_async, time blocked",
    "train_durable": "save, durable, beside a thread that trains",
    "train_async": "save_async, to its end, beside a thread that trains",
    "load": "load, warm, untouched",
    "touch": "load and touch, warm",
    "cold": "load and touch, cold",
    "into": "load_into, warm",
    "into_cold": "load_into, cold",
    "one": "one tensor, cold",
    "rows": "1/8 of its rows, cold",
    "gpu": "load to a GPU, warm",
    "gpu_cold": "load to a GPU, cold",
}
HEADINGS = (
    *("side", "median", "least … most", "GB/s", "times ours"),
    *("peak MiB", "anon MiB", "read MB", "calls", "cached", "training kept", "training lost"),
)
BAR_HEADINGS = ("what", "against", "bar", "measured", "median in", "bare work", "the bar is", "verdict")
_LIMITS = (LIMIT, KEPT)
_NOBODY: list[Mapping[str, Any]] = []
_LIMIT_NAMES = {
    "direct_write": "limit: direct write",
    "direct_read": "limit: direct read",
    "cached_write": "limit: write to the page cache",
    "memcpy": "limit: memcpy",
    "opens": "limit: open, read or map alone, in C",
    "pinned": "limit: pinned memcpy",
}


class Figure(NamedTuple):
    """One side's figures of one operation; with an error, nothing but that.

    Attributes
    ----------
    workload, op, side, title : str
        Of what.
    seconds : tuple of float
        Median, least and most.
    rate : float
        Bytes of the state per second.
    ratio : float or None
        Times fastckpt's time, the median of the rounds' ratios.
    peak, anon, read, calls, cached : float
        Medians: memory in bytes, bytes from the device, system calls, part of the files in the page cache afterwards.
    kept, lost : float or None
        Medians: part of its rate that training beside a save kept, and seconds of it that were lost.
    error : str
        Why there is nothing.
    """

    workload: str
    op: str
    side: str
    title: str
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rate: float = 0.0
    ratio: float | None = None
    peak: float = 0.0
    anon: float = 0.0
    read: float = 0.0
    calls: float = 0.0
    cached: float | None = None
    kept: float | None = None
    lost: float | None = None
    error: str = ""

    def cells(self) -> tuple[str, ...]:
        """Give the figures as texts, in the order of HEADINGS."""
        if self.error:
            return (self.title, self.error, *[""] * (len(HEADINGS) - 2))
        median, least, most = map(prefixed, self.seconds)
        limit = self.side in _LIMITS
        rate = "" if self.op in ("load", "one", "rows", "save_async") and not limit else f"{self.rate / 1e9:.2f}"
        memory = ("", "") if limit else (f"{self.peak / 2**20:,.0f}", f"{self.anon / 2**20:,.0f}")
        cached = "" if self.cached is None else f"{self.cached:.0%}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        moved = (f"{self.read / 1e6:,.1f}", f"{self.calls:,.0f}")
        training = ("" if self.kept is None else f"{self.kept:.0%}", "" if self.lost is None else f"{self.lost:.3f} s")
        return (self.title, median, f"{least} … {most}", rate, ratio, *memory, *moved, cached, *training)


def figures(document: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Figure]]]:
    """Give the figures by workload and operation, the limit first, then the fastest first, then the failed."""
    workloads = {workload["name"]: workload for workload in document["workloads"]}
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in document["results"]:
        groups.setdefault((result["workload"], result["op"]), []).append(result)
    for (workload, op), results in groups.items():
        ours = next((result["runs"] for result in results if result["rival"] == OURS), _NOBODY)
        made = [_figure(result, workloads[workload], ours) for result in results]
        made.sort(key=lambda figure: (bool(figure.error), figure.side != LIMIT, figure.side != KEPT, figure.seconds))
        yield workload, op, made


def bar_cells(row: Row) -> tuple[str, ...]:
    """Give a promise as texts, in the order of BAR_HEADINGS."""
    sign = "≤" if row.most else "≥"
    unit = "×" if row.unit == "x" else f" {row.unit}"
    got = row.why if row.got is None else f"{row.got:.2f}{unit}"
    between = "" if row.between is None else "{:.2f} … {:.2f}".format(*row.between)
    bare = "" if row.bare is None else f"{row.bare:.2f}{unit}"
    scatter = "within the scatter" if row.close else ""
    return row.what, row.against, f"{sign} {row.need:g}{unit}", got, between, bare, scatter, row.verdict


def verdicts(document: Mapping[str, Any]) -> tuple[list[Row], str]:
    """Give all promises, and a line that counts them."""
    found = rows(document)
    return found, ", ".join(_counted(found, name) for name in ("pass", "short", "not measured"))


def _counted(found: list[Row], verdict: str) -> str:
    those = [row for row in found if row.verdict == verdict]
    bound, close = sum(row.bound for row in those), sum(row.close for row in those)
    kinds = ((bound, "like the bare work"), (close, "within the scatter"))
    said = ", ".join(f"{count} {words}" for count, words in kinds if count)
    return f"{len(those)} {verdict}{f' (of them {said})' if said else ''}"


def missing(document: Mapping[str, Any]) -> list[str]:
    """Give a line for each rival and workload that was not there, with how to get it."""
    sides = [f"{side['title']}: {side['missing']}" for side in document["rivals"] if side["missing"]]
    return sides + [f"{w['title']}: {w['skipped']}" for w in document["workloads"] if w["skipped"]]


def prefixed(seconds: float) -> str:
    """Give a time with a unit that suits it."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _figure(result: Mapping[str, Any], workload: Mapping[str, Any], ours: list[Mapping[str, Any]]) -> Figure:
    name, op, runs = result["rival"], result["op"], result["runs"]
    title = _LIMIT_NAMES.get(LIMITS.get(op, ""), "limit") if name in _LIMITS else RIVALS[name].title
    if name == KEPT:
        title = "limit: the same folders and files, in C" if op in SAVES else f"{title}, of memory for all of it"
    if name == LIMIT and workload["name"] == "small" and op == "cold":
        title = "limit: open and read alone, in C"
    figure = Figure(result["workload"], op, name, title, error=result.get("error", ""))
    if figure.error or not runs:
        return figure._replace(error=figure.error or "no result")
    middle = {field: statistics.median(run[field] for run in runs) for field in ("peak", "anon", "read", "calls")}
    seconds = result["seconds"]
    return figure._replace(
        seconds=(seconds["median"], seconds["min"], seconds["max"]),
        rate=runs[0].get("bytes", workload["bytes"]) / max(seconds["median"], 1e-9),
        ratio=None if name in _LIMITS else _ratio(runs, ours),
        cached=_median(runs, "resident_after"),
        kept=_median(runs, "kept"),
        lost=_median(runs, "lost"),
        **middle,
    )


def _median(runs: list[Mapping[str, Any]], field: str) -> float | None:
    found = [run[field] for run in runs if field in run]
    return statistics.median(found) if found else None


def _ratio(runs: list[Mapping[str, Any]], ours: list[Mapping[str, Any]]) -> float | None:
    ratios = [run["seconds"] / own["seconds"] for run, own in zip(runs, ours, strict=False)]
    return statistics.median(ratios) if ratios else None
