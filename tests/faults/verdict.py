"""What a check says when it is done."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Skip", "Verdict", "need_programs", "need_root"]


class Skip(Exception):
    """A check cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Verdict:
    """The figures of one check, and what it found.

    Attributes
    ----------
    figures : dict
        What was counted, in the order in which it is shown: name to number or text.
    violations : list of str
        What must not be; each says how to see it again. Empty is a pass.
    """

    figures: dict[str, Any]
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def need_root() -> None:
    """Skip unless this is root, who alone mounts and makes control groups."""
    if os.geteuid() != 0:
        raise Skip("needs root")


def need_programs(*names: str) -> None:
    """Skip unless these programs are installed."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise Skip(f"needs {', '.join(missing)}")
