"""How far two runs of elements are apart: bits decide whether they differ, numbers say by how much.

Everything is computed wider than it is stored: whole numbers exactly, the others in float64. What numpy cannot read as
numbers is compared by its bits alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastckpt.codec import NUMPY
from fastckpt.dtypes import DType
from fastckpt.errors import UnsupportedError

__all__ = ["Distance", "can_compare", "decode"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_BLOCK = 1 << 13  # elements at a time: what they widen to stays in the cache, and in memory that malloc keeps
_FLOAT4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], "<f4")


@dataclass(slots=True)
class Distance:
    """What was found so far between the elements of two tensors.

    Attributes
    ----------
    differing : int
        Elements whose bits differ; between two dtypes, whose values do. A NaN is equal to a NaN of the same bits.
    max_abs : int, float or None
        Largest ``|b - a|``; None where no two differing elements are numbers. Of bits only (0.0 and -0.0) it is 0.
    max_rel : float or None
        Largest ``|b - a| / max(|a|, |b|)``: 1 from or to zero, up to 2 where the sign changes; infinite where an
        infinity comes or goes.
    nan_appeared, nan_vanished, nan_rewritten : int
        Elements that became NaN, that were NaN, and that are NaN with other bits.
    """

    differing: int = 0
    max_abs: int | float | None = None
    max_rel: float | None = None
    nan_appeared: int = 0
    nan_vanished: int = 0
    nan_rewritten: int = 0

    def add(self, a: Array, b: Array, dtype_a: DType, dtype_b: DType) -> None:
        """Compare two runs of as many elements, given as bytes."""
        for at in range(0, a.size // dtype_a.itemsize, _BLOCK):
            one = a[at * dtype_a.itemsize : (at + _BLOCK) * dtype_a.itemsize]
            other = b[at * dtype_b.itemsize : (at + _BLOCK) * dtype_b.itemsize]
            if dtype_a is dtype_b:
                self._add_same_dtype(one, other, dtype_a)
            else:
                self._add_values(_numbers(one, dtype_a), _numbers(other, dtype_b))

    def _add_same_dtype(self, a: Array, b: Array, dtype: DType) -> None:
        cells_a, cells_b = _cells(a, dtype.itemsize), _cells(b, dtype.itemsize)
        differ = cells_a != cells_b
        where = np.flatnonzero(differ.any(axis=1) if differ.ndim > 1 else differ)
        if where.size:
            self.differing += where.size
            if where.size < len(differ):
                a, b = (cells.take(where, axis=0).reshape(-1).view(np.uint8) for cells in (cells_a, cells_b))
            self._measure(decode(a, dtype), decode(b, dtype))

    def _add_values(self, a: Array, b: Array) -> None:
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        self.differing += int(np.count_nonzero(differ))
        self._measure(a[differ], b[differ])

    def _measure(self, a: Array | None, b: Array | None) -> None:
        if a is None or b is None:
            return
        nan_a, nan_b = np.isnan(a), np.isnan(b)
        if nan_a.any() or nan_b.any():
            self.nan_appeared += int(np.count_nonzero(nan_b & ~nan_a))
            self.nan_vanished += int(np.count_nonzero(nan_a & ~nan_b))
            self.nan_rewritten += int(np.count_nonzero(nan_a & nan_b))
            numbers = ~(nan_a | nan_b)
            a, b = a[numbers], b[numbers]
        if a.size:
            largest, relative = _gap(a, b)
            self.max_abs = largest if self.max_abs is None else max(self.max_abs, largest)
            self.max_rel = relative if self.max_rel is None else max(self.max_rel, relative)


def can_compare(a: DType, b: DType) -> bool:
    """Tell whether elements of two dtypes can be held against each other: always, if it is one."""
    return a is b or all(_is_number(dtype) for dtype in (a, b))


def decode(raw: Array, dtype: DType) -> Array | None:
    """Read bytes as numbers that numpy can compute with; None where nothing here knows how.

    Parameters
    ----------
    raw : numpy.ndarray
        Bytes, one dimension.
    dtype : DType
        What they hold. Of ``float4_e2m1fn_x2`` two numbers come for each byte.

    Returns
    -------
    numpy.ndarray or None
        Some float, complex or integer type.
    """
    special = _SPECIAL.get(dtype.name)
    if special is not None:
        return special(raw)
    try:
        own = NUMPY.dtype(dtype, dtype.name)
    except UnsupportedError:
        return None
    values: Array = raw.view(own)
    return values if values.dtype.isbuiltin == 1 else values.astype(np.float32)


def _numbers(raw: Array, dtype: DType) -> Array:
    values = decode(raw, dtype)
    assert values is not None, "can_compare was asked"
    return values


def _is_number(dtype: DType) -> bool:
    return dtype.name != "float4_e2m1fn_x2" and decode(np.empty(0, np.uint8), dtype) is not None


def _bfloat16(raw: Array) -> Array:
    """It is the upper half of a float32."""
    upper: Array = raw.view("<u2").astype("<u4") << 16
    return upper.view("<f4")


def _float4(raw: Array) -> Array:
    """One bit of sign and three that number the values, the first number in the lower half of the byte."""
    halves = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)
    values: Array = np.where(halves & 8, -_FLOAT4[halves & 7], _FLOAT4[halves & 7])
    return values


_SPECIAL: dict[str, Callable[[Array], Array]] = {
    "bool": lambda raw: raw,
    "bfloat16": _bfloat16,
    "complex32": lambda raw: raw.view("<f2").astype("<f4").view("<c8"),
    "float4_e2m1fn_x2": _float4,
}


def _cells(raw: Array, itemsize: int) -> Array:
    """Each element as one integer; as a row of two where there is none so wide."""
    return raw.view(f"<u{itemsize}") if itemsize <= 8 else raw.view("<u8").reshape(-1, 2)


def _gap(a: Array, b: Array) -> tuple[int | float, float]:
    """Largest absolute and relative difference of numbers, none of them NaN."""
    wide = np.result_type(a, b, np.float64)
    wide_a, wide_b = a.astype(wide), b.astype(wide)
    with np.errstate(all="ignore"):
        gaps = _whole_gaps(a, b) if np.result_type(a, b).kind in "iu" else _gaps(wide_a, wide_b)
        scale = np.maximum(np.abs(wide_a), np.abs(wide_b))
        relative = gaps / np.where(scale == 0, 1, scale)
    largest = gaps.max().item()
    return largest, math.inf if math.isinf(largest) else relative.max().item()


def _whole_gaps(a: Array, b: Array) -> Array:
    """Modulo 2**64 the larger minus the smaller is exact, whatever the signs."""
    gaps: Array = np.maximum(a, b).astype(np.uint64) - np.minimum(a, b).astype(np.uint64)
    return gaps


def _gaps(a: Array, b: Array) -> Array:
    gaps: Array
    if a.dtype.kind != "c":
        gaps = np.abs(b - a)
        return gaps
    real = np.where(a.real == b.real, 0, b.real - a.real)  # an infinity that stays is no change
    imag = np.where(a.imag == b.imag, 0, b.imag - a.imag)
    gaps = np.hypot(real, imag)
    return gaps
