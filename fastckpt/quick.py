"""The load that most are, of a snapshot on a disk of this machine: every tensor made in one call of C, or two.

It takes what is exactly as we write it. Whatever deviates, or is damaged, is left to ``fastckpt.contents``, which alone
judges; so this one need only be right when it gives something.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from zlib_ng.zlib_ng import crc32

from fastckpt import _core, tree
from fastckpt import meta as meta_file
from fastckpt.choosing import WORTH_WARMING, has_room, maps_fast, worth_warming
from fastckpt.codec import KINDS, Codec, codec_for, default_framework
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import CheckpointError
from fastckpt.filesystems import filesystem_of
from fastckpt.folders import FEW, MAP_LIMIT, readers
from fastckpt.garbage import collector_at_rest
from fastckpt.layout import DONE, PICKLE
from fastckpt.marker import LINE_LIMIT
from fastckpt.memory import maps_left
from fastckpt.meta import Meta
from fastckpt.warming import warm

__all__ = ["load_plain"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {number: (dtype.dlpack, dtype.itemsize) for number, dtype in BY_NUMBER.items() if dtype.dlpack is not None}
_OTHERS = (PICKLE,)


_fast: set[int] = set()  # devices whose file system maps fast: block devices, which are one's own


class _UnusualError(Exception):
    """There is something that the quick load does not know."""


def load_plain(path: Any, framework: str | None, most: int) -> Any:
    """Give the object that the snapshot at `path` holds, as ``load(path)`` does, or None: then nothing is known of it.

    Parameters
    ----------
    path : str or os.PathLike
        Its folder.
    framework : {"torch", "numpy"}, optional
        What every tensor becomes.
    most : int
        How many there may be.
    """
    codec = codec_for(framework or default_framework())
    if codec.take is None:
        return None
    try:
        name = os.fspath(path)
        if not isinstance(name, str):
            return None
        fd = os.open(name, _FOLDER)
    except (OSError, TypeError, ValueError):
        return None
    try:
        if not _maps_fast(fd):
            return None
        made, cold = _load(fd, _Plain(codec, framework is None), most)
    except (_UnusualError, CheckpointError):
        return None
    finally:
        os.close(fd)
    if cold:
        warm(cold)
    return made


def _maps_fast(fd: int) -> bool:
    device = _core.device_of(fd)
    if device not in _fast:
        if not maps_fast(filesystem_of(fd)):
            return False
        if os.major(device):
            _fast.add(device)
    return True


class _Plain:
    """What the metas say of tensors besides shape, dtype and digest, and the object that they make.

    Parameters
    ----------
    codec : Codec
        Of the tensors.
    arrays : bool
        Arrays in a nested object stay arrays.
    """

    def __init__(self, codec: Codec, arrays: bool) -> None:
        self.codec = codec
        self.take: Any = codec.take
        self._arrays = arrays
        self._container: Any = None
        self._ties: dict[str, Meta] = {}

    def note(self, folder: str, text: bytes, count: int) -> tuple[str, int, bool] | None:
        """Read a meta for ``_core.load_plain``."""
        meta = meta_file.parse(text, folder)
        if meta.place is None or meta.count != count or meta.dtype.enum is None:
            return None
        if meta.place == 0:
            self._container = meta.container
        key = folder if meta.name is None else meta.name
        if meta.same_as is not None:
            self._ties[key] = meta
        return key, meta.place, meta.same_as is not None

    def object(self, tensors: dict[str, Any], record: bytes | None) -> Any:
        """Give the object that holds the tensors, which has a record unless it is flat."""
        for key, meta in self._ties.items():
            twin = tensors.get(str(meta.same_as))
            if twin is None or meta.same_as in self._ties or self.codec.describe(twin)[:2] != (meta.dtype, meta.shape):
                raise _UnusualError
            tensors[key] = twin
        if record is None:
            return tree.refill(self._container, tensors, KINDS.unpack, where=DONE)
        try:
            content = json.loads(record.decode("ascii"))
        except (ValueError, RecursionError):
            raise _UnusualError from None
        with collector_at_rest():
            return tree.unflatten(content, lambda key, of: self._leaf(tensors.get(key), of), KINDS.unpack, where=DONE)

    def _leaf(self, tensor: Any, framework: str) -> Any:
        if tensor is None or (self._arrays and framework != self.codec.name):
            raise _UnusualError
        return tensor


def _load(fd: int, plain: _Plain, most: int) -> tuple[Any, Sequence[_core.Mapping]]:
    """Give the object, and what is worth being brought into memory."""
    found = _core.load_plain(
        fd,
        DONE,
        _KINDS,
        plain.take,
        plain.note,
        crc32,
        others=_OTHERS,
        few=FEW,
        most_maps=min(MAP_LIMIT, maps_left()),
        most_tensors=most,
        most_bytes=LINE_LIMIT,
        worth=WORTH_WARMING,
    )
    if found is None:
        raise _UnusualError
    tensors, cold, record = found
    if tensors is None:
        return _load_folders(fd, plain, most)
    return plain.object(tensors, record), cold if cold and has_room(sum(map(len, cold))) else []


def _load_folders(fd: int, plain: _Plain, most: int) -> tuple[Any, Sequence[_core.Mapping]]:
    folders = [name for name in os.listdir(fd) if name != DONE]
    if not 0 < len(folders) <= most:
        raise _UnusualError
    (threads, ahead), most_maps = readers(fd, folders), min(MAP_LIMIT, maps_left())
    found = _core.load_folders(
        fd, folders, _KINDS, plain.take, plain.note, ahead=ahead, threads=threads, most=most_maps
    )
    try:
        os.stat(DONE, dir_fd=fd, follow_symlinks=False)  # whoever deletes a snapshot takes it first
    except OSError:
        found = None
    if found is None:
        raise _UnusualError
    tensors, maps = found
    return plain.object(tensors, None), [*maps.values()] if worth_warming(fd, maps) else []
