"""Pickle directories and single files, as OneFlow 0.6 and later write them, by every way of reading."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lane_rig import LateLane
from oneflow_rig import Saver, conv, dumped, oneflow, tensor, text, top, write_tensor

import fastckpt
from fastckpt.diffing import diff
from fastckpt.torch import pinned

MOMENTS = np.linspace(0, 1, 120_001, dtype=np.float32)  # many parts, and of no even length


def training_state(flow: Any, folder: Path | None) -> dict[str, Any]:
    save = Saver(flow, folder)
    weight = save(np.arange(6, dtype=np.float32).reshape(2, 3), "Parameter")
    model = OrderedDict({"l.weight": weight, "l.bias": save(np.array([1.5, 2], np.float16)), "head": weight})
    model._metadata = OrderedDict()
    optimizer = {"state": {0: {"m": save(MOMENTS), "step": save(np.int64(7))}}, "param_groups": [{"lr": 0.1}]}
    plain = {"epoch": 3, "flags": {True, None}, "hash": b"\0\xff", "note": "模型", "numbers": np.arange(4)}
    more = {"mask": save(np.array([True, False])), "none": save(np.zeros((0, 3)))}
    return {"model": model, "optimizer": optimizer, **plain, **more, "dtype": flow.dtype(2)}


def write(path: Path, protocol: int = 4, make: Callable[[Any, Path | None], Any] = training_state) -> Path:
    """A folder where the name says so, else a single file."""
    with oneflow() as flow:
        folder = path if "folder" in path.name else None
        if folder:
            folder.mkdir()
        data = dumped(make(flow, folder), protocol)
    (path / "pickled_data" if folder else path).write_bytes(data)
    return path


@pytest.fixture(params=["a folder", "a file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / request.param)


def flat_state(flow: Any, folder: Path | None) -> OrderedDict[str, Any]:
    save = Saver(flow, folder)
    state = OrderedDict({"l.weight": save(np.ones((2, 3), np.float32)), "l.bias": save(np.arange(2.0))})
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def check(found: Any) -> None:
    assert [*found["model"]] == ["l.weight", "l.bias", "head"]
    assert type(found["model"]) is OrderedDict
    assert found["model"]["head"] is found["model"]["l.weight"]
    assert found["model"]["l.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert str(found["model"]["l.bias"].dtype).endswith("float16")
    assert np.array_equal(np.asarray(found["optimizer"]["state"][0]["m"]), MOMENTS)
    assert found["optimizer"]["state"][0]["step"].tolist() == 7
    assert found["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert (found["epoch"], found["flags"], found["hash"], found["note"]) == (3, {True, None}, b"\0\xff", "模型")
    assert (found["mask"].tolist(), tuple(found["none"].shape)) == ([True, False], (0, 3))
    assert found["numbers"].tolist() == [0, 1, 2, 3]
    assert found["dtype"] == "oneflow.float32"


# ---- every way in ----


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_protocols(kind: str, protocol: int, tmp_path: Path) -> None:
    check(fastckpt.load(write(tmp_path / kind, protocol)))


@pytest.mark.parametrize(
    "options",
    [{"mode": "mmap"}, {"mode": "read"}, {"mode": "direct"}, {"as_": "numpy"}, {"verify": True}, {"prefetch": True}],
    ids=str,
)
def test_every_way_of_loading(options: Any, path: Path) -> None:
    check(fastckpt.load(path, **options))
    check(fastckpt.load(os.fsencode(path).decode(), **options))


def test_frameworks(path: Path) -> None:
    found = fastckpt.load(path)
    assert isinstance(found["model"]["l.weight"], torch.Tensor)
    assert isinstance(found["numbers"], np.ndarray), "what was an array stays one"
    assert isinstance(fastckpt.load(path, as_="torch")["numbers"], torch.Tensor)


def test_tensors_are_aligned_private_and_stay(path: Path) -> None:
    found = fastckpt.load(path)
    moments = found["optimizer"]["state"][0]["m"]
    assert moments.data_ptr() % 64 == 0
    moments.zero_()
    check(fastckpt.load(path))
    snapshot = fastckpt.open(path)
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    assert np.array_equal(snapshot["optimizer.state.0.m"][:].numpy(), MOMENTS)
    check(found | {"optimizer": {"state": {0: {"m": MOMENTS, "step": np.array(7)}}, "param_groups": [{"lr": 0.1}]}})


def test_open(path: Path) -> None:
    snapshot = fastckpt.open(path)
    assert snapshot.is_nested
    assert snapshot["model"]["head"].tied_to == "model.l.weight"
    assert snapshot["optimizer.state.0.m"][5:7].tolist() == MOMENTS[5:7].tolist()
    assert snapshot["mask"].dtype_name == "bool"
    assert snapshot.tree["epoch"] == 3
    assert snapshot.nbytes == 24 + 4 + MOMENTS.nbytes + 8 + 32 + 2


def test_open_with_more_tensors_than_maps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.lazy.MAP_LIMIT", 1)
    snapshot = fastckpt.open(path)
    assert np.array_equal(snapshot["optimizer.state.0.m"][:].numpy(), MOMENTS)
    assert snapshot["numbers"][:].tolist() == [0, 1, 2, 3]


def test_open_an_empty_tensor_among_more_than_can_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.lazy.MAP_LIMIT", 1)
    snapshot = fastckpt.open(write(tmp_path / "a file"))
    assert (snapshot["mask"][:].tolist(), snapshot["none"][:].shape) == ([True, False], (0, 3))


def test_salvage(path: Path, tmp_path: Path) -> None:
    found = fastckpt.salvage(path)
    assert found
    assert (found.lost, found.problems) == ({}, ())
    assert [*found.unchecked] == [*fastckpt.open(path)], "OneFlow writes no digests"
    check(found.object)
    found.save(tmp_path / "new")
    check(fastckpt.load(tmp_path / "new", verify=True))


@pytest.mark.parametrize("name", ["meta", "out"])
def test_salvage_of_a_damaged_folder(name: str, tmp_path: Path) -> None:
    """The pickle tells what is lost: a tie under both of its names."""
    path = write(tmp_path / "folder")
    os.truncate(path / "tensor_3" / name, 3)
    assert len(fastckpt.verify(path).problems) == 1
    found = fastckpt.salvage(path)
    assert not found
    assert [*found.lost] == ["model.l.weight", "model.head"]
    assert {Path(why.file).parent.name for why in found.lost.values()} == {"tensor_3"}
    assert found.object["model"]["head"] is None
    found.save(tmp_path / "new")
    assert fastckpt.load(tmp_path / "new")["epoch"] == 3
    shutil.rmtree(path / "tensor_3")
    assert [*fastckpt.salvage(path).lost] == ["model.l.weight", "model.head"]
    (path / "pickled_data").write_bytes(b"\x80")
    assert not fastckpt.verify(path)
    with pytest.raises(fastckpt.CheckpointError, match="pickled_data"):
        fastckpt.salvage(path)


def test_salvage_of_a_flat_one(tmp_path: Path) -> None:
    path = write(tmp_path / "folder", make=flat_state)
    (path / "tensor_5/out").unlink()
    found = fastckpt.salvage(path)
    assert [*found.object] == ["l.weight"]
    assert [*found.lost] == ["l.bias"]


def test_some_keys(path: Path) -> None:
    found = fastckpt.load(path, keys=["optimizer.state.0.m", "model.head"])
    assert [*found] == ["model.head", "optimizer.state.0.m"]
    with pytest.raises(KeyError, match="no tensor 'epoch'"):
        fastckpt.load(path, keys=["epoch"])


def test_open_some_keys(path: Path) -> None:
    """They have no files of their own, at which an open of some keys would look."""
    for options in ({"keys": ["model.head"]}, {"max_bytes": 1 << 20}):
        snapshot = fastckpt.open(path, **options)
        assert np.asarray(snapshot["model.head"][...]).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_load_into(path: Path) -> None:
    targets = fastckpt.load(path)
    for zeroed in (targets["model"]["l.weight"], targets["optimizer"]["state"][0]["m"], targets["numbers"]):
        zeroed[...] = 0
    targets["model"]["l.bias"] = torch.zeros(2, dtype=torch.float64)
    fastckpt.load_into(targets, path)
    assert targets["model"]["l.bias"].tolist() == [1.5, 2]
    targets["model"]["l.bias"] = targets["model"]["l.bias"].half()
    check(targets)
    targets["mask"] = torch.ones(3, dtype=torch.bool)
    targets["numbers"][...] = 5
    with pytest.raises(fastckpt.MismatchError, match="size mismatch for mask"):
        fastckpt.load_into(targets, path)
    assert targets["numbers"].tolist() == [5] * 4


def test_to_a_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pinned.LANES, "cpu", LateLane)
    check(fastckpt.load(path, device="cpu"))


def test_verify_and_diff(path: Path, tmp_path: Path) -> None:
    report = fastckpt.verify(path)
    assert report.ok
    assert (report.tensors, report.nbytes, report.digests) == (8, 24 + 4 + MOMENTS.nbytes + 8 + 32 + 2, 0)
    fastckpt.save(fastckpt.load(path), tmp_path / "ours")
    assert not diff(path, tmp_path / "ours").tensors
    other = write(tmp_path / "other folder", make=lambda flow, folder: {"numbers": np.arange(1, 5)})
    (changed,) = [tensor for tensor in diff(path, other).tensors if tensor.change == "changed"]
    assert changed.distance is not None
    assert (changed.name, changed.distance.differing) == ("numbers", 4)


def test_command_line(path: Path) -> None:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from click.testing import CliRunner

    from fastckpt.cli import commands

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(commands, [*arguments, str(path)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert "model.head\t[2,3]\tfloat32\t24\tmodel.l.weight\n" in run("ls")
    assert 'obj["note"]\t' in run("show")
    assert 'obj["numbers"]\tint64[4]\n' in run("show")
    assert "OK (8 tensors, 0 with a digest" in run("verify")
    shown = json.loads(run("show", "--json"))
    assert shown["nested"]
    assert shown["object"]["dict"][2] == ["epoch", 3]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_flat_state_dict(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / kind, make=flat_state)
    found = fastckpt.load(path)
    assert type(found) is OrderedDict
    assert found._metadata == {"": {"version": 1}}
    assert not fastckpt.open(path).is_nested
    module = torch.nn.Module()
    module.l = torch.nn.Linear(3, 2)
    fastckpt.load_into(module, path)
    assert module.l.bias.tolist() == [0, 1]
    module.load_state_dict(found)


def test_a_whole_module(tmp_path: Path) -> None:
    make = lambda flow, folder: conv(flow, Saver(flow, folder)(np.ones(3, np.float32), "Parameter"))  # noqa: E731
    found = fastckpt.load(write(tmp_path / "folder", make=make))
    assert [*found] == ["weight"]
    assert found._metadata == {"": {"class": "oneflow.nn.modules.conv.Conv2d"}}


def test_other_objects(tmp_path: Path) -> None:
    for number, obj in enumerate([None, 5, [], {}, "text", {"a": {}}]):
        path = write(tmp_path / f"folder {number}", make=lambda flow, folder, obj=obj: obj)
        assert fastckpt.load(path) == obj
        assert fastckpt.verify(path)
    bare = write(tmp_path / "bare file", make=lambda flow, folder: Saver(flow, folder)([1, 2]))
    assert fastckpt.load(bare).tolist() == [1, 2]


def test_bfloat16_comes_as_the_float32_that_oneflow_stores(tmp_path: Path) -> None:
    values = np.array([1, -2.5, 3.140625], np.float32)

    def make(flow: Any, folder: Path | None) -> Any:
        return {"w": Saver(flow, folder)(values, dtype="bfloat16")}

    for kind in ("folder", "file"):
        found = fastckpt.load(write(tmp_path / kind, make=make))["w"]
        assert (found.dtype, found.tolist()) == (torch.float32, values.tolist())


def test_many_small_arrays_in_one_file(tmp_path: Path) -> None:
    make = lambda flow, folder: {str(n): np.full(n % 7, n) for n in range(3000)}  # noqa: E731
    found = fastckpt.load(write(tmp_path / "file", make=make))
    assert all(array.tolist() == [n] * (n % 7) for n, array in enumerate(found.values()))
    found["7"][...] = 1
    assert len({id(array) for array in found.values()}) == 3000


# ---- folders beside the pickle ----


def test_orphans_of_an_earlier_save_are_passed_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = write(tmp_path / "folder")
    write_tensor(path / "tensor_1000", np.ones(3))
    (path / "tensor_1001").mkdir()
    (path / "notes.txt").write_text("x")
    check(fastckpt.load(path))
    assert fastckpt.verify(path)
    assert not recwarn.list


def test_a_pickle_is_later_than_the_flat_snapshot_it_lies_in(tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(3), "only flat": torch.ones(1)}, tmp_path / "folder")
    (tmp_path / "folder" / "pickled_data").write_bytes(top(b"}" + text("model") + tensor(text("w")) + b"s"))
    with pytest.warns(UserWarning, match="has snapshot_done and pickled_data: what pickled_data names is taken"):
        found = fastckpt.load(tmp_path / "folder")
    assert [*found] == ["model"]
    assert found["model"].tolist() == [1, 1, 1]


def test_a_tensor_folder_that_is_missing_or_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "folder")
    (first,) = {place.parent.name for place in path.glob("*/out") if place.stat().st_size == 24}
    for name, words in (("meta", "No such file"), ("out", "No such file")):
        os.rename(path / first / name, tmp_path / name)
        with pytest.raises(fastckpt.CorruptError, match=f"{first}/{name}: {words}"):
            fastckpt.load(path)
        assert not fastckpt.verify(path)
        os.rename(tmp_path / name, path / first / name)
    (path / first / "out").write_bytes(bytes(23))
    with pytest.raises(fastckpt.CorruptError, match=f"{first}/out: meta wants 24 bytes, file has 23"):
        fastckpt.load(path)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path / "folder")
    (first,) = {place.parent.name for place in path.glob("*/out") if place.stat().st_size == 24}
    shutil.move(path / first, tmp_path / "elsewhere")
    for goal in (tmp_path / "elsewhere", "/etc", tmp_path / "nowhere"):
        (path / first).symlink_to(goal)
        with pytest.raises(fastckpt.CorruptError, match=f"{first}/meta: "):
            fastckpt.load(path)
        (path / first).unlink()
    shutil.move(tmp_path / "elsewhere", path / first)
    check(fastckpt.load(path))
    shutil.move(path / "pickled_data", tmp_path / "p")
    (path / "pickled_data").symlink_to(tmp_path / "p")
    with pytest.raises(fastckpt.NotCommittedError, match="pickled_data is no plain file"):
        fastckpt.load(path)


def test_pipes_and_devices_do_not_block(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pickled_data")
    with pytest.raises(fastckpt.NotCommittedError, match="pickled_data is no plain file"):
        fastckpt.load(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(fastckpt.FormatError, match="a file; a snapshot is a folder"):
            fastckpt.load(odd)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="socket"):
            fastckpt.load(tmp_path / "socket")


# ---- single files ----


def test_a_file_is_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "file")
    (tmp_path / "link").symlink_to("below/file")
    check(fastckpt.load(tmp_path / "link"))
    with pytest.raises(FileNotFoundError):
        fastckpt.load(tmp_path / "nothing")
    with pytest.raises(fastckpt.FormatError, match="a file; a snapshot is a folder"):
        fastckpt.load(tmp_path / "below" / "file" / "x")


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    check(fastckpt.load("file"))
    check(fastckpt.load(Path("./file")))


def test_a_single_file_names_no_folders(tmp_path: Path) -> None:
    write_tensor(tmp_path / "w", np.ones(3))
    (tmp_path / "file").write_bytes(top(b"}" + text("w") + tensor(text("w")) + b"s"))
    with pytest.raises(fastckpt.FormatError, match="names the folder 'w', which a single file has not"):
        fastckpt.load(tmp_path / "file")


def test_other_files_are_not_looked_into(tmp_path: Path) -> None:
    for content in (
        b"",
        b"x",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04}.",
        b"PK\x03\x04",
        b"__oneflow__" * 5,
        b"\x80\x09__oneflow__",
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(fastckpt.FormatError, match="a file; a snapshot is a folder"):
            fastckpt.load(tmp_path / "file")
        assert not fastckpt.verify(tmp_path / "file")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "file").read_bytes()
    for length in range(0, len(whole), len(whole) // 97):
        (tmp_path / "file").write_bytes(whole[:length])
        with pytest.raises(fastckpt.FormatError, match="file: "):
            fastckpt.load(tmp_path / "file")


def test_nothing_is_saved_over_it(path: Path) -> None:
    with pytest.raises(fastckpt.CheckpointError, match="will not be replaced"):
        fastckpt.save({"a": torch.ones(1)}, path)
    check(fastckpt.load(path))


@pytest.mark.parametrize("change", ["longer", "shorter", "replaced", "deleted"])
def test_a_pickle_that_changes_while_it_is_read(change: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OneFlow writes in place: what is read then may be of two saves, and is refused."""
    file = path / "pickled_data" if path.is_dir() else path
    whole = file.read_bytes()
    assemble = fastckpt.loading._assemble

    def late(*args: Any) -> Any:
        if change == "deleted":
            file.unlink()
        elif change == "replaced":
            file.with_name("new").write_bytes(whole)
            os.replace(file.with_name("new"), file)
        else:
            file.write_bytes(whole + b"x" if change == "longer" else whole[:-1])
        return assemble(*args)

    monkeypatch.setattr("fastckpt.loading._assemble", late)
    with pytest.raises(fastckpt.CorruptError, match="was changed while being read; load it again"):
        fastckpt.load(path)


def test_a_file_that_shrinks_between_the_look_and_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "file")
    fetch = fastckpt.loading.fetch

    def late(*args: Any, **options: Any) -> Any:
        os.truncate(file, 1000)
        return fetch(*args, **options)

    monkeypatch.setattr("fastckpt.loading.fetch", late)
    with pytest.raises(fastckpt.CorruptError, match=r"file.*: wanted .* bytes, found 1000"):
        fastckpt.load(file)


# ---- graphs ----


def test_a_graph_beside_its_options(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_tensor(tmp_path / "model.a", np.ones(3))
    (tmp_path / "model.mlir").write_text("module {}")
    (tmp_path / "one_embedding_options.json").write_text("{}")
    assert [*fastckpt.load(tmp_path)] == ["model.a"]
    assert not recwarn.list
