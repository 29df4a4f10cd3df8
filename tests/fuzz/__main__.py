"""``python -m fuzz [PART …]``: run the parts one after the other.

Without more, `canon` takes a minute, `folders` tries 20,000 snapshots, `model` makes 200 runs of 50 steps. ``--runs``
or ``--seconds`` is the same for each part that is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import ModuleType

from faults.verdict import Skip

from fuzz import canon, folders, model
from fuzz.limits import Limit

PARTS: dict[str, ModuleType] = {"canon": canon, "folders": folders, "model": model}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS], help="default: all")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--runs", type=int, help="so many executions, snapshots or runs")
    limits.add_argument("--seconds", type=float, help="as many as fit into them")
    options = parser.parse_args()
    limit = Limit(options.runs, options.seconds)
    failed = [name for name in options.parts or PARTS if fails(name, limit)]
    return 1 if failed else 0


def fails(name: str, limit: Limit) -> bool:
    """Run one part and show its figures."""
    part, began = PARTS[name], time.monotonic()
    print(f"{name}: {part.ABOUT}", flush=True)
    try:
        verdict = part.run(part.USUAL if limit == Limit() else limit)
    except Skip as reason:
        print(f"  skipped: {reason}")
        return False
    figures = ", ".join(f"{figure} {value}" for figure, value in verdict.figures.items())
    spent = f"{time.monotonic() - began:.0f} s"
    print(f"  {'FAILED' if verdict.violations else 'passed'} in {spent}: {figures}", *verdict.violations, sep="\n  ")
    return bool(verdict.violations)


if __name__ == "__main__":
    sys.exit(main())
