"""The only dtype table: name, OneFlow's enum, size, and what numpy and torch call it.

A dtype that OneFlow's enum cannot name is stored as ``kUInt8``, its last dimension counted in bytes, and the comment
line of its ``meta`` carries the true name.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BY_ENUM", "BY_NAME", "BY_NUMBER", "ENUM_WITHOUT_DTYPE", "DType"]


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type; there is one object of each.

    Attributes
    ----------
    name : str
        Our name, used in comment lines and tables; the same as numpy's or torch's.
    enum : str or None
        Name in OneFlow's ``DataType`` enum, None where it has none.
    number : int or None
        Number in that enum.
    itemsize : int
        Bytes an element.
    numpy : str or None
        Name of the numpy (or ml_dtypes) type, None where there is none.
    torch : str or None
        Attribute of the ``torch`` module, None where there is none.
    dlpack : int or None
        DLPack's code of the kind of number, for those that every torch takes by it.
    """

    name: str
    enum: str | None
    number: int | None
    itemsize: int
    numpy: str | None
    torch: str | None
    dlpack: int | None = None


def _named(name: str, enum: str, number: int, itemsize: int, dlpack: int | None = None, numpy: bool = True) -> DType:
    return DType(name, enum, number, itemsize, name if numpy else None, name, dlpack)


def _unnamed(name: str, itemsize: int = 1, *, numpy: bool, torch: bool) -> DType:
    return DType(name, None, None, itemsize, name if numpy else None, name if torch else None)


_NAMED = (
    _named("float32", "kFloat", 2, 4, 2),
    _named("float64", "kDouble", 3, 8, 2),
    _named("int8", "kInt8", 4, 1, 0),
    _named("int32", "kInt32", 5, 4, 0),
    _named("int64", "kInt64", 6, 8, 0),
    _named("uint8", "kUInt8", 7, 1, 1),
    _named("float16", "kFloat16", 9, 2, 2),
    _named("bfloat16", "kBFloat16", 11, 2, 4),
    _named("bool", "kBool", 12, 1),
    _named("uint16", "kUInt16", 13, 2),
    _named("uint32", "kUInt32", 14, 4),
    _named("uint64", "kUInt64", 15, 8),
    _named("int16", "kInt16", 17, 2, 0),
    _named("complex32", "kComplex32", 19, 4, numpy=False),
    _named("complex64", "kComplex64", 20, 8, 5),
    _named("complex128", "kComplex128", 21, 16, 5),
)

_UNNAMED = (
    *(
        _unnamed(f"float8_{kind}", numpy=True, torch=True)
        for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
    ),
    *(_unnamed(f"float8_{kind}", numpy=True, torch=False) for kind in ("e3m4", "e4m3", "e4m3b11fnuz")),
    _unnamed("float4_e2m1fn_x2", numpy=False, torch=True),
    *(_unnamed(f"{sign}int{bits}", numpy=False, torch=True) for sign in ("", "u") for bits in range(1, 8)),
    *(_unnamed(kind, numpy=False, torch=True) for kind in ("bits1x8", "bits2x4", "bits4x2", "bits8")),
    _unnamed("bits16", 2, numpy=False, torch=True),
)

BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in (*_NAMED, *_UNNAMED)}
BY_ENUM: dict[str, DType] = {dtype.enum: dtype for dtype in _NAMED if dtype.enum is not None} | {
    "kChar": BY_NAME["int8"]  # OneFlow's own loaders give int8 too
}
BY_NUMBER: dict[int, DType] = {dtype.number: dtype for dtype in _NAMED if dtype.number is not None} | {
    1: BY_NAME["int8"]
}

#: Enum members that OneFlow declares but that no tensor on disk can have.
ENUM_WITHOUT_DTYPE: dict[str, int] = {
    "kInvalidDataType": 0,
    "kOFRecord": 8,
    "kTensorBuffer": 10,
    "kUInt128": 16,
    "kInt128": 18,
}
