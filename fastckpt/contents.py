"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from fastckpt.entries import Entry, check_count, entries_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError
from fastckpt.folders import MAP_LIMIT, Folders, Look
from fastckpt.indexed import read_index
from fastckpt.layout import DONE, OUT, PICKLE
from fastckpt.marker import Marker
from fastckpt.meta import Meta
from fastckpt.opening import GRAPH, GRAPH_OPTIONS, check_still_there, open_snapshot, read_marker, was_replaced
from fastckpt.pickled import Part, Pickled, entries_of_saved, has_file, read_pickled

__all__ = ["MAP_LIMIT", "Contents", "Entry", "Look", "reading"]

T = TypeVar("T")
_ATTEMPTS = 100


def reading(
    path: str | os.PathLike[str],
    act: Callable[[Contents], T],
    *,
    look: Look = "none",
    by_index: bool = True,
    given: Mapping[str, Meta] | None = None,
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
    by_index : bool
        Believe the index, where there is one, instead of looking into every folder.
    given : mapping of str to Meta, optional
        Shapes and dtypes of tensors whose folders have no ``meta``, as OneFlow before 0.3.1 wrote them.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    NotCommittedError
        The folder has no ``snapshot_done``.
    CorruptError, FormatError
        A file is missing, has the wrong size, or is not understood; the message names it.
    """
    where = os.fspath(path)
    for patience in range(_ATTEMPTS, -1, -1):
        fd, folder, file = open_snapshot(where)
        try:
            contents = Contents(where, fd, folder, file, look, by_index, given or {})
            result = act(contents)
            contents.check_unchanged()
        except (CheckpointError, FileNotFoundError):
            if not (patience and was_replaced(folder, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(note, stacklevel=3)
            return result
        finally:
            os.close(fd)
    raise AssertionError("the last attempt raises")


class Contents(Folders):
    """A committed snapshot, checked; it borrows the folder's descriptor from `reading`.

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
    parts : dict of str to Part
        Where bytes lie that have no file of their own, by blob: in a pickle, so they can be read and not mapped.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        folder: str,
        file: str | None,
        look: Look = "none",
        by_index: bool = False,
        given: Mapping[str, Meta] | None = None,
    ) -> None:
        super().__init__(path, fd, given)
        self.looked = look != "none"
        self.folder = folder
        self.parts: dict[str, Part] = {}
        self._pickle: tuple[Pickled, str] | None = None
        self.source = f"{path}/{DONE}"
        if file is not None or has_file(fd, PICKLE):
            self._take_pickle(file or PICKLE, file is not None, look)
        else:
            self._take_folders(look, by_index)

    def _take_folders(self, look: Look, by_index: bool) -> None:
        """Take what the metas of all folders say."""
        path, fd = self.path, self.fd
        self.marker = read_marker(path, fd)
        names = os.listdir(fd)
        mark = DONE if DONE in names else GRAPH
        beside = {mark, GRAPH_OPTIONS} if mark == GRAPH else {mark}
        folders = [name for name in names if name not in beside]
        metas = self._indexed(folders, look) if by_index and self.marker.index else None
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

    def _take_pickle(self, file: str, single: bool, look: Look) -> None:
        """Take what a pickle of OneFlow names, and nothing else."""
        self.source = self.path if single else f"{self.path}/{file}"
        pickled = read_pickled(self.fd, file, self.source, single=single)
        self._pickle = pickled, file
        saved = pickled.saved
        folders = list(dict.fromkeys(place for place in saved.tensors.values() if isinstance(place, str)))
        self.entries, self.parts = entries_of_saved(saved, self._named(folders, look), file, pickled.size)
        if not single and has_file(self.fd, DONE):
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

    def _indexed(self, folders: Sequence[str], look: Look) -> dict[str, Meta] | None:
        """Folder to meta, from the index; None where it cannot be read, or the folders are not those that it names."""
        try:
            metas, copies = read_index(self.fd, self.path, self.marker)
        except FormatError as problem:
            self.notes.append(f"{problem}; the folders were read instead")
            return None
        if metas.keys() != set(folders):
            return None
        self.blobs = copies
        if look != "none":
            self.look_at({f: m.nbytes for f, m in metas.items() if f not in copies and m.same_as is None}, look)
        return metas

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
            more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise KeyError(f"{self.path}: no tensor {missing[0]!r}{more}; fastckpt.open() shows its keys")
        return [entry for key, entry in self.entries.items() if key in wanted]
