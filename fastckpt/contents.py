"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.entries import Entry, check_count, entries_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError
from fastckpt.indexed import How, read_index
from fastckpt.layout import DONE, META, OUT
from fastckpt.meta import Meta
from fastckpt.opening import GRAPH, check_still_there, open_folder, read_marker, was_replaced

__all__ = ["MAP_LIMIT", "Contents", "Entry", "Index", "Look", "reading"]

T = TypeVar("T")
#: Which blobs to map in the same pass that looks at the metas: none; all; those that lie in the page cache; all, the
#: cold ones by huge pages; the same, and those of them that are too small for that are read at once.
Look = Literal["none", "all", "resident", "huge", "advise"]
Index = Literal["map", "read", "table", "ignore"]  # what to do with one
_COLD = {
    "all": _core.COLD_MAP,
    "resident": _core.COLD_LEAVE,
    "huge": _core.COLD_HUGE,
    "advise": _core.COLD_ADVISE,
}

MAP_LIMIT = 30_000  # maps of one load; the kernel gives a process 65,530 unless told otherwise
_READERS = 16
_WORTH_A_THREAD = 40  # folders
_ATTEMPTS = 100
_DEPTH = 50  # slashes in a key of others
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EXDEV}
_NO_ENTRY = -errno.ENOENT
_NO_FOLDER = -errno.ENOTDIR


def reading(
    path: str | os.PathLike[str],
    act: Callable[[Contents], T],
    *,
    look: Look = "none",
    index: Index = "map",
    keys: Sequence[str] | None = None,
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
    index : {"map", "read", "table", "ignore"}
        Where there is one, believe it instead of looking into every folder; see `read_index`.
    keys : sequence of str, optional
        No other tensors are wanted: where each is in the folder of its name, only those folders are looked into.

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
        fd = open_folder(where)
        try:
            contents = Contents(where, fd, look, index, keys)
            result = act(contents)
        except (CheckpointError, FileNotFoundError):
            if not (patience and was_replaced(where, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(note, stacklevel=3)
            return result
        finally:
            os.close(fd)
    raise AssertionError("the last attempt raises")


class Contents:
    """A committed snapshot, checked; it borrows the folder's descriptor from `reading`, or keeps one of its own.

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
        index: Index = "ignore",
        keys: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self.fd = fd
        self.notes: list[str] = []
        self.blobs: dict[str, _core.Mapping] = {}
        self.looked = look != "none"
        self.marker = read_marker(path, fd)
        names = os.listdir(fd)
        mark = DONE if DONE in names else GRAPH
        folders = [name for name in names if name != mark]
        how = index if self.marker.index else "ignore"
        some = self._named(folders, keys) if how == "ignore" else None
        metas = some if how == "ignore" else self._indexed(folders, look, how)
        if metas is None:
            metas = self._metas(folders, look)
        if self.notes and not metas:
            raise FormatError(f"no tensor can be loaded: {self.notes[0]}")
        if not some:
            check_count(metas, self.marker.count, path)
        self.entries = entries_of(metas, path)
        first = next(iter(self.entries.values()), None)
        if first is not None and first.meta.container == DONE and not self.marker.nested:
            raise CorruptError(f"{path}/{DONE}: has lost the record of the saved object; load an earlier snapshot")
        check_still_there(mark, path, fd)

    def keep_open(self) -> None:
        """Have a descriptor of its own, which is closed with the last reference to this."""
        self.fd = os.dup(self.fd)
        weakref.finalize(self, os.close, self.fd)

    def _indexed(self, folders: Sequence[str], look: Look, how: How) -> dict[str, Meta] | None:
        """Folder to meta, from the index; None where it cannot be read, or the folders are not those that it names."""
        try:
            metas, copies = read_index(self.fd, self.path, self.marker, how)
        except FormatError as problem:
            self.notes.append(f"{problem}; the folders were read instead")
            return None
        if metas.keys() != set(folders):
            return None
        self.blobs = copies
        if look != "none":
            self.look_at({f: m.nbytes for f, m in metas.items() if f not in copies and m.same_as is None}, look)
        return metas

    def _named(self, folders: Sequence[str], keys: Sequence[str] | None) -> dict[str, Meta] | None:
        """Folder to meta of some keys; None unless each names its folder, and all folders are those of one save."""
        if not keys or not set(keys) <= set(folders):
            return None
        metas: dict[str, Meta] = {}
        for key, (text, out) in zip(keys, self._scan(keys, "none"), strict=True):
            if not isinstance(text, bytes):
                return None
            meta = meta_file.parse(text, f"{self.path}/{key}/{META}")
            if (meta.name, meta.same_as, meta.count, meta.nbytes) != (None, None, len(folders), out):
                return None
            metas[key] = meta
        return metas

    def look_at(self, blobs: dict[str, int], look: Look) -> None:
        """Map those of some blobs, given by folder and size, that `look` says; small ones are read.

        Raises
        ------
        CorruptError
            One is missing, or has another size.
        """
        for (folder, wanted), (_, out) in zip(blobs.items(), self._scan([*blobs], look, metas=False), strict=True):
            size = out if isinstance(out, int) else len(out)
            if size < 0:
                raise _unreadable(-size, f"{self.path}/{folder}/{OUT}")
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
            raise _unreadable(-text, f"{where}/{META}")
        else:
            raise _unreadable(-size, f"{where}/{OUT}")

    def select(self, keys: Iterable[str] | None) -> list[Entry]:
        """Give the entries of some keys (of all for None), in saved order.

        Raises
        ------
        KeyError
            A key is not in the snapshot.
        """
        if keys is None:
            return list(self.entries.values())
        wanted = set(keys)
        missing = sorted(wanted - self.entries.keys())
        if missing:
            more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise KeyError(f"{self.path}: no tensor {missing[0]!r}{more}; fastckpt.open() shows its keys")
        return [entry for key, entry in self.entries.items() if key in wanted]


def _unreadable(code: int, where: str) -> Exception:
    """What is missing or no plain file is damage; everything else is the system's refusal."""
    if code in _DAMAGE:
        return CorruptError(f"{where}: {os.strerror(code)}; a plain file was wanted, load an earlier snapshot")
    return OSError(code, os.strerror(code), where)


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
