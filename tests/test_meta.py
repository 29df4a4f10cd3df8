"""One meta file: the bytes we write, every spelling we read, and what we refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fastckpt import _core, metatext
from fastckpt.dtypes import BY_ENUM, BY_NAME, BY_NUMBER, ENUM_WITHOUT_DTYPE, DType
from fastckpt.errors import CorruptError, FormatError, UnsupportedError
from fastckpt.meta import LIMIT, Meta, checked, format_meta, parse, parse_text, with_file_size

INT64_MAX = 2**63 - 1
FLOAT = BY_NAME["float32"]
SMALL = b"shape {\n  dim: 2\n  dim: 3\n}\ndata_type: kFloat\n"
UNNAMED = sorted(name for name, dtype in BY_NAME.items() if dtype.enum is None)


def noted(note: str, text: bytes = SMALL) -> bytes:
    return text + f"# fastckpt: {note}\n".encode()


def both(data: bytes) -> Meta:
    """Parse by the fast path, where there is one, and by the tolerant one: they agree."""
    meta = parse(data, "w/meta")
    assert parse_text(data, "w/meta") == meta
    return meta


def refused(data: bytes, *words: str) -> None:
    for read in (parse, parse_text):
        with pytest.raises(FormatError) as caught:
            read(data, "model/w/meta")
        assert str(caught.value).startswith("model/w/meta: ")
        for word in words:
            assert word in str(caught.value)


# What we write


@pytest.mark.parametrize(
    ("meta", "data"),
    [
        (Meta((3, 4), FLOAT), b"shape {\n  dim: 3\n  dim: 4\n}\ndata_type: kFloat\n"),
        (Meta((), FLOAT), b"shape {\n}\ndata_type: kFloat\n"),
        (Meta((0, 3), BY_NAME["bool"]), b"shape {\n  dim: 0\n  dim: 3\n}\ndata_type: kBool\n"),
        (Meta((2, 3), FLOAT, 0, 6), noted('{"place":0,"count":6}')),
        (Meta((2, 3), FLOAT, 0, 1, name="a/\u5c42\udc80\n"), noted(r'{"place":0,"count":1,"name":"a/\u5c42\udc80\n"}')),
        (Meta((2, 3), FLOAT, name=""), noted('{"name":""}')),
        (
            Meta((2, 3), FLOAT, 1, 2, "n", "crc32:00ff", "wte", {"OrderedDict": [1, None]}),
            noted(
                '{"place":1,"count":2,"name":"n","digest":"crc32:00ff","same_as":"wte",'
                '"container":{"OrderedDict":[1,null]},"self":"crc32:6590d996"}'
            ),
        ),
        (
            Meta((2, 3), BY_NAME["float8_e4m3fn"], 0, 1),
            noted('{"place":0,"count":1,"dtype":"float8_e4m3fn"}', SMALL.replace(b"kFloat", b"kUInt8")),
        ),
        (
            Meta((2, 3), BY_NAME["bits16"]),
            b'shape {\n  dim: 2\n  dim: 6\n}\ndata_type: kUInt8\n# fastckpt: {"dtype":"bits16"}\n',
        ),
        (
            Meta((), BY_NAME["bits16"]),
            b'shape {\n  dim: 2\n}\ndata_type: kUInt8\n# fastckpt: {"dtype":"bits16","shape":[]}\n',
        ),
        (Meta((), BY_NAME["uint4"]), b'shape {\n}\ndata_type: kUInt8\n# fastckpt: {"dtype":"uint4"}\n'),
    ],
)
def test_bytes(meta: Meta, data: bytes) -> None:
    assert format_meta(meta) == data
    assert both(data) == meta


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=lambda dtype: dtype.name)
def test_every_dtype(dtype: DType) -> None:
    meta = Meta((5, 4), dtype, 2, 3)
    data = format_meta(meta)
    assert both(data) == meta
    assert (meta.size, meta.nbytes) == (20, 20 * dtype.itemsize)
    assert (dtype.enum or "kUInt8").encode() in data.split()


dims = st.one_of(st.integers(0, 4), st.integers(0, 2**20), st.integers(0, INT64_MAX))
shapes = st.one_of(st.lists(dims, max_size=6), st.lists(st.integers(0, 1), max_size=64)).map(tuple)
names = st.text(st.characters(exclude_categories=())).filter(lambda name: json.loads(json.dumps(name)) == name)
finite = st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.one_of(st.booleans(), st.integers(), finite, names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def metas(draw: st.DrawFn) -> Meta:
    shape, dtype = draw(shapes), draw(st.sampled_from(sorted(BY_NAME.values(), key=lambda dtype: dtype.name)))
    assume(math.prod(dim for dim in shape if dim) * dtype.itemsize <= INT64_MAX)
    place, more = draw(st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)))
    places = draw(st.sampled_from([(None, None), (place, place + more)]))
    digest = draw(st.none() | st.from_regex(r"\A[a-z0-9_.-]{1,8}\Z").map(lambda name: f"x{name}:00ff"))
    return Meta(
        shape, dtype, *places, *draw(st.tuples(st.none() | names, st.just(digest), st.none() | names)), draw(jsons)
    )


@given(metas())
@example(Meta((2**62, 0), BY_NAME["uint8"]))
@example(Meta((1,) * 64, FLOAT, 0, 1, "\ud800"))
@settings(max_examples=300)
def test_round_trip(meta: Meta) -> None:
    data = format_meta(meta)
    assert both(data) == meta
    assert data.isascii()
    assert b"\r" not in data
    assert b"\0" not in data
    assert data.endswith(b"\n")
    assert data.count(b"#", 0, data.index(b"data_type")) == 0
    assert format_meta(parse_text(data, "m")) == data


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (Meta((2, 3), FLOAT, name="\ud83d\ude00"), "JSON cannot hold"),  # as JSON, the same as "\U0001f600"
        (Meta((2, 3), FLOAT, same_as="\ud83d\ude00"), "JSON cannot hold"),
        (Meta((1,) * 65, FLOAT), "64 dims"),
        (Meta((2**62, 2), FLOAT), "2**63 - 1 bytes"),
        (Meta((2**62, 4, 0), FLOAT), "2**63 - 1 bytes"),
        (Meta((2, 3), FLOAT, name="x" * LIMIT), "65536 bytes"),
        (Meta((2, 3), FLOAT, place=3, count=3), "place < count"),
        (Meta((2, 3), FLOAT, digest="CRC"), "digest"),
    ],
)
def test_what_would_not_read_back_is_not_written(meta: Meta, words: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot be stored") as caught:
        format_meta(meta)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@given(
    st.one_of(st.lists(dims, max_size=6), st.lists(st.integers(0, 2), min_size=60, max_size=70)).map(tuple),
    st.sampled_from(sorted(BY_NAME.values(), key=lambda dtype: dtype.name)),
    st.tuples(st.none() | st.integers(-1, 4), st.none() | st.integers(-1, 4)),
)
def test_what_is_checked_can_be_written(shape: tuple[int, ...], dtype: DType, places: tuple[Any, Any]) -> None:
    """The check before a save, which spares most metas their text, refuses what the text would."""
    meta = Meta(shape, dtype, *places)
    try:
        format_meta(meta._replace(digest="crc32:00000000"))
    except UnsupportedError:
        with pytest.raises(UnsupportedError):
            checked(meta)
    else:
        assert checked(meta) == meta


# Every spelling of protobuf

SPELLINGS = {
    "shape { dim: 2 dim: 3 } data_type: kFloat": (2, 3),
    "shape{dim:2dim:3}data_type:kFloat": None,  # "2dim" is one token
    "shape{dim:2,dim:3}data_type:kFloat": (2, 3),
    "\tshape\v{\fdim\t:\n2 dim:3\r\n}data_type:kFloat": (2, 3),
    "shape {\r  dim: 2\r}\rdata_type: kFloat\r": (2,),
    "shape {\r\n  dim: 2\r\n}\r\ndata_type: kFloat\r\n": (2,),
    "data_type: kFloat shape { dim: 2 }": (2,),
    "data_type: kFloat": (),
    "data_type: kFloat shape {}": (),
    "data_type: kFloat shape <>": (),
    "shape < dim: 2 > data_type: kFloat": (2,),
    "shape < dim: 2 } data_type: kFloat": None,
    "shape { dim: 2 > data_type: kFloat": None,
    "shape: { dim: 2 } data_type: kFloat": (2,),
    "shape:< dim: 2 > data_type: kFloat": (2,),
    "shape:: { dim: 2 } data_type: kFloat": None,
    "shape { dim: 2; dim: 3; }; data_type: kFloat;": (2, 3),
    "shape { dim: 2, dim: 3, }, data_type: kFloat,": (2, 3),
    "shape { dim: 2;; dim: 3 } data_type: kFloat": None,
    "shape { dim: 2,; dim: 3 } data_type: kFloat": None,
    "shape { , dim: 2 } data_type: kFloat": None,
    "; data_type: kFloat": None,
    "data_type: kFloat;;": None,
    "shape { dim: [2, 3] } data_type: kFloat": (2, 3),
    "shape { dim: [2] dim: 3, dim: [], dim: [4,5]; } data_type: kFloat": (2, 3, 4, 5),
    "shape { dim: [] } data_type: kFloat": (),
    "shape { dim: [2,] } data_type: kFloat": None,
    "shape { dim: [,] } data_type: kFloat": None,
    "shape { dim: [2 3] } data_type: kFloat": None,
    "shape { dim: [2; 3] } data_type: kFloat": None,
    "shape { dim: [2 } data_type: kFloat": None,
    "shape { dim: [[2]] } data_type: kFloat": None,
    "shape { dim [2] } data_type: kFloat": None,
    "shape { dim 2 } data_type: kFloat": None,
    "shape { dim: } data_type: kFloat": None,
    "shape: [{ dim: 2 }] data_type: kFloat": None,
    "shape { dim: 0x10 dim: 0XfF dim: 010 dim: 00 dim: 0 dim: -0 } data_type: kFloat": (16, 255, 8, 0, 0, 0),
    "shape { dim: 08 } data_type: kFloat": None,
    "shape { dim: 0x } data_type: kFloat": None,
    "shape { dim: 0xg } data_type: kFloat": None,
    "shape { dim: 0b11 } data_type: kFloat": None,
    "shape { dim: 0o11 } data_type: kFloat": None,
    "shape { dim: 1_000 } data_type: kFloat": None,
    "shape { dim: +3 } data_type: kFloat": None,
    "shape { dim: -3 } data_type: kFloat": None,
    "shape { dim: - 3 } data_type: kFloat": None,
    "shape { dim: --3 } data_type: kFloat": None,
    "shape { dim: -1 dim: -3 } data_type: kFloat": None,
    "shape { dim: 3.0 } data_type: kFloat": None,
    "shape { dim: 3. } data_type: kFloat": None,
    "shape { dim: .5 } data_type: kFloat": None,
    "shape { dim: 1e3 } data_type: kFloat": None,
    "shape { dim: '3' } data_type: kFloat": None,
    "shape { dim: ٣ } data_type: kFloat": None,  # a digit, but not ASCII
    "shape { dim: 9223372036854775808 } data_type: kFloat": None,
    "shape { dim: 99999999999999999999999999 } data_type: kFloat": None,
    "shape { dim: 0x8000000000000000 } data_type: kFloat": None,
    "shape { dim: 9223372036854775807 } data_type: kUInt8": (INT64_MAX,),
    "shape { dim: 0777777777777777777777 } data_type: kUInt8": (INT64_MAX,),
    "shape { dim: " + "0" * 9000 + "7 } data_type: kUInt8": (7,),
    "shape { dim: " + "7" * 9000 + " } data_type: kUInt8": None,
    "data_type: 2": (),
    "data_type: 0x2": (),
    "data_type: 02": None,
    "data_type: +2": None,
    "data_type: -2": None,
    "data_type: 2.0": None,
    'data_type: "kFloat"': None,
    "data_type: 'kFloat'": None,
    "data_type: kfloat": None,
    "data_type: KFLOAT": None,
    "data_type: kFloat-": None,
    "data_type: kFloa": None,
    "data_type kFloat": None,
    "data_type { kFloat }": None,
    "data_type: [kFloat]": None,
    "data_type: kFloat data_type: kFloat": None,
    "shape {} shape {} data_type: kFloat": None,
    "shape {} data_type: kFloat shape {}": None,
    "Shape {} data_type: kFloat": None,
    "2 {} 3: kFloat": None,
    "shape {} data_type: kFloat foo: 1": None,
    "shape {} data_type: kFloat 9: 1": None,
    "shape { foo: 1 } data_type: kFloat": None,
    "shape { shape {} } data_type: kFloat": None,
    "[x.y] {} data_type: kFloat": None,
    "shape { dim: 2 data_type: kFloat": None,
    "shape { dim: 2 } data_type:": None,
    "shape { dim: 2 } }": None,
    "shape { dim: 2 } data_type: kFloat }": None,
    "shape { dim: 2 } data_type: kFloat junk": None,
    "shape { dim: 2 }": None,
    "": None,
    "\n \n": None,
    "# only a comment": None,
    '# { " \' \nshape { # "open\n dim: 2 # }\n# }\n} # tail\ndata_type: kFloat # end': (2,),
    "data_type: kFloat#": (),
    "data_type: kFloat#\n#\n##\n": (),
    "# 模型 \x80 \x7f\x01\ndata_type: kFloat": (),
    "data_type: kFloat // x": None,
    "/* x */ data_type: kFloat": None,
    "\ufeffdata_type: kFloat": None,
    "data_type: kFloat\0": None,
    "data_type: kFloat # \0": None,
    "data_type:\xa0kFloat": None,  # a space in protobuf's Python, an error in its C++
    "data_type:\u2028kFloat": None,
    "data_type:\x1ckFloat": None,
    "#" * 60_000 + "\ndata_type: kFloat": (),
    "#\n" * 10_000 + "data_type: kFloat": (),
}


@pytest.mark.parametrize("text", SPELLINGS, ids=lambda text: ascii(text[:60]))
def test_spellings(text: str) -> None:
    shape = SPELLINGS[text]
    if shape is None:
        refused(text.encode())
        return
    meta = both(text.encode())
    assert meta.shape == shape
    assert meta.dtype in (FLOAT, BY_NAME["uint8"])
    assert meta == Meta(meta.shape, meta.dtype)


@pytest.mark.parametrize("name", BY_ENUM)
def test_enum_names(name: str) -> None:
    assert both(f"data_type: {name}".encode()).dtype is BY_ENUM[name]
    assert both(f"shape {{\n}}\ndata_type: {name}\n".encode()).dtype is BY_ENUM[name]


@pytest.mark.parametrize("number", range(-1, 40))
def test_enum_numbers(number: int) -> None:
    data = f"data_type: {number}".encode()
    if number in BY_NUMBER:
        assert both(data).dtype is BY_NUMBER[number]
    else:
        refused(data, str(number))


@pytest.mark.parametrize("name", [*ENUM_WITHOUT_DTYPE, "kMaxDataType", "kFloat8"])
def test_enum_names_of_no_tensor(name: str) -> None:
    refused(f"shape {{\n}}\ndata_type: {name}\n".encode(), name)


def test_char_is_int8() -> None:
    assert both(b"data_type: kChar").dtype is both(b"data_type: 1").dtype is BY_NAME["int8"]


@pytest.mark.parametrize("data", [b"\xff" + SMALL, b"# \xe9\n" + SMALL, b"# \xed\xa0\x80\n" + SMALL])
def test_not_utf8(data: bytes) -> None:
    refused(data, "UTF-8", "at byte")


def test_errors_say_where_and_what() -> None:
    refused(b"shape {\n  dim: 3\n  dim: x\n}", "line 3", "wanted a dim", "found 'x'")
    refused(b"shape {", "line 1", "the end of the file")
    refused(b"data_type: " + b"k" * 60_000, "kkk")
    with pytest.raises(FormatError) as caught:
        parse(b"data_type: " + b"k" * 60_000, "m")
    assert len(str(caught.value)) < 300


# Our line


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ('{"place":0,"count":6}', Meta((2, 3), FLOAT, 0, 6)),
        ('{ "count" : 6,\t"place" : 0 }', Meta((2, 3), FLOAT, 0, 6)),
        ("{}", Meta((2, 3), FLOAT)),
        ('  {"later":[1,{"x":null}],"name":"a/b"}  ', Meta((2, 3), FLOAT, name="a/b")),
        ('{"name":"\\u5c42\\ud800"}', Meta((2, 3), FLOAT, name="\u5c42\ud800")),
        ('{"name":"层"}', Meta((2, 3), FLOAT, name="层")),
        ('{"dtype":"float32"}', Meta((2, 3), FLOAT)),
        ('{"container":null}', Meta((2, 3), FLOAT)),
        ('{"container":[]}', Meta((2, 3), FLOAT, container=[])),
        ('{"digest":"xxh3-128:00ff"}', Meta((2, 3), FLOAT, digest="xxh3-128:00ff")),
    ],
)
def test_note(note: str, expected: Meta) -> None:
    assert both(noted(note)) == expected
    line = noted(note, b"")
    assert both(line + SMALL) == expected
    assert both(SMALL[:10] + b"\n" + line + SMALL[10:]) == expected
    assert both(noted(note)[:-1]) == expected
    assert both(noted(note).replace(b"\n", b"\r\n")) == expected
    assert both(noted(note) + b"# more\n") == expected


@pytest.mark.parametrize(
    ("note", "word"),
    [
        ("", "JSON"),
        ("x", "JSON"),
        ("{", "JSON"),
        ('{"place":0,"count":6}}', "JSON"),
        ('{"place":0,"count":6} #', "JSON"),
        ("[]", "object"),
        ('"x"', "object"),
        ("null", "object"),
        ('{"container":NaN}', "NaN"),
        ('{"container":-Infinity}', "-Infinity"),
        ('{"container":' + "[" * 60_000 + "]}", "JSON"),
        ('{"container":' + "9" * 5000 + "x}", "JSON"),
        ('{"place":0}', "place"),
        ('{"count":1}', "place"),
        ('{"place":1,"count":1}', "place < count"),
        ('{"place":5,"count":3}', "place < count"),
        ('{"place":-1,"count":3}', "place"),
        ('{"place":"0","count":3}', "place"),
        ('{"place":0.0,"count":3}', "place"),
        ('{"place":false,"count":true}', "place"),
        ('{"place":null,"count":3}', "place"),
        ('{"place":0,"count":9223372036854775808}', "count"),
        ('{"name":1}', "name"),
        ('{"name":null}', "name"),
        ('{"same_as":["a"]}', "same_as"),
        ('{"digest":"crc32"}', "digest"),
        ('{"digest":"crc32:"}', "digest"),
        ('{"digest":"crc32:XY"}', "digest"),
        ('{"digest":{}}', "digest"),
        ('{"dtype":1}', "dtype"),
        ('{"dtype":"float3"}', "newer fastckpt"),
        ('{"dtype":"' + "x" * 9000 + '"}', "newer fastckpt"),
        ('{"dtype":"float64"}', "data_type"),
        ('{"dtype":"bits16"}', "data_type"),
        ('{"shape":[2,3]}', "shape"),
        ('{"shape":[6]}', "shape"),
        ('{"shape":6}', "shape"),
    ],
)
def test_bad_note(note: str, word: str) -> None:
    refused(noted(note), word)
    refused(noted(note, b"") + SMALL, word)


@pytest.mark.parametrize(
    "line",
    [
        "# fastckpt 1 {nothing}",
        "# fastckpt:",
        "# fastckpt:{nothing}",
        "#fastckpt: {nothing}",
        "## fastckpt: {nothing}",
        " # fastckpt: {nothing}",
        "# Fastckpt: {nothing}",
        "# x\u2028# fastckpt: {nothing}",
    ],
)
def test_other_comments_are_only_comments(line: str) -> None:
    data = line.encode() + b"\n"
    assert both(SMALL + data) == both(data + SMALL) == Meta((2, 3), FLOAT)
    assert both(SMALL[:-1] + b" # fastckpt: {nothing}\n") == Meta((2, 3), FLOAT)
    assert both(noted('{"name":"n"}') + data).name == "n"


def test_one_note_only() -> None:
    line = noted('{"place":0,"count":1}', b"")
    refused(SMALL + line + line, "found 2")
    refused(line + SMALL + line, "found 2")
    refused(SMALL + line + b"# fastckpt: x\n", "found 2")
    refused(SMALL + line.replace(b"\n", b"\r") + line, "found 2")


def stored(dims: str, note: str, enum: str = "kUInt8") -> bytes:
    return noted(note, f"shape {{ dim: [{dims}] }} data_type: {enum}\n".encode())


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (stored("2, 6", '{"dtype":"bits16"}'), (2, 3)),
        (stored("0", '{"dtype":"bits16"}'), (0,)),
        (stored("3, 0", '{"dtype":"bits16"}'), (3, 0)),
        (stored("2", '{"dtype":"bits16","shape":[]}'), ()),
        (stored("4", '{"dtype":"bits16","shape":[2,1]}'), (2, 1)),
        (stored("", '{"dtype":"bits8"}'), ()),
        (stored("5", '{"dtype":"bits8"}'), (5,)),
        (stored("2, 5", '{"dtype":"bits16"}'), None),
        (stored("", '{"dtype":"bits16"}'), None),
        (stored("2", '{"dtype":"bits16","shape":[2]}'), None),
        (stored("2", '{"dtype":"bits16","shape":[-1,-1]}'), None),
        (stored("2", '{"dtype":"bits16","shape":[true]}'), None),
        (stored("2", '{"dtype":"bits16","shape":[' + "1," * 64 + "1]}"), None),
        (stored("2", '{"dtype":"bits16"}', "kInt8"), None),
        (stored("2", '{"dtype":"bits16"}', "kFloat"), None),
        (stored("2", '{"dtype":"int8"}'), None),
        (stored("0", '{"dtype":"bits16","shape":[4611686018427387904,0]}'), None),
        (stored("4611686018427387904, 0", '{"dtype":"bits16"}'), None),
        (stored("4611686018427387904, 4, 0", '{"dtype":"bits16","shape":[0]}'), None),
    ],
)
def test_dtypes_that_the_enum_cannot_name(data: bytes, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        refused(data)
    else:
        assert both(data).shape == shape


# Limits


def test_size_limit() -> None:
    assert both(SMALL + b"#" * (LIMIT - len(SMALL))) == Meta((2, 3), FLOAT)
    refused(SMALL + b"#" * (LIMIT + 1 - len(SMALL)), "65536", "65537")
    refused(noted(json.dumps({"name": "x" * LIMIT})), "65536")
    note = json.dumps({"name": "x" * (LIMIT - len(noted('{"name": ""}')))})
    assert len(noted(note)) == LIMIT
    assert both(noted(note)).shape == (2, 3)


@pytest.mark.parametrize("form", ["shape {{\n{}}}\ndata_type: kUInt8\n", "shape {{{}}} data_type: kUInt8"])
def test_dim_limit(form: str) -> None:
    assert both(form.format("  dim: 1\n" * 64).encode()).shape == (1,) * 64
    refused(form.format("  dim: 1\n" * 65).encode(), "64 dims", "line")
    refused(form.format("dim: [" + "1," * 64 + "1]").encode(), "64 dims")


@pytest.mark.parametrize(
    ("dims", "enum", "fits"),
    [
        ((2**61 - 1,), "kFloat", True),
        ((2**61,), "kFloat", False),
        ((2**63 - 1,), "kInt8", True),
        ((2**62, 2), "kInt8", False),
        ((2**32, 2**32), "kFloat", False),
        ((11, 1676976733973595602), "kFloat", False),
        ((0, 2**61), "kFloat", False),
        ((2**31, 0, 2**31), "kFloat", False),
        ((2**31, 0, 2**30), "kInt8", True),
        ((0,), "kFloat", True),
        ((2**59,), "kComplex128", False),
        ((2**59 - 1,), "kComplex128", True),
    ],
)
def test_overflow(dims: tuple[int, ...], enum: str, fits: bool) -> None:
    lines = "".join(f"  dim: {dim}\n" for dim in dims)
    data = f"shape {{\n{lines}}}\ndata_type: {enum}\n".encode()
    if fits:
        assert both(data).shape == dims
    else:
        refused(data, "2**63 - 1 bytes")


HOSTILE = {
    "blank": " ",
    "newlines": "\n",
    "returns": "\r\n",
    "comments": "#\n",
    "one comment": "#",
    "notes": "# fastckpt: \n",
    "minus": "-",
    "digits": "1",
    "zeros": "0",
    "dots": ".",
    "letters": "k",
    "braces": "shape {",
    "brackets": "[",
    "quotes": '"',
    "backslashes": "\\",
    "dims": "dim: 1\n",
    "separators": ", ",
}


@pytest.mark.parametrize(
    "start", ["", "shape {", "shape { dim: ", "shape { dim: [", "data_type: ", "data_type: kFloat "]
)
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_work_is_linear(start: str, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are the text, each character once, and the parser takes each token once."""
    text = (start + piece * LIMIT)[:LIMIT]
    pieces = [match[0] for match in metatext._TOKEN.finditer(text)]
    assert all(pieces)
    assert "".join(pieces) == text

    taken: list[tuple[str, int]] = []

    def counted(text: str) -> Iterator[tuple[str, int]]:
        for token in tokens(text):
            taken.append(token)
            yield token

    tokens = metatext._tokens
    monkeypatch.setattr(metatext, "_tokens", counted)
    try:
        parse_text(text.encode(), "m")
    except FormatError:
        assert len(taken) <= 4 * metatext.MAX_DIMS  # a surprise ends it
    assert [at for _, at in taken] == sorted({at for _, at in taken})


# The fast path


def outcome(read: Any, data: bytes) -> Meta | str:
    try:
        meta = read(data, "m")
    except FormatError as error:
        return str(error).partition(":")[0]
    assert isinstance(meta, Meta)
    return meta


PIECES = [
    b"shape {\n",
    b"  dim: 3\n",
    b"  dim: 0\n",
    b"}\n",
    b"data_type: kFloat\n",
    b"data_type: kUInt8\n",
    b"\n",
    b"\r\n",
]
PIECES += [b'# fastckpt: {"place":0,"count":6}\n', b'# fastckpt: {"name":"a","x":[]}\n', b"# fastckpt: {}\n", b"# x\n"]
PIECES += [
    b'{"dtype":"bits16"}',
    b"  dim: 9223372036854775807\n",
    b"  dim: 03\n",
    b"  dim: -3\n",
    b" ",
    b"\0",
    b"\xc3\xa9",
]


@st.composite
def nearly_canonical(draw: st.DrawFn) -> bytes:
    data = bytearray(format_meta(draw(metas())))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.sampled_from(PIECES) | st.binary(max_size=2))
    return bytes(data)


@given(st.one_of(nearly_canonical(), st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)))
@settings(max_examples=500)
def test_both_paths_agree(data: bytes) -> None:
    assert outcome(parse, data) == outcome(parse_text, data)


def test_our_own_take_the_fast_path() -> None:
    for dtype in BY_ENUM.values():
        for meta in (Meta((3, 4), dtype), Meta((), dtype, 3, 7), Meta((0,) * 64, dtype, name="é")):
            assert _core.parse_meta(format_meta(meta)) is not None


# With the size of the file


def test_file_size() -> None:
    meta = Meta((2, 3), FLOAT, 0, 1)
    assert with_file_size(meta, 24, "model/w") is meta
    for size in (0, 12, 23, 25, 48):
        with pytest.raises(CorruptError, match=rf"^model/w/out: meta wants 24 bytes, file has {size}; "):
            with_file_size(meta, size, "model/w")


def test_bfloat16_as_oneflow_writes_it() -> None:
    meta = Meta((2, 3), BY_NAME["bfloat16"], 0, 1, "n", "crc32:00", "s", [1])
    assert with_file_size(meta, 12, "w") is meta
    assert with_file_size(meta, 24, "w") == Meta((2, 3), FLOAT, 0, 1, "n", "crc32:00", "s", [1])
    for size in (0, 6, 48):
        with pytest.raises(CorruptError):
            with_file_size(meta, size, "w")
    for dtype in ("float16", "uint16"):
        with pytest.raises(CorruptError):
            with_file_size(Meta((2, 3), BY_NAME[dtype]), 24, "w")
    empty = Meta((0, 3), BY_NAME["bfloat16"])
    assert with_file_size(empty, 0, "w") is empty


def test_meta_is_a_value() -> None:
    meta = Meta((2, 3), FLOAT)
    with pytest.raises(AttributeError):
        meta.place = 3  # type: ignore[misc]
    assert not hasattr(meta, "__dict__")
    assert hash(meta) == hash(Meta((2, 3), FLOAT))
    assert (Meta((), FLOAT).size, Meta((), FLOAT).nbytes) == (1, 4)


# What OneFlow's releases wrote, and what they read


def test_oneflow_grammar(oneflow_fixtures: Path) -> None:
    folders = sorted((oneflow_fixtures / "meta_grammar").iterdir())
    assert len(folders) == 32
    for folder in folders:
        data = (folder / "x" / "meta").read_bytes()
        where = f"{folder.name}/x/meta"
        if folder.name.startswith("meta_bad_"):
            refused(data)
            with pytest.raises(FormatError, match=where):
                parse(data, where)
            continue
        meta = both(data)
        shape = (0, 3) if "empty_0x3" in folder.name else () if "_0d_" in folder.name else (2, 3)
        assert (meta.shape, meta.dtype) == (shape, FLOAT), where
        assert with_file_size(meta, (folder / "x" / "out").stat().st_size, where) is meta


BROKEN = {
    "dim_over_int64",
    *(f"dtype_{name}" for name in ("invalid0", "kMaxDataType", "kOFRecord", "kTensorBuffer", "kUInt128")),
    "many_dims_100",
    "meta_binary",
    "meta_latin1_comment",
    "meta_truncated",
    "negative_dim",
    "negative_pair",
    "overflow_2pow63",
    "overflow_wraps_to_0",
    "overflow_wraps_to_6",
    "unknown_dtype_name",
    "unknown_dtype_number",
    "zero_times_huge",
}
WRONG_SIZE = {"dtype_kUInt16", "dtype_vs_size", "long_out", "short_out", "pickle_tensor_dir_broken"}


def test_oneflow_metas(oneflow_fixtures: Path) -> None:
    """Every meta of the archive: read by both paths the same, or refused with the file's name."""
    found: dict[type[Exception], set[str]] = {FormatError: set(), CorruptError: set()}
    for path in sorted(oneflow_fixtures.rglob("meta")):
        out = path.parent / "out"
        if path.parent.parent.name.startswith("meta_") or not path.is_file() or not out.is_file():
            continue
        data, where = path.read_bytes(), str(path.parent)
        assert outcome(parse, data) == outcome(parse_text, data)
        try:
            with_file_size(parse(data, f"{where}/meta"), out.stat().st_size, where)
        except (FormatError, CorruptError) as error:
            found[type(error)].add(path.parent.parent.name.removeprefix("broken_"))
    assert found == {FormatError: BROKEN, CorruptError: WRONG_SIZE}
