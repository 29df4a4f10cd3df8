"""What a side of the comparison can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastckpt.bench.states import flat

__all__ = ["NotAvailable", "Side"]


class NotAvailable(Exception):
    """A rival, or one of its ways, is not there."""


class Side:
    """One rival: what is not overridden it cannot do."""

    nested = False  # whether it can save more than a flat dict

    def save(self, state: Any, path: Path, durable: bool) -> None:
        """Save to a path where nothing is; `durable` is for those that sync themselves."""
        raise NotAvailable(f"{type(self).__name__} cannot do this")

    def load(self, path: Path, device: str | None = None) -> Any:
        """Give the tensors, maybe lazily."""
        raise NotAvailable(f"{type(self).__name__} cannot do this")

    def save_async(self, state: Any, path: Path) -> Callable[[], Any]:
        """Begin a save; give what waits for its end."""
        raise NotAvailable(f"{type(self).__name__} cannot do this")

    def first(self) -> None:
        """Let the next load be as the first one of a process, where that matters."""

    def ready(self, state: Any) -> None:
        """Do beforehand what a program does once that saves the same tensors again and again."""

    def part(self, path: Path, key: str, rows: slice | None) -> Any:
        """Give one tensor, or some of its rows."""
        raise NotAvailable(f"{type(self).__name__} cannot do this")

    def load_into(self, path: Path, state: Any) -> None:
        """Load into live tensors: by a copy of each, where a rival has no better way."""
        loaded = self.load(path)
        for name, tensor in flat(state).items():
            tensor.copy_(loaded[name])
