"""``python -m fuzz [PART …]``: run the parts one after the other, for a minute in all unless told otherwise."""

from __future__ import annotations

import argparse
import sys
import time
from types import ModuleType

from faults.verdict import Skip

from fuzz import canon, folders, model

PARTS: dict[str, ModuleType] = {"canon": canon, "folders": folders, "model": model}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for all parts together")
    options = parser.parse_args()
    parts = options.parts or [*PARTS]
    failed = 0
    for name in parts:
        began = time.monotonic()
        print(f"{name}: {PARTS[name].ABOUT}", flush=True)
        try:
            verdict = PARTS[name].run(options.seconds / len(parts))
        except Skip as reason:
            print(f"  skipped: {reason}")
            continue
        figures = ", ".join(f"{figure} {value}" for figure, value in verdict.figures.items())
        spent = f"{time.monotonic() - began:.0f} s"
        print(
            f"  {'FAILED' if verdict.violations else 'passed'} in {spent}: {figures}", *verdict.violations, sep="\n  "
        )
        failed += bool(verdict.violations)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
