"""What verify says of damage, and what salvage saves from it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import faults.flipped_bits
import numpy as np
import pytest
from pages import evict, resident

import fastckpt
from fastckpt import _core, choosing, fetching, filesystems, seals
from fastckpt import meta as meta_file


class Phase(Enum):
    WARM = 1


def flat() -> dict[str, Any]:
    tied = np.arange(30_000, dtype=np.float32)
    return {"big": tied, "small": np.arange(7), "a/b": np.ones((2, 3)), "tied": tied, "none": np.zeros(0)}


def nested() -> dict[str, Any]:
    return {"model": flat(), "epoch": 3, "phase": Phase.WARM, "history": [np.arange(4), None]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fastckpt.save(flat(), tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def tree_path(tmp_path: Path) -> Path:
    fastckpt.save(nested(), tmp_path / "n")
    return tmp_path / "n"


def damage(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def salvage(path: Path) -> fastckpt.Salvage:
    before = contents(path)
    found = fastckpt.salvage(path, as_="numpy")
    assert contents(path) == before, "it is left as it is"
    for name, tensor in found.tensors.items():
        wanted = {**flat(), **{f"model.{key}": value for key, value in flat().items()}, "history.0": np.arange(4)}
        if name not in found.unchecked:
            assert np.array_equal(tensor, wanted[name]), name
    return found


def contents(path: Path) -> dict[str, bytes | None]:
    return {str(f): f.read_bytes() if f.is_file() else None for f in sorted(path.rglob("*"))}


# ---- one bit ----


def test_a_bit_that_flips_anywhere_is_noticed() -> None:
    verdict = faults.flipped_bits.run(0.01)
    assert verdict.violations == []
    assert verdict.figures["flips in metas and markers"] > 1000


def test_the_check_itself_sees_what_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_file, "check_seal", lambda *_: None)
    assert faults.flipped_bits.run(0.01).violations


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'x {"a":1,"self":"crc32:00000000"}\n', "has changed"),
        (b'x {"a":1,"self":"xxh:00000000"}\n', "has changed"),
        (seals.sealed(b'{"a":1}\n').upper(), ""),
        (seals.sealed(b'{"a":1}\n')[:-1], "has changed"),
        (seals.sealed(b'{"a":1}\n') + b" ", "has changed"),
        (seals.sealed(b'{"a":1}\n'), "intact"),
        (b'{"a":1}\n', ""),
    ],
)
def test_seals(text: bytes, words: str) -> None:
    if words == "has changed":
        with pytest.raises(fastckpt.CorruptError, match="s/meta: its text has changed"):
            seals.has_intact_seal(text, "s/meta")
    else:
        assert seals.has_intact_seal(text, "s/meta") is bool(words)


def test_snapshots_without_seals_are_sound(path: Path, tree_path: Path, tmp_path: Path) -> None:
    """As they were written before there were any, or by a save without digests."""
    for file in [*path.rglob("meta"), *tree_path.rglob("meta")]:
        head, _, _ = file.read_bytes().rpartition(b',"self"')
        file.write_bytes(head + b"}\n")
    assert fastckpt.verify(path)
    assert len(fastckpt.load(path, verify=True)) == 5
    marker = tree_path / "snapshot_done"
    assert "index differs" not in str(fastckpt.verify(tree_path).problems)
    assert fastckpt.load(tree_path, verify=True)["epoch"] == 3
    fastckpt.save(nested(), tmp_path / "t", digest=False)
    assert b"crc32" not in (tmp_path / "t" / "snapshot_done").read_bytes()
    assert fastckpt.verify(tmp_path / "t")
    assert marker.read_bytes().count(b'"self"') == 1


def test_a_seal_whose_name_has_changed(path: Path) -> None:
    meta = path / "small" / "meta"
    meta.write_bytes(meta.read_bytes().replace(b'"self"', b'"selg"'))
    fastckpt.load(path)
    with pytest.raises(fastckpt.CorruptError, match="small/meta: a field 'selg', which cannot be there without a seal"):
        fastckpt.load(path, verify=True)


@pytest.mark.parametrize("head", [b'{"formaT":"fastckpt",', b"\0" * 21, b'{"form', b'{"Format":"fastckpU",'])
def test_a_marker_that_is_nearly_ours(head: bytes, tmp_path: Path) -> None:
    fastckpt.save({"epoch": 3}, tmp_path / "s")
    marker = tmp_path / "s" / "snapshot_done"
    marker.write_bytes(head + (marker.read_bytes()[len(head) :] if len(head) == 21 else b""))
    for call in (fastckpt.load, fastckpt.open):
        with pytest.raises(fastckpt.CorruptError, match=r"snapshot_done: (damaged in its first bytes|stands alone)"):
            call(tmp_path / "s")
    assert not fastckpt.verify(tmp_path / "s")


def test_a_damaged_index_is_passed_over_with_a_warning(tree_path: Path) -> None:
    marker = tree_path / "snapshot_done"
    marker.write_bytes(marker.read_bytes().replace(b"kFloat", b"kInt32", 1))
    with pytest.warns(UserWarning, match="the index has changed since it was saved.*folders were read instead"):
        assert fastckpt.load(tree_path, as_="numpy")["model"]["big"].dtype == np.float32


# ---- checked loads ----


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("mode", choosing.MODES)
def test_no_checked_load_gives_wrong_bytes(mode: Any, indexed: bool, tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(flat(), path, index=indexed)
    for name in ("big", "small"):
        damage(path / name / "out")
    if indexed:  # the small copy that a load takes
        marker = (path / "snapshot_done").read_bytes()
        at = marker.rindex(np.arange(7).tobytes())
        (path / "snapshot_done").write_bytes(marker[:at] + b"\7" + marker[at + 1 :])
    for keys in (["tied"], ["small"], None):
        with pytest.raises(fastckpt.CorruptError, match="out: its bytes have changed") as refused:
            fastckpt.load(path, mode=mode, verify=True, keys=keys, as_="numpy")
    assert indexed or re.search("same is true of 1 more: '(big|small)'", str(refused.value))
    target = {key: np.full_like(value, 9) for key, value in flat().items()}
    with pytest.raises(fastckpt.CorruptError, match="out: its bytes have changed"):
        fastckpt.load_into(target, path, verify=True)
    assert (target["small"] == 9).all()


def test_an_open_that_checks(path: Path) -> None:
    damage(path / "big" / "out")
    fastckpt.open(path, as_="numpy")["big"][0]
    snapshot = fastckpt.open(path, as_="numpy", verify=True)
    assert snapshot["small"][3] == 3
    for _ in range(2):
        with pytest.raises(fastckpt.CorruptError, match="big/out: its bytes have changed"):
            snapshot["tied"][0]
    with pytest.raises(fastckpt.CorruptError, match="big/out: its bytes have changed"):
        np.asarray(snapshot["big"])
    damage(path / "small" / "meta", 12)
    with pytest.raises(fastckpt.CorruptError, match="small/meta: its text has changed"):
        fastckpt.open(path, verify=True)


# ---- verify ----


def test_verify_says_all_that_is_wrong_and_what_to_do(path: Path) -> None:
    damage(path / "big" / "out")
    os.truncate(path / "small" / "out", 3)
    damage(path / "none" / "meta", 20)
    report = fastckpt.verify(path)
    assert [Path(problem.file).relative_to(path).as_posix() for problem in report.problems] == [
        "none/meta",
        "small/out",
        "big/out",
    ] or len(report.problems) == 3
    by_file = {Path(problem.file).relative_to(path).as_posix(): problem for problem in report.problems}
    assert by_file["small/out"].what == "meta wants 56 bytes, file has 3"
    assert by_file["small/out"].remedy == "take another copy"
    assert by_file["big/out"].what.startswith("its bytes have changed since they were saved (crc32 ")
    assert by_file["big/out"] == f"{path}/big/out: {by_file['big/out'].what}; {by_file['big/out'].remedy}"
    assert (report.tensors, report.digests) == (3, 2), "and the others were checked"
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.problems[0].remedy == report.problems[0].remedy


def test_a_marker_on_a_bad_sector(tree_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fastckpt.opening.os.pread", refuse)
    report = fastckpt.verify(tree_path)
    assert report.problems[0].file == str(tree_path / "snapshot_done")
    assert len(fastckpt.salvage(tree_path).tensors) == 6
    with pytest.raises(OSError, match=r"Input/output error.*/snapshot_done"):
        fastckpt.load(tree_path)


def test_problems_of_errors() -> None:
    refusal = fastckpt.Problem.of(OSError(errno.EIO, "Input/output error", "s/a: b/out"), "s")
    assert (refusal.file, refusal.what) == ("s/a: b/out", "Input/output error")
    assert "salvage" in refusal.remedy
    bare = fastckpt.Problem.of(fastckpt.CorruptError("something"), "s")
    assert (str(bare), bare.file, bare.what) == ("something", "s", "something")


def test_verify_reads_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = filesystems.filesystem_of(tmp_path)
    if system.remote or system.in_memory:
        pytest.skip("nothing passes the page cache here")
    fastckpt.save({"big": np.ones(3_000_001), "warm": np.ones(300_000)}, tmp_path / "s")
    out = tmp_path / "s" / "big" / "out"
    evict(out)
    (tmp_path / "s" / "warm" / "out").read_bytes()
    asked: list[tuple[str, int]] = []
    read = _core.read_into
    monkeypatch.setattr(
        _core, "read_into", lambda *a, room=0, **k: (asked.append((a[1], room)), read(*a, room=room, **k))[1]
    )
    assert fastckpt.verify(tmp_path / "s")
    assert resident(out) < out.stat().st_size // 2
    assert {name for name, room in asked if room} == {"big/out"}
    assert len({name for name, _ in asked}) == 2
    assert max(room for _, room in asked) <= fetching.PART


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_crcs(threads: int | None, tmp_path: Path) -> None:
    sizes = [0, 1, 4096, 16_384, 16_385, (1 << 20) - 1, (9 << 20) + 5]
    fastckpt.save({str(size): np.arange(size).astype(np.uint8) for size in sizes}, tmp_path / "s")
    seen: list[tuple[int, int]] = []
    assert fastckpt.verify(tmp_path / "s", threads=threads, progress=lambda *told: seen.append(told))
    assert seen[-1] == (sum(sizes), sum(sizes))
    assert sorted(seen) == seen


def failing(monkeypatch: pytest.MonkeyPatch, code: int, *names: str) -> None:
    read = _core.read_into

    def refuse(dirfd: int, file: str, *rest: Any, **options: Any) -> None:
        if file in names:
            raise OSError(code, os.strerror(code), file)
        read(dirfd, file, *rest, **options)

    monkeypatch.setattr(_core, "read_into", refuse)


@pytest.mark.parametrize("name", ["big", "snapshot_done"])
def test_a_disk_that_fails(name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save(flat(), path, index=True)
    failing(monkeypatch, errno.EIO, *([name] if name == "snapshot_done" else ["big/out", "tied/out"]))
    (problem,) = fastckpt.verify(path).problems
    assert problem.what == "Input/output error"
    assert problem.file == str(path / name if name == "snapshot_done" else path / name / "out")
    found = salvage(path)
    assert problem in found.problems
    assert [*found.lost] == ([] if name == "snapshot_done" else ["big", "tied"])
    monkeypatch.undo()
    failing(monkeypatch, errno.EMFILE, "big/out")
    for call in (fastckpt.verify, fastckpt.salvage):
        with pytest.raises(OSError, match="Too many open files"):
            call(path)


# ---- salvage ----


def test_of_a_sound_snapshot_all_is_intact(path: Path, tree_path: Path) -> None:
    found = salvage(path)
    assert found
    assert (found.lost, found.problems, found.unchecked) == ({}, (), ())
    assert [*found.object] == [*flat()]
    assert found.object["tied"] is found.object["big"]
    found = salvage(tree_path)
    assert found
    assert found.object["phase"] is Phase.WARM
    assert np.array_equal(found.object["history"][0], np.arange(4))


def lose_a_folder(path: Path, name: str) -> None:
    shutil.rmtree(path / name)


def lose_a_blob(path: Path, name: str) -> None:
    (path / name / "out").unlink()


def cut_a_blob(path: Path, name: str) -> None:
    os.truncate(path / name / "out", 3)


def grow_a_blob(path: Path, name: str) -> None:
    os.truncate(path / name / "out", 300_000)


def damage_a_blob(path: Path, name: str) -> None:
    damage(path / name / "out")


def damage_a_meta(path: Path, name: str) -> None:
    damage(path / name / "meta", 12)


def lose_a_meta(path: Path, name: str) -> None:
    (path / name / "meta").unlink()


def link_a_blob(path: Path, name: str) -> None:
    shutil.move(path / name / "out", path.parent / "outside")
    (path / name / "out").symlink_to(path.parent / "outside")


DAMAGES: list[Callable[[Path, str], None]] = [
    *(lose_a_folder, lose_a_blob, cut_a_blob, grow_a_blob, damage_a_blob, damage_a_meta, lose_a_meta, link_a_blob),
]


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_one_tensor_of_a_flat_snapshot(hurt: Callable[[Path, str], None], path: Path) -> None:
    hurt(path, "small")
    found = salvage(path)
    assert not found
    assert [*found.object] == ["big", "a/b", "tied", "none"]
    assert [*found.lost] == ([] if hurt is lose_a_folder else ["small"]) or hurt is lose_a_meta
    assert found.problems
    with pytest.raises((fastckpt.CheckpointError, OSError)):
        fastckpt.load(path, verify=True)


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_one_tensor_of_a_nested_object(hurt: Callable[[Path, str], None], tree_path: Path, tmp_path: Path) -> None:
    """What the index has is taken from there; what is larger than its copies is lost."""
    hurt(tree_path, "model.small")
    found = salvage(tree_path)
    assert found
    assert found.problems
    assert np.array_equal(found.object["model"]["small"], np.arange(7))
    shutil.rmtree(tree_path)
    fastckpt.save(nested() | {"alone": np.arange(5000.0)}, tree_path)
    hurt(tree_path, "alone")
    found = fastckpt.salvage(tree_path, as_="numpy")
    assert bool(found) is (hurt in (damage_a_meta, lose_a_meta))
    if not found:
        assert [*found.lost] == ["alone"]
        assert found.object["alone"] is None
        assert str(tree_path / "alone") in found.lost["alone"].file
    assert found.object["epoch"] == 3
    found.save(tmp_path / "new")
    again = fastckpt.load(tmp_path / "new", as_="numpy", verify=True)
    assert again["phase"] is Phase.WARM
    assert (again["alone"] is None) is not bool(found)
    assert again["model"]["tied"] is again["model"]["big"]


def test_a_tie_has_a_file_of_its_own(path: Path) -> None:
    data = (path / "tied" / "out").read_bytes()
    (path / "tied" / "out").unlink()
    (path / "tied" / "out").write_bytes(data)
    damage(path / "big" / "out")
    found = salvage(path)
    assert found
    assert found.object["tied"] is found.object["big"]
    damage(path / "tied" / "out")
    assert [*salvage(path).lost] == ["big", "tied"]
    (path / "tied" / "out").write_bytes(data)
    shutil.rmtree(path / "big")
    found = salvage(path)
    assert not found
    assert "tied" in found.tensors


def test_without_digests_bytes_are_unchecked(path: Path) -> None:
    fastckpt.save(flat(), path, digest=False)
    assert salvage(path).unchecked == tuple(flat())
    damage(path / "small" / "out")
    found = fastckpt.salvage(path, as_="numpy")
    assert found.unchecked == tuple(flat())
    os.truncate(path / "small" / "out", 1)
    assert [*salvage(path).lost] == ["small"]


def test_a_save_that_never_finished(path: Path, tree_path: Path) -> None:
    (path / "snapshot_done").unlink()
    found = salvage(path)
    assert not found
    assert "no snapshot_done" in found.problems[0]
    assert [*found.object] == [*flat()]
    (tree_path / "snapshot_done").unlink()
    found = salvage(tree_path)
    assert not found
    assert found.record == ()
    assert [*found.object] == [*(f"model.{key}" for key in flat()), "history.0"]


@pytest.mark.parametrize("at", [3, 40, 250, 1500, -1])
def test_a_damaged_marker(at: int, tree_path: Path) -> None:
    damage(tree_path / "snapshot_done", at)
    found = salvage(tree_path)
    assert found.problems or found
    assert len(found.tensors) == 6
    assert not found.lost


def test_a_record_that_this_program_cannot_build(tree_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delattr("test_salvage.Phase")
    found = salvage(tree_path)
    assert not found
    assert len(found.object) == 6
    found.save(tmp_path / "new")
    monkeypatch.undo()
    assert fastckpt.load(tmp_path / "new")["phase"] is Phase.WARM


def test_what_stands_there_of_others(path: Path, tmp_path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    (path / "link").symlink_to(tmp_path)
    (path / "empty").mkdir()
    os.mkfifo(path / "fifo")
    found = salvage(path)
    assert [*found.tensors] == [*flat()]
    assert not found.lost
    assert any("notes.txt" in problem for problem in found.problems)


def test_containers(path: Path, tmp_path: Path) -> None:
    fastckpt.save(OrderedDict(flat()), path)
    damage(path / "small" / "out")
    assert type(salvage(path).object) is OrderedDict
    damage(path / "big" / "meta", 12)
    assert type(salvage(path).object) is dict
    shutil.rmtree(path)
    path.mkdir()
    found = fastckpt.salvage(path)
    assert not found
    with pytest.raises(fastckpt.UnsupportedError, match="nothing in it is intact"):
        found.save(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        fastckpt.salvage(tmp_path / "nowhere")


# ---- the commands ----


def run(*arguments: Any) -> Any:
    pytest.importorskip("rich")
    testing = pytest.importorskip("click.testing")
    from fastckpt.cli import commands

    return testing.CliRunner().invoke(commands, [*map(str, arguments)], catch_exceptions=False)


def test_the_commands(path: Path, tmp_path: Path) -> None:
    result = run("salvage", path, tmp_path / "whole")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path}/whole: saved, 5 tensors intact\n"
    damage(path / "small" / "out")
    found = json.loads(run("verify", path, "--json").stdout)["snapshots"][0]["problems"]
    assert [*found[0]] == ["file", "what", "remedy"]
    result = run("salvage", path, tmp_path / "new")
    assert result.exit_code == 1
    lost, saved = result.stdout.splitlines()
    assert lost.startswith("lost\tsmall\tits bytes have changed")
    assert saved == f"{tmp_path}/new: saved, 4 tensors intact"
    assert result.stderr.startswith(f"fastckpt: {path}/small/out: its bytes have changed")
    assert fastckpt.verify(tmp_path / "new").tensors == 4
    assert run("salvage", path, tmp_path / "new").exit_code == 2, "which exists"
    document = json.loads(run("salvage", path, tmp_path / "third", "--json").stdout)
    assert (document["complete"], document["new"]) == (False, str(tmp_path / "third"))
    assert document["intact"] == ["big", "a/b", "tied", "none"]
    assert document["lost"][0]["name"] == "small"
    shutil.rmtree(path)
    path.mkdir()
    result = run("salvage", path, tmp_path / "none")
    assert (result.exit_code, result.stdout) == (1, "nothing is intact, nothing saved\n")
    assert not (tmp_path / "none").exists()
