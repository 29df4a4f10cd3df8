"""``python -m faults [CHECK …]``: run checks one after the other, print their figures, fail if one found anything.

A check is a module of this folder with ``ABOUT``, one line that says what must hold, and
``run(scale: float) -> Verdict``: at scale 1 it reaches its figures in minutes, at 0.02 in seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

import faults
from faults.verdict import Skip, Verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of it; 1 is the full figure")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    checks = {name: check for name, check in all_checks().items() if name in (options.checks or all_checks())}
    if unknown := set(options.checks) - set(checks):
        parser.error(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(all_checks())}")
    results = {name: outcome(name, check, options.scale) for name, check in checks.items()}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    bad = [name for name, result in results.items() if result.get("violations")]
    skipped = [name for name, result in results.items() if "skipped" in result]
    print(f"{len(results) - len(bad) - len(skipped)} passed, {len(bad)} failed, {len(skipped)} skipped")
    return 1 if bad else 0


def all_checks() -> dict[str, Any]:
    names = sorted(module.name for module in pkgutil.iter_modules(faults.__path__) if not module.name.startswith("_"))
    modules = {name: importlib.import_module(f"{faults.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "ABOUT")}


def outcome(name: str, check: Any, scale: float) -> dict[str, Any]:
    began = time.monotonic()
    print(f"{name}: {check.ABOUT}", flush=True)
    try:
        verdict: Verdict = check.run(scale)
    except Skip as reason:
        print(f"  skipped: {reason}", flush=True)
        return {"about": check.ABOUT, "skipped": str(reason)}
    seconds = round(time.monotonic() - began, 1)
    figures = ", ".join(f"{figure} {value}" for figure, value in verdict.figures.items())
    print(f"  {'FAILED' if verdict.violations else 'passed'} in {seconds} s: {figures}", flush=True)
    for violation in verdict.violations[:20]:
        print(f"  - {violation}", flush=True)
    return {"about": check.ABOUT, "seconds": seconds, "scale": scale, **verdict.as_json()}


if __name__ == "__main__":
    sys.exit(main())
