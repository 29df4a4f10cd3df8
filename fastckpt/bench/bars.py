"""What was promised, held against what was measured: each promise a row that passes, falls short, or was not measured.

Rivals and limits are compared round by round, and the median of the ratios counts. In a ratio above 1 fastckpt is
better.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastckpt.bench.catalogue import BARE, INDEXED, KEPT, LIMIT, OURS, OWN, VERIFIED
from fastckpt.bench.verdict import Row

__all__ = ["ABSENT", "rows"]

Rounds = tuple[float, ...]  # one number a round

_MIB = 1 << 20
ABSENT = "not in this run"
_NAMES = {"gpt2": "GPT-2", "llama": "Llama-like", "adamw": "AdamW"}
_LARGE = ("gpt2", "llama", "adamw")
_AHEAD = 1.3  # of the fastest rival's durable save, where the bare work is so far ahead as well


class _Found:
    """The results, by workload, operation and side."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._results = {(r["workload"], r["op"], r["rival"]): r for r in document["results"]}
        self.workloads = {workload["name"]: workload for workload in document["workloads"]}

    def runs(self, workload: str, op: str, side: str) -> list[Mapping[str, Any]]:
        result = self._results.get((workload, op, side), {"runs": []})
        return [] if result.get("error") else list(result["runs"])

    def why(self, workload: str, op: str, *sides: str) -> str:
        """Say why there is no result."""
        skipped = self.workloads.get(workload, {}).get("skipped")
        if skipped or not any((at, by) == (workload, op) for at, by, _ in self._results):
            return skipped or ABSENT
        for side in (*sides, LIMIT):
            error = self._results.get((workload, op, side), {}).get("error")
            if error:
                return str(error)
        return "nothing to compare with in this run"

    def faster(self, workload: str, op: str, side: str, ours: str = OURS) -> Rounds:
        """Say how many times as fast as a side fastckpt was in each round."""
        return _paired(self.runs(workload, op, side), self.runs(workload, op, ours))

    def rivals(self, workload: str, op: str) -> list[str]:
        return [
            side
            for at, by, side in self._results
            if (at, by) == (workload, op) and side not in (*OWN, LIMIT, KEPT) and self.runs(at, by, side)
        ]

    def fastest(self, workload: str, op: str) -> tuple[str, Rounds]:
        """Name the fastest rival, and say how many times as fast as it fastckpt was."""
        found = [(side, ratios) for side in self.rivals(workload, op) if (ratios := self.faster(workload, op, side))]
        return min(found, key=lambda one: statistics.median(one[1]), default=("the fastest rival", ()))

    def barely(self, workload: str, op: str, side: str) -> float | None:
        """Say how many times as fast as a side the bare work was; the limit, where an earlier run has no more."""
        return _middle(self.faster(workload, op, side, KEPT if self.runs(workload, op, KEPT) else LIMIT))

    def of_limit(self, workload: str, op: str, side: str = OURS) -> Rounds:
        """Say which part of the limit's rate a side reached in each round."""
        nbytes = self.workloads.get(workload, {}).get("bytes", 0)
        limits = [{"seconds": run["seconds"] / run["bytes"] * nbytes} for run in self.runs(workload, op, LIMIT)]
        return _paired(limits, self.runs(workload, op, side))

    def every(self, workload: str, op: str, field: str, side: str = OURS) -> Rounds:
        return tuple(run[field] for run in self.runs(workload, op, side))


def rows(document: Mapping[str, Any]) -> list[Row]:
    """Hold a run against all promises.

    Parameters
    ----------
    document : dict
        What ``running.run`` gave.

    Returns
    -------
    list of Row
        One for each promise, also those that this run did not measure.
    """
    found = _Found(document)
    return [row for promise in _PROMISES for row in promise(found)]


def _paired(theirs: list[Any], ours: list[Any]) -> Rounds:
    """Give the ratios of times, round by round."""
    return tuple(a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=False))


def _middle(rounds: Rounds) -> float | None:
    return statistics.median(rounds) if rounds else None


def _inverse(rounds: Rounds) -> Rounds:
    return tuple(1 / each for each in rounds)


def _title(found: _Found, workload: str) -> str:
    return _NAMES.get(workload) or str(found.workloads.get("small", {}).get("title", "small tensors"))


def _durable(found: _Found) -> Iterable[Row]:
    for workload in _LARGE:
        what, op = f"durable save, {_title(found, workload)}", "save_durable"
        side, ratios = found.fastest(workload, op)
        bare = found.barely(workload, op, side)
        need = _AHEAD if bare is not None and bare >= _AHEAD else 1.0
        why = found.why(workload, op, OURS)
        limit, ours = "the direct-write limit", found.of_limit(workload, op)
        yield Row(what, limit, 0.85, ours, why=why, bare=_middle(found.of_limit(workload, op, KEPT)))
        yield Row(what, side, need, ratios, why=why, bare=bare)
        torch, bare = found.faster(workload, op, "torch"), found.barely(workload, op, "torch")
        yield Row(what, "torch.save + fsync", 2.0, torch, why=why, bare=bare)


def _digests(found: _Found) -> Iterable[Row]:
    """Promise what digests cost at most: when they are taken, and when they are checked."""
    for workload in _LARGE:
        what, why = f"durable save, {_title(found, workload)}", found.why(workload, "save_durable", BARE)
        times = _inverse(found.faster(workload, "save_durable", BARE))
        yield Row(what, "the same without digests", 1.1, times, True, why=why)
    for workload in ("gpt2", "llama"):
        what, why = f"load and touch, cold, {_title(found, workload)}", found.why(workload, "cold", VERIFIED)
        times = found.faster(workload, "cold", VERIFIED)
        yield Row(f"{what}, digests checked", "the same unchecked", 1.15, times, True, why=why)


def _fastest(op: str, words: str, need: float, workloads: Iterable[str]) -> Callable[[_Found], Iterable[Row]]:
    def promise(found: _Found) -> Iterable[Row]:
        for workload in workloads:
            side, ratios = found.fastest(workload, op)
            what, bare = f"{words}, {_title(found, workload)}", found.barely(workload, op, side)
            yield Row(what, side, need, ratios, why=found.why(workload, op, OURS), bare=bare)

    return promise


def _against(
    op: str, words: str, side: str, need: float, workloads: Iterable[str], ours: str = OURS
) -> Callable[[_Found], Iterable[Row]]:
    def promise(found: _Found) -> Iterable[Row]:
        for workload in workloads:
            ratios = found.faster(workload, op, side, ours)
            what = f"{words}, {_title(found, workload)}{', indexed' if ours == INDEXED else ''}"
            bare = found.barely(workload, op, side) if ours == OURS else None  # an index spares opens
            yield Row(what, side, need, ratios, why=found.why(workload, op, ours, side), bare=bare)

    return promise


def _of_limit(
    op: str, words: str, limit: str, need: float, workloads: Iterable[str], most: bool = False
) -> Callable[[_Found], Iterable[Row]]:
    """Promise a part of a limit's rate; with `most`, a multiple of its time."""

    def promise(found: _Found) -> Iterable[Row]:
        for workload in workloads:
            parts = found.of_limit(workload, op)
            ratios = _inverse(parts) if most else parts
            what, why = f"{words}, {_title(found, workload)}", found.why(workload, op, OURS)
            yield Row(what, limit, need, ratios, most, why=why, bare=_middle(found.of_limit(workload, op, KEPT)))

    return promise


def _memory(found: _Found) -> Iterable[Row]:
    for op, words in (("into", "load_into"), ("save_durable", "save"), ("save", "save without sync")):
        for workload in ("gpt2", "llama") if op == "into" else _LARGE:
            mebibytes = tuple(peak / _MIB for peak in found.every(workload, op, "peak"))
            what = f"{words}, peak memory beyond the object, {_title(found, workload)}"
            yield Row(what, "", 64.0, mebibytes, True, "MiB", found.why(workload, op, OURS))


def _async(found: _Found) -> Iterable[Row]:
    op = "save_async"
    for workload in ("gpt2", "adamw"):
        part, dcp = (_inverse(of) for of in (found.of_limit(workload, op), found.faster(workload, op, "dcp")))
        what, why = f"{op}, time blocked, {_title(found, workload)}", found.why(workload, op, OURS)
        yield Row(what, "a prefaulted memcpy", 1.25, part, True, why=why)
        yield Row(what, "dcp async_save", 0.5, dcp, True, why=why)


def _parts(found: _Found) -> Iterable[Row]:
    largest = found.workloads.get("llama", {}).get("largest", {"bytes": 0, "shape": [8]})
    eighth = largest["bytes"] // largest["shape"][0] * (largest["shape"][0] // 8)
    for op, words, asked in (("one", "one tensor", largest["bytes"]), ("rows", "1/8 of its rows", eighth)):
        what, why = f"{words} of {_title(found, 'llama')}, cold", found.why("llama", op, OURS)
        yield Row(what, "safe_open", 1.0, found.faster("llama", op, "safe_open"), why=why)
        beyond = tuple((read - asked) / _MIB for read in found.every("llama", op, "read"))
        yield Row(f"{what}: bytes read beyond those asked for", "", 1.0, beyond, True, "MiB", why)


def _growth(found: _Found) -> Iterable[Row]:
    counts = sorted(int(name.partition("-")[2]) for name in found.workloads if name.startswith("count-"))
    few, many = (1_000, 100_000) if not counts or {1_000, 100_000} <= {*counts} else (min(counts), max(counts))
    for op, words in (("load", "load"), ("save_durable", "durable save")):
        for side, name in ((OURS, ""), (INDEXED, ", indexed")):
            first, last = (_middle(found.every(f"count-{count}", op, "seconds", side)) for count in (few, many))
            got = ((last / many) / (first / few),) if first and last and few < many else ()
            what = f"{words}{name}: growth of the cost per tensor from {few:,} to {many:,}"
            yield Row(what, "", 1.3, got, True, why=found.why(f"count-{many}", op, side))


_PROMISES: tuple[Callable[[_Found], Iterable[Row]], ...] = (
    _durable,
    _fastest("save", "save without sync", 1.8, _LARGE),
    _against("load", "load to a dict, warm", "safetensors", 3.0, ("gpt2", "small"), INDEXED),
    _against("load", "load to a dict, warm", "safetensors", 3.0, ("gpt2",)),
    _fastest("touch", "load and touch every page, warm", 1.0, _LARGE),
    _against("cold", "load and touch, cold", "safetensors", 1.9, ("gpt2", "llama")),
    _fastest("cold", "load and touch, cold", 1.0, ("gpt2", "llama")),
    _of_limit("cold", "load and touch, cold", "the direct-read limit", 0.9, ("gpt2", "llama")),
    _against("cold", "load and touch, cold", "safetensors", 1.0, ("small",), INDEXED),
    _of_limit("cold", "load and touch, cold", "opening and reading alone, in C", 1.3, ("small",), most=True),
    _fastest("into", "load_into, warm", 1.3, ("gpt2", "llama")),
    _of_limit("into", "load_into, warm", "memcpy", 0.85, ("gpt2", "llama")),
    _digests,
    _memory,
    _async,
    _parts,
    _growth,
    _of_limit("gpu", "load to a GPU, warm", "pinned memcpy", 0.9, ("gpt2", "llama")),
    _fastest("gpu", "load to a GPU, warm", 1.0, ("gpt2", "llama")),
    _of_limit("gpu_cold", "load to a GPU, cold", "the direct-read limit", 0.9, ("gpt2", "llama")),
    _fastest("gpu_cold", "load to a GPU, cold", 1.0, ("gpt2", "llama")),
)
