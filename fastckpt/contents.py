"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.entries import Entry, check_count, entries_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError, LimitError, printable
from fastckpt.indexed import read_index
from fastckpt.layout import DONE, META, OUT
from fastckpt.meta import Meta
from fastckpt.opening import GRAPH, check_still_there, open_folder, read_marker, unreadable, was_replaced

__all__ = ["MAP_LIMIT", "TENSORS", "Contents", "Entry", "Look", "reading"]

T = TypeVar("T")
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
TENSORS = 1_000_000  # more than this only if the caller allows it
_READERS = 16
_WORTH_A_THREAD = 40  # folders
_ATTEMPTS = 100
_DEPTH = 50  # slashes in a key of others
_NO_ENTRY = -errno.ENOENT
_NO_FOLDER = -errno.ENOTDIR


def reading(
    path: str | os.PathLike[str],
    act: Callable[[Contents], T],
    *,
    look: Look = "none",
    by_index: bool = True,
    mapped: bool = True,
    max_tensors: int | None = None,
) -> T:
    """Open and check the snapshot at `path` and act on it; from the top again if a save replaced it meanwhile.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot.
    act : callable
        Gets the contents; its result is returned.
    look : {"none", "all", "resident", "huge", "advise"}
        Which blobs to map at once, since they will be asked for. Small ones are read instead of mapped.
    by_index : bool
        Believe the index, where there is one, instead of looking into every folder.
    mapped : bool
        Take the index's copies of small tensors, which are parts of a map.
    max_tensors : int, optional
        How many folders are looked into at most.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    NotCommittedError
        The folder has no ``snapshot_done``.
    CorruptError, FormatError
        A file is missing, has the wrong size, or is not understood; the message names it.
    LimitError
        There are more than `max_tensors`.
    """
    where = os.fspath(path)
    for patience in range(_ATTEMPTS, -1, -1):
        fd = open_folder(where)
        try:
            contents = Contents(where, fd, look, by_index=by_index, mapped=mapped, max_tensors=max_tensors)
            result = act(contents)
        except (CheckpointError, FileNotFoundError):
            if not (patience and was_replaced(where, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(printable(note), stacklevel=3)
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
    blobs : dict of str to Mapping
        The bytes of some tensors, by folder: those that were read or mapped already.
    looked : bool
        Whether anybody has asked already which blobs can be mapped.
    notes : list of str
        What was passed over, for a warning.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        look: Look = "none",
        *,
        by_index: bool = False,
        mapped: bool = True,
        max_tensors: int | None = None,
    ) -> None:
        self.path = path
        self.fd = fd
        self.notes: list[str] = []
        self.blobs: dict[str, _core.Mapping] = {}
        self.looked = look != "none"
        self._allowed = max_tensors
        self._unsized: dict[str, int] = {}
        self.marker = read_marker(path, fd)
        names = os.listdir(fd)
        mark = DONE if DONE in names else GRAPH
        folders = [name for name in names if name != mark]
        self._count(len(folders))
        metas = self._indexed(folders, look, mapped) if by_index and self.marker.index else None
        if metas is None:
            metas = self._metas(folders, look)
        if self.notes and not metas:
            raise FormatError(f"no tensor can be loaded: {self.notes[0]}")
        check_count(metas, self.marker.count, path)
        self.entries = entries_of(metas, path)
        first = next(iter(self.entries.values()), None)
        if first is not None and first.meta.container == DONE and not self.marker.nested:
            raise CorruptError(f"{path}/{DONE}: has lost the record of the saved object; load an earlier snapshot")
        check_still_there(mark, path, fd)

    def _indexed(self, folders: Sequence[str], look: Look, mapped: bool) -> dict[str, Meta] | None:
        """Folder to meta, from the index; None where it cannot be read, or the folders are not those that it names."""
        try:
            metas, copies = read_index(self.fd, self.path, self.marker, mapped=mapped)
        except FormatError as problem:
            self.notes.append(f"{problem}; the folders were read instead")
            return None
        if metas.keys() != set(folders):
            return None
        self.blobs = copies
        self._unsized = {f: m.nbytes for f, m in metas.items() if f not in copies and m.same_as is None}
        if look != "none":
            self.look_at(self._unsized, look)
            self._unsized = {}
        return metas

    def look_at(self, blobs: dict[str, int], look: Look) -> None:
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

    def _scan(
        self, folders: Sequence[str], look: Look, *, metas: bool = True
    ) -> list[tuple[bytes | int, int | _core.Mapping]]:
        threads = min(self._readers(folders), -(-len(folders) // _WORTH_A_THREAD))
        maps = look != "none" and len(folders) <= MAP_LIMIT
        return _core.scan(self.fd, folders, map=maps, cold=_COLD.get(look, 0), metas=metas, threads=threads)

    def _readers(self, folders: Sequence[str]) -> int:
        """How many threads: where files must come from the disk, each waits for its own."""
        samples = {folders[len(folders) // 3], folders[-1]} if folders else set()
        cold = any(not _core.is_resident(self.fd, f"{folder}/{META}") for folder in samples)
        return _READERS if cold else len(os.sched_getaffinity(0))

    def _metas(self, folders: Sequence[str], look: Look) -> dict[str, Meta]:
        """Folder to meta; others' folders may lie one in the other (a key "a/b" of OneFlow)."""
        metas: dict[str, Meta] = {}
        foreign: list[str] = []
        for folder, (text, out) in zip(folders, self._scan(folders, look), strict=True):
            if isinstance(out, _core.Mapping):
                self.blobs[folder] = out
            size = out if isinstance(out, int) else len(out)
            if isinstance(text, bytes) and size >= 0:
                where = f"{self.path}/{folder}"
                meta = meta_file.parse(text, f"{where}/{META}")
                metas[folder] = meta if meta.nbytes == size else meta_file.with_file_size(meta, size, where)
                if meta.count is None:
                    foreign.append(folder)
            elif text == size == _NO_ENTRY:
                foreign.append(folder)
            else:
                self._pass_over(f"{self.path}/{folder}", text, size)
        for folder in foreign:
            metas.update(self._nested(folder, folder in metas))
        return metas

    def _nested(self, folder: str, is_tensor: bool) -> dict[str, Meta]:
        inner = [f"{folder}/{name}" for name in _folders_in(folder, self.fd)] if folder.count("/") < _DEPTH else []
        if not inner and not is_tensor:
            self.notes.append(f"{self.path}/{folder}: no tensor, passed over (neither {META} nor {OUT} in it)")
        self._count(len(inner))
        return self._metas(inner, "none") if inner else {}

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
            raise unreadable(-text, f"{where}/{META}")
        else:
            raise unreadable(-size, f"{where}/{OUT}")

    def _count(self, more: int) -> None:
        """Refuse to look into more folders than are allowed."""
        if self._allowed is None:
            return
        self._allowed -= more
        if self._allowed < 0:
            raise LimitError(f"{self.path}: more tensor folders than max_tensors allows; raise it if you trust them")

    def select(self, keys: Iterable[str] | None, max_bytes: int | None = None) -> list[Entry]:
        """Give the entries of some keys (of all for None), in saved order; the sizes of their blobs are checked.

        Raises
        ------
        KeyError
            A key is not in the snapshot.
        LimitError
            Their blobs have more than `max_bytes` in all.
        CorruptError
            A blob is missing, or has another size.
        """
        entries = self._entries_of(keys)
        total = sum({entry.blob: entry.meta.nbytes for entry in entries}.values()) if max_bytes is not None else 0
        if max_bytes is not None and total > max_bytes:
            raise LimitError(f"{self.path}: its tensors take {total} bytes, more than max_bytes={max_bytes}")
        if self._unsized:
            self.look_at({e.blob: e.meta.nbytes for e in entries if e.blob in self._unsized}, "none")
        return entries

    def _entries_of(self, keys: Iterable[str] | None) -> list[Entry]:
        if keys is None:
            return list(self.entries.values())
        wanted = {keys} if isinstance(keys, str) else set(keys)
        missing = sorted(wanted - self.entries.keys())
        if missing:
            more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise KeyError(f"{self.path}: no tensor {missing[0]!r}{more}; fastckpt.open() shows its keys")
        return [entry for key, entry in self.entries.items() if key in wanted]


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
