"""What a save will write, decided before anything is written: pure data, no I/O."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from fastckpt import meta as meta_file
from fastckpt.blobs import GATHER
from fastckpt.codec import Blob, Codec, described
from fastckpt.errors import UnsupportedError
from fastckpt.layout import DONE, folders_for
from fastckpt.marker import ALIGN, LINE_LIMIT, SMALL, IndexEntry, format_marker
from fastckpt.meta import Meta
from fastckpt.metatext import json_text
from fastckpt.overlaps import sharing
from fastckpt.tree import Leaf

__all__ = ["WriteItem", "WritePlan", "check_size"]

_ESCAPED, _NUMBER, _ROW = 14, 40, 400  # bytes of an index at most: a character, a dim, and the rest of a tensor
_CONTAINER_LIMIT = 32 << 10  # bytes of JSON about the flat object that the first tensor's meta may carry


class WriteItem(NamedTuple):
    """One tensor folder.

    Attributes
    ----------
    folder : str
        Name of the folder.
    meta : Meta
        What its `meta` will say, but for the digest.
    nbytes : int
        Bytes of `out`.
    value, codec
        The tensor, and who can give its bytes.
    twin : str or None
        Folder of the tensor that this one is tied to.
    """

    folder: str
    meta: Meta
    nbytes: int
    value: Any
    codec: Codec
    twin: str | None

    def pieces(self, room: Any = None) -> Iterator[Any]:
        """Give the bytes of `out`, in contiguous buffers; what has to be gathered is, in `room` where there is one."""
        return self.codec.pieces(self.value, room)

    def whole(self) -> memoryview:
        """Give the bytes of `out` in one buffer; a tensor that its framework has to gather is copied."""
        whole = self.codec.whole(self.value)
        return memoryview(b"".join(map(bytes, self.pieces())) if whole is None else whole)

    def text(self, digest: str | None) -> bytes:
        """Give what `meta` says, with the digest of `out`, unsealed."""
        return meta_file.meta_text(self.meta._replace(digest=digest))


@dataclass(frozen=True, slots=True)
class WritePlan:
    """All folders in order of place, and what the marker says.

    Attributes
    ----------
    items : tuple of WriteItem
        The tensors.
    record : str or None
        The nested object, as JSON; None for a flat one.
    index : bool
        The marker gets copies of metas and small blobs.
    """

    items: tuple[WriteItem, ...]
    record: str | None
    index: bool

    @classmethod
    def of(cls, leaves: Sequence[Leaf], record: Any, *, flat: bool, index: bool) -> WritePlan:
        """Decide folders, ties and metas.

        Parameters
        ----------
        leaves : sequence of Leaf
            The tensors in order.
        record : JSON
            The object that holds them.
        flat : bool
            It is a dict of tensors: the metas say everything, and the marker stays empty if it can.
        index : bool
            Copy metas and small blobs into the marker; a nested object always gets that.
        """
        codecs, blobs = [], []
        for leaf in leaves:
            codec, blob = described(leaf)
            codecs.append(codec)
            blobs.append(blob)
        twins = _twins(leaves, blobs)
        _warn_of_overlaps(leaves, blobs, twins)
        flat, container = _container(record, leaves) if flat else (False, DONE)
        folders = folders_for([leaf.key for leaf in leaves])
        items = tuple(
            WriteItem(
                folder,
                meta_file.checked(_meta_of(leaves, blobs, folders, twins, at, container)),
                blobs[at].nbytes,
                leaves[at].value,
                codecs[at],
                None if (twin := twins[at]) is None else folders[twin],
            )
            for at, folder in enumerate(folders)
        )
        plan = cls(items, None if flat else json_text(record), index or not flat)
        if _is_perhaps_too_long(plan):
            plan.marker({})  # what cannot be said is refused now
        return plan

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, ties counted once."""
        return self.nbytes_above(0)

    def nbytes_above(self, least: int) -> int:
        """Bytes of the tensors that have more than `least` each."""
        return sum(item.nbytes for item in self.items if item.twin is None and item.nbytes > least)

    def marker(self, texts: Mapping[str, bytes], *, seal: bool = True) -> bytes:
        """Give the text of the marker, for what the metas say, by folder; those that are missing have no digest."""
        if not self.index:
            return b""
        return format_marker(_index_of(self.items, texts), self.record, seal=seal)

    def small_blobs(self, path: str) -> Iterator[bytes]:
        """Give the copies that follow the marker's text, each padded to ALIGN, many at a time; `path` is for errors."""
        copied = (item for item in self.items if _is_copied(item)) if self.index else iter(())
        while some := list(islice(copied, GATHER // SMALL)):
            yield b"".join([piece for item in some for piece in _padded(item, path)])


def check_size(path: str, folder: str, wanted: int, found: int) -> None:
    """Refuse a tensor, of a snapshot that will stand at `path`, which another thread has resized meanwhile."""
    if found != wanted:
        raise UnsupportedError(f"{path}/{folder}: {wanted} bytes when the save began, then {found}; save a copy")


def _meta_of(
    leaves: Sequence[Leaf],
    blobs: Sequence[Blob],
    folders: Sequence[str],
    twins: Sequence[int | None],
    at: int,
    container: Any,
) -> Meta:
    key, twin = leaves[at].key, twins[at]
    return Meta(
        shape=blobs[at].shape,
        dtype=blobs[at].dtype,
        place=at,
        count=len(leaves),
        name=None if folders[at] == key else key,
        same_as=None if twin is None else leaves[twin].key,
        container=container if at == 0 else None,
    )


def _container(record: Any, leaves: Sequence[Leaf]) -> tuple[bool, Any]:
    """Whether the metas can hold what a flat object is, and what the first of them says: nothing for a plain dict, the
    record without its items for another, and where they cannot hold it, the name of the file that does."""
    if "OrderedDict" not in record:
        return True, None
    container = {**record, "OrderedDict": []}
    fits = 0 < len(leaves) == len(record["OrderedDict"]) and len(json.dumps(container)) <= _CONTAINER_LIMIT
    return fits, container if fits else DONE


def _twins(leaves: Sequence[Leaf], blobs: Sequence[Blob]) -> list[int | None]:
    """For each tensor the first one that is the very same memory read the same way, or the same object."""
    first: dict[Any, int] = {}
    twins: list[int | None] = []
    for at, (leaf, blob) in enumerate(zip(leaves, blobs, strict=True)):
        at_first = first.setdefault(id(leaf.value) if blob.memory is None else blob, at)
        twins.append(None if at_first == at else at_first)
    return twins


def _warn_of_overlaps(leaves: Sequence[Leaf], blobs: Sequence[Blob], twins: Sequence[int | None]) -> None:
    """Tell of tensors that share some of their memory but are not equal: what one sees, the other will no longer."""
    own = [at for at, twin in enumerate(twins) if twin is None]
    pairs, _ = sharing([blobs[at] for at in own])
    shared = [f"{leaves[own[one]].path} and {leaves[own[other]].path}" for one, other in pairs]
    if shared:
        more = f" (and {len(shared) - 1} more pairs)" if len(shared) > 1 else ""
        warnings.warn(
            f"{shared[0]}{more} overlap in memory without being equal views: they are stored apart and will not be "
            "tied when loaded",
            stacklevel=5,
        )


def _is_perhaps_too_long(plan: WritePlan) -> bool:
    """Tell whether the marker may be longer than a line can be, without making all of its text."""
    if not plan.index:
        return False
    texts = numbers = 0
    for item in plan.items:
        meta = item.meta
        texts += len(item.folder) + len(meta.name or "") + len(meta.same_as or "")
        numbers += len(meta.shape)
    most = _ESCAPED * texts + _NUMBER * numbers + _ROW * len(plan.items) + 2 * _CONTAINER_LIMIT
    return most + len(plan.record or "") > LINE_LIMIT


def _is_copied(item: WriteItem) -> bool:
    return item.twin is None and 0 < item.nbytes <= SMALL


def _padded(item: WriteItem, path: str) -> tuple[memoryview, bytes]:
    whole = item.whole()
    check_size(path, item.folder, item.nbytes, whole.nbytes)  # or all that follow would stand at wrong places
    return whole, bytes(-item.nbytes % ALIGN)


def _index_of(items: Sequence[WriteItem], texts: Mapping[str, bytes]) -> list[IndexEntry]:
    entries, at = [], 0
    for item in items:
        copied = _is_copied(item)
        text = texts.get(item.folder) or item.text(None)  # without seals: the table has a digest of its own
        entries.append(IndexEntry(item.folder, text, item.nbytes, at if copied else None))
        at += -(-item.nbytes // ALIGN) * ALIGN if copied else 0
    return entries
