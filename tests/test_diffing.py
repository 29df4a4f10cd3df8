"""What differs between two snapshots: exact counts, exact largest changes, and nothing read that need not be."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt import comparing, diffing
from fastckpt.comparing import Distance
from fastckpt.diffing import Difference, diff
from fastckpt.dtypes import BY_NAME
from fastckpt.errors import CorruptError, NotCommittedError
from fastckpt.meta import Meta, format_meta

INF, NAN = math.inf, math.nan


def distance(a: bytes, b: bytes, dtype: str, other: str | None = None) -> Distance:
    found = Distance()
    one, two = (np.frombuffer(data, np.uint8) for data in (a, b))
    found.add(one, two, BY_NAME[dtype], BY_NAME[other or dtype])
    return found


def of(kind: str, *values: Any) -> bytes:
    return np.array(values, kind).tobytes()


def write(folder: Path, **tensors: tuple[str, tuple[int, ...], bytes]) -> Path:
    """Write a snapshot by hand, of any dtype, without the framework that has it."""
    for name, (dtype, shape, data) in tensors.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "meta").write_bytes(format_meta(Meta(shape, BY_NAME[dtype])))
        (folder / name / "out").write_bytes(data)
    (folder / "snapshot_done").touch()
    return folder


def saved(path: Path, obj: Any) -> Path:
    fastckpt.save(obj, path)
    return path


def diff_of(tmp_path: Path, a: Any, b: Any) -> Difference:
    return diff(saved(tmp_path / "a", a), saved(tmp_path / "b", b))


# ---- elements ----


@pytest.mark.parametrize(
    ("dtype", "a", "b", "wanted"),
    [
        ("float32", of("<f4", 1, 2, 3, -4), of("<f4", 1, 2.5, 3, -4.25), (2, 0.5, 0.2)),
        ("float32", of("<f4", 1e30), of("<f4", -1e30), (1, 2 * float(np.float32(1e30)), 2.0)),
        ("float64", of("<f8", 0.1), of("<f8", 0.1 + 2**-56), (1, 2**-56, 2**-56 / (0.1 + 2**-56))),
        ("float64", of("<f8", 1.7e308), of("<f8", -1.7e308), (1, INF, INF)),
        ("float16", of("<f2", 65504, 0), of("<f2", 65504, 2**-24), (1, 2**-24, 1.0)),
        ("bfloat16", of("<u2", 0x3F80, 0xC000), of("<u2", 0x3FC0, 0xC000), (1, 0.5, 1 / 3)),
        ("int64", of("<i8", -(2**63), 5), of("<i8", 2**63 - 1, 5), (1, 2**64 - 1, 2.0)),
        ("int64", of("<i8", 2**62), of("<i8", 2**62 + 1), (1, 1, 2.0**-62)),
        ("uint64", of("<u8", 0, 2**64 - 1), of("<u8", 1, 2**64 - 4), (2, 3, 1.0)),
        ("int8", of("i1", -128), of("i1", 127), (1, 255, 255 / 128)),
        ("uint8", of("u1", 200, 7), of("u1", 100, 7), (1, 100, 0.5)),
        ("bool", of("?", 0, 1, 1), of("?", 1, 1, 0), (2, 1, 1.0)),
        ("complex64", of("<c8", 1 + 1j, 2), of("<c8", 4 + 5j, 2), (1, 5.0, 5 / abs(4 + 5j))),
        ("complex128", of("<c16", complex(INF, 1)), of("<c16", complex(INF, 3)), (1, 2.0, 0.0)),
        ("complex32", of("<f2", 0, 1, 8, 8), of("<f2", 0, 3, 8, 8), (1, 2.0, 2 / 3)),
        ("float4_e2m1fn_x2", b"\x21\x33", b"\x71\x33", (1, 5.0, 5 / 6)),
        ("float4_e2m1fn_x2", b"\x0f", b"\x07", (1, 12.0, 2.0)),
        ("uint4", b"\x01\x02\x03", b"\x01\x0f\x0e", (2, None, None)),
        ("bits16", b"\x01\x02\x03\x04", b"\x01\xff\x03\x04", (1, None, None)),
        ("float32", of("<f4", 0.0, 1), of("<f4", -0.0, 1), (1, 0.0, 0.0)),
        ("float32", of("<f4", INF, -INF), of("<f4", INF, -INF), (0, None, None)),
        ("float32", of("<f4", INF), of("<f4", -INF), (1, INF, INF)),
        ("float32", of("<f4", 5), of("<f4", INF), (1, INF, INF)),
        ("float32", b"", b"", (0, None, None)),
    ],
)
def test_by_how_much(dtype: str, a: bytes, b: bytes, wanted: tuple[int, Any, Any]) -> None:
    for one, two in ((a, b), (b, a)):
        found = distance(one, two, dtype)
        assert (found.differing, found.max_abs, found.max_rel) == wanted
        assert type(found.max_abs) is type(wanted[1])
        assert (found.nan_appeared, found.nan_vanished, found.nan_rewritten) == (0, 0, 0)


@pytest.mark.parametrize(("kind", "dtype"), [("<f2", "float16"), ("<f4", "float32"), ("<f8", "float64")])
def test_nan(kind: str, dtype: str) -> None:
    quiet, other = np.array([NAN], kind), np.array([NAN], kind)
    other.view(kind.replace("f", "u"))[0] ^= 1
    a = np.concatenate([quiet, quiet, other, np.array([1, 2, 3, 8], kind)])
    b = np.concatenate([quiet, other, [5.0], [NAN, NAN, 3, 9]]).astype(kind)
    b[1:2] = other
    found = distance(a.tobytes(), b.tobytes(), dtype)
    assert found == Distance(differing=5, max_abs=1.0, max_rel=1 / 9, nan_appeared=2, nan_vanished=1, nan_rewritten=1)


def test_nan_in_bfloat16_and_complex() -> None:
    found = distance(of("<u2", 0x7FC0, 0x7FC0, 0x3F80), of("<u2", 0x7FC0, 0x3F80, 0xFFC1), "bfloat16")
    assert (found.differing, found.nan_appeared, found.nan_vanished, found.max_abs) == (2, 1, 1, None)
    found = distance(of("<c8", 1, complex(0, NAN)), of("<c8", complex(NAN, 0), complex(0, NAN)), "complex64")
    assert (found.differing, found.nan_appeared, found.nan_vanished, found.max_abs) == (1, 1, 0, None)


@pytest.mark.parametrize(
    ("dtype", "one", "other", "gap"),
    [
        ("float8_e4m3fn", 0x38, 0x3C, 0.5),
        ("float8_e5m2", 0x3C, 0x3E, 0.5),
        ("float8_e5m2fnuz", 0x40, 0x42, 0.5),
        ("float8_e4m3b11fnuz", 0x58, 0x5C, 0.5),
        ("float8_e8m0fnu", 0x7F, 0x80, 1.0),
    ],
)
def test_float8(dtype: str, one: int, other: int, gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ml_dtypes")
    a, b = bytes([one, one, one]), bytes([one, other, one])
    found = distance(a, b, dtype)
    assert (found.differing, found.max_abs) == (1, gap)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert distance(a, b, dtype) == Distance(differing=1)  # it is known that, not by how much


def test_the_largest_change_is_found_wherever_it_stands() -> None:
    size = 3 * comparing._BLOCK + 5
    for at in (0, comparing._BLOCK - 1, comparing._BLOCK, size - 1):
        a = np.zeros(size, "<f4")
        b = np.full(size, 0.25, "<f4")
        b[at] = -8
        assert distance(a.tobytes(), b.tobytes(), "float32") == Distance(size, 8.0, 1.0)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_whole_numbers_are_exact(pairs: list[tuple[int, int]]) -> None:
    found = distance(of("<i8", *(a for a, _ in pairs)), of("<i8", *(b for _, b in pairs)), "int64")
    gaps = [abs(b - a) for a, b in pairs if a != b]
    assert (found.differing, found.max_abs) == (len(gaps), max(gaps, default=None))


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=20))
def test_floats_as_python_computes(pairs: list[tuple[float, float]]) -> None:
    found = distance(of("<f8", *(a for a, _ in pairs)), of("<f8", *(b for _, b in pairs)), "float64")
    differ = [(a, b) for a, b in pairs if struct.pack("d", a) != struct.pack("d", b)]
    numbers = [(a, b) for a, b in differ if not (math.isnan(a) or math.isnan(b))]
    assert found.differing == len(differ)
    assert found.nan_appeared == sum(math.isnan(b) and not math.isnan(a) for a, b in differ)
    assert found.nan_vanished == sum(math.isnan(a) and not math.isnan(b) for a, b in differ)
    assert found.max_abs == max((abs(b - a) for a, b in numbers), default=None)
    relative = [INF if math.isinf(b - a) else abs(b - a) / (max(abs(a), abs(b)) or 1) for a, b in numbers]
    assert found.max_rel == max(relative, default=None)


# ---- two dtypes ----


def test_values_decide_between_two_dtypes() -> None:
    a, b = of("<f4", 1, 1.001, NAN, INF, 0.0), of("<u2", 0x3F80, 0x3F80, 0x7FC0, 0x7F80, 0x8000)
    found = distance(a, b, "float32", "bfloat16")
    assert (found.differing, found.max_abs) == (1, float(np.float32(1.001)) - 1)
    assert distance(of("<i4", -5, 7), of("<i8", -5, 2**40), "int32", "int64").max_abs == 2**40 - 7
    assert distance(of("?", 1, 0), of("<f4", 1, 0.5), "bool", "float32").max_abs == 0.5


def test_what_no_value_is_known_of_is_only_another_dtype(tmp_path: Path) -> None:
    a = write(tmp_path / "a", w=("uint4", (2,), b"\x01\x02"), v=("float4_e2m1fn_x2", (1,), b"\0"))
    b = write(tmp_path / "b", w=("uint8", (2,), b"\x01\x02"), v=("uint8", (1,), b"\0"))
    found = diff(a, b)
    assert [(t.name, t.change, t.distance) for t in found.tensors] == [("v", "dtype", None), ("w", "dtype", None)]


# ---- snapshots ----


def test_the_same(tmp_path: Path) -> None:
    state = {"w": np.array([1, NAN], "f4"), "e": np.empty((0, 3)), "s": np.array(3)}
    found = diff_of(tmp_path, state, state)
    assert not found
    assert found == Difference(equal=3, tensors=(), values=())


def test_every_kind_of_change(tmp_path: Path) -> None:
    a = {"kept": np.ones(3), "moved": np.ones(3), "gone": np.ones(2), "shape": np.ones((2, 3)), "type": np.ones(2)}
    b = {"kept": np.ones(3), "new": np.ones(1, "i2"), "shape": np.ones((3, 2)), "type": np.ones(2, "f4")}
    found = diff_of(tmp_path, a, {**b, "moved": np.array([1, 1, 1.5])})
    assert [(t.name, t.change) for t in found.tensors] == [
        ("new", "added"),
        ("shape", "reshaped"),
        ("type", "dtype"),
        ("moved", "changed"),
        ("gone", "removed"),
    ]
    assert found.equal == 1
    assert found.tensors[0].before is None
    assert found.tensors[3].distance == Distance(1, 0.5, 1 / 3)
    assert found.tensors[4].after is None


def test_shape_is_seen_before_dtype_and_without_elements(tmp_path: Path) -> None:
    found = diff_of(tmp_path, {"w": np.empty((0, 2))}, {"w": np.empty((0, 3), "f4")})
    assert [t.change for t in found.tensors] == ["reshaped"]


def test_order_is_no_difference(tmp_path: Path) -> None:
    a, b = np.ones(2), np.zeros(3)
    assert not diff_of(tmp_path, {"a": a, "b": b, "c": a * 2}, {"c": a * 2, "b": b, "a": a})


def test_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = {"w": rng.standard_normal((37, 11)), "v": rng.standard_normal(70).astype("f2"), "x": np.arange(99.0)}
    b = {"w": a["w"] + rng.standard_normal((37, 11)), "v": a["v"].copy(), "x": a["x"].astype("f4")}
    b["v"][69] = 9
    whole = diff_of(tmp_path, a, b)
    assert whole.tensors[0].distance is not None
    assert whole.tensors[0].distance.max_abs == np.abs(a["w"] - b["w"]).max()
    for piece in (16, 48, 1 << 10):
        monkeypatch.setattr(diffing, "_PIECE", piece)
        monkeypatch.setattr(comparing, "_BLOCK", 3)
        found = diff(tmp_path / "a", tmp_path / "b")
        assert [t.distance for t in found.tensors] == [t.distance for t in whole.tensors]


def test_progress_ends_at_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffing, "_PIECE", 64)
    a, b = {"w": np.zeros(20), "v": np.ones(3), "only": np.ones(9)}, {"w": np.zeros(20), "v": np.ones(4)}
    saved(tmp_path / "a", a), saved(tmp_path / "b", b)
    seen: list[tuple[int, int]] = []
    diff(tmp_path / "a", tmp_path / "b", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 160), (128, 160), (160, 160), (160, 160)]


def test_ties_are_part_of_what_was_saved(tmp_path: Path) -> None:
    w = np.arange(6.0)
    found = diff_of(tmp_path, {"w": w, "h": w}, {"w": w, "h": w.copy()})
    assert [(t.name, t.change) for t in found.tensors] == [("h", "tied")]
    found = diff(tmp_path / "b", tmp_path / "a")
    assert [(t.name, t.change, t.after and t.after.meta.same_as) for t in found.tensors] == [("h", "tied", "w")]


def test_what_is_tied_is_compared_once(tmp_path: Path) -> None:
    a, b = np.zeros(10), np.ones(10)
    seen: list[int] = []
    saved(tmp_path / "a", {"w": a, "h": a}), saved(tmp_path / "b", {"w": b, "h": b})
    found = diff(tmp_path / "a", tmp_path / "b", progress=lambda done, _: seen.append(done))
    assert [(t.name, t.change) for t in found.tensors] == [("w", "changed"), ("h", "changed")]
    assert set(seen) == {80}


def test_one_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a", w=("float32", (1,), of("<f4", 1)))
    b = write(tmp_path / "b", w=("float32", (1,), of("<f4", 1)))
    monkeypatch.setattr(diffing, "_read", lambda *_: pytest.fail("read"))
    with pytest.raises(pytest.fail.Exception):
        diff(a, b)
    (b / "w" / "out").unlink()
    os.link(a / "w" / "out", b / "w" / "out")
    assert not diff(a, b)
    assert not diff(a, a)


def test_one_file_read_as_two_dtypes(tmp_path: Path) -> None:
    a = write(tmp_path / "a", w=("float32", (1,), of("<f4", 1)))
    b = write(tmp_path / "b", w=("int32", (1,), b"0000"))
    (b / "w" / "out").unlink()
    os.link(a / "w" / "out", b / "w" / "out")
    assert [t.distance for t in diff(a, b).tensors] == [Distance(1, float(0x3F800000 - 1), 1 - 1 / 0x3F800000)]


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    state = {"a": np.ones(4), "b": np.ones(4)}
    saved(tmp_path / "a", state), saved(tmp_path / "b", state)
    shrunk = tmp_path / "b" / "b" / "out"
    with pytest.raises(CorruptError, match=r"b.*b/out.*changed while being read"):
        diff(tmp_path / "a", tmp_path / "b", progress=lambda *_: os.truncate(shrunk, 8))


def test_a_file_that_vanishes_meanwhile_is_named(tmp_path: Path) -> None:
    state = {"a": np.ones(4), "b": np.ones(4)}
    saved(tmp_path / "a", state), saved(tmp_path / "b", state)
    gone = tmp_path / "b" / "b" / "out"
    with pytest.raises(FileNotFoundError) as refused:
        diff(tmp_path / "a", tmp_path / "b", progress=lambda *_: gone.unlink(missing_ok=True))
    assert refused.value.filename == str(gone)


def test_trouble_is_raised(tmp_path: Path) -> None:
    saved(tmp_path / "a", {"w": np.ones(1)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotCommittedError, match="empty"):
        diff(tmp_path / "a", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nothing"):
        diff(tmp_path / "nothing", tmp_path / "a")


MEASURE = """
import resource, sys
from fastckpt.diffing import diff
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = diff(sys.argv[1], sys.argv[2])
assert [t.distance.max_abs for t in found.tensors] == [1], found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.no_asan
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    size = 256 << 20
    for name in ("a", "b"):
        folder = write(tmp_path / name, w=("uint8", (size,), b""))
        os.truncate(folder / "w" / "out", size)  # zeros that take no space
    with (tmp_path / "b" / "w" / "out").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 << 10  # KiB; two pieces are 32 MiB


# ---- other values ----

Point = namedtuple("Point", "x y")


def values_of(tmp_path: Path, a: Any, b: Any) -> list[tuple[str, str, Any, Any]]:
    found = diff_of(tmp_path, a, b)
    return [(v.path, v.change, v.before and v.before.value, v.after and v.after.value) for v in found.values]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2),
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("a", "b"),
        ("a", b"a"),
        (b"a", bytearray(b"a")),
        (None, False),
        (complex(0, 1), complex(-0.0, 1)),
        (NAN, struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]),
        (np.float32(1), np.float64(1)),
        (np.float32(NAN), np.float32(1)),
        (2**70, 2**70 + 1),
        (Path("a"), "a"),
    ],
)
def test_values_by_type_and_bits(tmp_path: Path, a: Any, b: Any) -> None:
    found = diff_of(tmp_path, {"v": a, "l": [a]}, {"v": b, "l": [b]})
    assert [(v.path, v.change) for v in found.values] == [('obj["v"]', "changed"), ('obj["l"][0]', "changed")]
    assert not diff(tmp_path / "a", tmp_path / "a")
    assert not diff(tmp_path / "b", tmp_path / "b")


def test_values_that_came_and_went(tmp_path: Path) -> None:
    a = {"lr": 0.1, "betas": (0.9, 0.99), "gone": {"deep": [1, 2]}, "w": np.ones(2)}
    b = {"lr": 0.2, "betas": (0.9, 0.99, 1), "new": {"deep": {"x": 1}}, "w": np.ones(2), "v": np.ones(1)}
    assert values_of(tmp_path, a, b) == [
        ('obj["lr"]', "changed", 0.1, 0.2),
        ('obj["betas"][2]', "added", None, 1),
        ('obj["new"]', "added", None, "dict"),
        ('obj["gone"]', "removed", "dict", None),
    ]


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        ([1, 2], (1, 2), 'obj["c"]'),
        ({"x": 1}, OrderedDict(x=1), 'obj["c"]'),
        ({1}, frozenset({1}), 'obj["c"]'),
        ([], {}, 'obj["c"]'),
        (3, {"x": 1}, 'obj["c"]'),
        (Point(1, 2), Point(1, 3), 'obj["c"].y'),
        ({1, 2}, {1, 3}, 'obj["c"][1]'),
    ],
)
def test_containers(tmp_path: Path, a: Any, b: Any, path: str) -> None:
    assert [(v.path, v.change) for v in diff_of(tmp_path, {"c": a}, {"c": b}).values] == [(path, "changed")]


def test_a_tensor_in_the_place_of_a_value(tmp_path: Path) -> None:
    found = diff_of(tmp_path, {"a": 3, "n": 0}, {"a": np.array(3), "n": 0})
    assert [(t.name, t.change) for t in found.tensors] == [("a", "added")]
    assert [(v.path, v.change) for v in found.values] == [('obj["a"]', "changed")]


def test_a_flat_and_a_nested_object(tmp_path: Path) -> None:
    found = diff_of(tmp_path, {"w": np.ones(2)}, {"w": np.ones(2), "epoch": 3})
    assert (found.equal, found.tensors) == (1, ())
    assert [(v.path, v.change) for v in found.values] == [('obj["epoch"]', "added")]
    assert values_of(tmp_path, {"w": np.ones(2)}, OrderedDict(w=np.ones(2))) == [
        ("obj", "changed", "dict", "OrderedDict")
    ]
