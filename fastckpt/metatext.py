"""The text of a ``meta`` file: protobuf as OneFlow's releases read it, and the JSON of our one comment line.

Accepted is the protobuf that every release reads, in Python and in C++ alike. What only some read (NBSP as a space,
digits that are not ASCII, ``0b11``, ``1_000``, ``+3``, octal enum numbers) is refused: nobody writes it. One pass looks
at every character once, so a hostile file costs no more than a good one of its size. In our line, fields that are not
known are passed over, for a later version may add some; what is known must be right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from fastckpt.dtypes import BY_ENUM, BY_NUMBER, DType
from fastckpt.errors import FormatError

__all__ = [
    "FIELDS",
    "INT64_MAX",
    "MAX_DIMS",
    "OURS",
    "Fields",
    "format_note",
    "json_text",
    "parse_note",
    "read",
    "wrong",
]

INT64_MAX = 2**63 - 1
MAX_DIMS = 64  # what numpy and torch can hold

_PREFIX = "# fastckpt: "
OURS = _PREFIX.encode()
_NEWLINE = re.compile("\r\n?")
_OURS = re.compile(f"^{_PREFIX}(.*)$", re.MULTILINE)
_DIGEST = re.compile(r"[a-z0-9][a-z0-9_.-]*:[0-9a-f]+")
_TOKEN = re.compile(
    r"""[ \t\v\f\n]+ | \#[^\n\0]*             # between tokens
    | ([A-Za-z_][0-9A-Za-z_+-]*               # a name
    | [0-9.+-][0-9A-Za-z_.+-]*                # a number
    | .)                                      # a mark, or what nothing expects""",
    re.VERBOSE | re.DOTALL,
)
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_OCTAL = re.compile(r"-?0[0-7]+")
_HEX = re.compile(r"-?0[xX][0-9a-fA-F]+")
_CLOSING = {"{": "}", "<": ">"}
_SHOWN = 80  # characters of a value that an error shows


class Fields(NamedTuple):
    """What one ``meta`` says: dims and dtype as they are stored, and the JSON of our line."""

    dims: tuple[int, ...]
    dtype: DType
    note: str | None


def read(data: bytes, where: str) -> Fields:
    """Parse any layout of a ``meta`` that every protobuf reads.

    Parameters
    ----------
    data : bytes
        The file's content.
    where : str
        The file's name, for errors.

    Returns
    -------
    Fields
        Dims are between 0 and 2**63 - 1 and at most 64.

    Raises
    ------
    FormatError
        The bytes are no UTF-8, or no such text.
    """
    try:
        text = _NEWLINE.sub("\n", data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: wanted UTF-8 text, found {error.reason} at byte {error.start}") from error
    dims, dtype = _Parser(text, where).message()
    return Fields(dims, dtype, _our_note(text, where))


def _our_note(text: str, where: str) -> str | None:
    found = _OURS.findall(text)
    if len(found) > 1:
        raise FormatError(f"{where}: wanted at most one line '{_PREFIX}', found {len(found)}; delete all but one")
    return found[0] if found else None


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    for match in _TOKEN.finditer(text):
        if match[1]:
            yield match[1], match.start()


class _Parser:
    """Recursive descent over two messages; ``token`` is "" at the end of the text."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        self.tokens = _tokens(text)
        self.step()

    def message(self) -> tuple[tuple[int, ...], DType]:
        dims: list[int] | None = None
        dtype: DType | None = None
        while self.token:
            if dims is None and self.take("shape"):
                dims = self.shape()
            elif dtype is None and self.take("data_type"):
                dtype = self.data_type()
            else:
                raise self.error("the fields 'shape' and 'data_type', each once")
            self.separator()
        if dtype is None:
            raise self.error("a field 'data_type'")
        return tuple(dims or ()), dtype

    def shape(self) -> list[int]:
        self.take(":")
        closing = _CLOSING.get(self.token)
        if closing is None:
            raise self.error("'{'")
        self.step()
        dims: list[int] = []
        while not self.take(closing):
            self.need("dim")
            self.need(":")
            self.values(dims)
            self.separator()
        return dims

    def values(self, dims: list[int]) -> None:
        if not self.take("["):
            self.dim(dims)
        elif not self.take("]"):
            self.dim(dims)
            while not self.take("]"):
                self.need(",")
                self.dim(dims)

    def dim(self, dims: list[int]) -> None:
        value = _integer(self.token)
        if value is None or not 0 <= value <= INT64_MAX:
            raise self.error("a dim between 0 and 2**63 - 1")
        if len(dims) == MAX_DIMS:
            raise self.error(f"at most {MAX_DIMS} dims")
        dims.append(value)
        self.step()

    def data_type(self) -> DType:
        self.need(":")
        dtype = BY_ENUM.get(self.token)
        if dtype is None and not _OCTAL.fullmatch(self.token):
            dtype = BY_NUMBER.get(_integer(self.token) or 0)
        if dtype is None:
            raise self.error("a data_type that a tensor can have")
        self.step()
        return dtype

    def separator(self) -> None:
        if not self.take(","):
            self.take(";")

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise self.error(f"'{wanted}'")

    def take(self, wanted: str) -> bool:
        if self.token != wanted:
            return False
        self.step()
        return True

    def step(self) -> None:
        self.token, self.at = next(self.tokens, ("", len(self.text)))

    def error(self, wanted: str) -> FormatError:
        found = repr(self.token[:_SHOWN]) if self.token else "the end of the file"
        line = self.text.count("\n", 0, self.at) + 1
        return FormatError(f"{self.where}: line {line}: wanted {wanted}, found {found}; the file is damaged or no meta")


def _integer(token: str) -> int | None:
    """The number a token spells, None where it spells none or one that is far too large."""
    if _DECIMAL.fullmatch(token):
        return int(token)
    if _OCTAL.fullmatch(token):
        return int(token, 8)
    return int(token, 16) if _HEX.fullmatch(token) else None


# Our comment line


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


#: Say a value as JSON, as all our lines spell it: those of metas and those of markers.
json_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _is_integer(value: object) -> bool:
    return type(value) is int and 0 <= value <= INT64_MAX


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_shape(value: object) -> bool:
    return type(value) is list and len(value) <= MAX_DIMS and all(map(_is_integer, value))


def _is_digest(value: object) -> bool:
    return type(value) is str and _DIGEST.fullmatch(value) is not None


_KNOWN: dict[str, tuple[str, Callable[[object], bool]]] = {
    "place": ("an integer, 0 or more", _is_integer),
    "count": ("an integer, 0 or more", _is_integer),
    "name": ("a string", _is_text),
    "dtype": ("a string", _is_text),
    "shape": (f"a list of at most {MAX_DIMS} integers", _is_shape),
    "digest": ("'<algorithm>:<hex>'", _is_digest),
    "same_as": ("a string", _is_text),
    "self": ("'crc32:<hex>'", _is_digest),
}
FIELDS = frozenset({*_KNOWN, "container"})


def format_note(fields: dict[str, Any]) -> str:
    """Give the line for these fields, without those that are None; "" when none is left."""
    present = {key: value for key, value in fields.items() if value is not None}
    return f"{_PREFIX}{json_text(present)}\n" if present else ""


def parse_note(note: str, where: str) -> dict[str, Any]:
    """Read what follows the prefix.

    Parameters
    ----------
    note : str
        The rest of the line.
    where : str
        The file's name, for errors.

    Returns
    -------
    dict
        The JSON object; every field that is known has the right type, and place and count come together.

    Raises
    ------
    FormatError
        It is no JSON object, or a field is wrong.
    """
    try:
        fields = _decode(note)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: wanted JSON after '{_PREFIX}', found {note[:_SHOWN]!r}: {error}") from error
    if type(fields) is not dict:
        raise wrong(where, f"a JSON object after '{_PREFIX}'", fields)
    for key, (wanted, good) in _KNOWN.items():
        if key in fields and not good(fields[key]):
            raise wrong(where, f"{key} to be {wanted}", fields[key])
    place, count = fields.get("place"), fields.get("count")
    if (place is None) != (count is None) or (place is not None and place >= count):
        raise wrong(where, "place and count, place < count", {"place": place, "count": count})
    return fields


def wrong(where: str, wanted: str, found: object) -> FormatError:
    """Make the error for a value that is not what it must be."""
    shown = repr(found)[:_SHOWN]
    return FormatError(f"{where}: wanted {wanted}, found {shown}; the file is damaged or of a newer version")
