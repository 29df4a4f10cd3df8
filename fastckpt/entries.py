"""From the metas of a snapshot to its tensors: all there, in order, each tie led to its blob. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastckpt.errors import CorruptError
from fastckpt.layout import DONE, META
from fastckpt.marker import Marker
from fastckpt.meta import Meta

__all__ = ["Entry", "Ordered", "check_count", "check_record", "entries_of"]


class Entry(NamedTuple):
    """One tensor: its folder, its meta, and the folder that its bytes are read from (another one for a tie)."""

    key: str
    folder: str
    meta: Meta
    blob: str


Ordered = tuple[dict[str, Entry], list[Entry], bool]
"""What was found of metas that have each place once: the entries by key, in order; the ties; whether all are there."""


def check_count(
    metas: dict[str, Meta], marked: int | None, path: str, damaged: int = 0, ordered: Ordered | None = None
) -> None:
    """Notice folders that went missing, came from elsewhere, or disagree.

    Parameters
    ----------
    metas : dict of str to Meta
        By folder.
    marked : int or None
        Number of tensors that the marker names.
    path : str
        Folder of the snapshot, for errors.
    damaged : int
        How many folders are there, but cannot be understood, which somebody has said already.
    ordered : Ordered, optional
        What was found of the metas already.

    Raises
    ------
    CorruptError
        They are not the tensors of one save, each once.
    """
    if ordered is not None and ordered[2] and marked in (None, len(metas)):
        return
    counts = {meta.count for meta in metas.values() if meta.count is not None}
    counts |= set() if marked is None else {marked}
    if len(counts) > 1:
        raise CorruptError(f"{path}: its folders come from different saves (of {sorted(counts)} tensors)")
    for count in counts:
        if len(metas) > count:
            raise CorruptError(f"{path}: {len(metas)} tensor folders, wants {count}; move the extra ones away")
        places = {meta.place for meta in metas.values()}
        if len(metas) == count and places == set(range(count)):
            continue
        places.discard(None)
        first = next((place for place in range(count) if place not in places), None)
        if first is not None and count - len(places) > damaged:
            raise CorruptError(
                f"{path}: {count - len(places)} of {count} tensor folders are missing (the first at place {first}); "
                "restore them from a copy, or load an earlier snapshot"
            )


def _raise(_folder: str, problem: CorruptError) -> None:
    raise problem


def entries_of(
    metas: dict[str, Meta],
    path: str,
    refuse: Callable[[str, CorruptError], None] = _raise,
    ordered: Ordered | None = None,
) -> dict[str, Entry]:
    """Give key to entry, in saved order, ties followed.

    Parameters
    ----------
    metas : dict of str to Meta
        By folder.
    path : str
        Folder of the snapshot, for errors.
    refuse : callable
        Told the folder and what is wrong where a key stands in a second one, or a tie leads nowhere. Unless it raises,
        that folder is left out.
    ordered : Ordered, optional
        What was found of the metas already.
    """
    entries, ties, _ = ordered or _sorted(metas, path, refuse)
    for entry in ties:
        twin = entries.get(str(entry.meta.same_as))
        if twin is None or twin.meta.same_as is not None or twin.meta[:2] != entry.meta[:2]:
            where = f"{path}/{entry.folder}/{META}"
            nowhere = CorruptError(f"{where}: same_as {entry.meta.same_as!r} is no tensor of its shape and dtype")
            refuse(entry.folder, nowhere)
            del entries[entry.key]
        else:
            entries[entry.key] = entry._replace(blob=twin.folder)
    return entries


def _sorted(metas: dict[str, Meta], path: str, refuse: Callable[[str, CorruptError], None]) -> Ordered:
    """Put metas in the order of their places, those without one first."""
    entries: dict[str, Entry] = {}
    for folder, meta in sorted(metas.items(), key=_place):
        key = folder if meta.name is None else meta.name
        entry = Entry(key, folder, meta, folder)
        other = entries.setdefault(key, entry)
        if other is not entry:
            twice = CorruptError(f"{path}/{folder}/{META}: the key {key!r} stands in {other.folder!r} too")
            refuse(folder, twice)
    return entries, [entry for entry in entries.values() if entry.meta.same_as is not None], False


def _place(item: tuple[str, Meta]) -> tuple[int, str]:
    folder, meta = item
    return (-1 if meta.place is None else meta.place), folder


def check_record(entries: dict[str, Entry], marker: Marker, path: str, *, alone: bool) -> None:
    """Notice a marker that has lost the record of the saved object; `alone`: there is nothing else in the folder.

    Raises
    ------
    CorruptError
        It has.
    """
    first = next(iter(entries.values()), None)
    if marker.foreign and alone:
        raise CorruptError(f"{path}/{DONE}: stands alone, and is not understood; load an earlier snapshot")
    if first is not None and first.meta.container == DONE and not marker.nested:
        raise CorruptError(f"{path}/{DONE}: has lost the record of the saved object; load an earlier snapshot")
