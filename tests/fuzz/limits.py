"""How much of a part is run, in which folder, and what hypothesis finds meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis

__all__ = ["Limit", "explored", "findings", "scratch"]

MEMORY = Path("/dev/shm")


class Limit(NamedTuple):
    """So many runs, or as many as fit into so many seconds, whichever is given."""

    runs: int | None = None
    seconds: float | None = None

    def part(self, share: float) -> Limit:
        """Give a share of it."""
        return Limit(self.runs and round(self.runs * share), self.seconds and self.seconds * share)

    def batches(self, size: int) -> Iterator[int]:
        """Give how many runs come next, at most `size`, until it is enough."""
        began, done = time.monotonic(), 0
        while (self.runs is None or done < self.runs) and time.monotonic() - began < (self.seconds or float("inf")):
            batch = size if self.runs is None else min(size, self.runs - done)
            done += batch
            yield batch


def explored(limit: Limit, size: int, explore: Callable[[int, int], list[str]]) -> tuple[int, list[str]]:
    """Call `explore` with a number of runs and a seed, in batches, until something is found; how many these were."""
    done = 0
    for batch in limit.batches(size):
        done += batch
        if found := explore(batch, int.from_bytes(os.urandom(4), "big")):
            return done, found
    return done, []


def findings(test: Callable[[hypothesis.settings], Any], seed: int, **how: Any) -> list[str]:
    """Run a test of hypothesis, which takes its settings; give what it found."""
    patient = {"deadline": None, "database": None, "suppress_health_check": [*hypothesis.HealthCheck]}
    try:
        test(hypothesis.settings(**patient, **how))
    except Exception as found:  # noqa: BLE001  # whatever it is, it is a finding
        notes = "\n".join(getattr(found, "__notes__", []))
        return [f"seed {seed}: {type(found).__name__}: {found}\n{notes}"]
    return []


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Give a folder for a while, in memory where there is one."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
