"""numpy's arrays, scalars and dtypes, as numpy pickles them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastckpt.dtypes import BY_NAME, DType
from fastckpt.errors import FormatError, UnsupportedError
from fastckpt.metatext import INT64_MAX
from fastckpt.picklenodes import Call, Name, Span

__all__ = ["Array", "array", "dtype"]

_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_ORDERS = ("<", "|")
_DIMS = 64


class Array(NamedTuple):
    """An array whose elements lie in the pickle, in C order.

    Two that lie at the same place need not be one: Python has only one empty byte string. `number` tells them apart.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: Span
    number: int = 0


def dtype(made: Any) -> DType:
    """Give the element type that a pickled ``numpy.dtype`` stands for."""
    if type(made) is not Call or made.name[:2] != ("numpy", "dtype"):
        raise FormatError("wanted a numpy dtype, found something else")
    code = made.args[0] if made.args else None
    order = made.state[1] if type(made.state) is tuple and len(made.state) > 1 else None
    if type(code) is not str or not 2 <= len(code) <= 20:
        raise FormatError("wanted the code of a numpy dtype, found something else")
    kind, digits = _KINDS.get(code[0]), code[1:]
    known = None
    if kind is not None and digits.isascii() and digits.isdigit():
        known = BY_NAME.get(kind if kind == "bool" else f"{kind}{8 * int(digits)}")
    if known is None or known.numpy is None or (known.name == "bool" and digits != "1"):
        raise UnsupportedError(f"numpy dtype {code!a} cannot be given; save numbers, and texts beside them")
    if order not in _ORDERS:
        raise UnsupportedError(f"numpy dtype {code!a} of another byte order cannot be given; save it little endian")
    return known


def array(made: Call) -> Array:
    """Give what a pickled ``numpy.ndarray`` tells."""
    if made.name.name == "_frombuffer":
        return _from_buffer(made)
    if len(made.args) != 3 or not _is_ndarray(made.args[0]):
        raise UnsupportedError("wanted a numpy.ndarray, found a class made from it; save numpy.asarray(...) of it")
    if type(made.state) is not tuple or len(made.state) != 5:
        raise FormatError("wanted the state of a numpy array, found something else")
    _, shape, kind, fortran, data = made.state
    return _checked(shape, kind, data, fortran is not False)


def _is_ndarray(made: Any) -> bool:
    return type(made) is Name and made[:2] == ("numpy", "ndarray")


def _from_buffer(made: Call) -> Array:
    """What protocol 5 writes."""
    if len(made.args) != 4 or made.args[3] not in ("C", "F"):
        raise FormatError("wanted the buffer of a numpy array, found something else")
    data, kind, shape, order = made.args
    if type(data) is Call and data.name[:2] == ("builtins", "bytearray"):
        (data,) = data.args or (None,)
    return _checked(shape, kind, data, order == "F")


def _checked(shape: Any, kind: Any, data: Any, fortran: bool) -> Array:
    if (
        type(shape) is not tuple
        or len(shape) > _DIMS
        or not all(type(dim) is int and 0 <= dim <= INT64_MAX for dim in shape)
    ):
        raise FormatError(f"wanted a shape of at most {_DIMS} numbers, found something else")
    known = dtype(kind)
    if fortran and sum(dim > 1 for dim in shape) > 1:
        raise UnsupportedError("an array in Fortran order cannot be given; save numpy.ascontiguousarray(...) of it")
    if (math.prod(shape) or math.prod(filter(None, shape))) * known.itemsize > INT64_MAX:
        raise FormatError(f"wanted an array of at most 2**63 - 1 bytes, found {known.name}{list(shape)}")
    wanted = math.prod(shape) * known.itemsize
    if type(data) is not Span or data.length != wanted:
        found = f"{data.length:,}" if type(data) is Span else "no"
        raise FormatError(f"{known.name}{list(shape)} wants {wanted:,} bytes, the pickle has {found} bytes of it")
    return Array(known, shape, data)
