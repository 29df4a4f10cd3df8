"""The garbage collector rests where many objects are made and none thrown away."""

from __future__ import annotations

import gc
from typing import Any

__all__ = ["collector_at_rest"]


class _Rest:
    """No generator: a load of a few tensors would notice that."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *problem: Any) -> None:
        if self._was_on:
            gc.enable()


def collector_at_rest() -> _Rest:
    """Let it rest, if it is on. With 20,000 tensors, looking for garbage over and over took more than half the time."""
    return _Rest()
