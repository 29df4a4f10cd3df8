"""fastckpt doctor: every fact or a reason, nothing left behind, and the right conclusions. Nothing here about speed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seccomp import NUMBERS, UNAVAILABLE

import fastckpt
from fastckpt import _core, measuring, probing, trials
from fastckpt.doctor import Examination, Machine, Software, examine, therefore
from fastckpt.filesystems import FileSystem
from fastckpt.measuring import Speed
from fastckpt.probing import Refused, answer
from fastckpt.trials import Folder

SOFTWARE = Software("3.11", True, "2.13", (), {"torch": "2.13"})
SECCOMP = str(Path(__file__).with_name("seccomp.py"))
NO = Refused("Invalid argument")


def fails(code: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with little."""
    monkeypatch.setattr(measuring, "_MOST", 16 << 20)
    monkeypatch.setattr(measuring, "_COPIED", 1 << 20)


@pytest.fixture
def found(tmp_path: Path) -> Examination:
    return examine(str(tmp_path), SOFTWARE, quick=True)


def with_folder(found: Examination, **changes: Any) -> Examination:
    return replace(found, folder=replace(found.folder, **changes))


GOOD = {
    "file_system": FileSystem("ext4"),
    "writable": True,
    "direct_io": True,
    "direct_memory_alignment": 512,
    "direct_offset_alignment": 512,
    "exchange": True,
    "folder_lock": True,
    "hard_links": True,
}


# ---- the facts ----


def test_every_fact_or_a_reason_and_nothing_left(tmp_path: Path) -> None:
    found = examine(str(tmp_path), SOFTWARE)
    assert os.listdir(tmp_path) == []
    assert found.folder.writable is True
    assert isinstance(found.folder.free_bytes, int)
    assert isinstance(found.machine.memory_bytes, int)
    assert found.machine.memory_bytes >= 1 << 20
    assert found.machine.cpus_allowed >= 1
    assert found.speed is not None
    assert found.speed.size_bytes == 16 << 20
    for part in (found.machine, found.folder, found.speed):
        for fact in vars(part).values():
            assert fact or isinstance(fact, Refused), vars(part)
            assert not isinstance(fact, Refused) or fact.reason, vars(part)


def test_quick_measures_nothing(found: Examination) -> None:
    assert found.speed is None


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_without_nameless_files_a_name_stands_for_a_moment(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, named = os.open, []

    def no_tmpfile(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            fails(code)()
        named.append(path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", no_tmpfile)
    found = examine(str(tmp_path), SOFTWARE)
    assert any(str(name).startswith(".fastckpt-doctor-") for name in named)
    assert found.folder.writable is True
    assert found.speed is not None
    assert found.speed.buffered_write_bytes_per_second
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_only_looked_at(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "out").write_bytes(b"1" * 4096)
    monkeypatch.setattr(trials, "nameless", fails(code))
    found = examine(str(tmp_path), SOFTWARE)
    assert found.folder.writable == Refused(os.strerror(code))
    assert found.speed is None
    assert found.folder.exchange == Refused("not tried: the folder is not writable")
    assert "No such file" not in repr(found.folder.direct_io)  # a file that is there was asked
    assert therefore(found)[0] == f"saves: none into this folder: {os.strerror(code)}"


def test_a_read_only_folder_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "nameless", fails(errno.EROFS))
    found = examine(str(tmp_path), SOFTWARE)
    reason = Refused("not tried: no file can be created, and there is none to ask about")
    assert found.folder.direct_io == found.folder.direct_memory_alignment == reason


def test_a_folder_that_really_is_read_only() -> None:
    found = examine("/proc/self", SOFTWARE)
    assert found.folder.file_system.name == "proc"
    assert not found.folder.writable
    assert found.speed is None


def test_nothing_is_added_to_a_snapshot(tmp_path: Path) -> None:
    fastckpt.save({"a": np.ones(3)}, tmp_path / "s")
    before = (tmp_path / "s").stat().st_mtime_ns
    found = examine(str(tmp_path / "s"), SOFTWARE)
    assert isinstance(found.folder.writable, Refused)
    assert "snapshot" in found.folder.writable.reason
    assert (tmp_path / "s").stat().st_mtime_ns == before


def test_what_cannot_be_done_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "renameat2", fails(errno.ENOSYS))
    monkeypatch.setattr(trials.fcntl, "flock", fails(errno.ENOLCK))
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    monkeypatch.setattr(trials, "reopened", fails(errno.EINVAL))
    folder = examine(str(tmp_path), SOFTWARE, quick=True).folder
    assert folder.exchange == folder.no_replace == Refused("Function not implemented")
    assert folder.folder_lock == Refused("No locks available")
    assert folder.hard_links == Refused("Operation not permitted")
    assert folder.direct_io == Refused("Invalid argument")
    assert folder.writable is True
    assert os.listdir(tmp_path) == []


def test_no_folder_for_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", fails(errno.EDQUOT))
    folder = examine(str(tmp_path), SOFTWARE, quick=True).folder
    assert folder.exchange == folder.hard_links == Refused(os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("way", ["pwrite", "preadv", "fsync"])
def test_measurements_that_fail(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, way, fails(errno.EIO))
    speed = examine(str(tmp_path), SOFTWARE).speed
    assert speed is not None
    assert isinstance(speed.direct_read_bytes_per_second, Refused)
    assert isinstance(speed.buffered_write_bytes_per_second, Refused) is (way != "preadv")
    assert isinstance(speed.memory_copy_bytes_per_second, float)
    assert os.listdir(tmp_path) == []


def test_too_little_space_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "memory", lambda _: 1 << 20)
    speed = examine(str(tmp_path), SOFTWARE).speed
    assert speed is not None
    assert isinstance(speed.size_bytes, Refused)
    assert speed.direct_write_bytes_per_second == speed.size_bytes
    assert speed.memory_copy_bytes_per_second


def test_a_slow_disk_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_PATIENCE", 0.0)
    speed = examine(str(tmp_path), SOFTWARE).speed
    assert speed is not None
    assert not speed.direct_read_bytes_per_second
    assert speed.buffered_write_bytes_per_second == 0


def test_statx_that_does_not_say_or_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, mask: int) -> None:
            self.mask = mask

        def statx(self, fd: int, path: bytes, flags: int, wanted: int, room: Any) -> int:
            ctypes.memmove(room, self.mask.to_bytes(4, sys.byteorder), 4)
            return 0

    monkeypatch.setattr(probing, "_LIBC", Libc(0))
    assert answer(probing.direct_alignment, 0) == Refused("statx: the file system does not say")
    monkeypatch.setattr(probing, "_LIBC", Libc(0x2000))
    assert answer(probing.direct_alignment, 0) == Refused("statx: no O_DIRECT for this file")
    monkeypatch.setattr(probing, "_LIBC", object())
    assert "statx" in answer(probing.direct_alignment, 0).reason  # type: ignore[union-attr]


def test_odd_files_of_proc(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("many\n")
    assert "many" in answer(probing.whole_number, str(tmp_path / "number")).reason  # type: ignore[union-attr]
    assert answer(probing.whole_number, "/nowhere") == Refused("No such file or directory")
    assert answer(probing.memory, "Nothing") == Refused("/proc/meminfo has no Nothing")


@pytest.mark.skipif(not NUMBERS, reason="the numbers of system calls are not known")
def test_a_sandbox_without_openat2() -> None:
    code = "from fastckpt.probing import *; print(answer(has_openat2)); print(answer(has_cachestat))"
    command = [sys.executable, SECCOMP, "openat2", str(errno.ENOSYS), "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == UNAVAILABLE:
        pytest.skip("no seccomp")
    assert done.stdout.splitlines()[0] == "Refused(reason='openat2: Function not implemented')", done.stderr


# ---- nothing stays behind ----


def test_ctrl_c_waits_until_the_names_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def interrupted(fd: int) -> bool:
        signal.raise_signal(signal.SIGINT)
        seen.append(os.listdir(tmp_path))
        return True

    monkeypatch.setattr(trials, "_locks", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        examine(str(tmp_path), SOFTWARE, quick=True)
    assert len(seen) == len(seen[0]) == 1
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        examine(str(tmp_path), SOFTWARE)
    assert os.listdir(tmp_path) == []


def test_a_kill_while_measuring(tmp_path: Path) -> None:
    code = (
        "import os, sys; from fastckpt import measuring;"
        "os.fsync = lambda _: os.kill(os.getpid(), 9);"
        "measuring._MOST = 16 << 20;"
        "measuring.measure(os.open(sys.argv[1], os.O_RDONLY))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == []


def test_in_another_thread(tmp_path: Path) -> None:
    found: list[Examination] = []
    thread = threading.Thread(target=lambda: found.append(examine(str(tmp_path), SOFTWARE, quick=True)))
    thread.start()
    thread.join()
    assert found[0].folder.writable is True
    assert os.listdir(tmp_path) == []


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    examine(str(tmp_path), SOFTWARE)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- therefore ----


@pytest.fixture
def slow_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel whose page cache has no huge pages of any file."""
    monkeypatch.setattr("fastckpt.doctor.maps_fast", lambda system: False)


def test_maps_where_they_are_fast(found: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.doctor.maps_fast", lambda system: True)
    sentence = "loads: maps, and what is not in the page cache comes in huge pages when it is touched"
    assert sentence in therefore(with_folder(found, **GOOD))


@pytest.mark.usefixtures("slow_maps")
def test_a_good_folder(found: Examination) -> None:
    machine = replace(found.machine, max_map_count=65_530, openat2=True)
    assert therefore(replace(with_folder(found, **GOOD), machine=machine)) == [
        "saves: O_DIRECT in parts of 4 MiB, 512-byte aligned",
        "durable saves: one sync of the whole file system at the end; of every file, while others write much there",
        "loads: maps what is in the page cache, reads the rest with O_DIRECT",
        "at most 30,000 tensors of a snapshot are mapped, and of more than that no small ones",
    ]


@pytest.mark.usefixtures("slow_maps")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"file_system": FileSystem.named("nfs4")},
            "loads: nfs4 is a network file system, or a program's: no maps by default, large parallel reads",
        ),
        (
            {"file_system": FileSystem.named("nfs4")},
            "saves: through the page cache: nfs4 is a network file system, or a program's",
        ),
        ({"file_system": FileSystem.named("tmpfs")}, "saves: into memory; nothing on tmpfs survives a restart"),
        ({"file_system": FileSystem.named("tmpfs")}, "loads: maps, since all of it is in memory"),
        ({"direct_io": NO}, "saves: through the page cache: O_DIRECT is refused (Invalid argument)"),
        ({"direct_io": NO}, "loads: maps what is in the page cache, reads the rest through it"),
        ({"direct_offset_alignment": 65536}, "loads: maps what is in the page cache, reads the rest through it"),
        (
            {"direct_offset_alignment": 65536},
            "saves: through the page cache: O_DIRECT wants pieces in steps of 65,536 bytes",
        ),
        ({"direct_memory_alignment": NO, "direct_offset_alignment": NO}, "saves: O_DIRECT in parts of 4 MiB"),
        (
            {"file_system": FileSystem.named("overlay")},
            "durable saves: every file and folder is synced on its own: a sync of all of overlay cannot be relied on",
        ),
        (
            {"exchange": NO},
            "no exchange of folders here (Invalid argument): two renames, readers look at .NAME.previous in between",
        ),
        (
            {"folder_lock": NO},
            "folders cannot be locked here (Invalid argument): a lock file .NAME.lock for the whole save",
        ),
        ({"hard_links": NO}, "no hard links here (Invalid argument): tied tensors are stored once for each name"),
    ],
)
def test_what_follows(changes: dict[str, Any], sentence: str, found: Examination) -> None:
    assert sentence in therefore(with_folder(found, **{**GOOD, **changes}))


def test_what_follows_from_the_machine(found: Examination) -> None:
    bad = replace(
        found,
        machine=replace(found.machine, max_map_count=1000, openat2=NO),
        software=replace(SOFTWARE, packages={"torch": None}),
    )
    assert therefore(bad)[-3:] == [
        "vm.max_map_count allows only 1,000 maps: what does not fit is read",
        "files are opened step by step, so that no link is followed (Invalid argument)",
        "torch is not installed: what was saved from it loads as numpy arrays",
    ]


def test_what_is_done_with_a_device(found: Examination) -> None:
    sentence = "CUDA: files are read into 16 page-locked rooms of 4 MiB, copied while more are read"
    there = replace(found, software=replace(SOFTWARE, cuda_devices=("a card",)))
    assert sentence in therefore(there)
    assert not [line for line in therefore(replace(found, software=SOFTWARE)) if line.startswith("CUDA")]


# ---- the command ----


@pytest.fixture
def run() -> Callable[..., Any]:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from click.testing import CliRunner

    from fastckpt.cli import commands

    def run(*arguments: Any) -> Any:
        return CliRunner(env={"COLUMNS": "200"}).invoke(
            commands, ["doctor", *map(str, arguments)], catch_exceptions=False
        )

    return run


def test_json_has_every_field(tmp_path: Path, run: Callable[..., Any]) -> None:
    result = run(tmp_path, "--json", "--no-torch")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [*document] == ["path", "machine", "folder", "speed", "software", "reasons", "therefore"]
    assert document["path"] == str(tmp_path)
    for section, kind in (("machine", Machine), ("folder", Folder), ("speed", Speed), ("software", Software)):
        assert {*document[section]} - {"remote", "in_memory"} == {field.name for field in fields(kind)}
    assert isinstance(document["folder"]["file_system"], str)
    assert {type(document["folder"]["remote"]), type(document["folder"]["in_memory"])} == {bool}
    assert document["software"]["packages"]["numpy"] == np.__version__
    assert document["reasons"]["software.torch"] == "not imported: --no-torch"
    unknown = {
        f"{part}.{name}"
        for part in document
        if part in ("machine", "folder", "speed", "software")
        for name, value in document[part].items()
        if value is None
    }
    assert unknown == {*document["reasons"]}
    assert document["therefore"]
    assert os.listdir(tmp_path) == []


def test_json_quick(tmp_path: Path, run: Callable[..., Any]) -> None:
    assert json.loads(run(tmp_path, "--json", "--no-torch", "--quick").stdout)["speed"] is None


def test_in_a_pipe_are_lines_with_tabs(tmp_path: Path, run: Callable[..., Any]) -> None:
    rows = [line.split("\t") for line in run(tmp_path, "--quick", "--no-torch").stdout.splitlines()]
    assert {len(row) for row in rows if row[0] != "therefore"} == {4}
    assert ["folder", "writable", "yes", ""] in rows
    assert ["software", "torch", "", "not imported: --no-torch"] in rows
    assert [len(row) for row in rows if row[0] == "therefore"] in ([2] * n for n in range(1, 20))


def test_on_a_terminal(tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastckpt import cli_doctor, rendering

    class Sys:
        class stdout:  # noqa: N801
            isatty = staticmethod(lambda: True)

    monkeypatch.setattr(cli_doctor, "sys", Sys)
    monkeypatch.setattr(rendering, "sys", Sys)
    text = run(tmp_path, "--no-torch").stdout
    assert "GB/s" in text
    assert "direct memory alignment" in text
    assert "GiB" in text
    assert "• " in text


def test_no_folder_is_one_line(tmp_path: Path, run: Callable[..., Any]) -> None:
    result = run(tmp_path / "missing", "--no-torch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"fastckpt: {tmp_path}/missing: No such file or directory\n"
    (tmp_path / "file").touch()
    result = run(tmp_path / "file", "--no-torch")
    assert (result.exit_code, result.stderr) == (2, f"fastckpt: {tmp_path}/file: Not a directory\n")


def test_torch_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastckpt.software import installed

    monkeypatch.setitem(sys.modules, "torch", None)
    found = installed()
    assert isinstance(found.torch, Refused)
    assert found.torch == found.cuda_devices


def test_torch_that_is_there() -> None:
    torch = pytest.importorskip("torch")
    from fastckpt.software import installed

    found = installed()
    assert found.torch == torch.__version__
    assert isinstance(found.cuda_devices, (tuple, Refused))
