"""The fast path for metas against a slow one: whatever bytes there are, both say the same."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastckpt import _core, dtypes

NUMBERS = {name: dtype.number for name, dtype in dtypes.BY_ENUM.items()} | {"kChar": 1}
CANONICAL = re.compile(
    rb"shape \{\n((?:  dim: (?:0|[1-9][0-9]*)\n)*)\}\ndata_type: (k[A-Za-z0-9]+)\n(?:# fastckpt: (\{[ -~]*\})\n)?"
)
PLACE = re.compile(
    rb'\{"place":(0|[1-9][0-9]*),"count":(0|[1-9][0-9]*)(?:,"digest":"(crc32:[0-9a-f]{8})"(?:,"self":"crc32:[0-9a-f]{8}")?)?\}'
)
Parsed = tuple[tuple[int, ...], int, int, int, str | None, int]


def place_of(comment: bytes) -> tuple[int, int, str | None] | None:
    match = PLACE.fullmatch(comment)
    if match is None:
        return None
    place, count = int(match[1]), int(match[2])
    digest = None if match[3] is None else match[3].decode()
    return (place, count, digest) if place < count < 2**63 else None


def oracle(data: bytes) -> Parsed | None:
    match = CANONICAL.fullmatch(data)
    if match is None or len(data) > 65_536 or match[2].decode() not in NUMBERS:
        return None
    dims = tuple(int(line.split()[1]) for line in match[1].splitlines())
    if len(dims) > 64 or math.prod(filter(None, dims)) * 16 >= 2**63:
        return None
    place = (-1, -1, None) if match[3] is None else place_of(match[3])
    number = NUMBERS[match[2].decode()]
    assert number is not None
    return (dims, number, -1, -1, None, match.start(3)) if place is None else (dims, number, *place, -1)


def canonical(dims: list[int], kind: str = "kFloat", comment: bytes = b"") -> bytes:
    lines = "".join(f"  dim: {dim}\n" for dim in dims)
    return f"shape {{\n{lines}}}\ndata_type: {kind}\n".encode() + comment


def ours(text: str) -> bytes:
    return f"# fastckpt: {text}\n".encode()


SAMPLES = [
    canonical([]),
    canonical([3, 0, 10], "kUInt8"),
    canonical([12], "kComplex128", ours('{"place":0,"count":10}')),
    canonical([1, 2], "kBFloat16", ours('{"place":3,"count":4,"name":"a/b"}')),
    canonical([8], "kInt8", ours('{"place":0,"count":1,"digest":"crc32:01234567"}')),
    canonical([8], "kInt8", ours('{"place":0,"count":1,"digest":"crc32:89abcdef"}')),
    canonical([], "kInt8", ours('{"place":0,"count":1,"digest":"crc32:89abcdef","self":"crc32:01234567"}')),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_change_of_one_byte(sample: bytes) -> None:
    assert oracle(sample) is not None
    for at in range(len(sample) + 1):
        for byte in range(256):
            for changed in (
                sample[:at] + bytes([byte]) + sample[at:],
                sample[:at] + bytes([byte]) + sample[at + 1 :],
                sample[:at] + sample[at + 1 :],
                sample[:at],
            ):
                assert _core.parse_meta(changed) == oracle(changed), changed


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "crc32:",
        "crc32:0123456",
        "crc32:012345678",
        "crc32:0123456A",
        "crc32:0123456g",
        "crc32:0123456 ",
        "CRC32:01234567",
        "crc32c:01234567",
        "crc32 01234567",
        "01234567",
        "xxh128:01234567",
        "xxh128:0123456789abcdef0123456789abcdef",
    ],
)
def test_another_digest_is_left_to_python(digest: str) -> None:
    data = canonical([8], "kInt8", ours(f'{{"place":0,"count":1,"digest":"{digest}"}}'))
    assert _core.parse_meta(data) == oracle(data) == ((8,), NUMBERS["kInt8"], -1, -1, None, data.index(b'{"'))
    ours_too = data.replace(digest.encode() + b'"}', b'crc32:01234567"}')
    assert _core.parse_meta(ours_too) == ((8,), NUMBERS["kInt8"], 0, 1, "crc32:01234567", -1)


DIMS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**64)), max_size=6)
KINDS = st.sampled_from([*NUMBERS, *dtypes.ENUM_WITHOUT_DTYPE, "kMaxDataType", "kfloat", "2", ""])
COMMENTS = st.one_of(
    st.just(b""),
    st.builds(
        lambda place, count: ours(f'{{"place":{place},"count":{count}}}'), st.integers(-1, 2**64), st.integers(0, 2**64)
    ),
    st.builds(
        lambda place, more: ours(f'{{"place":{place},"count":{place + more}}}'), st.integers(0, 9), st.integers(-1, 9)
    ),
    st.builds(
        lambda name, digest: ours(f'{{"place":0,"count":1,"digest":"{name}:{digest}"}}'),
        st.sampled_from(["crc32", "crc32", "xxh128", ""]),
        st.text('0123456789abcdefA"', min_size=7, max_size=9),
    ),
    st.builds(lambda crc: ours(f'{{"place":0,"count":1,"digest":"crc32:{crc:08x}"}}'), st.integers(0, 2**32 - 1)),
    st.builds(
        lambda name, seal: ours(f'{{"place":0,"count":1,"digest":"crc32:01234567","{name}":"crc32:{seal}"}}'),
        st.sampled_from(["self", "self", "selfish"]),
        st.text("0123456789abcdefA", min_size=7, max_size=9),
    ),
    st.text(st.characters(max_codepoint=255), max_size=20).map(lambda text: ours("{" + text + "}")),
    st.binary(max_size=20).map(lambda text: b"# " + text + b"\n"),
)


@settings(max_examples=500, deadline=None)
@given(st.builds(canonical, DIMS, KINDS, COMMENTS), st.data())
def test_parse_meta_against_an_oracle(data: bytes, draw: st.DataObject) -> None:
    assert _core.parse_meta(data) == oracle(data)
    start, stop = sorted(draw.draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    piece = draw.draw(st.one_of(st.binary(max_size=4), st.just(data[start:stop] * 2)))
    changed = data[:start] + piece + data[stop:]
    assert _core.parse_meta(changed) == oracle(changed)


@pytest.mark.parametrize(
    ("dims", "fits"),
    [
        ([2**59 - 1], True),
        ([2**59], False),
        ([0, 2**59], False),
        ([2**59 - 1, 0, 1], True),
        ([2**30, 2**29], False),
        ([2**63], False),
        ([2**64 + 3], False),
        ([1] * 64, True),
        ([1] * 65, False),
    ],
)
def test_large_shapes(dims: list[int], fits: bool) -> None:
    assert _core.parse_meta(canonical(dims)) == ((tuple(dims), 2, -1, -1, None, -1) if fits else None)


def test_types_are_those_of_the_table() -> None:
    for kind, number in NUMBERS.items():
        assert _core.parse_meta(canonical([3], kind)) == ((3,), number, -1, -1, None, -1)
    for kind in dtypes.ENUM_WITHOUT_DTYPE:
        assert _core.parse_meta(canonical([3], kind)) is None


def test_long_metas() -> None:
    text = '{"container":"' + "x" * (65_536 - len(canonical([3]) + ours('{"container":""}'))) + '"}'
    longest = canonical([3], comment=ours(text))
    assert len(longest) == 65_536
    assert _core.parse_meta(longest) == ((3,), 2, -1, -1, None, longest.index(b"{", 10))
    assert _core.parse_meta(canonical([3], comment=ours(text + " "))) is None


def test_parse_meta_wants_bytes() -> None:
    for data in ("text", None, bytearray(b""), memoryview(b"")):
        with pytest.raises(TypeError):
            _core.parse_meta(data)  # type: ignore[arg-type]
