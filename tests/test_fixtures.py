"""Snapshots that OneFlow's own code wrote, good, odd, broken and hostile, give what they should.

``fixtures.tar.gz`` holds them; ``expected.json`` says of each what every release of OneFlow makes of it, and what a
correct loader should do. A tensor is written ``float32[2, 3]:a6a12cd1``: dtype, shape, and the first eight hexadecimal
digits of the SHA-1 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ONEFLOW

import fastckpt
from fastckpt.diffing import diff

ROOT = Path(__file__).resolve().parent.parent
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
PICKLED = ("pickled/", "genuine/3x3", "single_file/", "candidates/candidate_hybrid")


def pickled_expectations() -> dict[str, Any]:
    """Name to the object that the newest release of OneFlow gives for a pickle; None where none can load it."""
    if not EXPECTED:
        return {}
    said = json.loads((ONEFLOW / "expected.json").read_text())
    eras = [era for era in ERAS if era not in FLAT_ERAS]
    return {
        name: next(
            (said[name]["oneflow"][era]["ok"] for era in eras if "ok" in said[name]["oneflow"].get(era, {})), None
        )
        for name in said
        if name.startswith(PICKLED)
    }


OBJECTS = pickled_expectations()


def describe(tensors: dict[str, Any]) -> dict[str, str]:
    return {
        key: f"{array.dtype}{list(array.shape)}:{hashlib.sha1(array.tobytes()).hexdigest()[:8]}"
        for key, array in tensors.items()
    }


def describe_object(obj: Any) -> Any:
    """Write an object as ``expected.json`` does."""
    if isinstance(obj, np.ndarray):
        return describe({"": obj})[""]
    if isinstance(obj, dict):
        return {str(key): describe_object(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [describe_object(value) for value in obj]
    return repr(obj) if isinstance(obj, (set, bytes)) else obj


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
}
NESTED = {"legacy/legacy_v0.5.0_name_slash": {"a/b"}, "legacy/legacy_v0.5.0_name_prefix_pair_ab": {"a", "a/b"}}


def test_every_fixture_is_expected_and_every_expectation_has_one(oneflow_fixtures: Path) -> None:
    assert {f"{path.parent.name}/{path.name}" for path in oneflow_fixtures.glob("*/*")} == EXPECTED.keys()
    assert {*REFUSED, *WARNED, *NESTED} <= EXPECTED.keys()


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(READABLE) and name not in OBJECTS])
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


#: What OneFlow cannot load, or gives as an object of a class of its own.
OURS = {
    "pickled/pickled_HEAD_bf16": {"x": "float32[4]:ed5fe15e"},
    "pickled/pickled_v0.9.0_bf16": {"x": "float32[4]:ed5fe15e"},
    "genuine/3x3_i3o3_conv2d": {"weight": "float32[3, 3, 3, 3]:5cd71d15", "bias": "float32[3]:f9db8017"},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_oneflow_pickled(name: str, oneflow_fixtures: Path) -> None:
    path, wanted = oneflow_fixtures / name, OURS.get(name) or OBJECTS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fastckpt.load(path, as_="numpy")
    assert describe_object(found) == wanted
    hybrid = "hybrid" in name
    assert ["has snapshot_done and pickled_data" in str(warning.message) for warning in caught] == [True] * hybrid
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode in ("mmap", "read", "direct"):
            assert describe_object(fastckpt.load(path, as_="numpy", mode=mode)) == wanted
        snapshot = fastckpt.open(path, as_="numpy")
        assert fastckpt.verify(path)
        assert not diff(path, path)
        alone = fastckpt.load(path, keys=[*snapshot], as_="numpy")
        assert describe({key: snapshot[key][...] for key in snapshot}) == describe(alone)
    tied = found.get("tied")
    assert tied is None or tied[0] is tied[1]


def test_types_of_a_training_state(oneflow_fixtures: Path) -> None:
    for name in ("pickled/pickled_v0.6.0_py37_proto3_nested_optimizer", "single_file/singlefile_HEAD_nested"):
        found = fastckpt.load(oneflow_fixtures / name)
        assert type(found["model"]) is OrderedDict
        assert found["model"]._metadata == OrderedDict()
        assert isinstance(found["model"]["l1.weight"], torch.Tensor)
        assert found["optimizer"]["param_groups"][0]["_options"]["betas"] == (0.9, 0.999)
        assert [*found["optimizer"]["state"]] == [0, 1]
        assert (found["set"], found["bytes"], found["scalar"].shape) == ({1, 2}, b"\0\xff", ())
    module = fastckpt.load(oneflow_fixtures / "genuine/3x3_i3o3_conv2d")
    assert [*module] == ["weight", "bias"]
    assert module._metadata == {"": {"class": "oneflow.nn.modules.conv.Conv2d"}}


def test_bfloat16_as_oneflow_stores_it(oneflow_fixtures: Path) -> None:
    for name in ("HEAD", "v0.9.0"):
        assert fastckpt.load(oneflow_fixtures / f"pickled/pickled_{name}_bf16")["x"].tolist() == [1, -2.5, 3.140625, 0]


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("torch/")])
def test_files_of_others_are_refused(name: str, oneflow_fixtures: Path) -> None:
    assert "a file; a snapshot is a folder" in refuse(oneflow_fixtures / name, fastckpt.FormatError)


def test_shapes_and_dtypes_that_only_the_model_knows(oneflow_fixtures: Path) -> None:
    """OneFlow before 0.3.1 wrote no metas."""
    path = oneflow_fixtures / "legacy/legacy_cpp_v0.1_v0.2_no_meta"
    state = {"conv1-weight": torch.zeros(2, 3), "System-Train-TrainStep-train_job": torch.zeros(2)}
    assert fastckpt.load_into(state, path) == ([], [])
    for key, tensor in state.items():
        assert tensor.numpy().tobytes() == (path / key / "out").read_bytes()
    for wrong in (torch.full((2, 4), 7.0), torch.full((2, 3), 7.0, dtype=torch.float64)):
        with pytest.raises(
            fastckpt.MismatchError, match=r"conv1-weight/out: has no meta; the target of .* file has 24"
        ):
            fastckpt.load_into(state | {"conv1-weight": wrong}, path)
        assert wrong.unique().tolist() == [7]
    mixed = oneflow_fixtures / "legacy/legacy_mixed_no_meta"
    state = {"l1.weight": torch.zeros(2, 3), "l1.bias": torch.zeros(2), "x": torch.zeros(2, 3)}
    fastckpt.load_into(state, mixed)
    assert state["x"].numpy().tobytes() == (mixed / "x/out").read_bytes()
    one = {"conv1-weight": torch.zeros(2, 3)}
    with pytest.warns(UserWarning, match="train_job/meta: missing, .* load_into a state that has this key"):
        assert fastckpt.load_into(one, path) == ([], [])
    assert one["conv1-weight"].numpy().tobytes() == (path / "conv1-weight" / "out").read_bytes()


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
    "pickle_deep_nesting": "pickled_data: wanted a dict of protocol_version and data",
    "pickle_dotted_global": "pickled_data: byte 39: names oneflow.Tensor.__init__, which is none",
    "pickle_empty_file": "pickled_data: byte 0: wants 1 bytes more",
    "pickle_ext_code": "pickled_data: byte 2: the opcode EXT1 is not read",
    "pickle_huge_length": "pickled_data: byte 2: wants 1,152,921,504,606,846,976 bytes more, 2 are left",
    "pickle_huge_memo_index": "pickled_data: byte 3: memo place 2147483647",
    "pickle_inst_opcode": "pickled_data: byte 28: the opcode INST is not read",
    "pickle_missing_tensor_dir": "tensor_99/meta: No such file",
    "pickle_no_version": "pickled_data: wanted a dict of protocol_version and data",
    "pickle_not_a_dict": "pickled_data: wanted a dict of protocol_version and data",
    "pickle_path_absolute": "pickled_data: .*the name of one folder, found '/etc'",
    "pickle_path_empty": "pickled_data: .*the name of one folder, found ''",
    "pickle_path_not_str": "pickled_data: .*the name of one folder, found a int",
    "pickle_path_traversal": "pickled_data: .*the name of one folder, found '../broken_victim_outside/w'",
    "pickle_persid": "pickled_data: byte 2: the opcode SHORT_BINSTRING is not read",
    "pickle_reduce_nested_eval": "pickled_data: byte 96: names builtins.eval, which is none",
    "pickle_reduce_os_system": "pickled_data: byte 2: names posix.system, which is none",
    "pickle_self_reference": "pickled_data: wanted a dict of protocol_version and data",
    "pickle_stack_global_getattr": "pickled_data: byte 21: names builtins.getattr, which is none",
    "pickle_tensor_dir_broken": "tensor_2/out: meta wants 24 bytes, file has 1",
    "pickle_trailing_garbage": "pickled_data: byte 92: the pickle ends here, but 7 bytes follow",
    "pickle_truncated": "pickled_data: byte [0-9]+: wants 4 bytes more, 2 are left",
    "pickle_unknown_class": "pickled_data: byte 96: names my.project.Model, which is none",
    "pickle_version_2": "pickled_data: protocol_version 2, this fastckpt reads 1",
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


NOTHING_RUNS = """
import sys
import fastckpt
done = []
def watch(event, args):
    if watching and event in RUNNING:
        done.append((event, args[:1]))
RUNNING = ("import", "compile", "exec", "os.system", "subprocess.Popen", "pickle.find_class")
watching = False
sys.addaudithook(watch)
for path in sys.argv[1:]:
    for way in (fastckpt.load, fastckpt.open, fastckpt.verify, lambda path: fastckpt.load_into({}, path)):
        for watching in (False, True):  # at first sight numpy, torch and we ourselves import late
            try:
                way(path)
            except fastckpt.CheckpointError:
                pass
watching = False
assert not done, done
assert not {"oneflow", "my", "my.project"} & set(sys.modules)
"""


def test_nothing_in_a_pickle_runs(oneflow_fixtures: Path, tmp_path: Path) -> None:
    """Neither an import nor a call leaves a trace, though what is hostile would make a file."""
    paths = [
        *sorted((oneflow_fixtures / "broken").glob("broken_pickle_*")),
        *(oneflow_fixtures / name for name in OBJECTS),
    ]
    command = [sys.executable, "-W", "ignore", "-c", NOTHING_RUNS, *map(str, paths)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
    assert "pickled_data is no plain file" in refuse(sound)


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
