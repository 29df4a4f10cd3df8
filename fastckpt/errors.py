"""Every error of ours.

What the *format* forbids is one of these; what the *system* refuses (no space, no permission, no such file) stays an
``OSError`` with its errno and path.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CheckpointError",
    "CommitUncertain",
    "CorruptError",
    "FormatError",
    "LimitError",
    "MismatchError",
    "NotCommittedError",
    "UnsupportedError",
    "printable",
]


def printable(text: str) -> str:
    """Escape what a terminal could take for a command, and line ends."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class CheckpointError(Exception):
    """Base of all errors that fastckpt itself raises; names in their text, which come from anywhere, are escaped."""

    def __str__(self) -> str:
        return "\n\t".join(map(printable, super().__str__().split("\n\t")))  # torch's lists of keys have lines


class BusyError(CheckpointError):
    """Another save of this process has not ended yet, and the caller would not wait for it, or never see its end."""


class NotCommittedError(CheckpointError):
    """The folder has no ``snapshot_done``: it is no snapshot, or one that was never finished."""


class CorruptError(CheckpointError):
    """A committed snapshot is damaged: a file is missing, too short, too long, or its digest differs."""


class FormatError(CheckpointError):
    """A file of the snapshot does not follow the format, or follows a later one."""


class LimitError(CheckpointError):
    """The snapshot is larger than the caller allowed by ``max_bytes`` or ``max_tensors``."""


class UnsupportedError(CheckpointError):
    """Something was asked for that cannot be stored, or cannot be given back in the form asked for."""


class MismatchError(CheckpointError, RuntimeError):
    """Keys or shapes of a target and a snapshot differ (a ``RuntimeError``, as torch's ``load_state_dict`` raises)."""


class CommitUncertain(CheckpointError, OSError):
    """The new snapshot is visible, but the system failed to confirm that it would survive a power cut."""
