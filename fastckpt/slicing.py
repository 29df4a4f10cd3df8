"""Basic indices: checked, spelled out for every dimension, and which memory they touch. Pure."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Box", "Parts", "boxed", "forward", "spell_out", "touched"]

Parts: TypeAlias = "list[int | slice | None]"


class Box(NamedTuple):
    """A smaller array, out of which the same is picked.

    Attributes
    ----------
    shape : tuple of int
        Of the smaller array.
    parts : list
        What picks from it what was wanted of the whole one.
    runs : list of tuple of int
        Which bytes of the whole one it consists of, in order: offset and length.
    """

    shape: tuple[int, ...]
    parts: Parts
    runs: list[tuple[int, int]]


def spell_out(index: Any, shape: Sequence[int], name: str) -> Parts:
    """Give one part a dimension, and None where a new one is asked for.

    Parameters
    ----------
    index : int, slice, Ellipsis, None, or a tuple of them
        What stands between the brackets.
    shape : sequence of int
        Of the tensor.
    name : str
        Of the tensor, for errors.

    Returns
    -------
    list
        Whole numbers lie within the shape, as numpy counts them.

    Raises
    ------
    TypeError
        Another kind of index, which would need all of the tensor.
    IndexError
        Too many parts, or one beyond the end.
    """
    parts = [_part(part, name) for part in (index if isinstance(index, tuple) else (index,))]
    given = sum(part is not None and part is not Ellipsis for part in parts)
    if given > len(shape) or parts.count(Ellipsis) > 1:
        raise IndexError(f"{name}: {given} indices for {len(shape)} dimensions, and '...' at most once")
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - given)
    dims = iter(shape)
    for part, dim in ((part, next(dims)) for part in parts if part is not None):
        if isinstance(part, int) and not -dim <= part < dim:
            raise IndexError(f"{name}: index {part} is beyond a dimension of {dim}")
    return parts


def _part(part: Any, name: str) -> Any:
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    is_bool = isinstance(part, bool) or str(getattr(part, "dtype", "")).endswith("bool")  # torch's would be 0 or 1
    try:
        number = None if is_bool or getattr(part, "shape", None) else operator.index(part)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: index with integers, slices, None and '...', or take [:] first")
    return number


def touched(parts: Parts, shape: Sequence[int]) -> tuple[int, int, int]:
    """Tell which elements these parts pick: the lowest, how many follow it without a gap, and how many there are."""
    picked = [part for part in parts if part is not None]
    first, run, count, stride, gap = 0, 1, 1, 1, False
    for part, dim in zip(reversed(picked), reversed(shape), strict=True):
        picks = range(*part.indices(dim)) if isinstance(part, slice) else range(part % dim, part % dim + 1)
        if not picks:
            return 0, 0, 0
        first += min(picks[0], picks[-1]) * stride
        count *= len(picks)
        gap = gap or (len(picks) > 1 and abs(picks.step) > 1)
        if not gap:
            run *= len(picks)
            gap = len(picks) < dim
        stride *= dim
    return first, run, count


def forward(parts: Parts, shape: Sequence[int]) -> tuple[Parts, list[int]]:
    """Give parts without backward steps that pick the same, and the dimensions of the result to turn round."""
    turned: list[int] = []
    onward: Parts = []
    dims = iter(shape)
    axis = 0
    for part in parts:
        dim = 0 if part is None else next(dims)
        if isinstance(part, slice) and (picked := range(*part.indices(dim))).step < 0:
            turned.append(axis)
            part = slice(picked[-1], picked[0] + 1, -picked.step) if picked else slice(0)  # noqa: PLW2901
        onward.append(part)
        axis += not isinstance(part, int)
    return onward, turned


def boxed(parts: Parts, shape: Sequence[int], itemsize: int, gap: int) -> Box:
    """Give the array that has to be read for these parts: rows that are not wanted are left out, but for those in gaps
    of up to `gap` bytes, which cost less than another question."""
    picks: list[range] = []  # which indices of each dimension the box has
    inner: Parts = []  # what to pick of them
    along = False  # whether all that lies inside a dimension's rows is read
    any_at_all = touched(parts, shape)[2] > 0
    stride = prod(shape) * itemsize
    dims = iter(shape)
    for at, part in enumerate(parts):
        if part is None:
            inner.append(part)
            continue
        dim = next(dims)
        stride //= max(dim, 1)
        here = range(dim)[part] if isinstance(part, slice) else range(dim)[part : part + 1 or None]
        if along:
            picks.append(range(dim))
            inner.append(part)
            continue
        onward = here if here.step > 0 else here[::-1]
        whole = onward.step == 1 and _all_inside(parts[at + 1 :], shape[len(picks) + 1 :])
        along = any_at_all and len(here) > 1 and (whole or stride * onward.step <= gap)
        picks.append(range(onward[0], onward[-1] + 1) if along else onward)
        step = here.step if along else 1 if here is onward else -1
        inner.append(slice(None, None, step) if isinstance(part, slice) else 0)
    return Box(tuple(map(len, picks)), inner, [*_runs(picks, shape, itemsize)])


def _all_inside(parts: Parts, shape: Sequence[int]) -> bool:
    picked = [part for part in parts if part is not None]
    return all(
        len(range(dim)[part]) == dim if isinstance(part, slice) else dim == 1
        for part, dim in zip(picked, shape, strict=True)
    )


def _runs(picks: Sequence[range], shape: Sequence[int], itemsize: int) -> Iterator[tuple[int, int]]:
    """Give offset and length of each run of bytes that lies in a box: its last dimensions are whole."""
    tail = len(shape)
    run = itemsize
    while tail and run == prod(shape[tail:]) * itemsize and picks[tail - 1].step == 1:
        tail -= 1
        run *= len(picks[tail])
    first = picks[tail][0] * prod(shape[tail + 1 :]) * itemsize if run and tail < len(shape) else 0
    strides = [prod(shape[at + 1 :]) * itemsize for at in range(tail)]
    for outer in product(*picks[:tail]) if run else ():
        yield sum(map(operator.mul, outer, strides)) + first, run
