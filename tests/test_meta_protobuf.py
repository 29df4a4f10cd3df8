"""Our parser against the real protobuf: it reads the same texts to the same values, but for differences named here."""

from __future__ import annotations

import io
import math
import re
from itertools import chain
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from meta_words import ODD_NUMBERS, WORDS

from fastckpt.dtypes import BY_ENUM, BY_NAME, BY_NUMBER, ENUM_WITHOUT_DTYPE, DType
from fastckpt.errors import FormatError
from fastckpt.meta import LIMIT, Meta, format_meta, parse

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

INT64_MAX = 2**63 - 1
FIELD = descriptor_pb2.FieldDescriptorProto

ENUM = {dtype.enum: number for number, dtype in BY_NUMBER.items()} | {"kChar": 1, "kInt8": 4} | ENUM_WITHOUT_DTYPE


def variable_meta_info() -> Any:
    """OneFlow's two messages and its enum, made at run time."""
    file = descriptor_pb2.FileDescriptorProto(name="variable_meta_info.proto", package="oneflow", syntax="proto2")
    enum = file.enum_type.add(name="DataType")
    for name, number in sorted(ENUM.items(), key=lambda item: item[1]):
        enum.value.add(name=name, number=number)
    shape = file.message_type.add(name="ShapeProto")
    shape.field.add(name="dim", number=1, label=FIELD.LABEL_REPEATED, type=FIELD.TYPE_INT64)
    info = file.message_type.add(name="VariableMetaInfo")
    required = FIELD.LABEL_REQUIRED
    info.field.add(name="shape", number=2, label=required, type=FIELD.TYPE_MESSAGE, type_name=".oneflow.ShapeProto")
    info.field.add(name="data_type", number=3, label=required, type=FIELD.TYPE_ENUM, type_name=".oneflow.DataType")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oneflow.VariableMetaInfo"))


VariableMetaInfo = variable_meta_info()


def opened(data: bytes) -> str:
    """Read a file as text, which maps CR and CRLF to LF."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()


def theirs(data: bytes) -> tuple[tuple[int, ...], int] | None:
    """Read as OneFlow does."""
    info = VariableMetaInfo()
    try:
        text_format.Parse(opened(data), info)
    except (text_format.ParseError, UnicodeDecodeError):
        return None
    return tuple(info.shape.dim), info.data_type


def ours(data: bytes) -> tuple[tuple[int, ...], DType] | None:
    try:
        meta = parse(data, "m")
    except FormatError:
        return None
    return meta.shape, meta.dtype


COMMENT = re.compile(r"#.*")
NUMERAL = re.compile(r"(?<![\w.+-])[0-9+-][\w.+-]*")
ONLY_PYTHON = re.compile(r"\+.*|.*_.*|-?0[bBoO].*")  # what int(text, 0) reads, and C++ does not
OTHER_SPACE = re.compile(r"[^\S \t\v\f\n\r]")  # NBSP and the like: space in Python, error in C++


def refused_on_purpose(data: bytes, dims: tuple[int, ...], number: int) -> str:
    """Why we refuse a text that protobuf's Python reads, or "" for no reason."""
    text = opened(data)
    code = COMMENT.sub("", text)
    product = math.prod(dim or 1 for dim in dims)
    reasons = {
        "no dtype": number not in BY_NUMBER,
        "negative dim": any(dim < 0 for dim in dims),
        "over 64 dims": len(dims) > 64,
        "overflow": number in BY_NUMBER and product * BY_NUMBER[number].itemsize > INT64_MAX,
        "numeral of Python's": any(map(ONLY_PYTHON.fullmatch, NUMERAL.findall(code))),
        "digit of Python's": any(char.isdecimal() and not char.isascii() for char in code),
        "space of Python's": OTHER_SPACE.search(code) is not None,
        "NUL in a comment": "\0" in text,
        "our line": re.search(r"^# fastckpt: ", text, re.MULTILINE) is not None,
        "too long": len(data) > LIMIT,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def check(data: bytes) -> None:
    expected, found = theirs(data), ours(data)
    if expected is None:
        event("refused by protobuf")
        assert found is None
    elif found is None:
        reason = refused_on_purpose(data, *expected)
        event(f"refused by us: {reason}")
        assert reason
    else:
        event("read by both")
        assert found == (expected[0], BY_NUMBER[expected[1]])


# Texts that are a meta, or nearly

decimals = st.integers(0, 9) | st.integers(0, INT64_MAX)
good_numbers = st.one_of(
    st.integers(0, 9).map(str), decimals.map(str), decimals.map(hex), decimals.map("0{:o}".format), st.just("-0")
)
odd_numbers = st.sampled_from(ODD_NUMBERS)
good_types = st.sampled_from(list(BY_ENUM)) | st.sampled_from(list(BY_NUMBER)).map(str)
odd_types = st.sampled_from(
    [*ENUM_WITHOUT_DTYPE, "kMaxDataType", '"kFloat"', "kfloat", "02", "0x2", "+2", "99", "0", "8", "-1"]
)
between = st.sampled_from(["", ",", ";"])


@st.composite
def dim_tokens(draw: st.DrawFn, numbers: st.SearchStrategy[str]) -> list[str]:
    if draw(st.booleans()):
        return ["dim", ":", draw(numbers), draw(between)]
    values = draw(st.lists(numbers, max_size=4))
    return ["dim", ":", "[", *",".join(values).replace(",", " , ").split(), "]", draw(between)]


@st.composite
def meta_tokens(draw: st.DrawFn, numbers: st.SearchStrategy[str], types: st.SearchStrategy[str]) -> list[str]:
    data_type = ["data_type", ":", draw(types), draw(between)]
    if draw(st.integers(0, 5)) == 0:
        return data_type
    opening, closing = draw(st.sampled_from([("{", "}"), ("<", ">")]))
    dims = draw(st.lists(dim_tokens(numbers), max_size=5))
    shape = ["shape", draw(st.sampled_from(["", ":"])), opening, *chain(*dims), closing, draw(between)]
    return shape + data_type if draw(st.booleans()) else data_type + shape


spaces = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\r", "\t", "\v", "\f", "# x\n", "#\n", '# " { 层 }\r', " # a # b\r\n"]
)
odd_spaces = st.sampled_from(
    ["", "", "\xa0", "\u2028", "\x1c", "\x85", "\ufeff", "\0", "# \0\n", "//\n", "# fastckpt: {}\n"]
)
TOKENS = [*WORDS, "2", '"', "x", "-", "$", "é"]


def joined(tokens: list[str], draw: st.DrawFn, gaps: st.SearchStrategy[str]) -> bytes:
    return "".join(part for token in tokens if token for part in (token, draw(gaps))).encode()


@st.composite
def good_texts(draw: st.DrawFn) -> bytes:
    return joined(draw(meta_tokens(good_numbers, good_types)), draw, spaces)


@st.composite
def odd_texts(draw: st.DrawFn) -> bytes:
    numbers = draw(st.sampled_from([good_numbers, good_numbers | odd_numbers]))
    types = draw(st.sampled_from([good_types, good_types | odd_types]))
    gaps = draw(st.sampled_from([spaces, spaces | odd_spaces]))
    tokens = draw(meta_tokens(numbers, types))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(tokens)))
        tokens[at : at + draw(st.integers(0, 2))] = draw(st.lists(st.sampled_from(TOKENS), max_size=2))
    return joined(tokens, draw, gaps)


@given(good_texts())
@settings(max_examples=300)
def test_good_texts(data: bytes) -> None:
    check(data)
    assert theirs(data) is not None


@given(odd_texts())
@settings(max_examples=1000)
def test_odd_texts(data: bytes) -> None:
    check(data)


@given(st.lists(st.sampled_from([*TOKENS, " ", "\n", "#", "0x1", "-1"]), max_size=12).map("".join))
@settings(max_examples=300)
def test_token_soup(text: str) -> None:
    check(text.encode())
    check(f"shape {{ dim: 2 {text} }} data_type: kFloat".encode())
    check(f"data_type: kFloat {text}".encode())


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    check(data)
    check(b"data_type: kFloat #" + data)


def test_protobuf_alone_reads_these() -> None:
    """Each named difference is one: it would go unnoticed if protobuf came to agree with us."""
    for text, reason in {
        "": "no dtype",
        "shape {}": "no dtype",
        "data_type: kOFRecord": "no dtype",
        "shape { dim: -3 } data_type: kFloat": "negative dim",
        "shape {" + "dim: 1 " * 65 + "} data_type: kFloat": "over 64 dims",
        "shape { dim: [4294967296, 4294967296] } data_type: kFloat": "overflow",
        "shape { dim: 4294967296 dim: [4294967296, 0] } data_type: kFloat": "overflow",
        "shape { dim: 0b11 } data_type: kFloat": "numeral of Python's",
        "shape { dim: 1_0 } data_type: kFloat": "numeral of Python's",
        "data_type: +2": "numeral of Python's",
        "shape { dim: ٣ } data_type: kFloat": "digit of Python's",
        "data_type:\xa0kFloat": "space of Python's",
        "data_type: kFloat # \0": "NUL in a comment",
        "# fastckpt: x\ndata_type: kFloat": "our line",
        "data_type: kFloat #" + "#" * LIMIT: "too long",
    }.items():
        expected = theirs(text.encode())
        assert expected is not None
        assert ours(text.encode()) is None
        assert refused_on_purpose(text.encode(), *expected) == reason


# What we write

shapes = st.lists(st.integers(0, 40), max_size=8).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]))


@given(shapes, st.sampled_from(list(BY_NAME)), st.none() | names, st.booleans())
def test_what_we_write(shape: tuple[int, ...], name: str, key: str | None, placed: bool) -> None:
    dtype = BY_NAME[name]
    data = format_meta(Meta(shape, dtype, 3 if placed else None, 7 if placed else None, key))
    info = VariableMetaInfo()
    text_format.Parse(data.decode("ascii"), info)
    assert info.IsInitialized()
    dims = tuple(info.shape.dim)
    if dtype.enum is not None:
        assert (dims, info.data_type) == (shape, dtype.number)
    else:
        assert info.data_type == ENUM["kUInt8"]
        assert (dims[:-1], math.prod(dims)) == (shape[:-1], math.prod(shape) * dtype.itemsize)
    theirs_alone, _, note = data.partition(b"# fastckpt: ")
    assert text_format.MessageToString(info).encode("ascii") == theirs_alone
    assert note.count(b"\n") == (note != b"")
