"""What a save replaces and what it never does; what it leaves when it is stopped; what it does without renameat2."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np
import pytest

import fastckpt
from fastckpt import _core, commit, opening, ways
from fastckpt.arrays import NumpyCodec
from fastckpt.errors import FormatError, NotCommittedError, UnsupportedError
from fastckpt.filesystems import filesystem_of
from fastckpt.handles import Handle
from fastckpt.staging import Stage

OLD, NEW = rig.flat(1), rig.flat(2)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder with one snapshot `s`."""
    with rig.fast_folder() as folder:
        fastckpt.save(OLD, folder / "s")
        yield folder


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def leave(parent: Path, name: str = ".s.saving-00000000") -> Path:
    """What a save leaves that is killed right before the exchange."""
    with rig.fast_folder() as elsewhere:
        fastckpt.save(NEW, elsewhere / "s")
        shutil.copytree(elsewhere / "s", parent / name)
    return parent / name


def save_empty(path: Path, meanwhile: Callable[[], object], **options: bool) -> None:
    """Save a snapshot of nothing, and do something right before it is published."""
    with commit.staging(str(path), **options) as stage:
        stage.seal([b""])
        meanwhile()


def refusing(code: int, times: int = 1 << 30) -> Callable[..., Any]:
    left = [times]

    def refused(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(code, os.strerror(code), "below", None, "other")
            return real(*arguments, **options)

        return call

    return refused


# --- what is replaced, and what never ---------------------------------------------------------------------------------


def test_a_snapshot_is_replaced_and_nothing_else_stays(parent: Path) -> None:
    fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert names(parent) == {"s"}


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    fastckpt.save(NEW, tmp_path / "s")
    assert rig.equal(rig.loaded(tmp_path / "s"), NEW)
    assert names(tmp_path) == {"s"}


def make_file(path: Path) -> None:
    path.write_bytes(b"mine")


def make_folder(path: Path) -> None:
    (path / "mine").mkdir(parents=True)


def make_marker_folder(path: Path) -> None:
    (path / "snapshot_done" / "mine").mkdir(parents=True)


def make_unmarked(path: Path) -> None:
    fastckpt.save(OLD, path)
    (path / "snapshot_done").unlink()


def snapshot_with(*parts: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        fastckpt.save(OLD, path)
        stranger = path.joinpath(*parts)
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_bytes(b"mine")

    return make


def snapshot_with_link(path: Path) -> None:
    fastckpt.save(OLD, path)
    (path / "latest").symlink_to("w")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (make_file, FormatError),
        (make_folder, NotCommittedError),
        (make_marker_folder, NotCommittedError),
        (make_unmarked, NotCommittedError),
        (snapshot_with("notes.txt"), FormatError),
        (snapshot_with("project", "main.c"), FormatError),
        (snapshot_with("project", "build", "out.o"), FormatError),
        (snapshot_with("w", "notes.txt"), FormatError),
        (snapshot_with_link, FormatError),
    ],
    ids=["file", "folder", "marker-folder", "unmarked", "file-in", "folder-in", "deep-in", "file-in-tensor", "link-in"],
)
def test_what_is_no_snapshot_is_never_replaced(
    make: Callable[[Path], None], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "s")
    before = rig.tree_of(tmp_path)
    monkeypatch.setattr(os, "mkdir", refusing(errno.EIO)(os.mkdir))  # before anything is written
    with pytest.raises(error, match=str(tmp_path / "s")):
        fastckpt.save(NEW, tmp_path / "s")
    assert rig.tree_of(tmp_path) == before


def test_what_came_into_the_snapshot_during_the_save_is_not_lost(parent: Path) -> None:
    with pytest.raises(FormatError, match=r"s/notes\.txt"):
        save_empty(parent / "s", lambda: (parent / "s" / "notes.txt").write_bytes(b"mine"))
    assert (parent / "s" / "notes.txt").read_bytes() == b"mine"
    assert names(parent) == {"s"}


def test_folders_in_folders_of_oneflow_are_tensors(tmp_path: Path) -> None:
    for folder in ("plain", "a/b", "a/c"):
        (tmp_path / "s" / folder).mkdir(parents=True)
        (tmp_path / "s" / folder / "out").write_bytes(b"1234")
    (tmp_path / "s" / "snapshot_done").touch()
    fastckpt.save(NEW, tmp_path / "s")
    assert rig.equal(rig.loaded(tmp_path / "s"), NEW)


def test_overwrite_false(parent: Path) -> None:
    before = rig.tree_of(parent)
    for name in ("s", "empty"):
        (parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileExistsError) as caught:
            fastckpt.save(NEW, parent / name, overwrite=False)
        assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(parent / name))
        assert "overwrite=False; choose another path" in str(caught.value)
    (parent / "empty").rmdir()
    assert rig.tree_of(parent) == before
    fastckpt.save(NEW, parent / "t", overwrite=False)
    assert names(parent) == {"s", "t"}


def test_overwrite_false_when_another_save_was_quicker(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(FileExistsError) as caught:
        save_empty(path, lambda: fastckpt.save(OLD, path), overwrite=False)
    assert caught.value.filename == str(path)
    assert rig.equal(rig.loaded(tmp_path / "s"), OLD)
    assert names(tmp_path) == {"s"}


def test_a_link_to_a_snapshot_is_followed(parent: Path) -> None:
    (parent / "links").mkdir()
    (parent / "links" / "latest").symlink_to("../s")
    (parent / "links" / "next").symlink_to("../t")
    for link, snapshot in (("latest", "s"), ("next", "t")):
        fastckpt.save(NEW, parent / "links" / link)
        assert (parent / "links" / link).is_symlink()
        assert rig.equal(rig.loaded(parent / snapshot), NEW)
    assert names(parent) == {"links", "s", "t"}
    assert names(parent / "links") == {"latest", "next"}


@pytest.mark.parametrize("path", ["nowhere/s", "", "s/w/out/t"])
def test_a_missing_parent_is_named(parent: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parent)
    error = NotADirectoryError if "out" in path else FileNotFoundError
    with pytest.raises(error) as caught:
        fastckpt.save(NEW, path)
    assert caught.value.errno
    assert caught.value.filename == (os.path.join(parent, os.path.dirname(path)) if path else "")
    remedy = {"nowhere/s": "create it first", "": "name a folder"}.get(path, "Not a directory")
    assert remedy in str(caught.value)
    assert names(parent) == {"s"}


def test_the_root_folder_is_no_snapshot() -> None:
    with pytest.raises(FormatError, match="root folder"):
        fastckpt.save(NEW, "/")


def test_a_folder_that_others_may_not_enter_is_refused_with_its_path(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may enter")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError) as caught:
        fastckpt.save(NEW, tmp_path / "s")
    tmp_path.chmod(0o755)
    assert caught.value.filename == str(tmp_path / "s")


def test_the_umask_decides(tmp_path: Path) -> None:
    for mask, folder_mode, file_mode in ((0o027, 0o750, 0o640), (0o077, 0o700, 0o600), (0o000, 0o777, 0o666)):
        before = os.umask(mask)
        try:
            fastckpt.save(rig.nested(1), tmp_path / "s")
        finally:
            os.umask(before)
        for path in (tmp_path / "s", *(tmp_path / "s").rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (folder_mode if path.is_dir() else file_mode), path


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 201, "a b\n.*?[x]", ".hidden", "s.previous", "-"])
def test_every_name_will_do(tmp_path: Path, name: str) -> None:
    leave(tmp_path, f".{commit.previous_of(name)[1 : -len('.previous')]}.saving-0123abcd")
    for obj in (OLD, NEW):
        fastckpt.save(obj, tmp_path / name)
        assert rig.equal(rig.loaded(tmp_path / name), obj)
        assert names(tmp_path) == {name}


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_leftovers_go_and_what_only_looks_like_them_stays(parent: Path) -> None:
    leftovers = [".s.saving-00000000", ".s.saving-abcdef01", ".s.previous"]
    others = [
        ".s.saving-",
        ".s.saving-0000000g",
        ".s.saving-000000001",
        ".s.saving-x.previous",
        ".s.previousx",
        ".ss.previous",
    ]
    for name in (*leftovers, *others):
        leave(parent, name)
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s", *others}


def test_the_old_snapshot_of_a_longer_name_is_not_swept(tmp_path: Path) -> None:
    """Its save died between the two renames: this is the only copy."""
    fastckpt.save(OLD, commit.previous_of(str(tmp_path / "s.saving-1")))
    fastckpt.save(NEW, tmp_path / "s")
    assert rig.equal(rig.loaded(tmp_path / "s.saving-1"), OLD)


@pytest.mark.parametrize("name", [".s.saving-00000000", ".s.previous"])
def test_what_is_no_folder_in_the_place_of_ours_is_left_alone(parent: Path, name: str) -> None:
    def fifo(path: Path) -> None:
        os.mkfifo(path)

    def link(path: Path) -> None:
        path.symlink_to(parent / "elsewhere")

    fastckpt.save(OLD, parent / "elsewhere")
    for make in (fifo, link, make_file):
        make(parent / name)
        fastckpt.save(NEW, parent / "s")
        assert names(parent) == {"s", "elsewhere", name}
        (parent / name).unlink()
    assert rig.equal(rig.loaded(parent / "elsewhere"), OLD)


def test_links_in_a_leftover_are_not_followed(parent: Path) -> None:
    leftover = leave(parent)
    fastckpt.save(OLD, parent / "other")
    (leftover / "link").symlink_to(parent / "other")
    (leftover / "w" / "link").symlink_to(parent / "other" / "w")
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s", "other"}
    assert rig.equal(rig.loaded(parent / "other"), OLD)


def test_what_cannot_be_deleted_does_not_keep_the_rest(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = leave(parent)
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        if name == "out" and os.path.samestat(os.fstat(dir_fd), (leftover / "b").stat()):
            raise PermissionError(errno.EACCES, "refused")
        real(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        fastckpt.save(NEW, parent / "s")
    assert rig.tree_of(leftover).keys() == {"b", "b/out"}
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s"}


def test_a_leftover_goes_only_after_the_folder_is_durable(parent: Path) -> None:
    """It may be the old snapshot of a save that died behind the exchange. Its lock comes first, so that it is dead."""
    leave(parent)
    with rig.every_step(nothing, nothing) as steps:
        fastckpt.save(NEW, parent / "s")
    first = steps.index("unlink")
    assert steps[first - 4 : first + 2] == ["open", "flock", "sync_dir", "open", "unlink", "sync_dir"]


def nothing(number: int, name: str) -> None:
    pass


def test_another_folder_under_the_name_of_a_leftover_stays(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was locked is not what stands there now."""
    leftover, living = leave(parent), leave(parent, "living")
    held = hold(living)
    real = os.open

    def open_and_swap(name: Any, *arguments: Any, **options: Any) -> int:
        fd = real(name, *arguments, **options)
        if name == leftover.name and living.exists():
            leftover.rename(parent / "gone")
            living.rename(leftover)
        return fd

    monkeypatch.setattr(os, "open", open_and_swap)
    fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(leftover), NEW)
    held.close()


def test_a_folder_that_cannot_be_synced_is_not_swept_and_named(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = leave(parent)
    monkeypatch.setattr(_core, "sync_dir", refusing(errno.EIO)(_core.sync_dir))
    with pytest.raises(OSError, match="error") as caught:
        fastckpt.save(NEW, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(parent / "s"))
    assert rig.equal(rig.loaded(leftover), NEW)
    assert names(parent) == {"s", leftover.name}


@pytest.mark.parametrize("call", ["unlink", "sync_dir"])
def test_a_snapshot_whose_marker_cannot_be_deleted_stays_whole(
    parent: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real_sync, real_unlink = _core.sync_dir, os.unlink

    def sync_dir(fd: int) -> None:
        if call == "sync_dir" and set(os.listdir(fd)) == OLD.keys():
            raise OSError(errno.EIO, "lost")
        real_sync(fd)

    def unlink(name: str, *, dir_fd: int) -> None:
        if call == "unlink" and name == "snapshot_done":
            raise OSError(errno.EIO, "lost")
        real_unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(_core, "sync_dir", sync_dir)
    monkeypatch.setattr(os, "unlink", unlink)
    fastckpt.save(NEW, parent / "s")
    (left,) = names(parent) - {"s"}
    tensors = {f"{name}/{file}" for name in OLD for file in ("meta", "out")}
    assert tensors <= rig.tree_of(parent / left).keys()
    monkeypatch.undo()
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s"}


# --- ties -------------------------------------------------------------------------------------------------------------

TIED = rig.tied(3)


@pytest.mark.parametrize("code", [0, errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_tie_is_linked_or_copied(parent: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    if code:
        monkeypatch.setattr(os, "link", refusing(code)(os.link))
    fastckpt.save(TIED, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), TIED)
    assert (parent / "s" / "head" / "out").stat().st_nlink == (1 if code else 2)


def test_a_link_that_is_lost_is_an_error(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.tree_of(parent)
    monkeypatch.setattr(os, "link", refusing(errno.EIO)(os.link))
    with pytest.raises(OSError, match="error") as caught:
        fastckpt.save(TIED, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(parent / "s" / "head"))
    assert rig.tree_of(parent) == before


# --- stopped in the middle --------------------------------------------------------------------------------------------


class Stop(BaseException):
    pass


def pieces_that_raise(error: BaseException) -> Callable[..., Iterator[Any]]:
    def pieces(self: Any, obj: np.ndarray[Any, Any], *room: Any) -> Iterator[Any]:
        yield obj.reshape(-1).view(np.uint8)[:1]
        raise error

    return pieces


def no_thread_stays() -> bool:
    """One that was interrupted while it was started may be on its way to its end."""
    until = time.monotonic() + 10
    while ours := [thread for thread in threading.enumerate() if thread.name.startswith("fastckpt")]:
        if time.monotonic() > until:
            break
        time.sleep(0.001)
    return not ours


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), MemoryError(), Stop(), OSError(errno.EIO, "mine")], ids=repr
)
def test_an_exception_in_the_middle_leaves_no_trace(
    parent: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before, open_before = rig.tree_of(parent), rig.descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(NumpyCodec, "whole", nothing)
        patch.setattr(NumpyCodec, "pieces", pieces_that_raise(error))
        with pytest.raises(type(error)):
            fastckpt.save(NEW, parent / "s")
    assert rig.tree_of(parent) == before
    assert rig.descriptors() == open_before
    assert no_thread_stays()


def test_ctrl_c_in_the_middle_leaves_no_trace_and_no_thread(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread waits for the writers; they end before it goes on."""
    before, open_before = rig.tree_of(parent), rig.descriptors()
    real = NumpyCodec.pieces
    pressed = iter([signal.SIGINT])

    def pieces(self: NumpyCodec, obj: Any, *room: Any) -> Iterator[Any]:
        for number in pressed:
            signal.raise_signal(number)
        return real(self, obj, *room)

    before_us = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a job in the background
    with monkeypatch.context() as patch:
        patch.setattr(NumpyCodec, "whole", nothing)
        patch.setattr(NumpyCodec, "pieces", pieces)
        with pytest.raises(KeyboardInterrupt):
            fastckpt.save({str(n): np.arange(9) for n in range(50)}, parent / "s")
    signal.signal(signal.SIGINT, before_us)
    assert rig.tree_of(parent) == before
    assert rig.descriptors() == open_before
    assert no_thread_stays()


@pytest.mark.parametrize("code", [0, errno.EIO])
def test_an_interrupt_behind_the_exchange_is_no_reason_to_hurry(
    parent: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The old snapshot goes when the new one is durable, or not at all."""
    real = _core.sync_dir
    exchanged: list[int] = []

    def sync_dir(fd: int) -> None:
        if exchanged and code:
            raise OSError(code, "lost")
        real(fd)

    def stop(number: int, name: str) -> None:
        if name == "renameat2":
            exchanged.append(number)
            raise KeyboardInterrupt

    monkeypatch.setattr(_core, "sync_dir", sync_dir)

    with rig.every_step(nothing, stop) as steps, pytest.raises(KeyboardInterrupt):
        fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    if code:
        (kept,) = names(parent) - {"s"}
        assert rig.equal(rig.loaded(parent / kept), OLD)
    else:
        assert names(parent) == {"s"}
        behind = steps[steps.index("renameat2") :]
        assert behind.index("sync_dir") < behind.index("unlink")


def test_a_stage_is_not_taken_away_from_threads_that_write(parent: Path) -> None:
    """A pool that is interrupted while it starts a thread forgets it."""
    begun, ended, refused = threading.Event(), threading.Event(), []

    def pieces() -> Iterator[bytes]:
        begun.set()
        time.sleep(0.2)
        yield b""
        ended.set()

    def write(stage: Stage) -> None:
        stage.write_tensor("w", b"", pieces(), 0, sync=False)
        try:
            stage.write_tensor("late", b"", [b""], 0, sync=False)
        except RuntimeError as refusal:
            refused.append(str(refusal))

    def interrupted() -> None:
        with commit.staging(str(parent / "s")) as stage:
            forgotten.append(threading.Thread(target=write, args=(stage,)))
            forgotten[0].start()
            assert begun.wait(10)
            raise Stop

    forgotten: list[threading.Thread] = []
    with pytest.raises(Stop):
        interrupted()
    assert ended.is_set()
    assert names(parent) == {"s"}
    forgotten[0].join()
    assert refused == [f"{parent / 's'}: the save has ended"]


@pytest.mark.parametrize("way", rig.WAYS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_at_every_step(parent: Path, monkeypatch: pytest.MonkeyPatch, way: str, after: bool) -> None:
    """A signal is handled before a call, or after it and before its result is kept."""
    rig.prepare(way, monkeypatch.setattr)
    objects = {False: OLD, True: NEW}
    if "direct" in way:
        objects = {False: rig.large(1), True: rig.large(2)}
        fastckpt.save(objects[False], parent / "s")
    stopped_at: list[str] = []
    for stop_at in range(1, 200):

        def stop(number: int, name: str, stop_at: int = stop_at) -> None:
            if number == stop_at:
                stopped_at.append(name)
                raise KeyboardInterrupt

        open_before = rig.descriptors()
        obj = objects[not rig.equal(rig.loaded(parent / "s"), objects[True])]
        with (
            rig.every_step(nothing if after else stop, stop if after else nothing) as steps,
            suppress(KeyboardInterrupt),
        ):
            fastckpt.save(obj, parent / "s")
        assert names(parent) - {".s.lock"} == {"s"}, stopped_at[-1:]
        found = rig.loaded(parent / "s")
        assert any(rig.equal(found, whole) for whole in objects.values())
        leaked = rig.descriptors().keys() - open_before.keys()
        assert len(leaked) <= (stopped_at[-1:] == ["open"] and after), stopped_at[-1:]
        for fd in leaked:  # Python has no way to keep what a call returned when a signal came first
            os.close(fd)
        if len(steps) < stop_at:
            break
    wanted = {"mkdir", "flock", "write", "sync_dir", "unlink", "rmdir"}
    wanted |= {"syncfs"} if way.endswith("syncfs") else set()
    wanted |= {"File", "File.write", "File.finish"} if "direct" in way else set()
    assert wanted <= set(stopped_at), stopped_at


def test_what_was_resized_meanwhile_is_not_committed(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.tree_of(parent)
    with monkeypatch.context() as patch:
        patch.setattr(NumpyCodec, "whole", nothing)
        patch.setattr(NumpyCodec, "pieces", lambda self, obj, *room: iter([b"123"]))
        with pytest.raises(UnsupportedError, match="w: 140 bytes when the save began, then 3"):
            fastckpt.save(NEW, parent / "s", threads=1)
    assert rig.tree_of(parent) == before


def at_step(wanted: str, number: int) -> Callable[[int, str], None]:
    """Refuse the step of that name, when it comes so often."""
    seen: list[str] = []

    def refuse(_: int, name: str) -> None:
        seen.append(name)
        if name == wanted and seen.count(wanted) == number:
            raise OSError(errno.EIO, "error", "below", None, "other")

    return refuse


@pytest.mark.parametrize(
    ("way", "step", "number", "place"),
    [
        ("each", "mkdir", 1, ""),
        ("each", "mkdir", 2, "b"),
        ("each", "write", 1, "b/out"),
        ("each", "write", 2, "b/meta"),
        ("each", "sync_dir", 1, "b"),
        ("each", "write", 3, "snapshot_done"),
        ("each", "sync_dir", 2, ""),
        ("each", "renameat2", 1, ""),
        ("each", "flock", 1, ""),
        ("syncfs", "write_tensors", 1, "below"),
        ("syncfs", "syncfs", 1, ""),
        ("syncfs", "write", 1, "snapshot_done"),
        ("syncfs", "sync_dir", 1, ""),
        *((way, "mkdir", 2, "run") for way in ("direct", "direct-syncfs")),
        *((way, "File", 1, "run/out") for way in ("direct", "direct-syncfs")),
        ("direct", "File.write", 2, "run/out"),
        ("direct", "File.write", 4, "turned/out"),
        ("direct", "File.finish", 1, "run/out"),
        ("direct", "File.finish", 2, "turned/out"),
        ("direct", "write", 3, "run/meta"),
        ("direct", "sync_dir", 2, "run"),
        ("direct", "link", 1, "tied"),
    ],
)
def test_errors_name_the_place_that_the_user_knows(
    parent: Path, monkeypatch: pytest.MonkeyPatch, way: str, step: str, number: int, place: str
) -> None:
    rig.prepare(way, monkeypatch.setattr)
    before = rig.tree_of(parent)
    obj = rig.large(2) if "direct" in way else {"b": np.ones(3)}
    with rig.every_step(at_step(step, number), nothing), pytest.raises(OSError, match="error") as caught:
        fastckpt.save(obj, parent / "s")
    found = (caught.value.errno, caught.value.filename, caught.value.filename2)
    assert found == (errno.EIO, str(parent / "s" / place), None)
    assert rig.tree_of(parent) == before


def test_what_the_system_says_of_the_folder_comes_with_its_path(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "filesystem_of", refusing(errno.EIO)(filesystem_of))
    with pytest.raises(OSError, match="error") as caught:
        fastckpt.save(NEW, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(parent / "s"))
    assert names(parent) == {"s"}


@pytest.mark.parametrize("way", ["each", "syncfs"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_folders_cannot_be_synced_the_whole_system_is(
    parent: Path, monkeypatch: pytest.MonkeyPatch, code: int, way: str
) -> None:
    rig.prepare(way, monkeypatch.setattr)
    with rig.every_step(nothing, nothing) as normally:
        fastckpt.save(OLD, parent / "s", threads=1)
    monkeypatch.setattr(_core, "sync_dir", refusing(code)(_core.sync_dir))
    with rig.every_step(nothing, nothing) as steps:
        fastckpt.save(OLD, parent / "s", threads=1)
    assert [step for step in steps if step != "syncfs"] == [step for step in normally if step != "syncfs"]
    assert steps.count("syncfs") == normally.count("syncfs") + normally.count("sync_dir")
    assert normally.count("sync_dir") == (3 if way == "each" else 0) + 3  # tensors; stage, parent, the old one's marker
    assert all(one != "sync_dir" or other == "syncfs" for one, other in itertools.pairwise(steps))


def test_the_uncertain_commit_says_so_and_keeps_the_old_one(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _core.sync_dir

    def sync_dir(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), parent.stat()):
            synced.append(fd)
            raise OSError(errno.EIO, "lost")
        real(fd)

    synced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(_core, "sync_dir", sync_dir)
        with pytest.raises(fastckpt.CommitUncertain, match="may not survive a power cut") as caught:
            fastckpt.save(NEW, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(parent / "s"))
    assert len(synced) == 1
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    (kept,) = names(parent) - {"s"}
    assert rig.equal(rig.loaded(parent / kept), OLD)
    fastckpt.save(OLD, parent / "s")
    assert names(parent) == {"s"}


# --- without renameat2 ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "renameat2", rig.no_renameat2)


@pytest.mark.usefixtures("two_renames")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_two_renames_do_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(_core, "renameat2", refusing(code)(_core.renameat2))
    for obj in (OLD, NEW, OLD):
        fastckpt.save(obj, tmp_path / "s")
        assert rig.equal(rig.loaded(tmp_path / "s"), obj)
        assert names(tmp_path) == {"s"}


@pytest.mark.usefixtures("two_renames")
def test_a_reader_between_the_two_renames_finds_the_old_one(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    real = os.rename

    def rename(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        found.append((rig.loaded(parent / "s"), (parent / "s").exists()))

    monkeypatch.setattr(os, "rename", rename)
    fastckpt.save(NEW, parent / "s")
    assert [exists for _, exists in found] == [False, True]
    assert rig.equal([obj for obj, _ in found], [OLD, NEW])


def die_between_the_renames(parent: Path) -> None:
    leave(parent)
    (parent / "s").rename(parent / ".s.previous")


def test_death_between_the_two_renames_is_recovered_by_load_and_save(parent: Path) -> None:
    die_between_the_renames(parent)
    assert rig.equal(rig.loaded(parent / "s"), OLD)
    with rig.every_step(nothing, nothing) as steps, pytest.raises(FileExistsError):
        fastckpt.save(NEW, parent / "s", overwrite=False)
    assert not {"write", "write_tensors"} & {*steps}
    assert names(parent) == {"s"}
    die_between_the_renames(parent)
    fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert names(parent) == {"s"}


def test_the_old_one_is_back_durably_before_anything_else(parent: Path) -> None:
    die_between_the_renames(parent)
    with rig.every_step(nothing, nothing) as steps:
        fastckpt.save(NEW, parent / "s")
    assert steps[steps.index("rename") + 1] == "sync_dir"


def test_what_lost_its_marker_is_not_put_back(parent: Path) -> None:
    """Its deletion had begun: the new one was durable, and somebody else took that away."""
    die_between_the_renames(parent)
    (parent / ".s.previous" / "snapshot_done").unlink()
    fastckpt.save(NEW, parent / "s", overwrite=False)
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    fastckpt.save(OLD, parent / "s")
    assert names(parent) == {"s"}


def test_a_live_save_between_its_renames_is_not_recovered(parent: Path) -> None:
    """It holds the lock of the folder that it moved aside."""
    die_between_the_renames(parent)
    living = hold(parent / ".s.previous")
    fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert names(parent) == {"s", ".s.previous"}
    living.close()


def test_a_save_that_dies_between_its_renames_behind_our_back(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lived when there was something to recover, and not any more when leftovers are swept."""
    die_between_the_renames(parent)
    living = hold(parent / ".s.previous")
    real = os.listdir

    def listdir(fd: int) -> list[str]:
        living.close()
        return real(fd)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(Stop):
        save_empty(parent / "s", stop)
    assert living.fd == -1
    assert rig.equal(rig.loaded(parent / "s"), OLD)


def stop() -> None:
    raise Stop


@pytest.mark.usefixtures("two_renames")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "lost"), KeyboardInterrupt()], ids=repr)
def test_the_old_one_comes_back_when_the_second_rename_fails(
    parent: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = rig.tree_of(parent)
    real = os.rename

    def rename(old: str, new: str, **options: Any) -> None:
        if old.startswith(".s.saving-"):
            raise error
        real(old, new, **options)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(type(error)):
        fastckpt.save(NEW, parent / "s")
    assert rig.tree_of(parent) == before


@pytest.mark.usefixtures("two_renames")
def test_what_stands_in_the_way_of_the_old_one_is_named(parent: Path) -> None:
    (parent / ".s.previous").write_bytes(b"mine")
    before = rig.tree_of(parent)
    with pytest.raises(FormatError, match=r"\.s\.previous: stands in the way"):
        fastckpt.save(NEW, parent / "s")
    assert rig.tree_of(parent) == before


def hold(path: Path) -> Handle:
    """Lock a folder as another save does, in a thread of its own."""
    handle = Handle(str(path))
    other = threading.Thread(target=handle.acquire)
    other.start()
    other.join()
    assert handle.locked
    return handle


@pytest.mark.usefixtures("two_renames")
def test_a_leftover_that_came_meanwhile_is_not_in_the_way(parent: Path) -> None:
    def meanwhile() -> None:
        another_save = hold(leave(parent, ".s.previous"))
        threading.Timer(0.1, another_save.close).start()

    save_empty(parent / "s", meanwhile)
    assert rig.loaded(parent / "s") == {}
    assert names(parent) == {"s"}


def test_another_layer_is_said_clearly(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.tree_of(parent)
    monkeypatch.setattr(_core, "renameat2", refusing(errno.EXDEV)(_core.renameat2))
    with pytest.raises(OSError, match=r"another layer.*save to a new path") as caught:
        fastckpt.save(NEW, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, str(parent / "s"))
    assert rig.tree_of(parent) == before


def test_the_target_may_come_and_go(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _core.renameat2
    late: dict[Any, Callable[[], object]] = {
        "v": lambda: fastckpt.save(OLD, parent / "v"),
        "w": lambda: (parent / "w").rename(parent / "x"),
    }

    def renameat2(*arguments: Any) -> None:
        late.pop(arguments[3], lambda: None)()
        real(*arguments)

    save_empty(parent / "s", lambda: (parent / "s").rename(parent / "t"))
    save_empty(parent / "u", lambda: fastckpt.save(OLD, parent / "u"))
    save_empty(parent / "w", lambda: None)
    monkeypatch.setattr(_core, "renameat2", renameat2)
    for name in ("v", "w"):  # the one comes and the other goes after it was looked for
        save_empty(parent / name, lambda: None)
    assert not late
    for name in ("s", "u", "v", "w"):
        assert rig.loaded(parent / name) == {}
    assert names(parent) == {"s", "t", "u", "v", "w", "x"}


def test_a_stage_that_somebody_took_away_is_an_error(parent: Path) -> None:
    def meanwhile() -> None:
        (stage,) = names(parent) - {"s"}
        (parent / stage).rename(parent / "taken")

    with pytest.raises(FileNotFoundError) as caught:
        save_empty(parent / "s", meanwhile)
    assert caught.value.filename == str(parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), OLD)
    assert names(parent) == {"s", "taken"}


# --- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_that_comes_late_for_both_names_looks_again(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees no snapshot at the path, and then no old one either, since the second rename came in between."""
    (parent / "s").rename(parent / "new")

    def previous_of(path: str) -> str:
        (parent / "new").rename(path)
        return commit.previous_of(path)

    monkeypatch.setattr(opening, "previous_of", previous_of)
    assert rig.equal(rig.loaded(parent / "s"), OLD)


@pytest.mark.parametrize("gone", [0, 1, 3])
@pytest.mark.parametrize("counted", [True, False], ids=["ours", "oneflow's"])
@pytest.mark.parametrize(("owner", "call"), [(os, "listdir"), (_core, "scan")])
def test_a_reader_of_a_snapshot_that_is_being_deleted_takes_the_new_one(
    parent: Path, monkeypatch: pytest.MonkeyPatch, gone: int, counted: bool, owner: Any, call: str
) -> None:
    """It was replaced behind the reader's back; nothing in others' snapshots says how many tensors there should be."""
    if not counted:
        for meta in (parent / "s").glob("*/meta"):
            meta.write_text(meta.read_text().partition("#")[0])
    real = getattr(owner, call)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        fastckpt.save(NEW, parent / "new")
        (parent / "s").rename(parent / "old")
        (parent / "new").rename(parent / "s")
        (parent / "old" / "snapshot_done").unlink()
        for name in list(OLD)[:gone]:
            shutil.rmtree(parent / "old" / name)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, call, meanwhile)
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert (parent / "old").exists()


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_live_stage_is_never_swept(parent: Path) -> None:
    def meanwhile() -> None:
        before = {name: rig.tree_of(parent / name) for name in names(parent) - {"s"}}
        fastckpt.save(NEW, parent / "s")
        assert {name: rig.tree_of(parent / name) for name in names(parent) - {"s"}} == before
        assert len(before) == 1

    save_empty(parent / "s", meanwhile)
    assert rig.loaded(parent / "s") == {}
    assert names(parent) == {"s"}


def test_a_stage_that_is_swept_before_it_is_locked_is_made_again(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is opened, before it is locked, or the sweep has just locked it."""
    real_mkdir, real_flock = os.mkdir, fcntl.flock
    made: list[str] = []
    sweeping: list[Handle] = []

    def mkdir(name: str, *, dir_fd: int) -> None:
        real_mkdir(name, dir_fd=dir_fd)
        if name.startswith(".s.saving-"):
            made.append(name)
            if len(made) == 1:
                os.rmdir(name, dir_fd=dir_fd)
            if len(made) == 2:
                sweeping.append(hold(parent / name))

    def flock(fd: int, how: int) -> None:
        if len(made) == 3 and (parent / made[2]).exists():
            (parent / made[2]).rmdir()
        real_flock(fd, how)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(fcntl, "flock", flock)
    fastckpt.save(NEW, parent / "s")
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert len(made) == 4
    assert names(parent) == {"s", made[1]}
    sweeping[0].close()


def test_what_is_closed_is_not_locked_though_somebody_shares_it(parent: Path) -> None:
    """Such as a child that C code forked."""
    handle = hold(parent / "s")
    shared = os.dup(handle.fd)
    handle.close()
    hold(parent / "s").close()
    os.close(shared)


def test_a_name_that_is_taken_is_not_used(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parent / ".s.saving-00000000").write_bytes(b"mine")
    tokens = iter(["00000000", "00000001"])
    monkeypatch.setattr("secrets.token_hex", lambda length: next(tokens))
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s", ".s.saving-00000000"}


def test_who_holds_the_target_for_too_long_is_an_error(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.tree_of(parent)
    monkeypatch.setattr(commit, "_PUBLISH_WAIT", 0.05)
    living = hold(parent / "s")
    open_before = rig.descriptors()
    with pytest.raises(TimeoutError, match="another save") as caught:
        fastckpt.save(NEW, parent / "s")
    assert (caught.value.errno, caught.value.filename) == (errno.ETIMEDOUT, str(parent / "s"))
    assert rig.descriptors() == open_before  # though the error, and all that it came through, is still held here
    assert rig.tree_of(parent) == before
    living.close()
    fastckpt.save(NEW, parent / "s")


def in_the_middle(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act while a save replaces its target, as a signal handler can."""
    real = commit._exchange

    def exchange(*arguments: Any) -> str:
        monkeypatch.setattr(commit, "_exchange", real)
        act()
        return real(*arguments)

    monkeypatch.setattr(commit, "_exchange", exchange)
    for wait in ("_PUBLISH_WAIT", "_SAVE_WAIT"):
        monkeypatch.setattr(commit, wait, 0.05)


@pytest.mark.parametrize("locks", ["folders", "files"])
def test_a_save_never_waits_for_its_own_thread(
    parent: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, locks: str
) -> None:
    def act() -> None:
        fastckpt.save(NEW, parent / "other")
        with pytest.raises(fastckpt.BusyError, match=r"s(\.lock)?: .* same thread") as caught:
            fastckpt.save({}, parent / "s")
        problems.append(caught.value)

    if locks == "files":
        request.getfixturevalue("lock_files")
    problems: list[BaseException] = []
    in_the_middle(monkeypatch, act)
    fastckpt.save(NEW, parent / "s")
    assert len(problems) == 1
    for name in ("s", "other"):
        assert rig.equal(rig.loaded(parent / name), NEW)
    fastckpt.save(NEW, parent / "s")
    assert {name for name in names(parent) if not name.endswith(".lock")} == {"s", "other"}


def test_an_error_in_the_middle_of_a_save_leaves_the_old_one(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.tree_of(parent)
    in_the_middle(monkeypatch, lambda: fastckpt.save({}, parent / "s"))
    with pytest.raises(fastckpt.BusyError):
        fastckpt.save(NEW, parent / "s")
    assert rig.tree_of(parent) == before
    fastckpt.save(NEW, parent / "s")


def test_the_lock_belongs_to_the_folder_that_is_the_target_now(parent: Path) -> None:
    """Who waited for the lock of a folder that was replaced meanwhile takes the lock of the new one."""
    living = hold(parent / "s")
    opened = threading.Event()
    real = os.open

    def publish_and_release() -> None:
        assert opened.wait(10)
        (parent / "s").rename(parent / "t")
        fastckpt.save(NEW, parent / "s")
        living.close()

    other = threading.Thread(target=publish_and_release)
    other.start()

    def open_and_tell(name: Any, *arguments: Any, **options: Any) -> int:
        fd = real(name, *arguments, **options)
        if name == "s" and threading.current_thread() is not other:
            opened.set()
        return fd

    with pytest.MonkeyPatch.context() as patch:
        save_empty(parent / "s", lambda: patch.setattr(os, "open", open_and_tell))
    other.join()
    assert rig.loaded(parent / "s") == {}
    assert rig.equal(rig.loaded(parent / "t"), OLD)
    assert names(parent) == {"s", "t"}


@pytest.fixture
def lock_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", rig.flock_for_files_only(fcntl.flock))


@pytest.mark.usefixtures("lock_files")
def test_a_lock_file_is_used_where_folders_cannot_be_locked(parent: Path) -> None:
    leave(parent)
    leave(parent, ".s.previous")
    for obj in (NEW, OLD):
        fastckpt.save(obj, parent / "s")
        assert names(parent) == {"s", ".s.lock"}
        number = (parent / ".s.lock").stat().st_ino
        assert (parent / ".s.lock").stat().st_size == 0
    assert (parent / ".s.lock").stat().st_ino == number


@pytest.mark.usefixtures("lock_files")
def test_with_a_lock_file_one_save_waits_for_the_other(parent: Path) -> None:
    seen: list[set[str]] = []
    other = threading.Thread(target=fastckpt.save, args=(NEW, parent / "s"))

    def meanwhile() -> None:
        other.start()
        time.sleep(0.3)
        seen.append({name for name in names(parent) if rig.tree_of(parent / name)})

    save_empty(parent / "s", meanwhile)
    other.join()
    assert len(seen[0]) == 2, "the other save has written nothing and deleted nothing"
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert names(parent) == {"s", ".s.lock"}


@pytest.mark.usefixtures("lock_files")
def test_who_waits_for_the_lock_file_may_lose_its_stage(parent: Path) -> None:
    """The save that holds the lock file cannot know that the one which waits is alive."""
    living = Handle(str(parent / ".s.lock"), None, os.O_RDWR)
    assert living.acquire()
    other = threading.Thread(target=fastckpt.save, args=(NEW, parent / "s"))
    other.start()
    while not (stages := names(parent) - {"s", ".s.lock"}):
        time.sleep(0.01)
    (parent / stages.pop()).rmdir()
    living.close()
    other.join()
    assert rig.equal(rig.loaded(parent / "s"), NEW)
    assert names(parent) == {"s", ".s.lock"}


@pytest.mark.usefixtures("lock_files")
def test_a_lock_file_that_somebody_deleted_is_made_anew(parent: Path) -> None:
    other = threading.Thread(target=fastckpt.save, args=(NEW, parent / "s"))
    held: list[Handle] = []

    def meanwhile() -> None:
        other.start()
        time.sleep(0.1)
        (parent / ".s.lock").unlink()
        held.append(Handle(str(parent / ".s.lock"), None, os.O_RDWR | os.O_CREAT))
        held[0].acquire()

    save_empty(parent / "s", meanwhile)
    other.join(0.2)
    assert other.is_alive()
    held[0].close()
    other.join()
    assert names(parent) == {"s", ".s.lock"}


@pytest.mark.usefixtures("lock_files")
def test_what_is_no_lock_file_is_named(parent: Path) -> None:
    def link(path: Path) -> None:
        path.symlink_to("nowhere")

    (parent / ".s.lock").unlink()
    for make, code in ((Path.mkdir, errno.EISDIR), (link, errno.ELOOP)):
        make(parent / ".s.lock")
        with pytest.raises(OSError, match=str(parent / ".s.lock")) as caught:
            fastckpt.save(NEW, parent / "s")
        assert (caught.value.errno, caught.value.filename) == (code, str(parent / ".s.lock"))
        assert names(parent) == {"s", ".s.lock"}
        (parent / ".s.lock").rmdir() if make is Path.mkdir else (parent / ".s.lock").unlink()


def test_where_nothing_can_be_locked_no_stage_is_swept(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may be filling it."""
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK)(fcntl.flock))
    leave(parent)
    fastckpt.save(NEW, parent / "s")
    assert names(parent) == {"s", ".s.lock", ".s.saving-00000000"}
    assert rig.equal(rig.loaded(parent / ".s.saving-00000000"), NEW)
    (parent / "s").rename(parent / ".s.previous")
    fastckpt.save(OLD, parent / "s")
    assert names(parent) == {"s", ".s.lock", ".s.saving-00000000"}
    assert rig.equal(rig.loaded(parent / "s"), OLD)


# --- forks ------------------------------------------------------------------------------------------------------------

FORK_AND_STAY = """
import os, sys, threading, time
from fastckpt import commit
with commit.staging(sys.argv[1]) as stage:
    stage.write_tensor("w", b"", [b""], 0, sync=False)
    in_thread = threading.Thread(target=lambda: os.fork() or time.sleep(60))
    in_thread.start()
    time.sleep(0.2)
    print(os.listdir(os.path.dirname(sys.argv[1])), flush=True)
    time.sleep(60)
"""

FORK_AND_UNWIND = """
import os, sys
from fastckpt import commit
with commit.staging(sys.argv[1]) as stage:
    stage.write_tensor("w", b"", [b""], 0, sync=False)
    child = os.fork()
    if child == 0:
        other = os.open("/", os.O_RDONLY), os.open("/", os.O_RDONLY)  # take the numbers of what was open
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stage.seal([b""])
"""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_outlives_the_save_keeps_no_lock(parent: Path) -> None:
    command = [sys.executable, "-c", FORK_AND_STAY, str(parent / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        assert b".s.saving-" in process.stdout.readline()
        process.kill()
        process.wait()
        fastckpt.save(NEW, parent / "s")
        assert names(parent) == {"s"}
        os.killpg(process.pid, signal.SIGKILL)  # the child is there still


def test_a_forked_child_that_unwinds_discards_nothing(parent: Path) -> None:
    subprocess.run([sys.executable, "-c", FORK_AND_UNWIND, str(parent / "s")], check=True, timeout=30)
    assert rig.tree_of(parent / "s").keys() == {"w", "w/meta", "w/out", "snapshot_done"}
    assert names(parent) == {"s"}


FORK_BESIDE = """
import os, sys, threading
import numpy as np
import fastckpt
from fastckpt.staging import Stage

def write_part(stage, folder, file, *rest):
    real(stage, folder, file, *rest)
    reached.wait()  # by one thread for each of the two files, and by the one that forks
    forked.wait()

real, Stage.write_part = Stage.write_part, write_part
reached, forked = threading.Barrier(3), threading.Barrier(3)
state = {"a": np.ones(3 << 20, np.uint8), "b": np.ones(3 << 20, np.uint8)}
saving = threading.Thread(target=fastckpt.save, args=(state, sys.argv[1]), kwargs={"threads": 2})
saving.start()
reached.wait()

def kept():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.islink(link) and ".saving-" in os.readlink(link)]

assert len(kept()) == 3, kept()  # the folder that is locked, and the two files
child = os.fork()
if child == 0:
    os._exit(len(kept()))
Stage.write_part = real
forked.wait()
saving.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_keeps_no_file_of_a_save(parent: Path) -> None:
    """Or the space of a snapshot that is gone stayed taken for as long as a data loader's worker lives."""
    command = [sys.executable, "-W", "ignore", "-c", FORK_BESIDE, str(parent / "s")]
    done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout == "0\n"
    fastckpt.verify(parent / "s")
