"""Damages pickles as OneFlow writes them, and looks at what their reader does."""

from __future__ import annotations

import random
import sys
import time
import tracemalloc

from oneflow_rig import source_of
from pickle_damage import FRAMELESS, GENUINE, damaged, swapped

from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.oneflow import read_saved
from faults.verdict import Verdict

ABOUT = "A damaged pickle is read or refused: no import, no other error, little memory, soon"

_PICKLES = 100_000
_BATCH = 500
_PEAK = 64 << 20  # bytes, of pickles of less than 8 KB
_SLOWEST = 5.0  # seconds


def run(scale: float) -> Verdict:
    """Read damaged pickles, in batches of one seed each."""
    modules, violations = set(sys.modules), []
    found = {"pickles": 0, "read": 0, "refused": 0}
    peak, slowest = 0, 0.0
    tracemalloc.start()
    for seed in range(max(1, round(_PICKLES * scale / _BATCH))):
        random_ = random.Random(seed)
        for number in range(_BATCH):
            data = (
                swapped(random_.choice(FRAMELESS), random_) if number % 2 else damaged(random_.choice(GENUINE), random_)
            )
            began = time.monotonic()
            try:
                read_saved(source_of(data))
                found["read"] += 1
            except (FormatError, UnsupportedError):
                found["refused"] += 1
            except Exception as problem:  # noqa: BLE001
                violations.append(f"seed {seed}, pickle {number}: {problem!r}")
            slowest = max(slowest, time.monotonic() - began)
            found["pickles"] += 1
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
    tracemalloc.stop()
    if peak > _PEAK:
        violations.append(f"a batch took {peak >> 20} MiB")
    if slowest > _SLOWEST:
        violations.append(f"one took {slowest:.1f} s")
    violations += [f"imported {name}" for name in set(sys.modules) - modules]
    return Verdict(found | {"peak MiB": round(peak / 2**20, 1), "slowest ms": round(1000 * slowest)}, violations)
