"""tree, against everything that hypothesis can think of: objects come back exactly, records do no harm."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
import sys
import zoneinfo
from collections import Counter, OrderedDict
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_fakes import (
    KINDS,
    Access,
    Array,
    Color,
    Device,
    Level,
    Mood,
    Nothing,
    Outer,
    Point,
    Tensor,
    exactly,
    there_and_back,
)

from fastckpt import tree
from fastckpt.errors import FormatError, UnsupportedError

ZONES = sorted({"UTC", "Europe/Berlin", "America/New_York"} & zoneinfo.available_timezones())

characters = st.characters(exclude_categories=()) | st.sampled_from("\ud83d\ude00\udc80\x00 ~./\"'\\")
texts = st.text(characters, max_size=5)
numbers = st.integers() | st.integers(-(2**54), 2**54) | st.integers(15_000, 16_000).map(lambda bits: 3**bits)
bits = st.integers(0, 2**64 - 1) | st.integers(0x7FF0000000000000, 0x7FF0000000000004)
floats = st.floats() | bits.map(lambda word: struct.unpack(">d", struct.pack(">Q", word))[0])
enums = st.sampled_from([Color.RED, Color.CRIMSON, Level.LOW, Level.HIGH, Mood.CALM, Access.READ, Outer.Inner.ONE])
offsets = st.timedeltas(timedelta(hours=-24, microseconds=1), timedelta(hours=24, microseconds=-1))
fixed_zones = st.builds(timezone, offsets) | st.builds(timezone, offsets, texts)
zones = st.none() | fixed_zones | st.sampled_from(ZONES or ["UTC"]).map(zoneinfo.ZoneInfo)
folds = st.integers(0, 1)
datetimes = st.builds(lambda naive, zone, fold: naive.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, folds)
times = st.builds(lambda naive, zone, fold: naive.replace(tzinfo=zone, fold=fold), st.times(), zones, folds)
windows_paths = st.lists(st.text("aÄ .", max_size=3), max_size=3).map(lambda parts: PureWindowsPath("C:\\", *parts))
path_texts = st.lists(texts, max_size=3).map("/".join)
paths = st.builds(PosixPath, path_texts) | st.builds(PurePosixPath, path_texts) | windows_paths
moments = datetimes | times | st.dates() | st.timedeltas() | zones
plain_keys = st.none() | st.booleans() | numbers | floats | texts | enums
keys = st.recursive(plain_keys, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
atoms = plain_keys | st.complex_numbers() | st.builds(complex, floats, floats) | st.binary() | paths | moments
elements = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
tensors = st.builds(Tensor) | st.builds(Array)
leaves = atoms | tensors | st.binary().map(bytearray) | st.builds(Device, texts)


def ordered(pairs: dict[Any, Any], metadata: Any) -> OrderedDict[Any, Any]:
    made = OrderedDict(pairs)
    if metadata is not None:
        made._metadata = metadata  # type: ignore[attr-defined]
    return made


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    rows = st.lists(inner, max_size=4)
    dicts = st.dictionaries(texts | keys, inner, max_size=4)
    return st.one_of(
        rows,
        rows.map(tuple),
        dicts,
        st.builds(ordered, dicts, st.none() | st.dictionaries(texts, atoms, max_size=2)),
        dicts.map(counter),
        st.sets(elements, max_size=3),
        st.frozensets(elements, max_size=3),
        st.builds(Point, inner, inner),
        st.just(Nothing()),
    )


def counter(pairs: dict[Any, Any]) -> Counter[Any]:
    made: Counter[Any] = Counter()
    dict.update(made, pairs)
    return made


objects = st.recursive(leaves, containers, max_leaves=12)


@given(objects)
def test_what_goes_in_comes_out(obj: Any) -> None:
    again = there_and_back(obj)
    assert exactly(again) == exactly(obj)
    assert tree.flatten(again, KINDS)[1] == tree.flatten(obj, KINDS)[1]


@given(objects)
def test_names_are_unique_and_survive_json(obj: Any) -> None:
    found, _ = tree.flatten(obj, KINDS)
    names = [leaf.key for leaf in found]
    assert len(set(names)) == len(names)
    assert json.loads(json.dumps(names)) == names
    top = {key for key in obj if type(key) is str} if isinstance(obj, dict) else set()
    for leaf in found:
        at_top = any(value is leaf.value for value in obj.values()) if isinstance(obj, dict) else False
        assert leaf.key not in top or at_top


@given(objects)
def test_everything_can_be_described(obj: Any) -> None:
    tree.describe(tree.flatten(obj, KINDS)[1], lambda key, framework: key)


# ---- hostile records ----

TAGS = [
    *("tensor", "as", "dict", "OrderedDict", "_metadata", "Counter", "tuple", "set", "frozenset", "enum"),
    *("namedtuple", "fields", "values", "int", "float", "str", "bytes", "bytearray", "complex", "PosixPath"),
    *("PurePosixPath", "PureWindowsPath", "datetime", "fold", "tz", "date", "time", "timedelta", "timezone", "name"),
    *("zoneinfo", "torch.device", "unknown"),
]
WORDS = st.sampled_from(
    [
        *("numpy", "torch", "tree_fakes", "Color", "Point", "RED", "x", "y", "os", "system", "antigravity", "this"),
        *("0x1f", "7ff8000000000001", "QUI=", "UTC", "No/Such", "../etc/passwd", "/", "2026-01-01", "12:00:00"),
        *("missing", "__new__"),
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | texts
jsons = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.tuples(inner, inner).map(list), max_size=3)
        | st.dictionaries(st.sampled_from(TAGS), inner, max_size=3)
        | st.builds(lambda tag, inside: {tag: inside}, st.sampled_from(TAGS), inner)
    ),
    max_leaves=20,
)


@pytest.fixture(scope="module", autouse=True)
def _zone_reader_is_loaded() -> None:
    """The standard library loads parts of itself when it looks for a zone that the system lacks."""
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        zoneinfo.ZoneInfo("No/Such")


def read(record: Any) -> None:
    before = set(sys.modules)
    with contextlib.suppress(FormatError, UnsupportedError):
        tree.unflatten(record, lambda key, framework: Tensor(), KINDS.unpack)
    with contextlib.suppress(FormatError, UnsupportedError):
        tree.describe(record, lambda key, framework: key)
    assert {name for name in set(sys.modules) - before if not name.startswith("tzdata")} == set()


@given(jsons)
def test_any_json_is_read_or_refused(record: Any) -> None:
    read(record)


@given(objects, jsons, st.data())
def test_a_damaged_record_is_read_or_refused(obj: Any, junk: Any, data: st.DataObject) -> None:
    record = [copy.deepcopy(tree.flatten(obj, KINDS)[1])]
    holder, key = data.draw(st.sampled_from(list(places(record))))
    change = data.draw(st.sampled_from(["replace", "delete", "rename", "wrap", "add"]))
    if change == "delete" and holder is not record:
        del holder[key]
    elif change == "rename" and isinstance(holder, dict):
        holder[data.draw(st.sampled_from(TAGS))] = holder.pop(key)
    elif change == "add" and isinstance(holder[key], dict):
        holder[key][data.draw(st.sampled_from(TAGS))] = junk
    else:
        holder[key] = {data.draw(st.sampled_from(TAGS)): holder[key]} if change == "wrap" else junk
    read(record[0])


def places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a record where something stands: the container and the index or key in it."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from places(holder[key])
