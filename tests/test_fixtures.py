"""Snapshots that OneFlow's own code wrote, good, odd, broken and hostile, give what they should.

``fixtures.tar.gz`` holds them; ``expected.json`` says of each what every release of OneFlow makes of it, and what a
correct loader should do. A tensor is written ``float32[2, 3]:a6a12cd1``: dtype, shape, and the first eight hexadecimal
digits of the SHA-1 of its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ONEFLOW

import fastckpt

FLAT_ERAS = ("v0.5.0", "strict", "v0.4.0", "v0.3.4")  # newest first; later ones prefer a pickle that lies beside
ERAS = ("HEAD", "v1.0.0", "v0.9.0", "v0.8.0", "v0.7.0", "v0.6.0", *FLAT_ERAS)


def expectations() -> dict[str, dict[str, str]]:
    """Name to the tensors that the newest release of OneFlow gives which reads it as a flat directory, if any does."""
    if not (ONEFLOW / "expected.json").is_file():
        return {}
    said = json.loads((ONEFLOW / "expected.json").read_text())
    return {name: flat_reading(said[name]["oneflow"]) for name in said if not name.startswith("special/")}


def flat_reading(said: dict[str, dict[str, Any]]) -> dict[str, str]:
    newest = next((said[era]["ok"] for era in ERAS if "ok" in said.get(era, {})), {})
    if all(isinstance(tensor, str) for tensor in newest.values()):
        return newest
    return next((said[era]["ok"] for era in FLAT_ERAS if "ok" in said.get(era, {})), {})


EXPECTED = expectations()
READABLE = ("legacy/", "candidates/", "meta_grammar/", "graph/", "genuine/graph")


def describe(tensors: dict[str, Any]) -> dict[str, str]:
    return {
        key: f"{array.dtype}{list(array.shape)}:{hashlib.sha1(array.tobytes()).hexdigest()[:8]}"
        for key, array in tensors.items()
    }


def load(path: Path) -> tuple[dict[str, str], list[str]]:
    """What a snapshot gives, the same by every way of loading, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = describe(fastckpt.load(path, as_="numpy"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert describe(fastckpt.load(path, as_="numpy", mmap=False)) == found
        snapshot = fastckpt.open(path, as_="numpy")
        assert describe({key: snapshot[key][...] for key in snapshot}) == found
        assert describe({key: tensor.numpy() for key, tensor in fastckpt.load(path).items()}) == found
        assert fastckpt.verify(path)
    return found, [str(warning.message) for warning in caught]


def refuse(path: Path, *kinds: type[Exception]) -> str:
    """How a snapshot is refused: naming a file in it, soon, and the same by every way in."""
    begin = time.monotonic()
    with pytest.raises(kinds or fastckpt.CheckpointError) as refused:
        fastckpt.load(path, as_="numpy")
    assert time.monotonic() - begin < 5
    text = str(refused.value)
    assert str(path) in text
    for way in (fastckpt.open, lambda path: fastckpt.load_into({}, path)):
        with pytest.raises(type(refused.value)) as again:
            way(path)
        assert str(again.value) == text
    report = fastckpt.verify(path)
    assert not report.ok
    assert report.problems == (text,)
    return text


#: What is not simply "load" or "reject": words of the refusal, or names that load and words of the warning.
REFUSED = {
    "legacy/legacy_cpp_v0.1_v0.2_no_meta": "meta: missing, so shape and dtype of out are unknown",
    "legacy/legacy_v0.4.0_zero_d": "no snapshot_done",
    "legacy/legacy_v0.5.0_name_named_done": "snapshot_done: no plain file",
}
WARNED: dict[str, tuple[set[str], str]] = {
    "legacy/legacy_mixed_no_meta": ({"l1.weight", "l1.bias"}, "/x/meta: missing"),
    "candidates/candidate_extra_file": ({"l1.weight", "l1.bias"}, "/fastckpt.json: a file that belongs to no snapshot"),
    "candidates/candidate_extra_dir_without_out": ({"l1.weight", "l1.bias"}, "/.fastckpt: no tensor, passed over"),
    "candidates/candidate_hybrid_pickle": ({"l1.weight", "l1.bias"}, "/pickled_data: a file"),
    "candidates/candidate_hybrid_pickle_magic": ({"l1.weight", "l1.bias"}, "/pickled_data: a file"),
    "candidates/candidate_hybrid_comments": ({"l1.weight", "l1.bias"}, "/pickled_data: a file"),
}
NESTED = {"legacy/legacy_v0.5.0_name_slash": {"a/b"}, "legacy/legacy_v0.5.0_name_prefix_pair_ab": {"a", "a/b"}}


def test_every_fixture_is_expected_and_every_expectation_has_one(oneflow_fixtures: Path) -> None:
    assert {f"{path.parent.name}/{path.name}" for path in oneflow_fixtures.glob("*/*")} == EXPECTED.keys()
    assert {*REFUSED, *WARNED, *NESTED} <= EXPECTED.keys()


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(READABLE)])
def test_what_oneflow_wrote(name: str, oneflow_fixtures: Path) -> None:
    wanted, path = EXPECTED[name], oneflow_fixtures / name
    if "_bad_" in name or name in REFUSED:
        text = refuse(path)
        assert REFUSED.get(name, "/x/meta: ") in text
        return
    found, warned = load(path)
    if name in NESTED:
        assert found.keys() == NESTED[name]
        assert found.items() >= wanted.items()
    else:
        names, words = WARNED.get(name, (wanted.keys(), ""))
        assert found == {key: wanted[key] for key in names}
        assert [words in warning for warning in warned] == ([True] if words else [])


def test_both_keys_of_a_slash_pair_have_their_own_values(oneflow_fixtures: Path) -> None:
    pair = fastckpt.load(oneflow_fixtures / "legacy/legacy_v0.5.0_name_prefix_pair_ab", as_="numpy")
    alone = fastckpt.load(oneflow_fixtures / "legacy/legacy_v0.5.0_name_slash", as_="numpy")
    for array, folder in (
        (pair["a"], "prefix_pair_ab/a"),
        (pair["a/b"], "prefix_pair_ab/a/b"),
        (alone["a/b"], "slash/a/b"),
    ):
        raw = oneflow_fixtures / f"legacy/legacy_v0.5.0_name_{folder}/out"
        assert array.tobytes() == raw.read_bytes()


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(("genuine/3x3", "pickled/"))])
def test_pickle_directories_are_refused_by_name(name: str, oneflow_fixtures: Path) -> None:
    assert "pickled_data" in refuse(oneflow_fixtures / name, fastckpt.NotCommittedError)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(("single_file/", "torch/"))])
def test_single_files_are_refused(name: str, oneflow_fixtures: Path) -> None:
    assert "a file; a snapshot is a folder" in refuse(oneflow_fixtures / name, fastckpt.FormatError)


# ---- broken ----

#: Names and values that load, and words of the warnings, of those that should.
LOADS: dict[str, tuple[dict[str, str], list[str]]] = {
    "bf16_2_bytes": ({"bad": "bfloat16[4]", "good": "float32[2]"}, []),
    "bf16_4_bytes_as_oneflow_writes": ({"bad": "float32[4]", "good": "float32[2]"}, []),
    "bool_values_2": ({"bad": "bool[3]", "good": "float32[2]"}, []),
    "missing_meta": ({"good": "float32[2]"}, ["/bad/meta: missing"]),
    "name_not_utf8": ({"good": "float32[2]", "w\udcff\udcfe": "float32[1]"}, []),
    "nested_slash_name": ({"a/b": "float32[2]", "good": "float32[2]"}, []),
    "only_snapshot_done": ({}, []),
    "victim_outside": ({"w": "float32[2]"}, []),
    "pickle_is_dir": ({"a": "float32[2]"}, ["/pickled_data: no tensor, passed over"]),
    "dtype_kComplex32": ({"bad": "complex32[2, 3]", "good": "float32[2]"}, []),  # only OneFlow never learned it
}

REASONS = {
    "dim_over_int64": "bad/meta: line 2: wanted a dim between 0 and 2",
    "dtype_invalid0": "bad/meta: .*kInvalidDataType",
    "dtype_kMaxDataType": "bad/meta: .*kMaxDataType",
    "dtype_kOFRecord": "bad/meta: .*kOFRecord",
    "dtype_kTensorBuffer": "bad/meta: .*kTensorBuffer",
    "dtype_kUInt128": "bad/meta: .*kUInt128",
    "dtype_kUInt16": "bad/out: meta wants 12 bytes, file has 24",
    "dtype_vs_size": "bad/out: meta wants 48 bytes, file has 24",
    "long_out": "bad/out: meta wants 24 bytes, file has 25",
    "short_out": "bad/out: meta wants 24 bytes, file has 23",
    "many_dims_100": "bad/meta: .*at most 64 dims",
    "meta_binary": "bad/meta: ",
    "meta_is_dir": "bad/meta: Is a directory",
    "meta_latin1_comment": "bad/meta: wanted UTF-8",
    "meta_truncated": "bad/meta: ",
    "missing_out": "bad/out: No such file",
    "missing_snapshot_done": "no snapshot_done",
    "negative_dim": "bad/meta: .*-3",
    "negative_pair": "bad/meta: .*-1",
    "out_is_dir": "bad/out: Is a directory",
    "overflow_2pow63": "bad/meta: .*at most 2..63 - 1 bytes",
    "overflow_wraps_to_0": "bad/meta: .*at most 2..63 - 1 bytes",
    "overflow_wraps_to_6": "bad/(meta: .*at most 2..63 - 1|out: meta wants [0-9]+) bytes",
    "plain_file": "a file; a snapshot is a folder",
    "snapshot_done_is_dir": "snapshot_done: no plain file",
    "unknown_dtype_name": "bad/meta: .*kFoo",
    "unknown_dtype_number": "bad/meta: .*99",
    "zero_times_huge": "bad/meta: .*at most 2..63 - 1 bytes",
}


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("broken/")])
def test_broken(name: str, oneflow_fixtures: Path) -> None:
    path, short = oneflow_fixtures / name, name.removeprefix("broken/broken_")
    if short in LOADS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            snapshot = fastckpt.open(path)
        wanted, words = LOADS[short]
        found = {key: f"{snapshot[key].dtype_name}{list(snapshot[key].shape)}" for key in snapshot}
        assert found == wanted
        assert [word in str(warning.message) for word, warning in zip(words, caught, strict=True)] == [True] * len(
            words
        )
    elif short.startswith("pickle_"):
        assert "pickled_data" in refuse(path, fastckpt.NotCommittedError)
    else:
        assert re.search(REASONS[short], refuse(path))


def test_values_of_the_odd_dtypes(oneflow_fixtures: Path) -> None:
    broken = oneflow_fixtures / "broken"
    for name in ("bf16_2_bytes", "bf16_4_bytes_as_oneflow_writes"):
        tensors = fastckpt.load(broken / f"broken_{name}")
        assert tensors["bad"].tolist() == [1, -2, 3.140625, 0]
    for as_ in ("torch", "numpy"):
        assert fastckpt.load(broken / "broken_bool_values_2", as_=as_)["bad"].tolist() == [False, True, True]
    assert fastckpt.load(broken / "broken_bool_values_2", as_="numpy")["bad"].tobytes() == b"\0\1\1"


def test_what_is_sound_beside_what_is_not_can_still_be_read(oneflow_fixtures: Path) -> None:
    """The whole is refused; the promise for `good` is that any tool reads it."""
    good = oneflow_fixtures / "broken/broken_short_out/good/out"
    assert np.fromfile(good, np.float32).tolist() == [0, 1]


def test_nothing_in_a_pickle_runs(oneflow_fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in sorted((oneflow_fixtures / "broken").glob("broken_pickle_*")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(fastckpt.CheckpointError):
                fastckpt.load(path)
    assert os.listdir(tmp_path) == []


# ---- what no archive can carry ----


@pytest.fixture
def sound(oneflow_fixtures: Path, tmp_path: Path) -> Path:
    """A snapshot of OneFlow with two tensors, to be damaged."""
    return Path(shutil.copytree(oneflow_fixtures / "candidates/candidate_plain", tmp_path / "s"))


def test_links_out_of_the_folder(sound: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8))
    bias = sound / "l1.bias"
    for name in ("out", "meta"):
        kept = (bias / name).read_bytes()
        (bias / name).unlink()
        for goal in (secret, tmp_path / "nowhere", f"../l1.weight/{name}"):
            (bias / name).symlink_to(goal)
            assert f"l1.bias/{name}: Too many levels of symbolic links" in refuse(sound)
            (bias / name).unlink()
        (bias / name).write_bytes(kept)
    assert len(load(sound)[0]) == 2


def test_a_folder_that_is_a_link(sound: Path, tmp_path: Path) -> None:
    shutil.move(sound / "l1.bias", tmp_path / "elsewhere")
    for goal in (tmp_path / "elsewhere", "l1.weight", "/etc", tmp_path / "nowhere"):
        (sound / "l1.bias").symlink_to(goal)
        assert "l1.bias/meta: " in refuse(sound)
        (sound / "l1.bias").unlink()


def test_a_marker_that_is_a_link_or_a_pipe(sound: Path) -> None:
    (sound / "snapshot_done").unlink()
    (sound / "snapshot_done").symlink_to("/etc/passwd")
    assert "snapshot_done: " in refuse(sound)
    (sound / "snapshot_done").unlink()
    os.mkfifo(sound / "snapshot_done")
    assert "snapshot_done: no plain file" in refuse(sound)


LOADED_LINKS = {"special_out_hardlink"}  # which nobody can tell from a file


def test_what_the_maker_of_the_archive_adds_where_it_is_run(tmp_path: Path) -> None:
    maker = ONEFLOW / "make_special.py"
    if not maker.is_file():
        pytest.skip("OneFlow's own snapshots are not beside this checkout (../shared/oneflow)")
    subprocess.run([sys.executable, maker, "--special", tmp_path], check=True)
    names = sorted(os.listdir(tmp_path))
    assert len(names) >= 15
    for name in names:
        if name == "special_sparse_out_1tb":
            assert fastckpt.load(tmp_path / name, as_="numpy")["bad"].nbytes == 2**40
            with pytest.raises(fastckpt.LimitError):
                fastckpt.load(tmp_path / name, max_bytes=1 << 30)
        elif name in LOADED_LINKS:
            assert {*load(tmp_path / name)[0]} == {"bad", "good"}
        else:
            where = "pickled_data" if "pickled" in name else "snapshot_done" if "snapshot_done" in name else "/bad/"
            assert where in refuse(tmp_path / name)


@pytest.mark.parametrize("name", ["out", "meta"])
def test_pipes_do_not_block(name: str, sound: Path) -> None:
    (sound / "l1.bias" / name).unlink()
    os.mkfifo(sound / "l1.bias" / name)
    assert f"l1.bias/{name}: " in refuse(sound)


def test_a_pipe_beside_the_tensors(sound: Path) -> None:
    os.mkfifo(sound / "pickled_data")
    with pytest.warns(UserWarning, match="pickled_data: a file"):
        assert len(fastckpt.load(sound)) == 2
    (sound / "snapshot_done").unlink()
    assert "pickled_data" in refuse(sound)


@pytest.mark.parametrize(
    "text",
    [
        b"# " + b"x" * (10 << 20) + b"\nshape { dim: 2 } data_type: kFloat\n",
        b"shape {\n" + b"dim: 1\n" * (1 << 20) + b"}\ndata_type: kFloat\n",
        b"shape { dim: " + b"1" * (10 << 20) + b" } data_type: kFloat\n",
    ],
    ids=["comment", "dims", "number"],
)
def test_huge_metas(text: bytes, sound: Path) -> None:
    (sound / "l1.bias" / "meta").write_bytes(text)
    assert "l1.bias/meta: wanted at most 65536 bytes" in refuse(sound)


def test_a_terabyte_of_nothing(sound: Path) -> None:
    meta = sound / "l1.bias" / "meta"
    meta.write_bytes(meta.read_bytes().replace(b"dim: 2", b"dim: %d" % 2**38))
    os.truncate(sound / "l1.bias" / "out", 2**40)
    assert fastckpt.load(sound)["l1.bias"][-1] == 0
    os.truncate(sound / "snapshot_done", 2**40)
    assert len(fastckpt.load(sound)) == 2


@pytest.fixture
def deep(sound: Path) -> Iterator[Path]:
    """Folders in folders, deeper than Python's own removal of a tree could follow."""
    at = os.open(sound, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("a", dir_fd=at)
        below = os.open("a", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    yield sound
    subprocess.run(["rm", "-rf", sound], check=True)


def test_folders_in_folders_without_end(deep: Path) -> None:
    with pytest.warns(UserWarning, match=r"/a/a: no tensor, passed over"):
        assert len(fastckpt.load(deep)) == 2
