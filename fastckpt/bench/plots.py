"""Pictures of a run: bars against the rivals with the device's limit as a line, and costs over numbers and sizes.

Who wins shall be seen at once: fastckpt has the only colour, the fastest is on top, and further is always better.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from fastckpt.bench.catalogue import BARE, INDEXED, KEPT, LIMIT, LIMITS, OURS, RIVALS, VERIFIED
from fastckpt.bench.figures import Figure, figures

__all__ = ["check", "draw"]

_GREEN, _PALE, _OTHERS, _LIMIT = "#0b7a3b", "#69bf8b", "#b9bec4", "#c2410c"
_LINES = {OURS: _GREEN, INDEXED: _PALE, "safetensors": "#4b5563", "torch": "#9ca3af"}


class _Panel(NamedTuple):
    workload: str
    op: str
    title: str


_BARS = {
    "save": (
        _Panel("gpt2", "save_durable", "durable save"),
        _Panel("llama", "save_durable", "durable save"),
        _Panel("adamw", "save_durable", "durable save"),
    ),
    "load": (
        _Panel("gpt2", "cold", "cold load"),
        _Panel("llama", "cold", "cold load"),
        _Panel("gpt2", "into", "load_into, warm"),
        _Panel("llama", "into", "load_into, warm"),
    ),
    "small": (
        _Panel("small", "load", "warm load"),
        _Panel("small", "cold", "cold load"),
        _Panel("small", "save_durable", "durable save"),
    ),
}
_UNSEEN = (KEPT, VERIFIED, BARE)
_COUNTS = (("load", "warm load to a dict"), ("save_durable", "durable save"))
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
_SIZES = (("save_durable", "durable save"), ("cold", "cold load, all read"), ("touch", "warm load, all touched"))
_LIMIT_WORDS = {"direct_write": "device: direct write", "direct_read": "device: direct read", "memcpy": "memcpy"}
_LIMIT_WORDS |= {"opens": "files opened alone", "cached_write": "page cache: write"}


def check() -> None:
    """Refuse in a line where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("plots need matplotlib; run: pip install 'fastckpt[bench]'")


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all that the run has figures for.

    Parameters
    ----------
    document : dict
        What ``running.run`` gave.
    folder : Path
        Where the pictures go; made when it is missing.

    Returns
    -------
    list of Path
        The pictures.
    """
    check()
    importlib.import_module("matplotlib").use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    found = {
        (workload, op): [figure for figure in some if not (figure.error or figure.side in _UNSEEN)]
        for workload, op, some in figures(document)
    }
    titles = {workload["name"]: workload["title"] for workload in document["workloads"]}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: _draw_bars(plt, found, panels, titles) for name, panels in _BARS.items()}
    drawn["counts"] = _draw_lines(plt, found, "count-", _COUNTS, "number of tensors")
    drawn["sizes"] = _draw_lines(plt, found, "size-", _SIZES, "size in MB")
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], bbox_inches="tight")
            plt.close(figure)
    return paths


def _draw_bars(plt: Any, found: Any, panels: Sequence[_Panel], titles: Mapping[str, str]) -> Any:
    shown = [panel for panel in panels if any(f.side != LIMIT for f in found.get((panel.workload, panel.op), ()))]
    if not shown:
        return None
    across = 2 if len(shown) == 4 else len(shown)
    down = len(shown) // across
    figure, axes = plt.subplots(down, across, figsize=(5.2 * across, 3.6 * down), squeeze=False)
    for axis, panel in zip(axes.flat, shown, strict=True):
        _draw_panel(axis, found[panel.workload, panel.op])
        axis.set_title(f"{titles[panel.workload]}: {panel.title}", loc="left", fontweight="bold", fontsize=10)
    figure.tight_layout()
    return figure


def _draw_panel(axis: Any, some: Sequence[Figure]) -> None:
    sides = sorted((figure for figure in some if figure.side != LIMIT), key=_speed)
    colours = [{OURS: _GREEN, INDEXED: _PALE}.get(figure.side, _OTHERS) for figure in sides]
    bars = axis.barh([figure.title for figure in sides], [*map(_speed, sides)], color=colours, height=0.75)
    axis.bar_label(bars, [f"{_speed(figure):.2f}" for figure in sides], padding=4, fontsize=8, bbox=_LABEL)
    axis.tick_params(axis="y", length=0)
    for label, figure in zip(axis.get_yticklabels(), sides, strict=True):
        if figure.side in (OURS, INDEXED):
            label.set(fontweight="bold", color=_GREEN)
    for limit in (figure for figure in some if figure.side == LIMIT):
        axis.axvline(_speed(limit), color=_LIMIT, linestyle="--", linewidth=1.5, zorder=0)
        words = limit.title.removeprefix("limit: ")
        words = f" {words} {_speed(limit):.2f} "
        side = "right" if _speed(limit) > max(map(_speed, some)) / 2 else "left"
        axis.text(_speed(limit), len(sides) - 0.35, words, color=_LIMIT, fontsize=8, ha=side)
    axis.set_ylim(-0.6, len(sides) + 0.2)
    axis.set_xlabel("GB/s (longer is faster)")
    axis.margins(x=0.12)


def _speed(figure: Figure) -> float:
    return figure.rate / 1e9


def _draw_lines(plt: Any, found: Any, prefix: str, ops: Sequence[tuple[str, str]], across: str) -> Any:
    shown = [(op, title) for op, title in ops if any(w.startswith(prefix) and at == op for w, at in found)]
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(4.8 * len(shown), 3.6), squeeze=False)
    for axis, (op, title) in zip(axes[0], shown, strict=True):
        _draw_curves(axis, found, prefix, op)
        axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
        axis.set_xlabel(across)
    figure.tight_layout()
    return figure


def _draw_curves(axis: Any, found: Any, prefix: str, op: str) -> None:
    """One line a side: microseconds a tensor over their number, GB/s over the size."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for (workload, at), some in found.items():
        if workload.startswith(prefix) and at == op:
            number = int(workload.partition("-")[2])
            for figure in some:
                value = figure.seconds[0] / number * 1e6 if prefix == "count-" else _speed(figure)
                curves.setdefault(figure.side, []).append((number, value))
    if prefix == "count-":
        curves.pop(LIMIT, None)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for side, points in curves.items():
        colour = _LIMIT if side == LIMIT else _LINES.get(side, _OTHERS)
        style = {"linestyle": "--"} if side == LIMIT else {"marker": "o", "markersize": 4}
        width = 2.6 if side == OURS else 1.4
        axis.plot(*zip(*sorted(points), strict=True), color=colour, linewidth=width, **style)
    _name_curves(axis, {side: max(points) for side, points in curves.items()}, op)
    axis.set_xticks(sorted({number for points in curves.values() for number, _ in points}))
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter("{x:,.15g}")
        ticks.set_minor_formatter("{x:,.15g}" if ticks is axis.yaxis and _decades(axis) < 1 else "")
    axis.tick_params(axis="x", which="minor", length=0)
    axis.set_ylabel("µs a tensor (lower is faster)" if prefix == "count-" else "GB/s (higher is faster)")
    axis.grid(visible=True, which="major", color="#e5e7eb")


def _decades(axis: Any) -> float:
    low, high = axis.get_ylim()
    return math.log10(high / low)


def _name_curves(axis: Any, ends: Mapping[str, tuple[int, float]], op: str) -> None:
    """Write each side's name at the end of its line, moved up where it would cover the one below."""
    step = 10 ** (_decades(axis) * 0.065)
    lowest = 0.0
    for side, (number, value) in sorted(ends.items(), key=lambda end: end[1][1]):
        lowest = max(value, lowest * step)
        words = _LIMIT_WORDS.get(LIMITS.get(op, ""), "limit") if side == LIMIT else RIVALS[side].title
        colour = _LIMIT if side == LIMIT else _LINES.get(side, _OTHERS)
        weight = "bold" if side == OURS else "normal"
        place = {"va": "center", "annotation_clip": False}  # it may have been moved out of the frame
        axis.annotate(f"   {words}", (number, lowest), color=colour, fontsize=8, weight=weight, **place)
