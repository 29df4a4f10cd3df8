"""One promise held against what each round gave: the median counts, and an interval says how far it is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SURE", "Row"]

SURE = 0.9  # how likely the median of all rounds that could be lies in the interval, at least


@dataclass(frozen=True)
class Row:
    """A promise and what became of it.

    Attributes
    ----------
    what, against : str
        What is promised, and compared with whom.
    need : float
        The bar.
    rounds : tuple of float
        What each round gave; nothing where nothing was measured.
    most : bool
        Whether `need` is the most that is allowed instead of the least.
    unit : str
        "x" for ratios, "MiB" for memory and bytes.
    why : str
        Why nothing was measured.
    bare : float or None
        What who does only the bare work reaches in the same rounds: makes the same files, reads as many bytes into
        memory that holds them all, or opens the same files.
    """

    what: str
    against: str
    need: float
    rounds: tuple[float, ...]
    most: bool = False
    unit: str = "x"
    why: str = ""
    bare: float | None = None

    @property
    def got(self) -> float | None:
        """Give the median of the rounds."""
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def between(self) -> tuple[float, float] | None:
        """Give the interval that the median lies in, as `SURE` says; None where the rounds are too few for any.

        It is made of two of the rounds, whatever their distribution: as many are below the one as above the other
        (the sign test's interval). Five rounds give their least and most, fifteen the fourth and the twelfth.
        """
        rounds, many = sorted(self.rounds), len(self.rounds)
        outside, at = 0.0, 0
        while at < many // 2 and (outside := outside + 2 * math.comb(many, at) / 2**many) <= 1 - SURE:
            at += 1
        return (rounds[at - 1], rounds[-at]) if at else None

    @property
    def verdict(self) -> str:
        """Give "pass", "short" or "not measured"."""
        if self.got is None:
            return "not measured"
        return "pass" if self._suffices(self.got) else "short"

    @property
    def bound(self) -> bool:
        """Tell whether it falls short where the bare work does so as well."""
        return self.verdict == "short" and self.bare is not None and not self._suffices(self.bare)

    @property
    def close(self) -> bool:
        """Tell whether the bar lies in the interval, so that another run may come to the other verdict."""
        return self.between is not None and self._suffices(self.between[0]) != self._suffices(self.between[1])

    def record(self) -> Mapping[str, Any]:
        """Give it as JSON has it."""
        named = ("what", "against", "need", "most", "got", "between", "bare", "unit", "verdict", "why")
        return {name: getattr(self, name) for name in named}

    def _suffices(self, reached: float) -> bool:
        return reached <= self.need if self.most else reached >= self.need
