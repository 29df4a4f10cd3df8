"""Kill a process in the middle of a save, and look at what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

#: What a save fills, beside its target, before it puts it in place: `.run.saving-1a2b3c4d` for `run`.
STAGING = ".{}.saving-*"


def leftovers(path: Path) -> list[Path]:
    """The staging folders beside a snapshot: those of saves at work, and of dead ones until the next save."""
    return sorted(path.parent.glob(STAGING.format(path.name)))


def kill_in_save(command: list[str], path: Path, *, saves: int) -> Path | None:
    """Start a program that prints a line after each save, let it save some times, and kill it in the save after that.

    Parameters
    ----------
    command : list of str
        The program; it saves to `path`, one save after the other.
    path : Path
        The snapshot.
    saves : int
        How many saves to let through.

    Returns
    -------
    Path or None
        The folder that the killed save left; None when the program, or the save, was done before it could be killed.
    """
    before = set(leftovers(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            for _ in range(saves):
                child.stdout.readline()
            while child.poll() is None and not any(begun(folder) for folder in leftovers(path) if folder not in before):
                time.sleep(0.0001)
        finally:
            child.kill()  # SIGKILL, which `kill -9` and the kernel's out-of-memory killer send: no chance to tidy up
    left = set(leftovers(path)) - before
    return left.pop() if left and child.returncode == -signal.SIGKILL else None


def begun(leftover: Path) -> bool:
    """Tell whether a save has written its first tensor: `out` comes before `meta`."""
    return any(leftover.glob("*/meta"))


def step_of(leftover: Path, total: int) -> str:
    """Tell how far the save had come that left this folder, out of a number of tensors."""
    if (leftover / "snapshot_done").exists():
        return f"all {total} tensors and the marker written, not yet put in place"
    written = len(list(leftover.glob("*/meta")))
    return f"{written} of {total} tensors written, no marker"
