"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.commit import previous_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError, NotCommittedError
from fastckpt.layout import DONE, META, OUT, PICKLE
from fastckpt.marker import Marker, parse_marker
from fastckpt.meta import Meta

__all__ = ["Contents", "Entry", "reading"]

T = TypeVar("T")

_PLAIN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GRAPH = "model.mlir"  # stands where OneFlow's nn.Graph has no snapshot_done
_ATTEMPTS = 100
_NO_ENTRY = -errno.ENOENT
_NO_FOLDER = -errno.ENOTDIR


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its folder, its meta, and the folder that its bytes are read from (another one for a tie)."""

    key: str
    folder: str
    meta: Meta
    blob: str


def reading(path: str | os.PathLike[str], act: Callable[[Contents], T]) -> T:
    """Open and check the snapshot at `path` and act on it; from the top again if a save replaced it meanwhile.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    NotCommittedError
        The folder has no ``snapshot_done``.
    CorruptError, FormatError
        A file is missing, has the wrong size, or is not understood; the message names it.
    """
    where = os.fspath(path)
    for patience in range(_ATTEMPTS, -1, -1):
        fd = _open_folder(where)
        try:
            contents = Contents(where, fd)
            result = act(contents)
        except (CheckpointError, FileNotFoundError):
            if not (patience and _was_replaced(where, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(note, stacklevel=4)
            return result
        finally:
            os.close(fd)
    raise AssertionError("the last attempt raises")


class Contents:
    """A committed snapshot, checked; it borrows the folder's descriptor from `reading`.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    fd : int
        Descriptor of the folder.
    marker : Marker
        What ``snapshot_done`` says.
    entries : dict of str to Entry
        The tensors in their saved order; by name where others wrote them.
    notes : list of str
        What was passed over, for a warning.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.notes: list[str] = []
        self.marker = _read_marker(path, fd)
        folders = os.listdir(fd)
        folders.remove(_commit_mark(folders))
        metas = self._metas(folders)
        if self.notes and not metas:
            raise FormatError(f"no tensor can be loaded: {self.notes[0]}")
        _check_count(metas, self.marker.count, path)
        self.entries = _entries(metas, path)

    def _metas(self, folders: Sequence[str]) -> dict[str, Meta]:
        """Folder to meta; others' folders may lie one in the other (a key "a/b" of OneFlow)."""
        metas: dict[str, Meta] = {}
        foreign: list[str] = []
        for folder, (text, size) in zip(folders, _core.scan(self.fd, folders), strict=True):
            where = f"{self.path}/{folder}"
            if isinstance(text, bytes) and size >= 0:
                meta = meta_file.with_file_size(meta_file.parse(text, f"{where}/{META}"), size, where)
                metas[folder] = meta
                if meta.count is None:
                    foreign.append(folder)
            elif text == _NO_ENTRY and size == _NO_ENTRY:
                foreign.append(folder)
            else:
                self._pass_over(where, text, size)
        for folder in foreign:
            metas.update(self._nested(folder, folder in metas))
        return metas

    def _nested(self, folder: str, is_tensor: bool) -> dict[str, Meta]:
        inner = [f"{folder}/{name}" for name in _folders_in(folder, self.fd)]
        if not inner and not is_tensor:
            self.notes.append(f"{self.path}/{folder}: no tensor, passed over (neither {META} nor {OUT} in it)")
        return self._metas(inner) if inner else {}

    def _pass_over(self, where: str, text: bytes | int, size: int) -> None:
        """Note what is no tensor of anybody's; raise for a tensor that is damaged."""
        if text == _NO_FOLDER:
            self.notes.append(f"{where}: a file that belongs to no snapshot, passed over")
        elif text == _NO_ENTRY and size >= 0:
            self.notes.append(
                f"{where}/{META}: missing, so shape and dtype of {OUT} are unknown; passed over (OneFlow before 0.3.1 "
                f"wrote no {META}: read such a blob with numpy.fromfile)"
            )
        elif isinstance(text, int):
            raise CorruptError(f"{where}/{META}: {os.strerror(-text)}; load an earlier snapshot")
        else:
            raise CorruptError(f"{where}/{OUT}: {os.strerror(-size)}; load an earlier snapshot")

    def select(self, keys: Iterable[str] | None) -> list[Entry]:
        """Give the entries of some keys (of all for None), in saved order.

        Raises
        ------
        KeyError
            A key is not in the snapshot.
        """
        if keys is None:
            return list(self.entries.values())
        wanted = {keys} if isinstance(keys, str) else set(keys)
        missing = sorted(wanted - self.entries.keys())
        if missing:
            raise KeyError(
                f"{self.path}: no tensor {missing[0]!r} (nor {len(missing) - 1} more); see its keys with open()"
            )
        return [entry for key, entry in self.entries.items() if key in wanted]

    def map(self, entries: Sequence[Entry]) -> list[_core.Mapping]:
        """Map the blobs of some entries, privately; a tie gives the same map twice. Nothing is read."""
        blobs = {entry.blob: entry.meta.nbytes for entry in entries}
        try:
            maps = _core.map_files(self.fd, [f"{blob}/{OUT}" for blob in blobs], list(blobs.values()))
        except _core.SizeChanged as change:
            raise CorruptError(f"{self.path}: {change}; it was changed while being read, load it again") from None
        except OSError as problem:
            problem.filename = os.path.join(self.path, os.fsdecode(problem.filename or ""))
            raise
        by_blob = dict(zip(blobs, maps, strict=True))
        return [by_blob[entry.blob] for entry in entries]


def _open_folder(path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except NotADirectoryError:
        raise FormatError(f"{path}: a file; a snapshot is a folder (torch.load or safetensors may read it)") from None
    except FileNotFoundError as missing:
        try:
            return os.open(previous_of(os.path.realpath(path)), flags)
        except OSError:
            raise missing from None


def _was_replaced(path: str, fd: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return True


def _read_marker(path: str, fd: int) -> Marker:
    where = os.path.join(path, DONE)
    try:
        marker = os.open(DONE, _PLAIN_FILE, dir_fd=fd)
    except FileNotFoundError:
        return _unmarked(path, fd)
    except OSError as problem:
        raise CorruptError(f"{where}: {problem.strerror}; a plain file was wanted") from None
    with open(marker, "rb") as file:
        status = os.fstat(marker)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{where}: no plain file, so nothing says that this snapshot is complete")
        return parse_marker(file.readline() if status.st_size else b"", status.st_size, where)


def _unmarked(path: str, fd: int) -> Marker:
    names = os.listdir(fd)
    if _GRAPH in names:
        return Marker()
    if PICKLE in names:
        raise NotCommittedError(
            f"{path}: no {DONE}, but {PICKLE}: a pickle directory of OneFlow 0.6 or later, which is not read here; "
            "save its state dict with this library instead"
        )
    raise NotCommittedError(
        f"{path}: no {DONE}, so this is no snapshot, or one whose save never finished; load an earlier one"
    )


def _commit_mark(names: Sequence[str]) -> str:
    return DONE if DONE in names else _GRAPH


def _folders_in(folder: str, dir_fd: int) -> list[str]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    finally:
        os.close(fd)


def _check_count(metas: dict[str, Meta], marked: int | None, path: str) -> None:
    """Notice folders that went missing, came from elsewhere, or disagree."""
    counts = {meta.count for meta in metas.values() if meta.count is not None}
    counts |= set() if marked is None else {marked}
    if len(counts) > 1:
        raise CorruptError(f"{path}: its folders come from different saves (of {sorted(counts)} tensors)")
    for count in counts:
        missing = sorted(set(range(count)) - {meta.place for meta in metas.values() if meta.place is not None})
        if missing:
            raise CorruptError(
                f"{path}: {len(missing)} of {count} tensor folders are missing (the first at place {missing[0]}); "
                "restore them from a copy, or load an earlier snapshot"
            )
        if len(metas) != count:
            raise CorruptError(f"{path}: {len(metas)} tensor folders, wants {count}; move the extra ones away")


def _entries(metas: dict[str, Meta], path: str) -> dict[str, Entry]:
    """Key to entry, in saved order, ties followed."""
    ordered = sorted(metas.items(), key=lambda item: (-1 if item[1].place is None else item[1].place, item[0]))
    by_key: dict[str, tuple[str, Meta]] = {}
    for folder, meta in ordered:
        key = folder if meta.name is None else meta.name
        if key in by_key:
            raise CorruptError(f"{path}/{folder}/{META}: the key {key!r} stands in {by_key[key][0]!r} too")
        by_key[key] = (folder, meta)
    return {key: Entry(key, folder, meta, _blob(by_key, folder, meta, path)) for key, (folder, meta) in by_key.items()}


def _blob(by_key: dict[str, tuple[str, Meta]], folder: str, meta: Meta, path: str) -> str:
    if meta.same_as is None:
        return folder
    twin, other = by_key.get(meta.same_as, ("", None))
    if other is None or other.same_as is not None or (other.shape, other.dtype) != (meta.shape, meta.dtype):
        raise CorruptError(
            f"{path}/{folder}/{META}: same_as {meta.same_as!r} leads to no tensor of its shape and dtype"
        )
    return twin
