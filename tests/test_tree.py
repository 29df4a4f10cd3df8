"""tree: what the record looks like, how tensors are named, what is refused and where, and that nothing is run."""

from __future__ import annotations

import collections
import enum
import importlib.util
import math
import sys
import time
import types
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from tree_fakes import (
    KINDS,
    Access,
    Array,
    Color,
    Device,
    Level,
    Nothing,
    Outer,
    Point,
    Tensor,
    exactly,
    there_and_back,
)

from fastckpt import tree
from fastckpt.errors import FormatError, UnsupportedError

T = Tensor()


class Trainer:
    def state_dict(self) -> dict[str, Any]:
        return {}


class Config(dict[str, Any]):
    pass


class MyTuple(tuple[Any, ...]):
    __slots__ = ()


class MyZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


class Shouting(NamedTuple):
    x: int = 0

    def __iter__(self) -> Any:
        raise AssertionError("user code ran")

    def __len__(self) -> int:
        raise AssertionError("user code ran")


class Strict(collections.namedtuple("Strict", "x")):
    __slots__ = ()

    def __new__(cls, x: int) -> Strict:
        raise AssertionError("user code ran")


class Noted(collections.namedtuple("Noted", "x")):
    pass


class Counted(enum.Enum):
    ONE = 1

    def __hash__(self) -> int:
        raise AssertionError("user code ran")


class PointEnum(Point, enum.Enum):
    ORIGIN = (0, 0)


def record_of(obj: object) -> Any:
    return tree.flatten(obj, KINDS)[1]


def names_of(obj: object) -> list[str]:
    return [leaf.key for leaf in tree.flatten(obj, KINDS)[0]]


def read(record: Any, **options: Any) -> Any:
    return tree.unflatten(record, lambda key, framework: (key, framework), KINDS.unpack, **options)


# ---- the record ----


@pytest.mark.parametrize(
    ("value", "record"),
    [
        (None, None),
        (True, True),
        (2**53, 2**53),
        (-(2**53) - 1, {"int": "-0x20000000000001"}),
        (0.1, 0.1),
        (math.inf, {"float": "7ff0000000000000"}),
        (complex(1, -math.inf), {"complex": [1.0, {"float": "fff0000000000000"}]}),
        ("\udc80", "\udc80"),
        ("\ud83d\ude00", {"str": "7aC97biA"}),
        ([1, [2]], [1, [2]]),
        ((1, "a"), {"tuple": [1, "a"]}),
        ({"a": 1, 2: None}, {"dict": [["a", 1], [2, None]]}),
        ({(1, Level.LOW): 1}, {"dict": [[{"tuple": [1, {"enum": ["tree_fakes", "Level", "LOW"]}]}, 1]]}),
        (Counter("aab"), {"Counter": [["a", 2], ["b", 1]]}),
        ({3, 10, "a"}, {"set": ["a", 10, 3]}),
        (frozenset({(1,)}), {"frozenset": [{"tuple": [1]}]}),
        (Point(1), {"namedtuple": ["tree_fakes", "Point"], "fields": ["x", "y"], "values": [1, 0]}),
        (Nothing(), {"namedtuple": ["tree_fakes", "Nothing"], "fields": [], "values": []}),
        (Color.CRIMSON, {"enum": ["tree_fakes", "Color", "RED"]}),
        (Access.WRITE, {"enum": ["tree_fakes", "Access", "WRITE"]}),
        (Outer.Inner.ONE, {"enum": ["tree_fakes", "Outer.Inner", "ONE"]}),
        (b"AB", {"bytes": "QUI="}),
        (bytearray(b"AB"), {"bytearray": "QUI="}),
        (Path("a/b"), {"PosixPath": "a/b"}),
        (PurePosixPath("/"), {"PurePosixPath": "/"}),
        (PureWindowsPath("c:/x"), {"PureWindowsPath": "c:\\x"}),
        (datetime(2026, 1, 2, 3, fold=1), {"datetime": "2026-01-02T03:00:00", "fold": 1}),
        (clock(3, tzinfo=timezone.utc), {"time": "03:00:00", "tz": {"timezone": [0, 0, 0]}}),
        (clock(3, 4, 5, 6), {"time": "03:04:05.000006"}),
        (date(2026, 1, 2), {"date": "2026-01-02"}),
        (timedelta(-1), {"timedelta": [-1, 0, 0]}),
        (timezone.utc, {"timezone": [0, 0, 0]}),
        (timezone(timedelta(hours=1), "MEZ"), {"timezone": [0, 3600, 0], "name": "MEZ"}),
        (Device("cuda:0"), {"torch.device": "cuda:0"}),
        (T, {"tensor": "tensor"}),
        ([Array()], [{"tensor": "0", "as": "numpy"}]),
    ],
    ids=repr,
)
def test_record(value: Any, record: Any) -> None:
    assert record_of(value) == record
    assert exactly(there_and_back(value)) == exactly(value)


def test_a_moment_keeps_its_zone() -> None:
    berlin = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert record_of(berlin) == {"datetime": "2026-10-25T02:30:00", "fold": 1, "tz": {"zoneinfo": "Europe/Berlin"}}
    assert exactly(there_and_back(berlin)) == exactly(berlin)


def test_a_path_comes_back_or_is_refused() -> None:
    """Before Python 3.12 the text of this path is that of a drive."""
    path = PureWindowsPath("./b:")
    if PureWindowsPath(str(path)).drive:
        with pytest.raises(UnsupportedError, match="obj: PureWindowsPath 'b:' would come back as another path"):
            tree.flatten(path, KINDS)
    else:
        assert exactly(there_and_back(path)) == exactly(path)


def test_an_ordered_dict_keeps_its_metadata() -> None:
    state: Any = OrderedDict(w=T)
    state._metadata = OrderedDict({"": {"version": 1}})
    record = record_of(state)
    assert record == {
        "OrderedDict": [["w", {"tensor": "w"}]],
        "_metadata": {"OrderedDict": [["", {"dict": [["version", 1]]}]]},
    }
    assert exactly(there_and_back(state)) == exactly(state)


def test_a_huge_int_comes_back() -> None:
    huge = -(7**20_000)
    assert there_and_back({huge: huge}) == {huge: huge}


def test_a_record_may_list_its_keys_in_any_order() -> None:
    assert read({"values": [1, 2], "fields": ["x", "y"], "namedtuple": ["tree_fakes", "Point"]}) == Point(1, 2)
    assert read({"as": "numpy", "tensor": "a"}) == ("a", "numpy")


# ---- flat objects ----


@pytest.mark.parametrize(
    ("obj", "flat"),
    [
        ({}, True),
        ({"a": T, "b": Array()}, True),
        (OrderedDict(a=T), True),
        ({"é\udc80": T}, True),
        ({"\ud83d\ude00": T}, False),
        ({"a": T, "epoch": 1}, False),
        ({1: T}, False),
        (Counter(), False),
        (Config(a=T), False),
        ([T], False),
        (T, False),
    ],
)
def test_flat(obj: Any, flat: bool) -> None:
    assert tree.is_flat(obj, KINDS) is flat


# ---- names and places ----


def test_leaves_come_in_order_with_name_place_and_framework() -> None:
    array = Array()
    leaves, _ = tree.flatten({"model": OrderedDict({"l1.weight": T}), "ema": [None, (array,)]}, KINDS)
    assert leaves == [
        tree.Leaf("model.l1.weight", ("model", "l1.weight"), T, "torch"),
        tree.Leaf("ema.1.0", ("ema", 1, 0), array, "numpy"),
    ]
    assert [leaf.path for leaf in leaves] == ['obj["model"]["l1.weight"]', 'obj["ema"][1][0]']


@pytest.mark.parametrize(
    ("obj", "names"),
    [
        (T, ["tensor"]),
        ([T, [T]], ["0", "1.0"]),
        ({"optimizer": {"state": {0: {"exp_avg": T}}}}, ["optimizer.state.0.exp_avg"]),
        ({"a.b/~2 ": T, "": T}, ["a.b/~2 ", ""]),
        ({"s": Point(T, [T])}, ["s.x", "s.y.0"]),
        ({"a": {"b.c": T}, "a.b": {"c": T}}, ["a.b.c", "a.b.c~2"]),
        ({"a": {"b": T}, "a.b": T}, ["a.b~2", "a.b"]),
        ({"a": {"b": T}, "a.b": 1, "a.b~2": 2}, ["a.b~3"]),
        ({1: T, "1": T}, ["1~2", "1"]),
        ({True: T, "True": [T]}, ["True~2", "True.0"]),
        ({None: T, 0.5: T, (1, "a"): T, Color.RED: T, 10**30: T}, ["None", "0.5", "1,a", "RED", hex(10**30)]),
        ({"\ud83d\ude00": T, "😀": T}, ["😀~2", "😀"]),
    ],
)
def test_names(obj: Any, names: list[str]) -> None:
    assert names_of(obj) == names


def test_a_tensor_that_stands_twice_is_listed_twice() -> None:
    leaves, record = tree.flatten({"a": T, "b": T}, KINDS)
    assert [leaf.value for leaf in leaves] == [T, T]
    assert record == {"dict": [["a", {"tensor": "a"}], ["b", {"tensor": "b"}]]}


def test_many_tensors_take_linear_time() -> None:
    def seconds(count: int) -> float:
        obj = {"model": {f"layers.{at}.weight": T for at in range(count)}, "epoch": 1}
        start = time.perf_counter()
        tree.flatten(obj, KINDS)
        return time.perf_counter() - start

    assert min(seconds(20_000) for _ in range(3)) < 80 * min(seconds(1000) for _ in range(5))


def test_a_name_that_many_wish_for() -> None:
    words = ["a"] * 2000
    obj = {".".join(words[:at]): {".".join(words[at:]): T} for at in range(1, 2000)}
    wish = ".".join(words)
    assert names_of(obj) == [wish, *(f"{wish}~{at}" for at in range(2, 2000))]


# ---- what is refused, and where ----


def cycle() -> list[Any]:
    inside: list[Any] = [1]
    inside.append((inside,))
    return inside


def with_attribute(made: Any, name: str, value: Any) -> Any:
    setattr(made, name, value)
    return made


def local_enum() -> Any:
    return enum.Enum("Local", "ONE")  # nowhere to be found under its name


REFUSED: list[tuple[Any, str]] = [
    (Trainer(), "obj: Trainer cannot be stored; store its state_dict() instead"),
    ({"callbacks": [1, 2, Trainer()]}, 'obj["callbacks"][2]: Trainer cannot be stored; store its state_dict() instead'),
    ({"f": len}, 'obj["f"]: builtin_function_or_method cannot be stored; code is never stored'),
    ({"o": object()}, 'obj["o"]: object cannot be stored; store its state (numbers'),
    ({'a"\n': {1: (Config(),)}}, 'obj["a\\"\\n"][1][0]: Config cannot be stored; store a plain dict instead'),
    ({"é": MyTuple()}, 'obj["é"]: MyTuple cannot be stored; store a plain tuple instead'),
    ([Point(1, Trainer())], "obj[0].y: Trainer"),
    ([{Color.RED: {(1, "a"): {None: object()}}}], 'obj[0][Color.RED][(1, "a")][None]: object'),
    ([{(1,): {2**70: object()}}], "obj[0][(1,)][0x400000000000000000]: object"),
    ({"d": {b"x": 1}}, 'obj["d"]: bytes cannot be stored here; wanted a text, a number'),
    ({"d": {(1, b"x"): 1}}, 'obj["d"]: tuple cannot be stored here; wanted a text'),
    ({"d": {Trainer(): T}}, 'obj["d"]: Trainer cannot be stored here; wanted a text'),
    ({"s": {T}}, 'obj["s"]: Tensor cannot be stored here; wanted plain values'),
    ({"s": {Point(1)}}, 'obj["s"]: Point cannot be stored here; wanted plain values'),
    ({"e": Access.READ | Access.WRITE}, 'obj["e"]: Access: this member has no name of its own; store its value'),
    (local_enum().ONE, "obj: Local is an enum that cannot be found again as test_tree.Local"),
    ({local_enum().ONE: 1}, "obj (a key): Local is an enum that cannot be found again"),
    (with_attribute(Noted(1), "note", 2), "obj: Noted holds more than its fields; store a plain tuple instead"),
    ([cycle()], "obj[0][1][0]: this list contains itself and cannot be stored; break the cycle"),
    (with_attribute(OrderedDict(), "extra", 1), "obj: OrderedDict has attributes (extra); store them beside it"),
    (with_attribute(OrderedDict(), "_metadata", [T]), "obj: its _metadata holds a tensor; store that beside it"),
    (with_attribute(OrderedDict(), "_metadata", [len]), "obj._metadata[0]: builtin_function_or_method cannot be"),
    ([datetime(2026, 1, 1, tzinfo=MyZone())], "obj[0]: time zone MyZone cannot be stored; use a zoneinfo.ZoneInfo"),
    (timezone, "obj: type cannot be stored; code is never stored"),
]


@pytest.mark.parametrize(("obj", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_with_its_place(obj: Any, message: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        tree.flatten(obj, KINDS)
    assert str(refused.value).startswith(message)


def test_a_zone_without_a_name_is_refused() -> None:
    utc = Path("/usr/share/zoneinfo/UTC")
    if not utc.exists():
        pytest.skip("the system has no zones")
    with utc.open("rb") as file, pytest.raises(UnsupportedError, match="obj: a ZoneInfo without a usual name"):
        tree.flatten(ZoneInfo.from_file(file), KINDS)


def test_an_enum_with_a_hash_of_its_own_is_no_key_and_no_element() -> None:
    assert record_of([Counted.ONE]) == [{"enum": ["test_tree", "Counted", "ONE"]}]
    named = {"enum": ["test_tree", "Counted", "ONE"]}
    for record in ({"dict": [[named, 1]]}, {"set": [named]}):
        with pytest.raises(FormatError, match="found Counted"):
            read(record)


@pytest.mark.parametrize("fields", [["x"], (1,), "x"])
def test_fields_of_another_kind_make_no_named_tuple(fields: Any) -> None:
    odd = type("Odd", (tuple,), {"_fields": fields})
    with pytest.raises(UnsupportedError, match="obj: Odd cannot be stored; store a plain tuple instead"):
        tree.flatten(odd([0]), KINDS)


def test_a_named_tuple_with_a_name_that_nobody_could_imitate_is_refused() -> None:
    odd = type("odd name", (tuple,), {"_fields": ()})
    with pytest.raises(UnsupportedError, match="is no usual named tuple"):
        tree.flatten(odd(), KINDS)


# ---- depth ----


def nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    obj: Any = 1
    for _ in range(depth):
        obj = wrap(obj)
    return obj


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"a": inner},
    "named tuple": Point,
    "frozenset": lambda inner: frozenset([inner]),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_depth(wrap: Callable[[Any], Any]) -> None:
    deepest = nested(wrap, 200)
    assert exactly(there_and_back(deepest)) == exactly(deepest)
    with pytest.raises(UnsupportedError, match=r"obj.*: containers are nested more than 200 deep"):
        tree.flatten(nested(wrap, 201), KINDS)


@pytest.mark.parametrize(
    "wrap",
    [
        *(lambda inner: [inner], lambda inner: {"tuple": [inner]}, lambda inner: {"dict": [["a", inner]]}),
        *(lambda inner: {"dict": [[inner, 1]]}, lambda inner: {"set": [inner]}, lambda inner: {"frozenset": [inner]}),
        *(lambda inner: {"OrderedDict": [], "_metadata": inner}, lambda inner: {"complex": [inner, inner]}),
        lambda inner: {"namedtuple": ["tree_fakes", "Point"], "fields": ["x"], "values": [inner]},
        *(lambda inner: {"datetime": inner}, lambda inner: {"str": inner}, lambda inner: {"unknown": inner}),
    ],
)
@pytest.mark.parametrize("depth", [201, 20_000])
def test_a_deep_record_is_refused(wrap: Callable[[Any], Any], depth: int) -> None:
    with pytest.raises(FormatError):
        read(nested(wrap, depth))


def test_a_full_call_stack_is_no_recursion_error() -> None:
    obj = nested(WRAPS["dict"], 190)
    record = record_of(obj)

    def deeper(left: int, then: Callable[[], Any]) -> Any:
        return then() if left == 0 else deeper(left - 1, then)

    used = len(list(frames()))
    left = sys.getrecursionlimit() - used - 150
    with pytest.raises(UnsupportedError, match=r'obj\["a"\]\["a"\]\["a"\]\.\.\.: too deep for what is left'):
        deeper(left, lambda: tree.flatten(obj, KINDS))
    with pytest.raises(FormatError, match="too deep for what is left"):
        deeper(left, lambda: read(record))


def frames() -> Any:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


# ---- malformed and hostile records ----

MALFORMED: list[tuple[Any, str]] = [
    ({}, "snapshot_done: obj: wanted an object with one tag, found one with none"),
    ({"tuple": [], "dict": []}, "snapshot_done: obj: wanted an object with one tag, found one with 'tuple', 'dict'"),
    ({"tuple": [], "fold": 1}, "snapshot_done: obj: wanted an object with one tag"),
    ([{"tuple": [1, {"tuple": None}]}], "snapshot_done: obj[0][1]: wanted an array, found null"),
    ({"dict": [["a", {"Counter": {}}]]}, 'snapshot_done: obj["a"]: wanted an array, found an object'),
    ({"dict": [["a"]]}, "snapshot_done: obj: wanted a dict as pairs"),
    ({"dict": ["ab"]}, "snapshot_done: obj: wanted a dict as pairs"),
    ({"dict": [["a", 1], ["a", 2]]}, "snapshot_done: obj: wanted a dict, found a key twice"),
    ({"dict": [[1, 1], [True, 2]]}, "snapshot_done: obj: wanted a dict, found a key twice"),
    (
        {"dict": [[[], 1]]},
        "snapshot_done: obj: wanted a text, a number, a boolean, None, an enum member, or a tuple of",
    ),
    ({"dict": [[{"tuple": [{"tensor": "a"}, []]}, 1]]}, "snapshot_done: obj: wanted a text"),
    ({"set": [1, 1]}, "snapshot_done: obj: wanted a set, found an element twice"),
    ({"set": [[]]}, "snapshot_done: obj: wanted plain values"),
    ({"set": [{"tensor": "a"}, {"bytearray": ""}]}, "snapshot_done: obj: wanted plain values"),
    ({"int": "1e5"}, "snapshot_done: obj: wanted a int, found '1e5'"),
    ({"int": "0x_1"}, "snapshot_done: obj: wanted a int"),
    ({"float": "NaN"}, "snapshot_done: obj: wanted a float"),
    ({"complex": [1, 2]}, "snapshot_done: obj: wanted a complex, found an array"),
    ({"complex": [1.0]}, "snapshot_done: obj: wanted a complex, found an array"),
    ({"complex": 1.0}, "snapshot_done: obj: wanted a complex, found a float"),
    ({"bytes": "QUI"}, "snapshot_done: obj: wanted a bytes, found 'QUI'"),
    ({"bytes": "é" * 100}, "snapshot_done: obj: wanted a bytes"),
    ({"str": "gA=="}, "snapshot_done: obj: wanted a str"),
    ({"PosixPath": 1}, "snapshot_done: obj: wanted a PosixPath, found a int"),
    ({"datetime": "20260101"}, "snapshot_done: obj: wanted a datetime, found '20260101'"),
    ({"datetime": "2026-01-01T00:00:00+01:00"}, "snapshot_done: obj: wanted a datetime"),
    ({"datetime": "2026-01-01T00:00:00", "fold": 2}, "snapshot_done: obj: wanted a datetime"),
    ({"datetime": "2026-01-01T00:00:00", "fold": True}, "snapshot_done: obj: wanted a datetime"),
    ({"datetime": "2026-01-01T00:00:00", "tz": None}, "snapshot_done: obj: wanted a datetime"),
    ({"time": "24:00:00"}, "snapshot_done: obj: wanted a time"),
    ({"date": "2026-02-30"}, "snapshot_done: obj: wanted a date"),
    ({"timedelta": [0, 86400, 0]}, "snapshot_done: obj: wanted a timedelta"),
    ({"timedelta": [10**20, 0, 0]}, "snapshot_done: obj: wanted a timedelta"),
    ({"timezone": [1, 0, 0]}, "snapshot_done: obj: wanted a timezone"),
    ({"zoneinfo": "../../etc/passwd"}, "snapshot_done: obj: wanted a zoneinfo, found '../../etc/passwd'"),
    ({"zoneinfo": "No Such"}, "snapshot_done: obj: wanted a zoneinfo, found 'No Such'"),
    ({"zoneinfo": "/etc/localtime"}, "snapshot_done: obj: wanted a zoneinfo"),
    ({"tensor": 1}, "snapshot_done: obj: wanted an array of 2 str"),
    ({"tensor": "a", "as": "jax"}, 'snapshot_done: obj: wanted "torch" or "numpy", found \'jax\'; written by a newer'),
    ({"enum": ["m", "E"]}, "snapshot_done: obj: wanted an array of 3 str, found an array"),
    ({"enum": ["no.such", "E", "A"]}, "snapshot_done: obj: wanted the enum no.such.E, found no such class"),
    (
        {"enum": ["tree_fakes", "Color", "BLUE"]},
        "snapshot_done: obj: wanted tree_fakes.Color.BLUE, found no such member",
    ),
    (
        {"enum": ["tree_fakes", "Color", "__members__"]},
        "snapshot_done: obj: wanted tree_fakes.Color.__members__, found",
    ),
    ({"enum": ["builtins", "dict", "keys"]}, "snapshot_done: obj: wanted the enum builtins.dict, found no such class"),
    ({"namedtuple": ["m", "P"]}, "snapshot_done: obj: wanted an array, found null"),
    ({"namedtuple": ["m", "P"], "fields": ["x"], "values": []}, "snapshot_done: obj: wanted an array of 0 str"),
    ({"namedtuple": ["m", "P"], "fields": ["a b"], "values": [1]}, "snapshot_done: obj: wanted the fields of a named"),
    ({"namedtuple": ["m", "a b"], "fields": ["x"], "values": [1]}, "snapshot_done: obj: wanted the names of a named"),
    ({"namedtuple": ["m", "P"], "fields": ["ﬁ", "fi"], "values": [1, 2]}, "snapshot_done: obj: wanted the names of"),
    ({"unknown": 1}, "snapshot_done: obj: unknown kind 'unknown'"),
    (object(), "snapshot_done: obj: wanted JSON, found a object"),
]


@pytest.mark.parametrize(("record", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_malformed(record: Any, message: str) -> None:
    with pytest.raises(FormatError) as refused:
        read(record)
    assert str(refused.value).startswith(message)


def test_errors_name_the_file_that_was_read() -> None:
    with pytest.raises(FormatError, match=r"^w/meta: obj: wanted an object with one tag"):
        read({}, where="w/meta")


def test_what_this_program_lacks_is_unsupported_not_malformed() -> None:
    with pytest.raises(UnsupportedError, match=r"obj\[0\]: wanted the time zone 'No/Such', found none; install tzdata"):
        read([{"zoneinfo": "No/Such"}])
    with pytest.raises(UnsupportedError, match=r"snapshot_done: obj\[0\]: no such framework"):
        read([{"torch.device": "missing"}])


def test_an_error_of_the_caller_passes() -> None:
    def leaf(key: str, framework: str) -> Any:
        raise KeyError(key)

    with pytest.raises(KeyError):
        tree.unflatten({"tensor": "a"}, leaf, KINDS.unpack)


# ---- classes ----


def test_find_class() -> None:
    assert tree.find_class("tree_fakes", "Color") is Color
    assert tree.find_class("tree_fakes", "Outer.Inner") is Outer.Inner
    for module, name in [("no.such", "X"), ("tree_fakes", "KINDS"), ("tree_fakes", "Color.RED"), ("tree_fakes", "")]:
        assert tree.find_class(module, name) is None
    assert tree.find_class("json", "decoder.JSONDecoder") is None  # not a class within a class


def test_a_module_is_looked_at_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("asked")

    def never(name: str) -> Any:
        raise AssertionError("user code ran")

    module.__getattr__ = never  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "asked", module)
    monkeypatch.setitem(sys.modules, "blocked", None)
    monkeypatch.setitem(sys.modules, "instance", Trainer())
    for name in ("asked", "blocked", "instance"):
        assert tree.find_class(name, "Color") is None
        with pytest.raises(FormatError, match=f"import {name} first, then load again"):
            read({"enum": [name, "Color", "RED"]})


def test_a_lazy_module_stays_unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sleeping.py").write_text("raise AssertionError('imported')")
    spec = importlib.util.spec_from_file_location("sleeping", tmp_path / "sleeping.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sleeping", module)
    spec.loader.exec_module(module)
    assert tree.find_class("sleeping", "Color") is None


def test_a_metaclass_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nosy(enum.EnumMeta):
        def __getattribute__(cls, name: str) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("fastckpt"):
                raise AssertionError("user code ran")
            return super().__getattribute__(name)

    made = Nosy("Made", (enum.Enum,), Nosy.__prepare__("Made", (enum.Enum,)))
    monkeypatch.setattr(sys.modules[__name__], "Made", made, raising=False)
    with pytest.raises(FormatError, match="found no such member"):
        read({"enum": [__name__, "Made", "ONE"]})


def test_a_class_that_is_no_named_tuple_is_not_used() -> None:
    for name in ("Trainer", "Config", "MyTuple", "PointEnum"):
        made = read({"namedtuple": [__name__, name], "fields": ["x", "y"], "values": [0, 0]})
        assert type(made).__mro__[1:] == (tuple, object)
        assert type(made).__name__ == name
        assert made._asdict() == {"x": 0, "y": 0}


def test_a_named_tuple_is_made_without_its_new() -> None:
    made = read({"namedtuple": [__name__, "Strict"], "fields": ["x"], "values": [3]})
    assert type(made) is Strict
    assert made.x == 3


def test_a_named_tuple_is_taken_apart_without_its_iter() -> None:
    assert record_of(Shouting(7))["values"] == [7]


def test_a_named_tuple_that_the_program_lacks_is_imitated_once() -> None:
    record = {"namedtuple": ["gone", "Model.State"], "fields": ["mu", "nu"], "values": [1, {"tensor": "a"}]}
    first, second = read([record, record])
    assert type(first) is type(second)
    assert (first.mu, first.nu) == (1, ("a", "torch"))
    assert record_of(first._replace(nu=2)) == record | {"values": [1, 2]}


def test_a_named_tuple_whose_fields_changed_is_imitated() -> None:
    made = read({"namedtuple": ["tree_fakes", "Point"], "fields": ["x", "z"], "values": [1, 2]})
    assert type(made) is not Point
    assert made._asdict() == {"x": 1, "z": 2}


def test_renamed_fields_come_back() -> None:
    odd = collections.namedtuple("odd", ["a", "def"], rename=True)
    assert read(record_of(odd(1, 2)))._asdict() == {"a": 1, "_1": 2}


def test_find_class_can_be_the_callers() -> None:
    moved = {("old.place", "Colour"): Color}
    record = {"enum": ["old.place", "Colour", "RED"]}
    assert read(record, find_class=lambda *name: moved.get(name)) is Color.RED


# ---- describing ----


def test_describe_needs_nothing() -> None:
    record = {
        "dict": [
            ["model", {"OrderedDict": [["w", {"tensor": "model.w", "as": "numpy"}]]}],
            ["color", {"enum": ["gone", "Color", "RED"]}],
            ["state", {"namedtuple": ["gone", "State"], "fields": ["mu"], "values": [{"tuple": [1]}]}],
            ["when", {"datetime": "2026-01-02T03:04:05", "tz": {"zoneinfo": "Mars/Base"}}],
            ["then", {"datetime": "2026-01-02T03:04:05", "tz": {"timezone": [0, 3600, 0]}}],
            ["day", {"date": "2026-01-02"}],
            ["zone", {"zoneinfo": "Mars/Base"}],
            ["device", {"torch.device": "cuda:0"}],
        ]
    }
    shown = tree.describe(record, lambda key, framework: f"<{key} {framework}>")
    assert str(shown.pop("state")) == "State(mu=(1,))"
    assert shown == {
        "model": OrderedDict(w="<model.w numpy>"),
        "color": "gone.Color.RED",
        "when": "2026-01-02T03:04:05 Mars/Base",
        "then": "2026-01-02T03:04:05+01:00",
        "day": "2026-01-02",
        "zone": "Mars/Base",
        "device": 'torch.device("cuda:0")',
    }


def test_describe_refuses_what_is_malformed() -> None:
    with pytest.raises(FormatError, match=r"^here: obj\[0\]: wanted"):
        tree.describe([{"tuple": 1}], lambda key, framework: key, where="here")


def test_the_record_of_a_set_does_not_depend_on_its_order() -> None:
    letters = [str(at) for at in range(50)]
    assert record_of(set(letters)) == {"set": sorted(letters)}
