"""salvage(): what is intact of a snapshot that `load` refuses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastckpt import _core, tree
from fastckpt.checking import Progress, crcs, problem_with
from fastckpt.codec import KINDS
from fastckpt.contents import Contents, Entry, reading
from fastckpt.digests import crc32, difference
from fastckpt.entries import entries_of
from fastckpt.errors import CheckpointError
from fastckpt.fetching import runs
from fastckpt.garbage import collector_at_rest
from fastckpt.indexed import read_index
from fastckpt.layout import DONE
from fastckpt.loading import flat
from fastckpt.making import Maker
from fastckpt.meta import Meta
from fastckpt.problems import Problem, Unsound
from fastckpt.salvaged import Salvage
from fastckpt.verifying import listed

__all__ = ["salvage"]


def salvage(
    path: str | os.PathLike[str],
    *,
    as_: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Salvage:
    """Take out of a damaged snapshot what is intact. The snapshot is left as it is.

    Every tensor is read into memory and held against its digest there, so that none that has one is given with wrong
    bytes. Where a meta or a small tensor is damaged, and its copy in the index is not, that is taken; so is the other
    file of a tie.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot; also one without ``snapshot_done``, of a save that never finished.
    as_ : {"torch", "numpy"}, optional
        What every tensor becomes, as for `load`.
    threads : int, optional
        That read.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, from one of these threads at a time.

    Returns
    -------
    Salvage
        True when nothing is lost.

    Raises
    ------
    UnsupportedError
        A tensor cannot be given in the form asked for.
    FormatError, CorruptError
        A pickle of OneFlow, without which its folders mean nothing, cannot be read.
    OSError
        The folder itself cannot be looked at.

    Notes
    -----
    Nothing is guessed: a tensor whose meta is damaged is lost, unless the index has that meta. Symbolic links are not
    followed, and files of others are passed over.
    """
    make = Maker(as_)

    def act(contents: Contents) -> Salvage:
        found = _Salvager(contents, threads, progress).salvage(make)
        if found.problems:
            raise Unsound(found)
        return found

    with collector_at_rest():
        try:
            return reading(path, act, index="ignore", seals=True, damaged=True)
        except Unsound as unsound:
            found: Salvage = unsound.result
            return found


class _Salvager:
    """The steps of one salvage, and what they find."""

    def __init__(self, contents: Contents, threads: int | None, progress: Progress | None) -> None:
        self.contents = contents
        self.path = contents.path
        self.threads = threads
        self.progress = progress
        self.problems = listed(contents)
        self.reasons = {found.folder: problem for found, problem in zip(contents.damage, self.problems, strict=True)}
        self.problems += [Problem(note, "it is left behind", "copy it yourself") for note in contents.notes]
        self.metas, self.copies = self._indexed()
        self.entries = self._entries()
        self.memory: dict[str, _core.Mapping] = {}  # by blob, the bytes of what is intact
        contents.notes.clear()
        contents.entries = self.entries

    def salvage(self, make: Maker) -> Salvage:
        """Read all that can be read, and make the object of it."""
        self._read()
        self._take_copies()
        self._read_other_files()
        intact = {key: entry for key, entry in self.entries.items() if entry.blob in self.memory}
        lost = self._lost(intact)
        tensors = make.all([*intact.values()], [self.memory[entry.blob] for entry in intact.values()])
        marker = self.contents.marker
        whole = DONE not in self.reasons and not lost and len(intact) >= self._count()
        found, built = self._object(make, intact, tensors)
        return Salvage(
            path=self.path,
            object=found,
            tensors=tensors,
            lost=lost,
            unchecked=tuple(key for key, entry in intact.items() if entry.meta.digest is None),
            problems=tuple(dict.fromkeys(self.problems)),
            complete=whole and built,
            record=() if self._named() is None else (_without({*tensors}, marker.record),),
        )

    def _indexed(self) -> tuple[dict[str, Meta], Mapping[str, _core.Mapping]]:
        """Give the metas and the copies of small blobs that the index has, if it can be believed."""
        marker = self.contents.marker
        if marker.index is None:
            return {}, {}
        try:
            metas, _, copies, _ = read_index(self.contents.fd, self.path, marker, "read")
            return metas, {} if copies is None else copies.read(self.contents.fd)
        except (CheckpointError, OSError) as problem:
            self.problems.append(Problem.of(problem, f"{self.path}/{DONE}"))
            return {}, {}

    def _entries(self) -> dict[str, Entry]:
        """Give all tensors of which a sound meta is there: in the folder, else in the index."""
        if self.contents.is_pickled:
            return self.contents.entries
        metas = {**self.metas, **self.contents.metas}
        alone: list[str] = []
        entries = entries_of(metas, self.path, lambda folder, _: alone.append(folder))
        for folder in alone:  # a tie to what is lost has bytes of its own
            key = metas[folder].name or folder
            entries.setdefault(key, Entry(key, folder, metas[folder], folder))
        return entries

    def _read(self) -> None:
        """Read every blob into memory, and keep those that are sound."""
        metas = {entry.blob: entry.meta for entry in self.entries.values()}
        found = crcs(
            self.contents,
            {blob: meta.nbytes for blob, meta in metas.items()},
            memory=self._allocated(metas),
            threads=self.threads,
            progress=self.progress,
        )
        for blob, meta in metas.items():
            self._keep_if_sound(blob, blob, found[blob], meta)

    def _allocated(self, metas: Mapping[str, Meta]) -> dict[str, _core.Mapping]:
        for run in runs({blob: meta.nbytes for blob, meta in metas.items()}):
            self.memory.update(zip(run, _core.allocate([metas[blob].nbytes for blob in run]), strict=True))
        return self.memory

    def _keep_if_sound(self, blob: str, folder: str, found: int | Exception, meta: Meta) -> None:
        """Drop the bytes of a blob, which were read from a folder, if they are not those that were saved."""
        where = self.contents.file_of(folder)
        error = problem_with(found, meta.digest, where)
        if error is not None:
            del self.memory[blob]
            problem = Problem.of(error, where)
            self.problems.append(problem)
            self.reasons.setdefault(folder, problem)

    def _take_copies(self) -> None:
        """Take from the index the small blobs that are sound there only."""
        for blob in [entry.blob for entry in self.entries.values() if entry.blob not in self.memory]:
            copy, meta = self.copies.get(blob), self.contents.metas.get(blob, self.metas.get(blob))
            if copy is None or meta is None or len(copy) != meta.nbytes or self.metas[blob][:2] != meta[:2]:
                continue
            (memory,) = _core.allocate([len(copy)])
            memoryview(memory)[:] = memoryview(copy)
            if meta.digest is None or difference(meta.digest, crc32(memory), "") is None:
                self.memory[blob] = memory

    def _read_other_files(self) -> None:
        """Read a tie's own file where that which it is tied to is damaged."""
        for entry in self.entries.values():
            if entry.blob not in self.memory and entry.folder != entry.blob:
                (self.memory[entry.blob],) = _core.allocate([entry.meta.nbytes])
                memory = {entry.folder: self.memory[entry.blob]}
                found = crcs(self.contents, {entry.folder: entry.meta.nbytes}, memory=memory)
                self._keep_if_sound(entry.blob, entry.folder, found[entry.folder], entry.meta)

    def _lost(self, intact: Mapping[str, Entry]) -> dict[str, Problem]:
        """Say why each tensor is lost of which a name is known."""
        if self._count() and len(intact) >= self._count():
            return {}  # what else is damaged was never a part of it
        return {
            key: self.reasons.get(folder) or Problem(f"{self.path}/{folder}", "missing")
            for key, folder in self._names().items()
            if key not in intact
        }

    def _names(self) -> dict[str, str]:
        """Give the folder of every key that is or should be there."""
        places = self.contents.places(self._named() or [])
        if self.contents.is_pickled:
            return places | {key: entry.folder for key, entry in self.entries.items()}
        damaged = {found.folder: found.meta for found in self.contents.damage if found.folder not in ("", DONE)}
        folders = {folder: folder for folder in damaged}
        folders |= {folder: key for key, folder in places.items()}
        metas = {**{f: m for f, m in damaged.items() if m is not None}, **self.metas}
        folders |= {folder: meta.name or folder for folder, meta in metas.items()}
        folders |= {entry.folder: key for key, entry in self.entries.items()}
        return {key: folder for folder, key in folders.items()}

    def _named(self) -> list[str] | None:
        """Give the names of the tensors in the record of a nested object; None where there is none, or no good one."""
        named: dict[str, None] = {}
        try:
            tree.describe(self.contents.marker.record, lambda key, _: named.setdefault(key))
        except CheckpointError:  # the building of the object says so
            return None
        return [*named] if self.contents.marker.nested else None

    def _count(self) -> int:
        """How many tensors there were; 0 where nobody says."""
        counts = [self.contents.marker.count, *(meta.count for meta in self.contents.metas.values())]
        return max((count for count in counts if count is not None), default=0)

    def _object(self, make: Maker, intact: Mapping[str, Entry], tensors: dict[str, Any]) -> tuple[Any, bool]:
        """Build the object, or a flat dict where that cannot be done; and say which."""

        def leaf(key: str, framework: str) -> Any:
            entry = intact.get(key)
            return None if entry is None else make(entry, self.memory[entry.blob], framework)

        marker, where = self.contents.marker, self.contents.source
        try:
            if marker.nested:
                return tree.unflatten(marker.record, leaf, KINDS.unpack, where=where), True
            if DONE in self.reasons and any(entry.meta.container == DONE for entry in intact.values()):
                return dict(tensors), False
            return flat(self.contents, dict(tensors)), True
        except CheckpointError as problem:
            self.problems.append(Problem.of(problem, where))
            return dict(tensors), False


def _without(intact: set[str], record: Any) -> Any:
    """Give a record with null in the place of every tensor that is not intact."""
    if isinstance(record, list):
        return [_without(intact, item) for item in record]
    if not isinstance(record, dict):
        return record
    if "tensor" in record:
        return record if record["tensor"] in intact else None
    return {tag: _without(intact, value) for tag, value in record.items()}
