"""From single measurements to results, and from the documents of several runs to one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastckpt.bench.workloads import names_of

__all__ = ["compare_sums", "done", "joined", "obstacle", "summed"]

Document = dict[str, Any]


def summed(workload: str, op: str, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Give the result of one side's runs."""
    seconds = [run["seconds"] for run in found["runs"]]
    result = {"workload": workload, "op": op, "rival": name, **found}
    if seconds:
        result["seconds"] = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return result


def compare_sums(results: list[dict[str, Any]]) -> None:
    """Whoever read other bytes than most others of a workload says so: its time is worth nothing."""
    groups: dict[tuple[str, str], Counter[int]] = {}
    for result in results:
        group = groups.setdefault((result["workload"], result["op"]), Counter())
        group.update({run["sum"] for run in result["runs"] if "sum" in run})
    for result in results:
        usual = groups[result["workload"], result["op"]].most_common(1)
        if any(run.get("sum", usual and usual[0][0]) != usual[0][0] for run in result["runs"] if usual):
            result["error"] = "read other bytes than the others"


def done(document: Mapping[str, Any]) -> set[str]:
    """Name the workloads that a document has measurements of."""
    return {workload["name"] for workload in document["workloads"] if workload["date"]}


def obstacle(old: Mapping[str, Any], size: str, machine: Mapping[str, Any]) -> str:
    """Say why figures of this size, from this machine, cannot stand beside those of a document; nothing if they can."""
    if not all("date" in workload for workload in old["workloads"]):
        return "it does not say when each workload was measured: an older version wrote it; begin a new file"
    if old["size"] != size:
        return f"it has figures of the size {old['size']!r}, and these would be of {size!r}"
    other = [name for name, value in old["machine"].items() if machine.get(name) != value]
    return f"its figures come from another machine ({', '.join(other)} differ)" if other else ""


def joined(old: Document, new: Document) -> Document:
    """Add a run to an older document.

    Parameters
    ----------
    old : dict
        Keeps what it has of workloads that the run has not measured.
    new : dict
        The run, of the same size and machine.

    Returns
    -------
    dict
        All workloads in the order of measuring, each with the date and the command of its own.
    """
    order = names_of(new["size"])
    workloads = {w["name"]: w for w in old["workloads"]}
    workloads |= {w["name"]: w for w in new["workloads"] if w["date"] or w["name"] not in done(old)}
    results = [r for r in old["results"] if r["workload"] not in done(new)] + new["results"]
    rivals = {side["name"]: side for side in new["rivals"]}
    rivals |= {side["name"]: side for side in old["rivals"] if not side["missing"] or side["name"] not in rivals}
    return {
        **new,
        "versions": old["versions"] | new["versions"],
        "workloads": sorted(workloads.values(), key=lambda w: order.index(w["name"])),
        "rivals": [*rivals.values()],
        "results": sorted(results, key=lambda r: order.index(r["workload"])),
    }
