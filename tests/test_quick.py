"""The load in one call of C: what it gives is what the long way gives; whatever is unusual it leaves to that one."""

from __future__ import annotations

import gc
import json
import os
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import evict, maps_of, resident

import fastckpt
from fastckpt import _core, choosing, filesystems, loading, quick
from fastckpt.layout import DONE
from fastckpt.seals import sealed

LARGE = 9000  # float32s, more bytes than an index copies
HUGE = 3 << 20  # bytes
Rows = list[list[Any]]


@pytest.fixture(autouse=True)
def fast_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system whose page cache has huge pages."""
    monkeypatch.setattr(quick, "maps_fast", lambda system: True)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.complex64)
    some = {f"of {dtype}": torch.rand(3, 5, generator=generator).mul(99).to(dtype) for dtype in types}
    large = {f"large {at}": torch.rand(LARGE + at, generator=generator) for at in range(5)}
    return {"steps": torch.tensor(7), **large, **some, 'quo"te\\': torch.ones(2, 1, 1, 2), "z": torch.ones(1)}


def at_length(path: Path, **options: Any) -> Any:
    """What `load` gives without the quick way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_plain", lambda *_: None)
        return fastckpt.load(path, **options)


def test_a_path_of_bytes_is_refused_though_a_snapshot_is_there(tmp_path: Path) -> None:
    fastckpt.save({"x": torch.ones(3)}, tmp_path / "s", index=True)
    wrong: Any = os.fsencode(tmp_path / "s")
    with pytest.raises(TypeError, match=r"path must be a str or os\.PathLike"):
        fastckpt.load(wrong)


def assert_same(found: Any, expected: Any) -> None:
    """The same to the bit, types, order, and what hangs on a state_dict too."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert getattr(found, "__dict__", None) == getattr(expected, "__dict__", None)
        ties = {key: id(value) for key, value in expected.items() if isinstance(value, torch.Tensor)}
        for key, value in expected.items():
            assert_same(found[key], value)
            assert ties.get(key) is None or [k for k in ties if found[k] is found[key]] == [
                k for k in ties if ties[k] == ties[key]
            ]
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


class Net(torch.nn.Module):
    """What there is in models: buffers, a scalar, and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 200)
        self.norm = torch.nn.BatchNorm1d(200)
        self.head = torch.nn.Linear(200, 50, bias=False)
        self.head.weight = self.embed.weight


def _state_dict() -> Any:
    model = Net()
    found = model.state_dict()
    found["head.weight"] = found["embed.weight"]  # torch makes a tensor for each name
    return found


def _named() -> Any:
    """Keys that cannot be names of folders, whatever the folder is called; and the other way round."""
    return {**state(), "a/b": torch.ones(3), "": torch.ones(2), "snapshot_done": torch.ones(1), "A/B": torch.zeros(2)}


def _training() -> Any:
    large = torch.rand(LARGE)
    groups = [{"lr": 0.1, "params": [0, 1]}]
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": large}}, "param_groups": groups}
    return {"model": _state_dict(), "optimizer": optimizer, "pair": (large, torch.ones(2)), "epoch": 3, "text": '\n"é'}


OBJECTS: dict[str, Callable[[], Any]] = {
    "dict": state,
    "OrderedDict": lambda: OrderedDict(state()),
    "state_dict": _state_dict,
    "ties": lambda: {"first": torch.ones(2), **state(), "twin": state()["z"]},
    "names": _named,
    "training": _training,
    "list": lambda: [torch.ones(2), [torch.ones(LARGE)]],
    "a tensor": lambda: torch.ones(3),
    "no tensor": lambda: {"a": [1, 2]},
    "many words": lambda: {"words": ["snow"] * 200_000, "index": ',"index":[1,2,3]', "a": torch.ones(3)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fastckpt.save(state(), tmp_path / "s", index=True)
    return tmp_path / "s"


@pytest.fixture(params=[True, False], ids=["index", "folders"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fastckpt.save(state(), tmp_path / "s", index=request.param)
    return tmp_path / "s"


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("index", [True, False])
def test_gives_what_the_long_way_gives(tmp_path: Path, kind: str, index: bool) -> None:
    saved = OBJECTS[kind]()
    fastckpt.save(saved, tmp_path / "s", index=index)
    found = quick.load_plain(tmp_path / "s", None, 100)
    assert found is not None
    assert_same(found, at_length(tmp_path / "s"))
    assert_same(found, saved)


def test_what_is_loaded_is_the_callers(either: Path) -> None:
    found = quick.load_plain(either, None, 100)
    found["large 1"].zero_()
    found["z"].zero_()
    assert_same(fastckpt.load(either), state())


def test_no_tensors_at_all(tmp_path: Path) -> None:
    fastckpt.save({}, tmp_path / "s", index=True)
    assert quick.load_plain(tmp_path / "s", None, 0) == {}
    fastckpt.save({}, tmp_path / "s")
    assert quick.load_plain(tmp_path / "s", None, 0) is None
    assert fastckpt.load(tmp_path / "s") == {}


@pytest.mark.parametrize("options", [{}, {"map_location": "cpu"}, {"device": "cpu"}, {"as_": "torch"}])
def test_is_how_most_are_loaded(either: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "reading", lambda *_, **__: pytest.fail("the long way"))
    assert_same(fastckpt.load(either, **options), state())


@pytest.mark.parametrize(
    "options",
    [
        *({"keys": ["z"]}, {"verify": True}, {"mode": "read"}, {"mmap": False}, {"max_bytes": 1 << 30}),
        *({"max_tensors": 14}, {"as_": "numpy"}, {"prefetch": True}, {"device": "meta"}),
    ],
)
def test_is_not_taken_for_what_it_cannot(either: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(loading, "reading", lambda *_, **__: taken.append(1))
    fastckpt.load(either, **options)
    assert taken


def test_one_open_and_one_read_for_what_an_index_has(path: Path) -> None:
    """Behind the marker only what is not copied is opened, and not read."""
    for file in path.glob("of*/out"):
        file.unlink()

    def reads() -> int:
        return int(Path("/proc/self/io").read_text().split("syscr: ")[1].split()[0])

    quick.load_plain(path, None, 100)
    before = reads()
    own = reads() - before
    found = quick.load_plain(path, None, 100)
    assert reads() - before - 2 * own == 1
    assert_same(found, state())


@pytest.mark.parametrize("few", [1, 2, 400])
def test_many_maps_are_shared_by_threads(tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "FEW", few)
    tensors = {f"{at}": torch.full((LARGE,), float(at)) for at in range(40)}
    fastckpt.save(tensors, tmp_path / "s", index=True)
    found = quick.load_plain(tmp_path / "s", None, 40)
    assert_same(found, tensors)
    assert maps_of(tmp_path / "s") == 40
    del found
    assert maps_of(tmp_path / "s") == 0
    assert quick.load_plain(tmp_path / "s", None, 39) is None
    monkeypatch.setattr(quick, "MAP_LIMIT", 39)
    assert quick.load_plain(tmp_path / "s", None, 40) is None


def test_a_table_longer_than_the_first_read(tmp_path: Path) -> None:
    tensors = {f"a rather long name of a tensor {at}": torch.tensor([float(at)]) for at in range(3000)}
    fastckpt.save(tensors, tmp_path / "s", index=True)
    assert_same(quick.load_plain(tmp_path / "s", None, 3000), tensors)


def test_where_maps_are_slow_or_remote(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "maps_fast", choosing.maps_fast)
    monkeypatch.setattr(quick, "filesystem_of", lambda fd: filesystems.FileSystem.named("nfs4"))
    assert quick.load_plain(either, None, 100) is None
    assert quick.load_plain(either / "nothing", None, 100) is None
    assert quick.load_plain(either / "z" / "out", None, 100) is None


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("major", [0, 8])
def test_a_block_device_that_maps_fast_is_asked_about_once(
    either: Path, monkeypatch: pytest.MonkeyPatch, major: int, fast: bool
) -> None:
    """No number of another kind is: after an unmount it is given to others."""
    asked: list[int] = []
    monkeypatch.setattr(quick, "_fast", set())
    monkeypatch.setattr(quick, "maps_fast", lambda system: fast)
    monkeypatch.setattr(quick, "filesystem_of", asked.append)
    monkeypatch.setattr(_core, "device_of", lambda fd: os.makedev(major, 1))
    for _ in range(3):
        assert (quick.load_plain(either, None, 100) is not None) is fast
    assert len(asked) == (1 if fast and major else 3)


def test_the_device_is_the_one_that_stat_tells(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc"), Path("/dev")):
        fd = os.open(path, os.O_RDONLY)
        assert _core.device_of(fd) == path.stat().st_dev
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.device_of(fd)


@pytest.mark.parametrize("cold", [0, 1, 2, 3])
def test_prefetches_what_is_mostly_cold(tmp_path: Path, cold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a look at the first, the middle and the largest of those that can have huge pages."""
    warmed: list[Any] = []
    monkeypatch.setattr(quick, "warm", warmed.extend)
    monkeypatch.setattr(quick, "WORTH_WARMING", 7 * HUGE + 1)
    tensors = {f"{at}": torch.ones(HUGE + (at == 4), dtype=torch.uint8) for at in range(7)}
    fastckpt.save(tensors, tmp_path / "s", index=True)
    for file in (tmp_path / "s").glob("*/out"):
        evict(file)
        file.read_bytes()
    for at in ("0", "3", "4")[:cold]:
        evict(tmp_path / "s" / at / "out")
    fastckpt.load(tmp_path / "s")
    assert [len(mapping) for mapping in warmed] == ([HUGE] * 4 + [HUGE + 1] + [HUGE] * 2 if cold > 1 else [])
    for worth, room in ((7 * HUGE + 2, 1 << 40), (1, 14 * HUGE)):
        monkeypatch.setattr(quick, "WORTH_WARMING", worth)
        monkeypatch.setattr(choosing, "available", lambda room=room: room)
        warmed.clear()
        fastckpt.load(tmp_path / "s")
        assert not warmed, "too little, or too much"
    assert resident(tmp_path / "s" / "0" / "out") == 0 or cold == 0, "nothing is read before it is touched"


def test_the_collector_rests_meanwhile(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def take(capsule: Any) -> Any:
        seen.append(gc.isenabled())
        return capsule

    codec = quick.codec_for("torch")
    monkeypatch.setattr(type(codec), "take", staticmethod(take))
    quick.load_plain(either, None, 100)
    assert seen == [False] * len(state())
    assert gc.isenabled()
    monkeypatch.setattr(type(codec), "take", staticmethod(lambda capsule: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        quick.load_plain(either, None, 100)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            quick.load_plain(either, None, 100)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_snapshot_that_is_being_deleted(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deletes one takes the marker first; here after all else was looked at."""
    codec = quick.codec_for("torch")
    taken: list[Any] = []

    def last(capsule: Any, take: Callable[[Any], Any] = codec.take or id) -> Any:
        taken.append(take(capsule))
        if len(taken) == len(state()):
            (either / DONE).unlink()
        return taken[-1]

    monkeypatch.setattr(type(codec), "take", staticmethod(last))
    assert quick.load_plain(either, None, 100) is None
    assert len(taken) == len(state())
    with pytest.raises(fastckpt.NotCommittedError):
        fastckpt.load(either)


# --- what it leaves to the long way


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda tensors: {**tensors, "bool": torch.ones(3) > 0}, {}),
        (lambda tensors: {**tensors, "none": torch.ones(3, 0)}, {}),
        (lambda tensors: {**tensors, "eight": torch.ones(3).to(torch.float8_e5m2)}, {}),
        (lambda tensors: {**tensors, "\u00e9": torch.ones(3)}, {}),
        (lambda tensors: {**tensors, "array": [np.ones(3)]}, {}),
        (lambda tensors: tensors, {"digest": False}),
    ],
)
def test_what_is_unusual(tmp_path: Path, change: Callable[[Any], Any], options: Any) -> None:
    """Names that are not ASCII, and missing digests, are unusual in an index only; which a nested object always has."""
    tensors = change(state())
    fastckpt.save(tensors, tmp_path / "s", index=True, **options)
    assert quick.load_plain(tmp_path / "s", None, 100) is None
    assert list(fastckpt.load(tmp_path / "s")) == list(tensors)
    fastckpt.save(tensors, tmp_path / "s", **options)
    found = quick.load_plain(tmp_path / "s", None, 100)
    assert (found is not None) == ("digest" in options or "\u00e9" in tensors)
    assert list(fastckpt.load(tmp_path / "s")) == list(tensors)


def test_folders_that_the_index_does_not_name(path: Path) -> None:
    shutil.copytree(path / "z", path / "y")
    assert quick.load_plain(path, None, 100) is None
    shutil.rmtree(path / "z")
    assert quick.load_plain(path, None, 100) is None
    os.rename(path / "y", path / "z")
    assert_same(quick.load_plain(path, None, 100), state())
    (path / DONE).rename(path.parent / "marker")
    (path / DONE).symlink_to(path.parent / "marker")
    assert quick.load_plain(path, None, 100) is None


@pytest.mark.parametrize("nbytes", [0, 4 * LARGE - 1, 4 * LARGE + 1])
def test_a_blob_of_another_size(either: Path, nbytes: int) -> None:
    os.truncate(either / "large 0" / "out", nbytes)
    assert quick.load_plain(either, None, 100) is None
    assert maps_of(either) == 0
    with pytest.raises(fastckpt.CorruptError, match=r"large 0/out: meta wants 36000 bytes"):
        fastckpt.load(either)


def test_any_byte_that_flips_in_the_text_is_left_to_the_long_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({"a": torch.ones(2), "b": torch.ones(LARGE)}, path, index=True)
    whole = (path / DONE).read_bytes()
    text = whole[: whole.index(b"\n]") if b"\n]" in whole else whole.rindex(b"\n") + 1]
    assert len(text) > 300
    for at in range(len(text)):
        for flipped in (text[at] ^ 1, text[at] ^ 0x20):
            (path / DONE).write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
            assert quick.load_plain(path, None, 100) is None, at
    for marker in (whole[:-1], whole + b"\0", text, whole[:100]):
        (path / DONE).write_bytes(marker)
        assert quick.load_plain(path, None, 100) is None
    (path / DONE).write_bytes(b"")  # then the metas say everything
    assert_same(quick.load_plain(path, None, 100), at_length(path))
    (path / DONE).write_bytes(whole)
    assert quick.load_plain(path, None, 100) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "z" / "meta").unlink(),
        lambda path: (path / "z" / "out").unlink(),
        lambda path: (path / "z" / "more").mkdir() or (path / "z").rename(path / "y"),
        lambda path: shutil.copytree(path / "z", path / "y"),
        lambda path: shutil.rmtree(path / "z"),
        lambda path: (path / "file").touch(),
        lambda path: shutil.copy(path / "steps" / "meta", path / "of torch.int64" / "meta"),
        lambda path: (path / "pickled_data").mkdir(),
        lambda path: (path / DONE).unlink(),
        lambda path: (path / DONE).unlink() or (path / DONE).symlink_to(path / "z" / "out"),
        lambda path: (path / DONE).write_bytes(b"x"),
        lambda path: os.truncate(path / "z" / "out", 8),
    ],
)
def test_folders_that_are_unusual(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    """A folder that was renamed is another tensor, whatever else lies in it."""
    path = tmp_path / "s"
    fastckpt.save(state(), path)
    change(path)
    found = quick.load_plain(path, None, 100)
    assert (found is not None) == (path / "y" / "more").exists()
    if found is not None:
        assert_same(found, at_length(path))


def test_any_byte_of_a_meta_that_flips(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({key: torch.arange(3.0) for key in "abcd"}, path)
    meta = (path / "b" / "meta").read_bytes()
    given = 0
    for at in range(len(meta)):
        for flipped in (meta[at] ^ 1, meta[at] ^ 0x10):
            (path / "b" / "meta").write_bytes(meta[:at] + bytes([flipped]) + meta[at + 1 :])
            found = quick.load_plain(path, None, 100)
            given += found is not None
            if found is not None:
                assert_same(found, at_length(path))
    assert 0 < given < 60, "a digest, which is not looked at, or the name of a field, which is then none of ours"


# --- what it says yes to, the long way says too


def write_marker(path: Path, rows: Rows, copies: bytes, **head: Any) -> None:
    """A marker whose digests are right, whatever it says."""
    table = head.pop("text", json.dumps(rows, separators=(",", ":"))).encode() + b"\n"
    fields = {"format": "fastckpt", "version": 1, "count": len(rows), **head, "index": [], "table": ""}
    fields["table"] = f"crc32:{zlib.crc32(table):08x}"
    line, copies_at = b"", 0
    for _ in range(3):
        fields["index"] = [len(table), copies_at, copies_at + len(copies)]
        line = sealed(json.dumps({**fields, **head}, separators=(",", ":")).encode() + b"\n")
        copies_at = -(-(len(line) + len(table)) // 64) * 64
    (path / DONE).write_bytes((line + table).ljust(copies_at, b"\0") + copies)


def rows_of(path: Path) -> tuple[Rows, bytes]:
    whole = (path / DONE).read_bytes()
    line, table = whole.split(b"\n", 2)[:2]
    return json.loads(table), whole[json.loads(line)["index"][1] :]


METAS = [("place: 0", "place: 1"), ('"place":0', '"place":2'), ('"count":4', '"count":5'), ("kFloat", "kInt32")]
METAS += [("kFloat", "kDouble"), ("kFloat", "kBool"), ("kFloat", "kChar"), ("dim: 3", "dim: 4"), ("dim: 3", "dim: 0")]
METAS += [("dim: 3", "dim: 1\\n  dim: 3"), ("  dim: 3\n", ""), ("shape {", "shape{"), ("crc32:", "crc33:")]
FIELDS = st.sampled_from([0, 1, 2, 3, 12, 64, 65, 128, 192, 36_000, -1, 2**62, 2**63 - 1, 2**64, None, "a", 1.5])


@st.composite
def changed(draw: st.DrawFn, rows: Rows) -> Rows:
    rows = [list(row) for row in rows]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        how = draw(st.sampled_from(["field", "meta", "swap", "drop", "twice", "name"]))
        if how == "field":
            rows[at][draw(st.integers(2, 3))] = draw(FIELDS)
        elif how == "meta":
            rows[at][1] = rows[at][1].replace(*draw(st.sampled_from(METAS)))
        elif how == "name":
            rows[at][0] = draw(st.sampled_from(["a", "b", "c", "big", "../s/a", "", ".", "\u00e9", "pickled_data"]))
        elif how == "swap":
            other = draw(st.integers(0, len(rows) - 1))
            rows[at], rows[other] = rows[other], rows[at]
        elif how == "drop" and len(rows) > 1:
            del rows[at]
        else:
            rows.append(rows[at])
    return rows


Marked = tuple[Path, Rows, bytes, dict[str, Any]]  # a snapshot, and what its marker is made of


def marked(path: Path, saved: Any) -> Marked:
    fastckpt.save(saved, path, index=True)
    head = json.loads((path / DONE).read_bytes().split(b"\n")[0])
    return (path, *rows_of(path), {"object": head["object"]} if "object" in head else {})


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, bytes]:
    tensors = {key: torch.arange(3.0) + at for at, key in enumerate("abc")}
    tensors["big"] = torch.arange(float(LARGE))
    return marked(tmp_path_factory.mktemp("four") / "s", tensors)[:3]


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Marked:
    """A container, ties and a name, which the metas say."""
    one, big = torch.arange(3.0), torch.arange(float(LARGE))
    saved = OrderedDict({"a": one, "b": torch.ones(4), "a/c": torch.ones(3), "big": big, "twin": one, "other": big})
    saved["third"] = one
    return marked(tmp_path_factory.mktemp("more") / "s", saved)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Marked:
    one = torch.arange(3.0)
    saved = {"a": {"b": one, "c": [torch.ones(3), one], "d/": torch.ones(2)}, "big": torch.ones(LARGE), "n": 3}
    return marked(tmp_path_factory.mktemp("tree") / "s", saved)


@given(st.data())
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_says_yes_only_where_the_long_way_does(
    four: tuple[Path, Rows, bytes], more: Marked, tree: Marked, data: st.DataObject
) -> None:
    path, rows, copies, record = data.draw(st.sampled_from([(*four, {}), more, tree]))
    rows = data.draw(changed(rows))
    head = data.draw(st.sampled_from([{}, {}, {}, {"count": 4}, {"count": 5}, {"version": 2}, {"more": 1}]))
    text = json.dumps(rows, separators=data.draw(st.sampled_from([(",", ":"), (", ", ":")])))
    write_marker(path, rows, copies, text=text, **head, **record)
    found = quick.load_plain(path, None, 100)
    if found is not None:
        assert_same(found, at_length(path))


@pytest.mark.parametrize(
    ("row", "old", "new"),
    [
        ("twin", '"same_as":"a"', '"same_as":"nothing"'),
        ("twin", '"same_as":"a"', '"same_as":"twin"'),
        ("twin", '"same_as":"a"', '"same_as":"other"'),
        ("twin", '"same_as":"a"', '"same_as":"b"'),
        ("twin", '"same_as":"a"', '"same_as":"big"'),
        ("twin", "kFloat", "kInt32"),
        ("twin", '"place":4', '"place":3'),
        ("twin", '"place":4', '"place":-1'),
        ("twin", '"count":7', '"count":8'),
        ("third", '"same_as":"a"', '"same_as":"twin"'),
        ("twin", '"same_as":"a"', '"same_as":"a'),
        ("a", '"container":{"OrderedDict"', '"container":{"Dict"'),
        ("a", '"container":{"OrderedDict":[]}', '"container":"snapshot_done"'),
        ("a", '"container":{"OrderedDict":[]}', '"container":[1]'),
        ("a", '"container":{"OrderedDict":[]}', '"container":{"dict":[["a",1]]}'),
        ("a%2Fc", '"name":"a/c"', '"name":"a"'),
        ("a%2Fc", '"name":"a/c"', '"name":"twin"'),
        ("a%2Fc", '"name":"a/c"', '"name":7'),
        ("a%2Fc", '"name":"a/c"', '"dtype":"float128"'),
    ],
)
def test_a_meta_that_cannot_be(more: Marked, row: str, old: str, new: str) -> None:
    path, rows, copies, _ = more
    write_marker(path, rows, copies)
    assert quick.load_plain(path, None, 100) is not None
    assert old in next(meta for folder, meta, *_ in rows if folder == row)
    rows = [[folder, meta.replace(old, new) if folder == row else meta, *rest] for folder, meta, *rest in rows]
    write_marker(path, rows, copies)
    assert quick.load_plain(path, None, 100) is None


def test_a_tie_with_a_copy(more: Marked) -> None:
    path, rows, copies, _ = more
    rows = [[*row[:3], 192 if row[0] == "twin" else row[3]] for row in rows]
    write_marker(path, rows, copies + bytes(64))
    assert quick.load_plain(path, None, 100) is None


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"dict": [["a", {"tensor": "nothing"}]]},
        {"dict": [["a", {"tensor": "a.b", "as": "numpy"}]]},
        {"dict": [["a", {"Tensor": "a.b"}]]},
        {"dict": [["a"]]},
        *({"snow": 1}, 1.5, {"float": "0"}),
    ],
)
def test_a_record_that_cannot_be(tree: Marked, record: Any) -> None:
    path, rows, copies, head = tree
    write_marker(path, rows, copies, **head)
    assert quick.load_plain(path, None, 100) is not None
    write_marker(path, rows, copies, **({} if record is None else {"object": record}))
    found = quick.load_plain(path, None, 100)
    assert (found is not None) == (record == 1.5)
    assert found is None or found == at_length(path)


@pytest.mark.parametrize("record", [b"1,2", b"[", b'1,"more":2', b"", b'"\xc3\xa9"', b"[" * 100_000])
def test_a_record_that_is_not_ours(tree: Marked, record: bytes) -> None:
    path, rows, copies, head = tree
    write_marker(path, rows, copies, **head)
    line, rest = (path / DONE).read_bytes().split(b"\n", 1)
    table = rest[: rest.index(b"\n") + 1]
    begin = line.index(b'"object":') + 9
    for _ in range(3):
        at = -(-(len(line) + 1 + len(table)) // 64) * 64
        lengths = f',"index":[{len(table)},{at},{at + len(copies)}],'.encode()
        line = sealed(line[:begin] + record + lengths + b'"table":"crc32:%08x"}\n' % zlib.crc32(table))[:-1]
    (path / DONE).write_bytes((line + b"\n" + table).ljust(at, b"\0") + copies)
    assert (path / DONE).stat().st_size == at + len(copies)
    assert quick.load_plain(path, None, 100) is None


@pytest.mark.parametrize("as_", [None, "torch"])
def test_arrays_become_tensors_if_asked(tmp_path: Path, as_: str | None) -> None:
    fastckpt.save({"a": [np.ones(3)]}, tmp_path / "s")
    found = quick.load_plain(tmp_path / "s", as_, 100)
    assert (found is None) == (as_ is None)
    if as_:
        assert_same(found, {"a": [torch.ones(3, dtype=torch.float64)]})


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (1, 3, 0),  # where another copy lies,
        (1, 3, 11),  # or ends,
        (1, 3, 65),  # not aligned,
        (2, 3, 192),  # behind the end
        (2, 3, 2**63 - 64),
        (3, 3, 0),
        (0, 2, 16),
        (3, 2, 36_004),
        (1, 0, "a"),
        (1, 0, "B"),
    ],
)
def test_a_row_that_cannot_be(four: tuple[Path, Rows, bytes], row: int, column: int, value: Any) -> None:
    path, rows, copies = four
    write_marker(path, rows, copies)
    assert quick.load_plain(path, None, 100) is not None
    rows = [list(each) for each in rows]
    rows[row][column] = value
    write_marker(path, rows, copies)
    assert quick.load_plain(path, None, 100) is None


def test_copies_that_do_not_begin_where_they_may(four: tuple[Path, Rows, bytes]) -> None:
    path, rows, copies = four
    write_marker(path, rows, copies)
    assert quick.load_plain(path, None, 100) is not None
    table, copies_at, size = json.loads((path / DONE).read_bytes().split(b"\n")[0])["index"]
    write_marker(path, rows, copies, index=[table, copies_at + 4, size])
    assert (path / DONE).stat().st_size == size
    assert quick.load_plain(path, None, 100) is None


def test_a_folder_with_the_name_of_a_pickle(tmp_path: Path) -> None:
    """With an index it might be a file as well; without, it is looked into."""
    path = tmp_path / "s"
    fastckpt.save({"a": torch.ones(3)}, path, index=True)
    ((_, *rest),), copies = rows_of(path)
    (path / "a").rename(path / "pickled_data")
    write_marker(path, [["pickled_data", *rest]], copies)
    assert quick.load_plain(path, None, 100) is None
    (path / DONE).write_bytes(b"")
    assert_same(quick.load_plain(path, None, 100), {"pickled_data": torch.ones(3)})
    assert_same(at_length(path), {"pickled_data": torch.ones(3)})


@pytest.mark.parametrize(
    "head",
    [
        {"index": [10**18, 512, 1024]},
        {"index": [0, 0, 0]},
        {"index": [200, 64, 704]},
        {"count": 2**63},
        {"count": 2**62},
        {"count": -1},
        {"table": "crc32:0"},
        {"table": None},
    ],
)
def test_a_head_that_cannot_be(four: tuple[Path, Rows, bytes], head: dict[str, Any]) -> None:
    path, rows, copies = four
    write_marker(path, rows, copies, **head)
    assert quick.load_plain(path, None, 100) is None


@pytest.mark.parametrize("place", [-1, 1, 2**62])
def test_a_place_that_there_is_not(tmp_path: Path, place: int) -> None:
    fastckpt.save(OrderedDict({"a": torch.ones(3)}), tmp_path / "s")
    fd = os.open(tmp_path / "s", os.O_RDONLY)
    try:
        kinds = {2: (2, 4)}
        for at in (0, place):
            found = _core.load_folders(fd, ["a"], kinds, id, lambda folder, text, count, at=at: (folder, at, False))
            assert (found is not None) == (at == 0)
    finally:
        os.close(fd)


def test_numbers_of_types_that_there_cannot_be() -> None:
    for number in (-1, 32):
        with pytest.raises(ValueError, match=f"no type has the number {number}"):
            _core.load_plain(0, DONE, {number: (2, 4)}, id, id, zlib.crc32)
