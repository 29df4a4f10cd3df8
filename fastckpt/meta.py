"""One ``meta`` file: shape and dtype as text protobuf, then at most one comment line of ours.

The comment is invisible to OneFlow and says what the protobuf cannot: the tensor's place among how many, its true
name and dtype, its digest, the tensor it is tied to. What we write has one spelling; those bytes, which every protobuf
writes too, are read by C, and every other spelling by `metatext`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastckpt import _core, metatext, seals
from fastckpt.dtypes import BY_NAME, BY_NUMBER, DType
from fastckpt.errors import CorruptError, FormatError, UnsupportedError
from fastckpt.layout import OUT
from fastckpt.metatext import FIELDS, INT64_MAX, MAX_DIMS, format_note, parse_note, wrong

__all__ = [
    "LIMIT",
    "Meta",
    "check_seal",
    "checked",
    "format_meta",
    "meta_text",
    "parse",
    "parse_text",
    "with_file_size",
]

LIMIT = 65536  # bytes of one meta: 64 dims take 2 KiB, the rest is room for names

_BYTES = BY_NAME["uint8"]
_PLAIN_FIELDS = ("place", "count", "name", "digest", "same_as", "container")  # the same in Meta and in our line


class Meta(NamedTuple):
    """What a ``meta`` file says of one tensor.

    Attributes
    ----------
    shape : tuple of int
        True shape, also where the file counts the last dimension in bytes.
    dtype : DType
        True dtype.
    place, count : int or None
        The tensor's place in the object, and how many tensors there are; both or neither.
    name : str or None
        The key, where the folder's name differs from it.
    digest : str or None
        ``"<algorithm>:<hex>"`` of ``out``.
    same_as : str or None
        Key of the tensor that this one is tied to.
    container : JSON
        Record of what the flat object itself is.
    """

    shape: tuple[int, ...]
    dtype: DType
    place: int | None = None
    count: int | None = None  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    name: str | None = None
    digest: str | None = None
    same_as: str | None = None
    container: Any = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of ``out``."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse(data: bytes, where: str) -> Meta:
    """Read one ``meta``.

    Parameters
    ----------
    data : bytes
        The file's content.
    where : str
        The file's name, for errors: ``"model/l1.weight/meta"``.

    Returns
    -------
    Meta

    Raises
    ------
    FormatError
        The content is no ``meta``, or one of a dtype or a version that is not known.
    """
    found = _core.parse_meta(data)
    if found is None:
        return parse_text(data, where)
    dims, number, place, count, digest, note_at = found
    if note_at >= 0:
        return _noted(dims, BY_NUMBER[number], data[note_at:].decode("ascii"), where)
    if place < 0:
        return Meta(dims, BY_NUMBER[number])
    return Meta(dims, BY_NUMBER[number], place, count, None, digest)


def parse_text(data: bytes, where: str) -> Meta:
    """Read one ``meta`` in any spelling that protobuf reads; as `parse`, only slower."""
    if len(data) > LIMIT:
        raise FormatError(f"{where}: wanted at most {LIMIT} bytes, found {len(data)}; it is damaged or no meta")
    dims, dtype, note = metatext.read(data, where)
    return _noted(dims, dtype, "{}" if note is None else note, where)


def format_meta(meta: Meta) -> bytes:
    """Give the one spelling of a ``meta``.

    Parameters
    ----------
    meta : Meta
        What it shall say.

    Returns
    -------
    bytes
        ASCII; `parse` gives an equal ``Meta`` for it.

    Raises
    ------
    UnsupportedError
        No ``meta`` can say it: too long a name, over 64 dims, a name that JSON cannot hold.
    """
    data = meta_text(meta)
    data = data if meta.digest is None else seals.sealed(data)
    _check_readable(data, meta)
    return data


def meta_text(meta: Meta) -> bytes:
    """Give the same as `format_meta` for what `checked` has let pass, but without the seal that one with a digest gets
    as a file."""
    dims, enum = _stored(meta)
    dim_lines = "".join([f"  dim: {dim}\n" for dim in dims])
    return f"shape {{\n{dim_lines}}}\ndata_type: {enum}\n{format_note(_fields(meta))}".encode("ascii")


def check_seal(data: bytes, where: str) -> None:
    """Notice a ``meta`` that has changed since it was saved. One without a seal says nothing of that.

    Parameters
    ----------
    data, where
        As for `parse`.

    Raises
    ------
    CorruptError
        Its seal is broken.
    FormatError
        It is no ``meta``.
    """
    if seals.has_intact_seal(data, where) or metatext.OURS not in data:
        return
    note = metatext.read(data, where).note
    seals.refuse_unsealed(parse_note("{}" if note is None else note, where).keys() - FIELDS, where)


def checked(meta: Meta) -> Meta:
    """Give back a ``Meta`` without a digest that can be written, also with a digest; errors as for `format_meta`."""
    if not _is_surely_readable(meta):
        format_meta(meta._replace(digest="crc32:00000000"))
    return meta


def with_file_size(meta: Meta, nbytes: int, where: str) -> Meta:
    """Hold a ``meta`` against the size of its ``out``.

    OneFlow v0.9 and later store a bfloat16 tensor as float32 under ``kBFloat16``; only the file's size tells.

    Parameters
    ----------
    meta : Meta
        What `parse` gave.
    nbytes : int
        Size of the file.
    where : str
        The tensor's folder, for errors: ``"model/l1.weight"``.

    Returns
    -------
    Meta
        The same one, or for such a file one with dtype float32.

    Raises
    ------
    CorruptError
        The file has another size.
    """
    wanted = meta.nbytes
    if nbytes == wanted:
        return meta
    if meta.dtype.name == "bfloat16" and nbytes == 2 * wanted:
        return meta._replace(dtype=BY_NAME["float32"])
    raise CorruptError(f"{where}/{OUT}: meta wants {wanted} bytes, file has {nbytes}; take another copy")


def _check_size(shape: tuple[int, ...], dtype: DType, where: str) -> None:
    """Refuse what would overflow somewhere, also when another dim is 0."""
    product = math.prod(shape) or math.prod(filter(None, shape))
    if product * dtype.itemsize > INT64_MAX:
        raise wrong(where, "a tensor of at most 2**63 - 1 bytes", f"{dtype.name}{list(shape)}")


def _is_surely_readable(meta: Meta) -> bool:
    """Tell whether nothing is in it but numbers, and those in their bounds."""
    plain = meta.name is None and meta.same_as is None and meta.container is None and meta.dtype.enum is not None
    placed = meta.place is not None and meta.count is not None and 0 <= meta.place < meta.count
    return plain and placed and len(meta.shape) <= MAX_DIMS and 0 < meta.nbytes <= INT64_MAX


def _check_readable(data: bytes, meta: Meta) -> None:
    try:
        same = parse(data, "its meta") == meta
    except FormatError as error:
        raise UnsupportedError(f"tensor {_label(meta)} cannot be stored: {error}") from error
    if not same:
        raise UnsupportedError(f"tensor {_label(meta)} cannot be stored: JSON cannot hold its name; rename it")


def _label(meta: Meta) -> str:
    """Show a key that may be very long."""
    name = repr(meta.name or "")
    return f"{name[:80]}… (place {meta.place})" if len(name) > 80 else f"{name} (place {meta.place})"


def _fields(meta: Meta) -> dict[str, Any]:
    dtype = meta.dtype
    return {
        "place": meta.place,
        "count": meta.count,
        "name": meta.name,
        "dtype": dtype.name if dtype.enum is None else None,
        "shape": [] if dtype.enum is None and dtype.itemsize > 1 and not meta.shape else None,
        "digest": meta.digest,
        "same_as": meta.same_as,
        "container": meta.container,
    }


def _stored(meta: Meta) -> tuple[tuple[int, ...], str]:
    """Dims and enum name in the file: bytes, where the enum has no name."""
    shape, dtype = meta.shape, meta.dtype
    if dtype.enum is not None:
        return shape, dtype.enum
    if dtype.itemsize > 1:
        shape = (*shape[:-1], shape[-1] * dtype.itemsize) if shape else (dtype.itemsize,)
    return shape, "kUInt8"


def _noted(dims: tuple[int, ...], stored: DType, note: str, where: str) -> Meta:
    fields = parse_note(note, where)
    shape, dtype = _true(dims, stored, fields, where)
    _check_size(dims, stored, where)
    _check_size(shape, dtype, where)
    return Meta(shape, dtype, *map(fields.get, _PLAIN_FIELDS))


def _true(dims: tuple[int, ...], stored: DType, fields: dict[str, Any], where: str) -> tuple[tuple[int, ...], DType]:
    """Shape and dtype of the tensor, of which the protobuf may hold the bytes only."""
    name = fields.get("dtype", stored.name)
    dtype = BY_NAME.get(name)
    if dtype is None:
        raise FormatError(f"{where}: unknown dtype {name[:80]!r}; written by a newer fastckpt? update this one")
    if dtype is not stored and (dtype.enum is not None or stored is not _BYTES):
        raise wrong(where, f"data_type to be that of dtype {name}", stored.enum)
    shape = _true_shape(dims, dtype, fields.get("shape"))
    if shape is None:
        raise wrong(where, f"a shape of {name} in as many bytes as dims {list(dims)}", fields.get("shape", "none"))
    return shape, dtype


def _true_shape(dims: tuple[int, ...], dtype: DType, given: list[int] | None) -> tuple[int, ...] | None:
    if given is None:
        last, rest = divmod(dims[-1], dtype.itemsize) if dims else (0, dtype.itemsize - 1)
        if dtype.enum is not None or dtype.itemsize == 1:
            return dims
        return None if rest else (*dims[:-1], last)
    fits = dtype.enum is None and math.prod(given) * dtype.itemsize == math.prod(dims)
    return tuple(given) if fits else None
