"""What a reader takes on at most, and what it does where other limits are met: sizes, counts, rights, changes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_cases
import numpy as np
import pytest

import fastckpt
from fastckpt import contents as contents_module

MODES = ("auto", "mmap", "read", "direct")
EVIL = "evil\x1b[2J\x9b\u202e\udcff"


def sparse(folder: Path, kind: str = "kFloat", nbytes: int = hostile_cases.HUGE) -> Path:
    """A snapshot of OneFlow with one tensor that is there, and one of zeros that are nowhere."""
    hostile_cases.folder(folder, "huge", (nbytes // (1 if kind == "kBool" else 4),), kind)
    os.truncate(folder / "huge/out", nbytes)
    hostile_cases.folder(folder, "small", (2,), data=bytes(8))
    (folder / "snapshot_done").touch()
    return folder


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- max_bytes ----


@pytest.mark.skipif("FASTCKPT_NO_ROOM" in os.environ, reason="the tool that this runs under leaves no such addresses")
def test_terabytes_of_nothing_are_mapped_and_not_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "s")
    before = resident_bytes()
    for tensors in (fastckpt.load(path, as_="numpy"), fastckpt.load(path, as_="numpy", mode="mmap")):
        assert tensors["huge"].nbytes == hostile_cases.HUGE
        assert tensors["huge"][-1] == 0
    assert fastckpt.open(path, as_="numpy")["huge"][12345:12347].tolist() == [0, 0]
    assert resident_bytes() - before < 64 << 20
    assert fastckpt.load(path, as_="numpy", keys=["small"], mode="read")["small"].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["kFloat", "kBool"])
@pytest.mark.parametrize("mode", MODES)
def test_max_bytes_refuses_before_it_takes_memory(mode: Any, kind: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "s", kind)
    for way in (
        lambda: fastckpt.load(path, as_="numpy", mode=mode, max_bytes=1 << 30),
        lambda: fastckpt.load(path, mode=mode, max_bytes=1 << 30),
        lambda: fastckpt.load(path, as_="numpy", mode=mode, keys=["huge"], max_bytes=1 << 30),
        lambda: fastckpt.open(path, max_bytes=1 << 30),
    ):
        with pytest.raises(
            fastckpt.LimitError, match=r"/s: its tensors take 8796093022\d+ bytes.*max_bytes=1073741824"
        ):
            way()
    few = fastckpt.load(path, as_="numpy", mode=mode, keys=["small"], max_bytes=8)
    assert few["small"].tolist() == [0, 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", [*hostile_cases.BASES])
def test_max_bytes_lets_pass_what_fits_exactly(base: str, mode: Any, tmp_path: Path) -> None:
    hostile_cases.BASES[base](tmp_path / "s")
    nbytes = fastckpt.open(tmp_path / "s").nbytes
    free = fastckpt.load(tmp_path / "s", as_="numpy", mode=mode)
    limited = fastckpt.load(tmp_path / "s", as_="numpy", mode=mode, max_bytes=nbytes)
    assert repr(limited) == repr(free)
    snapshot = fastckpt.open(tmp_path / "s", as_="numpy", max_bytes=nbytes)
    assert {key: snapshot[key][...].tobytes() for key in snapshot}.keys() == {*snapshot}
    for way in (fastckpt.load, fastckpt.open):
        with pytest.raises(fastckpt.LimitError):
            way(tmp_path / "s", max_bytes=nbytes - 1)


def test_ties_count_once(tmp_path: Path) -> None:
    array = np.arange(10_000.0)
    fastckpt.save({"a": array, "b": array}, tmp_path / "s")
    assert fastckpt.load(tmp_path / "s", as_="numpy", max_bytes=80_000)["b"][-1] == 9999


def test_read_private_takes_no_maps_of_the_folder(tmp_path: Path) -> None:
    """So that whoever cuts a file off meanwhile gets an error and not a SIGBUS."""
    for base, build in hostile_cases.BASES.items():
        build(tmp_path / base)
        for mode in ("read", "direct"):
            tensors = fastckpt.load(tmp_path / base, as_="numpy", mode=mode)
            with open("/proc/self/maps") as maps:
                assert str(tmp_path / base) not in maps.read()
            assert tensors


# ---- max_tensors ----


@pytest.fixture
def many(memory_path: Path) -> Iterator[Path]:
    path = memory_path / "many"
    path.mkdir()
    (path / "first").mkdir()
    (path / "first/meta").write_bytes(hostile_cases.meta_text((0,)))
    (path / "first/out").touch()
    at = os.open(path, os.O_RDONLY)
    for place in range(1, 100_000):
        os.mkdir(f"{place}", dir_fd=at)
        for name in ("meta", "out"):
            os.link(f"first/{name}", f"{place}/{name}", src_dir_fd=at, dst_dir_fd=at)
    os.close(at)
    (path / "snapshot_done").touch()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.mark.slow
def test_a_hundred_thousand_empty_tensors(many: Path) -> None:
    script = (
        "import resource, sys, fastckpt; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "print(len(fastckpt.load(sys.argv[1], as_='numpy')), len(fastckpt.open(sys.argv[1], as_='numpy')))"
    )
    home = str(Path(fastckpt.__file__).parents[1])
    told = subprocess.run(
        [sys.executable, "-c", script, many],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": home},
    )
    assert told.stdout.split() == ["100000", "100000"]
    tracemalloc.start()
    for way in (fastckpt.load, fastckpt.open):
        with pytest.raises(fastckpt.LimitError, match="/many: more tensor folders than max_tensors"):
            way(many, max_tensors=99_999)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20  # the names, and nothing of what they hold
    tracemalloc.stop()


def test_max_tensors(tmp_path: Path) -> None:
    for base, build in hostile_cases.BASES.items():
        build(tmp_path / base)
        count = len(fastckpt.open(tmp_path / base))
        for way in (fastckpt.load, fastckpt.open):
            assert way(tmp_path / base, max_tensors=count) is not None
            with pytest.raises(fastckpt.LimitError):
                way(tmp_path / base, max_tensors=count - 1)


def test_folders_in_folders_count(tmp_path: Path) -> None:
    for name in ("a/b", "a/c", "a/d/e"):
        hostile_cases.folder(tmp_path / "s", name, (0,))
    (tmp_path / "s/snapshot_done").touch()
    assert len(fastckpt.load(tmp_path / "s", max_tensors=5)) == 3
    with pytest.raises(fastckpt.LimitError):
        fastckpt.load(tmp_path / "s", max_tensors=4)


def test_a_million_is_what_is_allowed_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_cases.BASES["flat"](tmp_path / "s")
    monkeypatch.setattr(contents_module.os, "listdir", lambda fd: ["snapshot_done", *map(str, range(1_000_001))])
    for way in (fastckpt.load, fastckpt.open):
        with pytest.raises(fastckpt.LimitError):
            way(tmp_path / "s")


# ---- what a save does with what it finds ----


def test_a_file_of_others_that_is_linked_is_never_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(8))
    victim.chmod(0o640)
    hostile_cases.BASES["oneflow"](tmp_path / "s")
    (tmp_path / "s/b/out").unlink()
    os.link(victim, tmp_path / "s/b/out")
    before = victim.stat()
    for mode in MODES:
        loaded = fastckpt.load(tmp_path / "s", as_="numpy", mode=mode)
        loaded["b"][:] = 7
    fastckpt.save({"b": np.ones(2, np.float32)}, tmp_path / "s")
    after = victim.stat()
    assert victim.read_bytes() == bytes(8)
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert after.st_nlink == 1


@pytest.mark.parametrize(
    "key", ["", ".", "..", "/", "/etc/x", "../x", "a/../../x", "n\0ul", "x" * 300, "snapshot_done"]
)
def test_no_key_leads_out_of_a_save(key: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    fastckpt.save({key: np.ones(2), "plain": np.zeros(1)}, tmp_path / "in/s")
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["s"]
    assert all(len(name.encode()) <= 255 for name in os.listdir(tmp_path / "in/s"))
    assert sorted(fastckpt.load(tmp_path / "in/s", as_="numpy")) == sorted([key, "plain"])


# ---- rights, changes, names ----


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do everything; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(".", 0o300), (".", 0o500 & ~0o100), (".", 0), ("b", 0), ("b/meta", 0), ("b/out", 0), ("snapshot_done", 0)],
)
def test_what_may_not_be_read_is_the_system_s_refusal(name: str, mode: int) -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's own folder is closed to others
        os.chmod(parent, 0o755)
        path = Path(parent, "s")
        hostile_cases.BASES["nested"](path)
        name = name.replace("b", "model.big", 1) if name.startswith("b") else name
        for file in [path, *path.rglob("*")]:
            os.chown(file, 65534, 65534) if os.geteuid() == 0 else None
        (path / name).chmod(mode)
        for way in (fastckpt.load, fastckpt.open, fastckpt.verify):
            with as_nobody():
                try:
                    report = way(path)
                except PermissionError as denied:
                    assert str(denied.filename).startswith(str(path))
                else:  # what an index has copied needs no file; and verify tells of all that it finds
                    assert name == "model.big/meta" or (way is fastckpt.verify and not report.ok)
        (path / name).chmod(0o700)


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_vanishes_between_the_list_and_the_look(mode: Any, tmp_path: Path, monkeypatch: Any) -> None:
    hostile_cases.BASES["oneflow"](tmp_path / "s")
    listed = os.listdir

    def listdir(fd: int) -> list[str]:
        names = listed(fd)
        shutil.rmtree(tmp_path / "s/b", ignore_errors=True)
        return names

    monkeypatch.setattr("fastckpt.loading.load_plain", lambda *_: None)  # it would look before
    monkeypatch.setattr(contents_module.os, "listdir", listdir)
    with pytest.warns(UserWarning, match="/s/b: no tensor, passed over"):
        assert [*fastckpt.load(tmp_path / "s", mode=mode)] == ["a"]
    hostile_cases.BASES["flat"](tmp_path / "t")
    monkeypatch.setattr(contents_module.os, "listdir", lambda fd: [*listed(fd), "c"])
    with pytest.warns(UserWarning, match="/t/c: no tensor, passed over"):
        assert [*fastckpt.load(tmp_path / "t", mode=mode, verify=True)] == ["a", "b"]


@pytest.mark.parametrize("size", [0, 39_999, 40_001])
@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_changes_its_size_after_the_look(mode: Any, size: int, tmp_path: Path, monkeypatch: Any) -> None:
    """The descriptor that is read or mapped is the one that is asked for the size."""
    path = tmp_path / "s"
    fastckpt.save({"big": np.zeros(5000)}, path)
    chosen: Callable[..., Any] = contents_module.Contents.select

    def select(self: Any, *arguments: Any) -> Any:
        entries = chosen(self, *arguments)
        os.truncate(path / "big/out", size)
        return entries

    monkeypatch.setattr(contents_module.Contents, "select", select)
    with pytest.raises(fastckpt.CorruptError, match="big/out"):
        fastckpt.load(path, mode=mode, keys=["big"])


def test_names_cannot_talk_to_the_terminal(tmp_path: Path) -> None:
    fastckpt.save({EVIL: np.ones(2), "a": np.ones(1)}, tmp_path / "ours")
    hostile_cases.folder(tmp_path / "theirs", EVIL.replace("\x9b", ""), (2,), data=bytes(7))
    (tmp_path / "theirs/snapshot_done").touch()
    hostile_cases.folder(tmp_path / "stray", "a", (2,), data=bytes(8))
    (tmp_path / "stray" / EVIL.replace("\x9b", "")).touch()
    (tmp_path / "stray/snapshot_done").touch()
    said = []
    with pytest.raises(fastckpt.CorruptError) as refused:
        fastckpt.load(tmp_path / "theirs")
    said += [str(refused.value), *fastckpt.verify(tmp_path / "theirs").problems]
    with pytest.warns(UserWarning, match="no snapshot") as warned:
        fastckpt.load(tmp_path / "stray")
    said += [str(warning.message) for warning in warned]
    with pytest.raises(fastckpt.MismatchError) as unmatched:
        fastckpt.load_into({"b": np.ones(3)}, tmp_path / "ours")
    said += str(unmatched.value).split("\n\t")
    for path in ("ours", "theirs", "stray"):
        for command in ("ls", "show", "verify"):
            done = subprocess.run(
                [sys.executable, "-m", "fastckpt", command, tmp_path / path],
                check=False,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(fastckpt.__file__).parents[1])},
            )
            said += (done.stdout + done.stderr).replace("\t", "").splitlines()
    assert len(said) > 10
    assert all(text.isprintable() for text in said), said
    assert any(r"\x1b[2J" in text for text in said)


def test_an_error_of_the_system_keeps_its_number(tmp_path: Path, monkeypatch: Any) -> None:
    hostile_cases.BASES["flat"](tmp_path / "s")
    opened = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if path == "snapshot_done":
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *arguments, **options)

    monkeypatch.setattr("fastckpt.loading.load_plain", lambda *_: None)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files") as refused:
        fastckpt.load(tmp_path / "s")
    assert (refused.value.errno, refused.value.filename) == (errno.EMFILE, str(tmp_path / "s/snapshot_done"))


def test_a_long_record_before_an_index_with_zeros_between(tmp_path: Path) -> None:
    """The line is longer than one look at the file, and behind its end there are zeros."""
    state = {"log": ["y" * 1000] * 500, "w": np.arange(3)}
    fastckpt.save(state, tmp_path / "s")
    assert fastckpt.load(tmp_path / "s")["log"] == state["log"]


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1, -2, -(2**70), True, False, 1.0, "1"])
@pytest.mark.parametrize("call", ["save", "save_async", "load", "verify", "salvage"])
def test_a_number_of_threads_that_is_none_is_refused_at_once(tmp_path: Path, call: str, threads: Any) -> None:
    fastckpt.save({"w": np.arange(3)}, tmp_path / "s")
    before = (tmp_path / "s").stat().st_ino
    path = tmp_path / "s" if call.startswith("save") else tmp_path / "none"  # which is not even looked for
    arguments = ({}, path) if call.startswith("save") else (path,)
    right = type(threads) is int
    text = f"not {threads}$" if right else f"not {type(threads).__name__}$"
    with pytest.raises(ValueError if right else TypeError, match=f"^threads must be .* {text}"):
        getattr(fastckpt, call)(*arguments, threads=threads)
    assert (tmp_path / "s").stat().st_ino == before


@pytest.mark.parametrize("threads", [None, 1, np.int64(3)])
def test_numbers_of_threads(tmp_path: Path, threads: Any) -> None:
    obj = {"w": np.arange(1 << 20)}
    fastckpt.save(obj, tmp_path / "s", threads=threads)
    fastckpt.save_async(obj, tmp_path / "s", threads=threads).result()
    assert fastckpt.verify(tmp_path / "s", threads=threads).ok
    loaded = fastckpt.load(tmp_path / "s", as_="numpy", mode="read", threads=threads)
    assert (loaded["w"] == obj["w"]).all()
