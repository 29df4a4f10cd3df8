"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from fastckpt import _core
from fastckpt.entries import Entry, check_count, check_record, entries_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError, LimitError, printable
from fastckpt.folders import MAP_LIMIT, Folders, Look
from fastckpt.indexed import Copies, How, read_index
from fastckpt.layout import DONE, OUT, PICKLE, folders_for
from fastckpt.marker import Marker
from fastckpt.meta import Meta
from fastckpt.opening import GRAPH, GRAPH_OPTIONS, check_still_there, open_snapshot, read_marker, was_replaced
from fastckpt.pickled import Part, Pickled, entries_of_saved, has_file, read_pickled

__all__ = ["MAP_LIMIT", "TENSORS", "Contents", "Entry", "Index", "Look", "listed", "reading"]

T = TypeVar("T")
Index = Literal["map", "read", "table", "ignore"]  # what to do with one
TENSORS = 1_000_000  # more than this only if the caller allows it
_ATTEMPTS = 100


def listed(keys: Iterable[str] | None) -> list[str] | None:
    """Give the keys that a caller wants, who may have given one alone; None for all."""
    return keys if keys is None else [keys] if isinstance(keys, str) else [*keys]


def reading(
    path: str | os.PathLike[str],
    act: Callable[[Contents], T],
    *,
    look: Look = "none",
    index: Index = "map",
    keys: Sequence[str] | None = None,
    max_tensors: int | None = None,
    given: Mapping[str, Meta] | None = None,
    seals: bool = False,
    damaged: bool = False,
) -> T:
    """Open and check the snapshot at `path` and act on it; from the top again if a save replaced it meanwhile.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot; or the file, of one that OneFlow saved as a single file.
    act : callable
        Gets the contents; its result is returned.
    look : {"none", "all", "resident", "huge", "advise"}
        Which blobs to map at once, since they will be asked for. Small ones are read instead of mapped.
    index : {"map", "read", "table", "ignore"}
        Where there is one, believe it instead of looking into every folder; see `read_index`.
    keys : sequence of str, optional
        No other tensors are wanted: where each is in the folder of its name, only those folders are looked into.
    max_tensors : int, optional
        How many folders are looked into at most.
    given : mapping of str to Meta, optional
        Shapes and dtypes of tensors whose folders have no ``meta``, as OneFlow before 0.3.1 wrote them.
    seals : bool
        Notice metas that have changed since they were saved.
    damaged : bool
        Go on past what is missing or damaged: the contents then list it, and an error about it is raised by nobody.
        A pickle must be sound.

    Raises
    ------
    FileNotFoundError
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
        fd, folder, file = open_snapshot(where)
        try:
            contents = Contents(where, fd, folder, Folders(where, fd, max_tensors, given, seals=seals, damaged=damaged))
            contents.take(file, look, index, keys)
            result = act(contents)
            contents.check_unchanged()
        except (CheckpointError, FileNotFoundError):
            if not (patience and was_replaced(folder, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(printable(note), stacklevel=3)
            return result
        finally:
            os.close(fd)
    raise AssertionError("the last attempt raises")


class Contents:
    """A committed snapshot, checked; it borrows the folder's descriptor from `reading`, or keeps one of its own.

    Attributes
    ----------
    path : str
        Folder of the snapshot, or its single file.
    folder : str
        Path of the folder.
    source : str
        Path of the file that tells what the object is.
    marker : Marker
        What ``snapshot_done`` says, or a pickle in its place.
    entries : dict of str to Entry
        The tensors in their saved order; by name where others wrote them.
    metas : dict of str to Meta
        Those of the folders.
    damage : list of Damage
        What is wrong, if that was to be listed; entries are then what is sound.
    copies : Copies or None
        What small blobs the index has, where those are read when they are asked for.
    parts : dict of str to Part
        Where bytes lie that have no file of their own, by blob: in a pickle, so they can be read and not mapped.
    """

    def __init__(self, path: str, fd: int, folder: str, folders: Folders) -> None:
        self.path = path
        self.fd = fd
        self.folder = folder
        self.source = f"{path}/{DONE}"
        self.parts: dict[str, Part] = {}
        self.looked = False
        self.marker = Marker()
        self.entries: dict[str, Entry] = {}
        self.metas: dict[str, Meta] = {}
        self.notes, self.blobs, self.damage = folders.notes, folders.blobs, folders.findings.damage
        self._folders = folders
        self._pickle: tuple[Pickled, str] | None = None
        self._unsized: dict[str, int] = {}
        self.copies: Copies | None = None

    def take(self, file: str | None, look: Look, index: Index, keys: Sequence[str] | None) -> None:
        """Look at everything: into a single `file` of OneFlow, a pickle in the folder, or all folders."""
        self.looked = look != "none"
        if file is not None or has_file(self.fd, self.folder, PICKLE):
            self._take_pickle(file or PICKLE, file is not None, look)
        else:
            self._take_folders(look, index, keys)

    def _take_folders(self, look: Look, index: Index, keys: Sequence[str] | None) -> None:
        """Take what the metas of all folders say."""
        path, fd, findings = self.path, self.fd, self._folders.findings
        with findings.about(DONE):
            self.marker = read_marker(path, fd)
        names = os.listdir(fd)
        mark = DONE if DONE in names else GRAPH
        beside = {mark, GRAPH_OPTIONS} if mark == GRAPH else {mark}
        folders = [name for name in names if name not in beside]
        self._folders.count(len(folders))
        how = index if self.marker.index else "ignore"
        some = self._folders.named(folders, keys) if how == "ignore" else None
        metas = some if how == "ignore" else self._indexed(folders, look, how)
        self.metas = self._folders.metas(folders, look) if metas is None else metas
        ordered = _core.in_order(self.metas, Entry)
        with findings.about():
            if self.notes and not self.metas:
                raise FormatError(f"no tensor can be loaded: {self.notes[0]}")
            if not some:
                refused = {found.folder for found in self.damage} - {DONE}
                check_count(self.metas, self.marker.count, path, len(refused), ordered)
        self.entries = entries_of(self.metas, path, findings.refuse, ordered)
        with findings.about(DONE):
            check_record(self.entries, self.marker, path, alone=len(names) == 1)
        if mark in names or not findings.listing:
            check_still_there(mark, path, fd)

    def keep_open(self) -> None:
        """Have a descriptor of its own, which is closed with the last reference to this."""
        self.fd = os.dup(self.fd)
        weakref.finalize(self, os.close, self.fd)

    def _take_pickle(self, file: str, single: bool, look: Look) -> None:
        """Take what a pickle of OneFlow names, and nothing else."""
        self.source = self.path if single else f"{self.path}/{file}"
        pickled = read_pickled(self.fd, file, self.source, single=single)
        self._pickle = pickled, file
        saved = pickled.saved
        folders = list(dict.fromkeys(place for place in saved.tensors.values() if isinstance(place, str)))
        self._folders.count(len(saved.tensors))
        self.metas = self._folders.sure(folders, look)
        self.entries, self.parts = entries_of_saved(saved, self.metas, file, pickled.size)
        if not single and has_file(self.fd, self.folder, DONE):
            self.notes.append(
                f"{self.path}: has {DONE} and {file}: what {file} names is taken, as OneFlow 0.6 and later do; "
                "all else is passed over"
            )
        self.marker = Marker() if saved.container else Marker(record=saved.record, nested=True)

    def check_unchanged(self) -> None:
        """Notice that the pickle was written again: OneFlow does that in place.

        Raises
        ------
        CorruptError
            What was read may be of two saves.
        """
        if self._pickle is not None and not self._pickle[0].is_unchanged(self.fd, self._pickle[1]):
            raise CorruptError(f"{self.source}: was changed while being read; load it again")

    def part(self, blob: str, nbytes: int) -> Part:
        """Tell where the bytes of a blob lie."""
        return self.parts.get(blob) or Part(f"{blob}/{OUT}", 0, nbytes)

    def file_of(self, blob: str) -> str:
        """Path of the file that has the bytes of a blob."""
        return os.path.join(self.folder, self.part(blob, 0).path)

    @property
    def is_pickled(self) -> bool:
        """Whether a pickle tells what there is."""
        return self._pickle is not None

    def places(self, keys: Sequence[str]) -> dict[str, str]:
        """Give key to folder of some tensors that an object names, each once, whether they are there or not; of those
        of a pickle, which it says."""
        if self._pickle is not None:
            return {key: place for key, place in self._pickle[0].saved.tensors.items() if isinstance(place, str)}
        return dict(zip(keys, folders_for(keys), strict=True))

    def _indexed(self, folders: Sequence[str], look: Look, how: How) -> dict[str, Meta] | None:
        """Folder to meta, from the index; None where it cannot be read, or the folders are not those that it names."""
        try:
            metas, mapped, copies, sizes = read_index(self.fd, self.path, self.marker, how)
        except FormatError as problem:
            self.notes.append(f"{problem}; the folders were read instead")
            return None
        if len(metas) != len(folders) or not all(map(metas.__contains__, folders)):
            return None
        self.blobs.update(mapped)
        self.copies = copies
        if look == "none":
            self._unsized = sizes
        else:
            self._folders.check(sizes, look)
        return metas

    def at_hand(self, blobs: Sequence[str], threads: int | None = None) -> dict[str, _core.Mapping]:
        """Give those of some blobs that are in memory, or that the index has copies of, which `threads` read now."""
        there = {blob: self.blobs[blob] for blob in blobs if blob in self.blobs}
        if self.copies is None:
            return there
        return there | self.copies.read(self.fd, [blob for blob in blobs if blob not in there], threads)

    def look_at(self, blobs: dict[str, int], look: Look) -> None:
        """Check the size of some blobs, given by folder, and map those that `look` says; small ones are read."""
        self.looked |= look != "none"
        self._folders.check(blobs, look)

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
            self._folders.check({e.blob: e.meta.nbytes for e in entries if e.blob in self._unsized}, "none")
        return entries

    def _entries_of(self, keys: Iterable[str] | None) -> list[Entry]:
        if keys is None:
            return list(self.entries.values())
        wanted = set(keys)
        missing = sorted(wanted - self.entries.keys())
        if missing:
            more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise KeyError(f"{self.path}: no tensor {missing[0]!r}{more}; fastckpt.open() shows its keys")
        return [entry for key, entry in self.entries.items() if key in wanted]
