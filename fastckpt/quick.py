"""The load that most are, of a flat snapshot on a disk of this machine: everything in one call of C, or two.

It takes what is exactly as we write it. Whatever deviates, or is damaged, is left to ``fastckpt.contents``, which alone
judges; so this one need only be right when it gives something.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from zlib_ng.zlib_ng import crc32

from fastckpt import _core
from fastckpt.choosing import WORTH_WARMING, has_room, maps_fast, worth_warming
from fastckpt.codec import codec_for, default_framework
from fastckpt.dtypes import BY_NUMBER
from fastckpt.filesystems import filesystem_of
from fastckpt.folders import FEW, MAP_LIMIT, readers
from fastckpt.layout import DONE, PICKLE
from fastckpt.marker import LINE_LIMIT
from fastckpt.warming import warm

__all__ = ["load_plain"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {number: (dtype.dlpack, dtype.itemsize) for number, dtype in BY_NUMBER.items() if dtype.dlpack is not None}
_OTHERS = (PICKLE,)

_Found = tuple[dict[str, Any], Sequence[_core.Mapping]]  # tensors, and what is worth being brought into memory


def load_plain(path: str | os.PathLike[str], framework: str | None, most: int) -> dict[str, Any] | None:
    """Give all tensors of the snapshot at `path`, as ``load(path)`` does, or None: then nothing is known of it.

    Parameters
    ----------
    path : str or os.PathLike
        Its folder.
    framework : {"torch", "numpy"}, optional
        What they become.
    most : int
        How many there may be.
    """
    take = codec_for(framework or default_framework()).take
    if take is None or not isinstance(path, (str, os.PathLike)):
        return None
    try:
        fd = os.open(path, _FOLDER)
    except (OSError, ValueError):
        return None
    try:
        found = _of_index(fd, take, most) if maps_fast(filesystem_of(fd)) else None
    finally:
        os.close(fd)
    if found is None:
        return None
    tensors, cold = found
    if cold:
        warm(cold)
    return tensors


def _of_index(fd: int, take: Callable[[Any], Any], most: int) -> _Found | None:
    found = _core.load_plain(
        fd,
        DONE,
        _KINDS,
        take,
        crc32,
        others=_OTHERS,
        few=FEW,
        most_maps=MAP_LIMIT,
        most_tensors=most,
        most_bytes=LINE_LIMIT,
        worth=WORTH_WARMING,
    )
    if found is None:
        return None
    tensors, cold = found
    if tensors is None:
        return _of_folders(fd, take, most)
    return tensors, cold if cold and has_room(sum(map(len, cold))) else []


def _of_folders(fd: int, take: Callable[[Any], Any], most: int) -> _Found | None:
    folders = [name for name in os.listdir(fd) if name != DONE]
    if not 0 < len(folders) <= most:
        return None
    found = _core.load_folders(fd, folders, _KINDS, take, threads=readers(fd, folders), most=MAP_LIMIT)
    try:
        os.stat(DONE, dir_fd=fd, follow_symlinks=False)  # whoever deletes a snapshot takes it first
    except OSError:
        return None
    if found is None:
        return None
    tensors, maps = found
    return tensors, [*maps.values()] if worth_warming(fd, maps) else []
