"""What a save takes from a thread that goes on training: how many steps it makes beside it, and how many alone.

A step is a few small matrix products called from Python, as a training loop's: it needs a processor, and between its
calls the interpreter's lock. So it suffers from a save that keeps that lock, or takes the processors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from fastckpt.bench.measuring import measured

__all__ = ["beside_training"]

_SIDE = 32  # of the matrices
_PRODUCTS = 4  # a step
_ALONE = 0.25  # seconds, before the save and again after it


def beside_training(work: Callable[[], Any]) -> dict[str, Any]:
    """Do something while a thread trains.

    Returns
    -------
    dict
        What ``measured`` gives, and ``kept``, the part of its undisturbed rate that the thread kept meanwhile, and
        ``lost``, the seconds of training that it did not get.
    """
    training = _Training()
    try:
        training.rate()  # the first steps are slower
        before = training.rate()
        found, steps = measured(lambda: training.steps_during(work))
        alone = (before + training.rate()) / 2
    finally:
        training.end()
    kept = steps / (alone * found["seconds"])
    return {**found, "kept": kept, "lost": found["seconds"] * (1 - kept)}


class _Training:
    """A thread that trains until it is ended."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._steps = 0
        self._over = False
        self._thread = threading.Thread(target=self._train, name="training", daemon=True)
        self._thread.start()

    def steps_during(self, work: Callable[[], Any]) -> int:
        first = self._steps
        work()
        return self._steps - first

    def rate(self) -> float:
        """Steps per second, with nothing beside them."""
        begin = time.perf_counter()
        steps = self.steps_during(lambda: time.sleep(_ALONE))
        return max(1, steps) / (time.perf_counter() - begin)

    def end(self) -> None:
        self._over = True
        self._thread.join()
        torch.set_num_threads(self._threads)

    def _train(self) -> None:
        torch.set_num_threads(1)  # two at a product wait for each other, longest where processors sleep: when alone
        weights = torch.eye(_SIDE).roll(1, 0)
        values = torch.rand(_SIDE, _SIDE)
        while not self._over:
            for _ in range(_PRODUCTS):
                values = torch.tanh(values @ weights)
            self._steps += 1
