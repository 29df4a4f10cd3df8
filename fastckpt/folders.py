"""The folders of a snapshot, one for each tensor: what their metas say, and the sizes of their blobs, or maps of them.

All of them are looked into by C, in threads.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.dtypes import BY_NUMBER
from fastckpt.errors import CheckpointError, CorruptError, LimitError, MismatchError
from fastckpt.layout import META, OUT
from fastckpt.memory import maps_left
from fastckpt.meta import Meta
from fastckpt.opening import unreadable
from fastckpt.problems import Findings

__all__ = ["FEW", "MAP_LIMIT", "Folders", "Look", "readers"]

#: Which blobs to map in the same pass that looks at the metas: none; all; those that lie in the page cache; all, the
#: cold ones by huge pages; the same, and those of them that are too small for that are read at once.
Look = Literal["none", "all", "resident", "huge", "advise"]
_COLD = {
    "all": _core.COLD_MAP,
    "resident": _core.COLD_LEAVE,
    "huge": _core.COLD_HUGE,
    "advise": _core.COLD_ADVISE,
}

MAP_LIMIT = 30_000  # maps of one load; the kernel gives a process 65,530 unless told otherwise
_READERS = 16
_ENOUGH = 512  # descriptors: so many are left, or no file is opened ahead; that takes up to a quarter of them
_WORTH_A_THREAD = 40  # folders,
_WORTH_WAITING = 4  # or so few where their files come from the disk
FEW = 400  # blobs: who only maps them waits for whoever else does (mmap_lock), and is faster alone
_DEPTH = 50  # slashes in a key of others
_NO_ENTRY = -errno.ENOENT
_NO_FOLDER = -errno.ENOTDIR


class Folders:
    """What was found in the folders of one snapshot.

    Parameters
    ----------
    path : str
        The snapshot, for errors.
    fd : int
        Descriptor of it.
    most : int or None
        How many folders are looked into at most.
    given : mapping of str to Meta, optional
        Shapes and dtypes of tensors whose folders have no ``meta``.
    seals : bool
        Notice metas that have changed since they were saved.
    damaged : bool
        List what is wrong with a folder, and pass it over.

    Attributes
    ----------
    findings : Findings
        What is wrong, if that was to be listed.
    blobs : dict of str to Mapping
        The bytes of some tensors, by folder: those that were read or mapped already.
    notes : list of str
        What was passed over, for a warning.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        most: int | None,
        given: Mapping[str, Meta] | None = None,
        *,
        seals: bool = False,
        damaged: bool = False,
    ) -> None:
        self.path = path
        self.fd = fd
        self.blobs: dict[str, _core.Mapping] = {}
        self.notes: list[str] = []
        self.findings = Findings(damaged)
        self._left = most
        self._given = given or {}
        self._seals = seals

    def count(self, more: int) -> None:
        """Refuse to look into more folders than are allowed."""
        if self._left is None:
            return
        self._left -= more
        if self._left < 0:
            raise LimitError(f"{self.path}: more tensor folders than max_tensors allows; raise it if you trust them")

    def metas(self, folders: Sequence[str], look: Look) -> dict[str, Meta]:
        """Folder to meta; others' folders may lie one in the other (a key "a/b" of OneFlow)."""
        metas: dict[str, Meta] = {}
        foreign: list[str] = []
        for folder, (text, out) in zip(folders, self._scan(folders, look), strict=True):
            if type(text) is Meta and type(out) is _core.Mapping:  # nearly every one
                metas[folder] = text
                self.blobs[folder] = out
                continue
            meta = self._meta(folder, text, out)
            if meta is not None:
                metas[folder] = meta
            if meta.count is None if meta is not None else text == out == _NO_ENTRY:
                foreign.append(folder)
        for folder in foreign:
            metas.update(self._nested(folder, folder in metas))
        return metas

    def sure(self, folders: Sequence[str], look: Look) -> dict[str, Meta]:
        """Folder to meta, where each must be a tensor's."""
        found = zip(folders, self._scan(folders, look), strict=True)
        metas = {folder: self._meta(folder, text, out, sure=True) for folder, (text, out) in found}
        return {folder: meta for folder, meta in metas.items() if meta is not None}

    def _meta(
        self, folder: str, text: Meta | bytes | int, out: int | _core.Mapping, *, sure: bool = False
    ) -> Meta | None:
        """Hold what the scan found in a folder against each other; None where it is no tensor's, or refused."""
        if isinstance(out, _core.Mapping):
            self.blobs[folder] = out
        if isinstance(text, Meta):
            return text
        size = out if isinstance(out, int) else len(out)
        where, meta = f"{self.path}/{folder}", None
        try:
            if text == _NO_ENTRY and folder in self._given and size >= 0:
                return _fitting(self._given[folder], size, where)
            if not isinstance(text, bytes):
                self._pass_over(where, text, size, sure)
                return None
            meta = self._parsed(folder, text)
            if size < 0:
                raise unreadable(-size, f"{where}/{OUT}")
            return meta if meta.nbytes == size else meta_file.with_file_size(meta, size, where)
        except (CheckpointError, OSError) as problem:
            self.findings.refuse(folder, problem, meta)
            return None

    def _parsed(self, folder: str, text: bytes) -> Meta:
        where = f"{self.path}/{folder}/{META}"
        if self._seals:
            meta_file.check_seal(text, where)
        return meta_file.parse(text, where)

    def named(self, folders: Sequence[str], keys: Sequence[str] | None) -> dict[str, Meta] | None:
        """Folder to meta of some keys; None unless each names its folder, and all folders are those of one save."""
        if not keys or not set(keys) <= set(folders):
            return None
        metas: dict[str, Meta] = {}
        for key, (text, out) in zip(keys, self._scan(keys, "none"), strict=True):
            if isinstance(text, int):
                return None
            meta = text if isinstance(text, Meta) else self._parsed(key, text)
            if (meta.name, meta.same_as, meta.count, meta.nbytes) != (None, None, len(folders), out):
                return None
            metas[key] = meta
        return metas

    def check(self, blobs: dict[str, int], look: Look) -> None:
        """Check the size of some blobs, given by folder, and map those that `look` says; small ones are read.

        Raises
        ------
        CorruptError
            One is missing, or has another size.
        """
        for (folder, wanted), (_, out) in zip(blobs.items(), self._scan([*blobs], look, metas=False), strict=True):
            size = out if isinstance(out, int) else len(out)
            if size < 0:
                raise unreadable(-size, f"{self.path}/{folder}/{OUT}")
            if size != wanted:
                raise CorruptError(
                    f"{self.path}/{folder}/{OUT}: meta wants {wanted} bytes, file has {size}; take another copy"
                )
            if isinstance(out, _core.Mapping):
                self.blobs[folder] = out

    def _nested(self, folder: str, is_tensor: bool) -> dict[str, Meta]:
        inner = [f"{folder}/{name}" for name in _folders_in(folder, self.fd)] if folder.count("/") < _DEPTH else []
        if not inner and not is_tensor:
            self.notes.append(f"{self.path}/{folder}: no tensor, passed over (neither {META} nor {OUT} in it)")
        self.count(len(inner))
        return self.metas(inner, "none") if inner else {}

    def _pass_over(self, where: str, text: int, size: int, sure: bool) -> None:
        """Note what is no tensor of anybody's; raise for a tensor that is damaged."""
        if sure or text not in (_NO_ENTRY, _NO_FOLDER):
            raise unreadable(-text, f"{where}/{META}")
        if text == _NO_FOLDER:
            self.notes.append(f"{where}: a file that belongs to no snapshot, passed over")
        elif size >= 0:
            self.notes.append(
                f"{where}/{META}: missing, so shape and dtype of {OUT} are unknown; passed over (OneFlow before 0.3.1 "
                f"wrote no {META}: load_into a state that has this key gives it shape and dtype)"
            )
        elif size != _NO_ENTRY:  # where both are missing, it is a folder of folders, perhaps
            raise unreadable(-text, f"{where}/{META}")

    def _scan(
        self, folders: Sequence[str], look: Look, *, metas: bool = True
    ) -> list[tuple[Meta | bytes | int, int | _core.Mapping]]:
        """Look into folders; a meta that says nothing unusual comes as one, unless its seal is to be seen."""
        mappers = min(len(os.sched_getaffinity(0)), -(-len(folders) // FEW))
        threads, ahead = readers(self.fd, folders) if metas else (mappers, False)
        most = 0 if look == "none" else min(MAP_LIMIT, maps_left())
        maps = len(folders) <= most if look == "all" else look != "none"
        kind = None if self._seals else Meta
        return _core.scan(
            self.fd,
            folders,
            map=maps,
            cold=_COLD.get(look, 0),
            metas=metas,
            kind=kind,
            types=BY_NUMBER,
            ahead=ahead,
            threads=threads,
            most=most,
        )


def readers(fd: int, folders: Sequence[str]) -> tuple[int, bool]:
    """Say how many threads shall look into folders of a snapshot, and whether each shall begin to read several files
    before it waits for the first: so where they must come from the disk."""
    samples = {folders[len(folders) // 3], folders[-1]} if folders else set()
    cold = any(not _core.is_resident(fd, f"{folder}/{META}") for folder in samples)
    most, worth = (_READERS, _WORTH_WAITING) if cold else (len(os.sched_getaffinity(0)), _WORTH_A_THREAD)
    return min(most, -(-len(folders) // worth)), cold and _descriptors_left() > _ENOUGH


def _descriptors_left() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (sys.maxsize if most == resource.RLIM_INFINITY else most) - len(os.listdir("/proc/self/fd"))


def _fitting(given: Meta, size: int, where: str) -> Meta:
    if given.nbytes != size:
        wanted = f"{given.dtype.name}{list(given.shape)} wants {given.nbytes} bytes"
        raise MismatchError(f"{where}/{OUT}: has no {META}; the target of {wanted}, file has {size}")
    return given


def _folders_in(folder: str, dir_fd: int) -> list[str]:
    """Step by step, so that none of the folders on the way can be a link either."""
    fd = os.dup(dir_fd)
    try:
        for name in folder.split("/"):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    finally:
        os.close(fd)
