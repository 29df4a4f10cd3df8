"""The fast path for the table of an index: what it says yes to, the parser of JSON says too."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fastckpt
from fastckpt import _core, meta
from fastckpt.dtypes import BY_NAME, BY_NUMBER
from fastckpt.marker import parse_index
from fastckpt.meta import Meta

TEXTS = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=8)
SHAPES = st.lists(st.integers(0, 1 << 40), max_size=3).filter(
    lambda dims: np.prod([float(dim or 1) for dim in dims]) < 2**58
)


@st.composite
def metas(draw: st.DrawFn) -> Meta:
    count = draw(st.integers(1, 9))
    digest = draw(st.none() | st.just("crc32:0123abcd"))
    dtype = BY_NAME[draw(st.sampled_from(["float32", "bool", "complex128", "float8_e5m2"]))]
    place = draw(st.integers(0, count - 1))
    return Meta(tuple(draw(SHAPES)), dtype, place, count, draw(st.none() | TEXTS), digest)


@st.composite
def tables(draw: st.DrawFn) -> list[Any]:
    """Rows whose copies lie behind each other, aligned, as in a file of ours."""
    table: list[Any] = []
    free = 0
    for folder in draw(st.lists(TEXTS, max_size=4)):
        one = draw(metas())
        text = meta.format_meta(one).decode("ascii")
        nbytes = draw(st.just(one.nbytes) | st.integers(0, 1 << 50))
        copy_at = draw(st.none() | st.integers(0, 3).map(lambda gap: -(-free // 64) * 64 + gap * 64))  # noqa: B023
        free = free if copy_at is None else copy_at + nbytes
        table.append([folder, draw(st.just(text) | TEXTS), nbytes, copy_at])
    return table


def line(table: Any, **how: Any) -> bytes:
    return json.dumps(table, **({"separators": (",", ":")} | how)).encode("ascii") + b"\n"


@given(tables())
@example([["a", "shape {\n}\ndata_type: kFloat\n", 4, 0], ['q"\\', "", 0, None]])
def test_what_it_reads_is_what_json_says(table: list[Any]) -> None:
    fast = _core.parse_table(line(table), Meta, BY_NUMBER)
    if fast is None:
        plain = all(c in map(chr, range(32, 127)) or c == "\n" for row in table for text in row[:2] for c in text)
        assert not plain or len({row[0] for row in table}) < len(table)
        return
    metas, sizes, copies, odd = fast
    assert [*metas] == [*sizes] == [row[0] for row in table]
    assert [*sizes.values()] == [row[2] for row in table]
    assert copies == {row[0]: row[3] for row in table if row[3] is not None}
    assert odd == [folder for folder, found in metas.items() if isinstance(found, bytes)]
    for (folder, found), row in zip(metas.items(), table, strict=True):
        if folder in odd:
            assert found == row[1].encode()
        else:
            assert found == meta.parse(row[1].encode(), "here")
            assert found.nbytes == sizes[folder]


@given(tables(), st.data())
def test_a_table_with_one_wrong_byte_is_read_as_json_reads_it(table: list[Any], data: st.DataObject) -> None:
    text = bytearray(line(table))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    fast = _core.parse_table(bytes(text), Meta, BY_NUMBER)
    if fast is not None:
        metas, sizes, copies, odd = fast
        slow = {entry.folder: entry for entry in parse_index(bytes(text), "here")}
        assert sizes == {folder: entry.nbytes for folder, entry in slow.items()}
        assert copies == {folder: entry.copy_at for folder, entry in slow.items() if entry.copy_at is not None}
        for folder, found in metas.items():
            wanted = slow[folder].meta
            assert found == (wanted if folder in odd else meta.parse(wanted, "here"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"[]\n\n",
        b"[] \n",
        b"[,]\n",
        b'[["a","",0,0],]\n',
        b'[["a","",0,0]["b","",0,0]]\n',
        b"{}\n",
        b'[["a","",00,0]]\n',
        b'[["a","",-1,0]]\n',
        b'[["a","",9223372036854775808,0]]\n',
        b'[["a","",1.0,0]]\n',
        b'[["a","\\t",0,0]]\n',
        b'[["a","\\',
        b'[["a","\\n',
        b'[["a\x00","",0,0]]\n',
        b'[["a","",0]]\n',
        b'[["a",null,0,0]]\n',
        b'[["a","",0,32]]\n',
        b'[["a","",65,0],["b","",1,64]]\n',
        b'[["a","",1,null],["a","",1,null]]\n',
        b'[["a","",9223372036854775807,64],["b","",1,64]]\n',
    ],
)
def test_anything_else_is_for_the_parser_of_json(text: bytes) -> None:
    assert _core.parse_table(text, Meta, BY_NUMBER) is None


def test_an_index_spelled_in_another_way_is_read_as_well(tmp_path: Any) -> None:
    state = {"a": np.arange(5), "tied": np.zeros(3), "c": np.float32(1) * np.ones((2, 3), np.float32)}
    fastckpt.save(state, tmp_path / "s", index=True, digest=False)  # so no CRC tells of it
    head, table, rest = (tmp_path / "s/snapshot_done").read_bytes().split(b"\n", 2)
    spaced = table.replace(b'],["', b'],["\\u0063"],["', 0).replace(b'["a"', b'["\\u0061"')
    grown = len(spaced) - len(table)
    record = json.loads(head)
    length, copies_at, size = record["index"]
    pad = -(grown) % 64
    record["index"] = [length + grown, copies_at + grown + pad, size + grown + pad]
    text = json.dumps(record, separators=(",", ":")).encode()
    assert len(text) == len(head)
    copies = rest[copies_at - len(head) - length - 1 :]
    room = copies_at + grown + pad - len(head) - len(spaced) - 2
    (tmp_path / "s/snapshot_done").write_bytes(text + b"\n" + spaced + b"\n" + bytes(room) + copies)
    assert b"u0061" in (tmp_path / "s/snapshot_done").read_bytes()
    loaded = fastckpt.load(tmp_path / "s", as_="numpy")
    assert all(np.array_equal(loaded[key], state[key]) for key in state)


def test_a_meta_that_disagrees_with_its_size_is_left_to_the_caller() -> None:
    table = line([["a", "shape {\n  dim: 3\n}\ndata_type: kFloat\n", 13, 0]])
    assert _core.parse_table(table, Meta, BY_NUMBER) == (
        {"a": b"shape {\n  dim: 3\n}\ndata_type: kFloat\n"},
        {"a": 13},
        {"a": 0},
        ["a"],
    )
