"""Blobs of an open snapshot as maps, and what is said of them: also where the process has as many maps as it may."""

from __future__ import annotations

import errno
import os

from fastckpt import _core
from fastckpt.errors import CorruptError
from fastckpt.layout import OUT
from fastckpt.memory import available
from fastckpt.opening import unreadable

__all__ = ["map_files", "map_if_possible", "with_path"]

_HINT = "vm.max_map_count limits a process: let go of tensors that are mapped, raise it, or load with mode='read'"


def map_files(fd: int, blobs: dict[str, int], path: str) -> list[_core.Mapping]:
    """Map the blobs of an open snapshot, given their folders and sizes.

    Raises
    ------
    CorruptError
        A file has another size by now.
    OSError
        What the system refused, with errno and path.
    """
    try:
        return _core.map_files(fd, [f"{blob}/{OUT}" for blob in blobs], list(blobs.values()))
    except (_core.SizeChanged, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno == errno.ENOMEM:
            problem.strerror = f"{problem.strerror} ({_HINT})"
        raise with_path(problem, path) from None


def map_if_possible(fd: int, blobs: dict[str, int], path: str, *, whole: bool) -> dict[str, _core.Mapping]:
    """Do the same, and give the maps by folder; none, where there are too many and they can be read instead.

    Parameters
    ----------
    fd, blobs, path
        As for `map_files`.
    whole : bool
        Whether all of their bytes would be read, for which the memory has to be enough.

    Raises
    ------
    CorruptError, OSError
        As `map_files`.
    """
    try:
        return dict(zip(blobs, map_files(fd, blobs, path), strict=True))
    except OSError as problem:
        if problem.errno != errno.ENOMEM or (whole and sum(blobs.values()) > available()):
            raise
        return {}


def with_path(problem: _core.SizeChanged | OSError, path: str) -> Exception:
    """Say it with the path that the user knows; a file that is gone may have gone with a snapshot that was replaced."""
    if isinstance(problem, _core.SizeChanged):
        return CorruptError(f"{path}: {problem}; it was changed while being read, load it again")
    problem.filename = os.path.join(path, os.fsdecode(problem.filename)) if problem.filename else path
    damage = unreadable(problem.errno or errno.EIO, problem.filename)
    return problem if isinstance(damage, OSError) or problem.errno == errno.ENOENT else damage
