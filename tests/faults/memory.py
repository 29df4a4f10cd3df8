"""No memory: a save is killed for it, and every request for some is refused, in Python and in C, in a save and a load.

With them go counts that are cut short: the same library in front of the C library does that, and the rest must follow.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import commit_rig as rig

from faults.programs import told
from faults.verdict import Skip, Verdict

ABOUT = "killed for memory, refused memory at every request, counts cut short: no crash, no harm, nothing wrong loaded"

OOM_KILLS = 55
DONE = "refused when it was done"  # is among the refused as well
_SHIM = Path(__file__).with_name("shim.c")
_GROUPS = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: Kind of shortage, what is saved or read, the way, the act, and which share of the requests at scale 1.
SWEEPS = (
    ("python", "nested", "each", "save", 0.3),
    ("python", "nested", "each", "auto", 0.3),
    ("python", "large", "direct", "save", 0.1),
    ("c", "nested", "each", "save", 1.0),
    ("c", "large", "direct", "save", 1.0),
    *(("c", "nested", "each", how, 1.0) for how in ("auto", "into")),
    *(("c", "large", "each", how, 1.0) for how in rig.READS),
    *(("short", "large", way, "save", 1.0) for way in ("each", "direct")),
    ("short", "nested", "each", "save", 1.0),
    *(("short", "large", "each", how, 1.0) for how in rig.READS),
    ("short", "nested", "each", "auto", 1.0),
)


def compiled(folder: Path) -> Path:
    """Build the library; skip where that is impossible."""
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SHIM)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise Skip(f"cannot build {_SHIM.name}: {getattr(problem, 'stderr', problem)}") from None
    return library


def report_of(order: dict[str, Any], library: Path | None) -> dict[str, Any]:
    """Have one order done in a process of its own."""
    preloaded = {} if library is None else {"LD_PRELOAD": str(library)}
    out, problem = told("shortages", json.dumps(order), **preloaded)
    report: dict[str, Any] = {"outcomes": {}, "violations": [problem]} if problem else json.loads(out)
    return {**report, "violations": [f"{order}: {text}" for text in report["violations"]]}


def run(scale: float) -> Verdict:
    reports, skipped = [], []
    if os.geteuid() == 0 and os.access(_GROUPS, os.W_OK):
        reports.append(report_of({"kind": "oom", "kills": max(round(OOM_KILLS * scale), 2)}, None))
    else:
        skipped.append("out of memory: needs root and a control group of version 1")
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        for kind, case, way, act, share in SWEEPS:
            if kind == "python" and importlib.util.find_spec("_testcapi") is None:
                skipped.append("python: has no _testcapi")
                continue
            part = {"kind": kind, "case": case, "way": way, "act": act, "share": min(share * scale, 1)}
            reports.append(report_of(part, None if kind == "python" else library))
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report["outcomes"])
    figures: dict[str, Any] = {
        "runs": sum(counts.values()) - sum(counts[name] for name in counts if name.endswith(DONE)),
        **dict(sorted(counts.items())),
    }
    if skipped:
        figures["skipped"] = "; ".join(sorted(set(skipped)))
    return Verdict(figures, [text for report in reports for text in report["violations"]])
