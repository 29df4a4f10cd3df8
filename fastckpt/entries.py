"""From the metas of a snapshot to its tensors: all there, in order, each tie led to its blob. Pure."""

from __future__ import annotations

from typing import NamedTuple

from fastckpt.errors import CorruptError
from fastckpt.layout import META
from fastckpt.meta import Meta

__all__ = ["Entry", "check_count", "entries_of"]


class Entry(NamedTuple):
    """One tensor: its folder, its meta, and the folder that its bytes are read from (another one for a tie)."""

    key: str
    folder: str
    meta: Meta
    blob: str


def check_count(metas: dict[str, Meta], marked: int | None, path: str) -> None:
    """Notice folders that went missing, came from elsewhere, or disagree.

    Parameters
    ----------
    metas : dict of str to Meta
        By folder.
    marked : int or None
        Number of tensors that the marker names.
    path : str
        Folder of the snapshot, for errors.

    Raises
    ------
    CorruptError
        They are not the tensors of one save, each once.
    """
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
        if first is not None:
            raise CorruptError(
                f"{path}: {count - len(places)} of {count} tensor folders are missing (the first at place {first}); "
                "restore them from a copy, or load an earlier snapshot"
            )


def entries_of(metas: dict[str, Meta], path: str) -> dict[str, Entry]:
    """Give key to entry, in saved order, ties followed.

    Raises
    ------
    CorruptError
        A key stands in two folders, or a tie leads nowhere.
    """
    entries: dict[str, Entry] = {}
    ordered = all(meta.place == at for at, meta in enumerate(metas.values()))
    for folder, meta in metas.items() if ordered else sorted(metas.items(), key=_place):
        key = folder if meta.name is None else meta.name
        if key in entries:
            raise CorruptError(f"{path}/{folder}/{META}: the key {key!r} stands in {entries[key].folder!r} too")
        entries[key] = Entry(key, folder, meta, folder)
    for entry in [entry for entry in entries.values() if entry.meta.same_as is not None]:
        entries[entry.key] = entry._replace(blob=_blob(entries, entry, path))
    return entries


def _place(item: tuple[str, Meta]) -> tuple[int, str]:
    folder, meta = item
    return (-1 if meta.place is None else meta.place), folder


def _blob(entries: dict[str, Entry], entry: Entry, path: str) -> str:
    """Folder of the tensor that this one is tied to."""
    meta, twin = entry.meta, entries.get(str(entry.meta.same_as))
    if twin is None or twin.meta.same_as is not None or twin.meta[:2] != meta[:2]:
        where = f"{path}/{entry.folder}/{META}"
        raise CorruptError(f"{where}: same_as {meta.same_as!r} is no tensor of its shape and dtype")
    return twin.folder
