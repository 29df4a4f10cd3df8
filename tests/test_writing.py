"""How a save writes: the same bytes in every way, their digests, little memory, and errors in the middle."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np
import pytest
import seccomp
import torch
from test_core import refusing

import fastckpt
from fastckpt import _core, digests, gathering, saving, ways, writing
from fastckpt.commit import staging
from fastckpt.errors import UnsupportedError
from fastckpt.filesystems import FileSystem
from fastckpt.plan import WriteItem, WritePlan
from fastckpt.staging import Stage

_PART = 64 << 10
_PIECE = 16 << 10
DISK, MEMORY, REMOTE = FileSystem("disk"), FileSystem("memory", in_memory=True), FileSystem("far", remote=True)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small tensors be large ones, in several parts of several pieces."""
    monkeypatch.setattr(writing, "PART", _PART)
    monkeypatch.setattr(writing, "_PIECE", _PIECE)
    monkeypatch.setattr(writing, "LARGE", 16 << 10)


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(list(shape)).integers(0, 1 << 31, shape)


def everything() -> dict[str, Any]:
    """Tensors of several parts, of exactly two, of less than one, and of nothing, in every layout."""
    run = numbers(300, 331)
    odd = np.frombuffer(bytes(1) + run.tobytes(), np.uint8)[1:]
    return {
        "run": run,
        "odd address": odd[: 5 * _PART + 13],
        "two parts": numbers(2 * _PART // 8),
        "a byte more": numbers(_PART).view(np.uint8)[: 2 * _PART + 1],
        "turned": numbers(257, 129).T,
        "sliced": numbers(40, 50, 60)[::2, 5:45, ::-1],
        "spread": np.broadcast_to(numbers(1, 999), (70, 999)),
        "big-endian": numbers(30_001).astype(">f8"),
        "bool": numbers(200_001) % 2 == 0,
        "bfloat16": torch.from_numpy(numbers(90_001)).to(torch.bfloat16),
        "bfloat16 turned": torch.from_numpy(numbers(301, 299)).to(torch.bfloat16).T,
        "conjugate": torch.from_numpy(numbers(30_001).view(np.complex64)).conj(),
        "small": numbers(3),
        "small turned": numbers(30, 20).T,
        "scalar": np.array(7.5),
        "none": np.zeros((0, 3), np.float32),
        "tied": run,
    }


def bytes_of(value: Any) -> bytes:
    """In C order, little-endian; by other means than the code that is tested."""
    if isinstance(value, torch.Tensor):
        flat = value.resolve_conj().contiguous().view(-1)
        return flat.view(torch.uint8).numpy().tobytes()
    return np.array(value, order="C").astype(value.dtype.newbyteorder("<")).tobytes()


def blobs(path: Path) -> dict[str, bytes]:
    return {folder.name: (folder / "out").read_bytes() for folder in path.iterdir() if folder.is_dir()}


# --- the bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parts")
def test_the_bytes_are_the_same_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = everything()
    wanted = {name: bytes_of(value) for name, value in saved.items()}
    path, trees = tmp_path / "s", []
    for system, durable, threads in itertools.product((DISK, MEMORY, REMOTE), (True, False), (1, 2, 8)):
        monkeypatch.setattr(ways, "filesystem_of", lambda fd, system=system: system)
        fastckpt.save(saved, path, threads=threads, durable=durable)
        trees.append(rig.tree_of(path))
        assert trees[-1] == trees[0], (system, durable, threads)
    assert blobs(path) == wanted
    assert os.path.samefile(path / "run" / "out", path / "tied" / "out")
    for name, tensor in fastckpt.load(path).items():
        assert bytes_of(tensor) == wanted[name]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("system", [DISK, MEMORY, REMOTE], ids=lambda system: system.name)
@pytest.mark.parametrize("patched", ["nothing", "link"])
def test_every_byte_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patched: str, system: FileSystem, durable: bool
) -> None:
    """Part by part, of all kinds of tensors. A tie that cannot be linked is written again, whatever its size."""
    monkeypatch.setattr(ways, "filesystem_of", lambda _: system)
    if patched == "link":
        monkeypatch.setattr(os, "link", refuse(OSError(errno.EPERM, "no links")))
    saved, told = everything(), list[int]()
    options: dict[str, Any] = {"overwrite": True, "durable": durable, "digest": True}
    saving.write_plan(saving.plan_of(saved, False), tmp_path / "s", threads=4, progress=told.append, **options)
    own = {name: len(bytes_of(value)) for name, value in saved.items() if name != "tied"}
    assert sum(told) == sum(own.values())
    assert max(told) == _PART < min(own[name] for name in ("run", "turned", "bfloat16 turned", "spread"))
    assert blobs(tmp_path / "s")["tied"] == bytes_of(saved["run"])
    assert fastckpt.verify(tmp_path / "s")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("system", [DISK, MEMORY])
def test_pieces_past_the_page_cache_are_small_and_others_whole_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: FileSystem
) -> None:
    monkeypatch.setattr(ways, "filesystem_of", lambda _: system)
    write_part, sizes = Stage.write_part, dict[bool, set[int]]()

    def write(self: Stage, folder: str, file: _core.File, part: Any, *arguments: Any) -> None:
        sizes.setdefault(file.direct, set()).add(len(part))
        write_part(self, folder, file, part, *arguments)

    monkeypatch.setattr(Stage, "write_part", write)
    saved = {"odd": everything()["odd address"], "run": numbers(3 * _PART)}
    fastckpt.save(saved, tmp_path / "s", threads=8)
    if system is DISK and True not in sizes:
        pytest.skip("no O_DIRECT here")
    assert [*sizes] == [system is DISK]
    assert max(sizes[system is DISK]) == (_PIECE if system is DISK else _PART)
    assert fastckpt.verify(tmp_path / "s")


def test_large_ones_in_real_parts(tmp_path: Path) -> None:
    """Nothing patched: three parts and a tail, by more threads than there are parts."""
    saved = {"run": numbers((12 << 20) // 8 + 1), "turned": numbers(1200, 1031).T, "edge": numbers((1 << 20) // 8)}
    for threads in (None, 1):
        fastckpt.save(saved, tmp_path / "s", threads=threads)
        assert blobs(tmp_path / "s") == {name: bytes_of(value) for name, value in saved.items()}
        assert fastckpt.verify(tmp_path / "s")


# --- digests ----------------------------------------------------------------------------------------------------------


def metas(path: Path) -> dict[str, bytes]:
    return {folder.name: (folder / "meta").read_bytes() for folder in path.iterdir() if folder.is_dir()}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("system", [DISK, MEMORY])
def test_digests_are_those_of_zlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: FileSystem) -> None:
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: system)
    path = tmp_path / "s"
    fastckpt.save(everything(), path)
    found = blobs(path)
    wanted = {name: f"crc32:{zlib.crc32(data):08x}" for name, data in found.items()}
    assert wanted["none"] == "crc32:00000000"
    assert {name: handle.digest for name, handle in fastckpt.open(path).items()} == wanted
    assert all(b'"digest":"%s"' % wanted[name].encode() in meta for name, meta in metas(path).items())
    assert fastckpt.verify(path).digests == len(found) - 1  # the tie's bytes are read once


@pytest.mark.usefixtures("parts")
def test_the_index_has_the_same_digests(tmp_path: Path) -> None:
    fastckpt.save({"model": everything(), "epoch": 3}, tmp_path / "s")
    marker = (tmp_path / "s" / "snapshot_done").read_bytes()
    for meta in metas(tmp_path / "s").values():
        unsealed = meta.decode().rpartition(',"self"')[0]
        assert json.dumps(unsealed)[1:-1].encode() in marker
    assert fastckpt.verify(tmp_path / "s")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("obj", [everything(), {"model": everything()}], ids=["flat", "nested"])
def test_without_digests(tmp_path: Path, obj: Any) -> None:
    fastckpt.save(obj, tmp_path / "s", digest=False)
    assert fastckpt.verify(tmp_path / "s").digests == 0
    assert not any(b"digest" in meta for meta in metas(tmp_path / "s").values())
    assert b"digest" not in (tmp_path / "s" / "snapshot_done").read_bytes()
    with_digests = tmp_path / "t"
    fastckpt.save(obj, with_digests)
    assert blobs(tmp_path / "s") == blobs(with_digests)


@pytest.mark.parametrize("threads", [1, 3])
def test_small_tensors_are_many_to_a_call_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """What is read one after the other shall lie so on the disk; and no run is larger than what is no longer small."""
    monkeypatch.setattr(ways, "unwritten", lambda: 0)
    real, runs = _core.write_tensors, []

    def spy(fd: int, tensors: Any, writeback: bool) -> None:
        runs.append([(folder, memoryview(out).nbytes) for folder, out, _ in tensors])
        real(fd, tensors, writeback)

    monkeypatch.setattr(_core, "write_tensors", spy)
    sizes = [7919 * at % 90_000 for at in range(300)]
    fastckpt.save(
        {f"{at:03}": np.zeros(size, np.uint8) for at, size in enumerate(sizes)}, tmp_path / "s", threads=threads
    )
    flat = [pair for run in sorted(runs) for pair in run]
    assert flat == [(f"{at:03}", size) for at, size in enumerate(sizes)]
    assert all(sum(size for _, size in run) <= writing.LARGE for run in runs)
    assert len(runs) < 25


@pytest.mark.parametrize(("durable", "count"), [(True, 4), (False, 0)])
def test_many_small_tensors_are_synced_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, count: int
) -> None:
    """What ends the save makes all of them durable; the others spare it most of that."""
    monkeypatch.setattr(ways, "_can_sync_whole", lambda *_: True)
    monkeypatch.setattr(writing, "_OFTEN", 2)
    real, synced = _core.syncfs, list[int]()

    def syncfs(fd: int) -> None:
        synced.append(sum(1 for _ in os.scandir(fd)))
        real(fd)

    monkeypatch.setattr(_core, "syncfs", syncfs)
    tensors = {f"{at}": np.full(3, at) for at in range(writing._RUN * 7)}
    fastckpt.save(tensors, tmp_path / "s", durable=durable, threads=1)
    assert synced == [*(writing._RUN * at for at in (2, 4, 6)), writing._RUN * 7][:count]
    assert fastckpt.verify(tmp_path / "s")


@pytest.mark.parametrize(("durable", "count"), [(True, 2), (False, 0)])
def test_small_tensors_are_synced_while_large_ones_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, count: int
) -> None:
    monkeypatch.setattr(ways, "_can_sync_whole", lambda *_: True)
    real, synced = _core.syncfs, list[set[str]]()

    def syncfs(fd: int) -> None:
        synced.append({entry.parent.name for entry in tmp_path.rglob("meta")})
        real(fd)

    monkeypatch.setattr(_core, "syncfs", syncfs)
    small = {f"{at}": np.full(3, at) for at in range(writing._RUN * 2)}
    large = {"large": np.zeros(writing.PART * 5, np.uint8)}
    fastckpt.save(small | large, tmp_path / "s", durable=durable, threads=1)
    assert synced == [small.keys(), small.keys() | large.keys()][:count]
    assert fastckpt.verify(tmp_path / "s")


def test_a_sync_in_between_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def syncfs(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EIO, "lost")

    calls: list[int] = []
    monkeypatch.setattr(ways, "_can_sync_whole", lambda *_: True)
    monkeypatch.setattr(writing, "_OFTEN", 2)
    monkeypatch.setattr(_core, "syncfs", syncfs)
    with pytest.raises(OSError, match="lost") as caught:
        fastckpt.save({f"{at}": np.full(3, at) for at in range(writing._RUN * 9)}, tmp_path / "s")
    assert caught.value.filename == str(tmp_path / "s")
    assert not [*tmp_path.iterdir()]


def test_digests_combine() -> None:
    data = numbers(5000).tobytes()
    for cuts in ([], [1], [0, 4096, 4096, 39_999], range(0, 40_000, 999)):
        edges = [0, *cuts, len(data)]
        pieces = [data[one:other] for one, other in itertools.pairwise(edges)]
        whole = digests.combined((zlib.crc32(piece), len(piece)) for piece in pieces)
        assert digests.digest_text(whole) == f"crc32:{zlib.crc32(data):08x}"
    assert digests.combined([]) == zlib.crc32(b"") == 0


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["run", "turned", "bool", "small", "scalar"])
def test_a_bit_that_flips_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    saved = everything()
    del saved["tied"]
    fastckpt.save(saved, path)
    out = path / name / "out"
    kept = out.read_bytes()
    for at in sorted({0, _PART - 1, _PART, len(kept) // 2, len(kept) - 1} & {*range(len(kept))}):
        out.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
        problems = fastckpt.verify(path).problems
        assert len(problems) == 1
        assert f"{name}/out: its bytes have changed" in problems[0]
        for mapped in (True, False):
            with pytest.raises(fastckpt.CorruptError, match=f"{name}/out: its bytes have changed"):
                fastckpt.load(path, verify=True, mmap=mapped)
    out.write_bytes(kept)
    assert fastckpt.verify(path)
    fastckpt.load(path, verify=True)


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import json, sys
import numpy as np
import fastckpt

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) << 10

def growth(array):
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    fastckpt.save({"x": array}, sys.argv[1] + "/s", durable=sys.argv[2] == "durable")
    return memory("VmHWM") - before

array = np.ones((8192, 4099))
print(json.dumps({"run": growth(array), "turned": growth(array.T), "swapped": growth(array.view(">f8"))}))
"""


@pytest.mark.no_asan
@pytest.mark.parametrize("durable", ["durable", "lax"])
def test_memory_is_bounded(memory_path: Path, tmp_path: Path, durable: str) -> None:
    """256 MiB, in a fresh process: what it takes beyond them, to the disk directly or through the page cache."""
    folder = tmp_path if durable == "durable" else memory_path
    command = [sys.executable, "-c", PEAK, str(folder), durable]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert {kind: grown for kind, grown in json.loads(done.stdout).items() if grown > 64 << 20} == {}


PEAK_OF_MANY = """
import os, sys
import numpy as np
import torch
import fastckpt
from fastckpt import ways
from fastckpt.filesystems import FileSystem
from fastckpt.torch import pinned

folder, case = sys.argv[1:]
number = case.rpartition(" ")[2]
how = {"durable": "remote" in case, "threads": int(number) if number.isdigit() else None}

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) << 10

def many(count):
    return {f"{at}": np.ones((1024, 300)).T for at in range(count)}  # 2.3 MiB each

if "remote" in case:
    ways.filesystem_of = lambda _: FileSystem.named("nfs4")
if case == "processors":
    os.sched_getaffinity = lambda _: range(64)
if case == "more than the page cache takes":
    ways.filesystem_of = lambda _: FileSystem("disk")
    ways.writable = lambda: 64 << 20
fastckpt.save({"warm": np.ones(9)}, folder + "/s", durable=False)
saved = many(96)
if case.startswith("small"):
    saved = {f"{at}": np.ones((512, 256)).T for at in range(300)}  # 1 MiB each
if case == "device":
    how["threads"] = 24
    saved |= {f"far {at}": torch.ones(5 << 20, dtype=torch.uint8) for at in range(24)}
    pinned.LANES["cpu"] = pinned.HostLane
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
fastckpt.save(saved, folder + "/s", **how)
print(memory("VmHWM") - before)
"""


@pytest.mark.no_asan
@pytest.mark.parametrize(
    "case",
    [
        *("remote", "processors", "more than the page cache takes", "device", "7", "13", "24", "90"),
        *("small, 90", "small, remote, 90"),
    ],
)
def test_memory_is_bounded_for_any_number_of_threads_that_gather(memory_path: Path, case: str) -> None:
    """Each has its tensor, which does not lie in order, and none waits for a device."""
    command = [sys.executable, "-c", PEAK_OF_MANY, str(memory_path), case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 64 << 20


@pytest.mark.parametrize(
    ("wanted", "size", "taken", "count"),
    [(2, 4, 0, 2), (7, 4, 0, 7), (24, 1, 0, 24), (1000, 1, 0, 28), (40, 1, 48, 4), (7, 4, 28, 5)],
)
def test_rooms_are_as_many_as_fit_and_each_is_lent_to_one(wanted: int, size: int, taken: int, count: int) -> None:
    """Sizes in MiB. Who finds none gets the first that comes back, also from one that failed."""
    rooms, lent = gathering.Rooms(wanted, size << 20, taken << 20), list[gathering.Room]()

    def borrow() -> None:
        with rooms.lent() as room:
            lent.append(room)

    with ExitStack() as stack:
        for _ in range(count - 1):
            lent.append(stack.enter_context(rooms.lent()))
        with suppress(KeyError), rooms.lent() as last:
            lent.append(last)
            other = threading.Thread(target=borrow)
            other.start()
            other.join(0.01)
            assert len(lent) == count, "there is no other"
            raise KeyError
        other.join(60)
    assert lent[-1] is lent[-2] is last
    every = [memory for room in lent[:-1] for memory in room]
    assert len({np.frombuffer(memoryview(memory), np.uint8).ctypes.data for memory in every}) == 2 * count
    assert sum(map(len, every)) + (taken << 20) <= 56 << 20


# --- durable or not ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_what_is_not_to_be_durable_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Nothing is asked of the device, also where there is an old snapshot to be deleted."""
    if not seccomp.NUMBERS:
        pytest.skip("no seccomp here")
    monkeypatch.setattr(ways, "_can_sync_whole", lambda *_: call == "syncfs")
    path, saved = tmp_path / "s", everything()
    for _ in range(2):
        refusing(call, errno.EIO, lambda: fastckpt.save(saved, path, durable=False))
        assert blobs(path) == {name: bytes_of(value) for name, value in saved.items()}
        assert os.listdir(tmp_path) == ["s"]
    with pytest.raises(OSError, match=f"{call}: ") as caught:
        refusing(call, errno.EIO, lambda: fastckpt.save({"w": numbers(3)}, path))
    assert caught.value.errno == errno.EIO
    assert blobs(path).keys() == saved.keys()


@pytest.mark.parametrize(
    ("system", "durable", "dirty", "release", "wanted"),
    [
        (DISK, True, 0, "5.8.0", {"direct": True, "sync": False, "writeback": True}),
        (DISK, True, 1 << 40, "6.1.0-13-amd64", {"direct": True, "sync": True, "writeback": True}),
        (DISK, True, 0, "5.7.19", {"direct": True, "sync": True, "writeback": True}),
        (DISK, True, 0, "10.0", {"direct": True, "sync": False, "writeback": True}),
        (REMOTE, True, 0, "6.1.0", {"direct": False, "sync": True, "writeback": True}),
        (MEMORY, True, 0, "6.1.0", {"direct": False, "sync": False, "writeback": True}),
        (DISK, False, 0, "6.1.0", {"direct": False, "sync": False, "writeback": False}),
        (REMOTE, False, 1 << 40, "4.18.0", {"direct": False, "sync": False, "writeback": False}),
    ],
)
def test_the_way_fits_the_file_system(
    monkeypatch: pytest.MonkeyPatch,
    system: FileSystem,
    durable: bool,
    dirty: int,
    release: str,
    wanted: dict[str, bool],
    run_release: Callable[[str], None],
) -> None:
    run_release(release)
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: system)
    monkeypatch.setattr(ways, "unwritten", lambda: dirty)
    way = ways.way_for(0, None, durable=durable, digest=True)
    assert {field: getattr(way, field) for field in wanted} == wanted
    assert way.threads == (24 if way.sync else min(24, len(os.sched_getaffinity(0))))
    assert ways.way_for(0, 3, durable=durable, digest=True).threads == 3


@pytest.mark.parametrize(
    ("name", "sync"),
    [
        *(("ext4", False), ("xfs", False), ("btrfs", False), ("tmpfs", False)),
        *(("overlay", True), ("aufs", True), ("ecryptfs", True), ("nfs4", True), ("fuse.sshfs", True)),
        ("unknown", True),
    ],
)
def test_every_file_is_synced_where_a_sync_of_all_may_hide_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, sync: bool
) -> None:
    """What lies over another file system does not hear of the writes that are lost below it."""
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: FileSystem.named(name))
    monkeypatch.setattr(ways, "unwritten", lambda: 0)
    assert ways.way_for(0, None, durable=True, digest=True).sync is sync
    assert not ways.way_for(0, None, durable=False, digest=True).sync


def test_on_an_overlay_nothing_is_left_to_a_sync_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: each file and folder is made durable on its own."""
    if not seccomp.NUMBERS:
        pytest.skip("no seccomp here")
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: FileSystem.named("overlay"))
    monkeypatch.setattr(ways, "unwritten", lambda: 0)
    monkeypatch.setattr(ways, "_has_syncfs", lambda: True)
    saved = {"small": numbers(3), "large": numbers(300_000)}
    refusing("syncfs", errno.EIO, lambda: fastckpt.save(saved, tmp_path / "s"))
    assert blobs(tmp_path / "s") == {name: bytes_of(value) for name, value in saved.items()}
    with pytest.raises(OSError, match="fsync: "):
        refusing("fsync", errno.EIO, lambda: fastckpt.save(saved, tmp_path / "s"))


def test_threads_are_as_many_as_have_to_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: DISK)
    monkeypatch.setattr(ways, "unwritten", lambda: 0)
    busy = len(os.sched_getaffinity(0))
    large = [0, 1, 1 << 20, (1 << 20) + 1, 1 << 40]
    threads = [ways.way_for(0, None, durable=True, digest=True, large=nbytes).threads for nbytes in large]
    assert threads == [min(24, busy + more) for more in (0, 1, 1, 2, 24)]
    assert ways.way_for(0, None, durable=False, digest=True, large=1 << 40).threads == min(24, busy)


def test_only_what_is_larger_than_a_megabyte_is_large() -> None:
    tensors = {"a": torch.zeros((1 << 20) + 1, dtype=torch.uint8), "b": torch.zeros(1 << 20, dtype=torch.uint8)}
    plan = saving.plan_of({**tensors, "c": tensors["a"]}, False)
    assert plan.nbytes_above(ways.LARGE) == (1 << 20) + 1
    assert plan.nbytes == (2 << 20) + 1


def test_more_than_the_page_cache_takes_passes_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    room, asked = 700 << 20, []
    monkeypatch.setattr(ways, "writable", lambda: asked.append(1) or room * 8 // 7)
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: DISK)
    busy = len(os.sched_getaffinity(0))
    little, few, many = (
        ways.way_for(0, None, durable=False, digest=True, nbytes=nbytes) for nbytes in (64 << 20, room, room + 1)
    )
    assert len(asked) == 2, "not for a little"
    assert (little.direct, little.cached, little.copiers, little.threads) == (False, sys.maxsize, few.threads, busy)
    assert (few.direct, few.cached, few.copiers) == (False, room, few.threads)
    assert (many.direct, many.cached, many.copiers, many.threads) == (False, room, busy, min(24, busy) + 16)
    assert ways.way_for(0, 3, durable=False, digest=True, nbytes=room + 1).threads == 3
    assert ways.way_for(0, None, durable=True, digest=True, nbytes=room + 1).direct
    for system in (REMOTE, MEMORY):
        monkeypatch.setattr(ways, "filesystem_of", lambda fd, system=system: system)
        assert ways.way_for(0, None, durable=False, digest=True, nbytes=room + 1).cached == sys.maxsize


def test_a_full_page_cache_is_passed_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "writable", lambda: 0)
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: DISK)
    way = ways.way_for(0, None, durable=False, digest=True, nbytes=1 << 30)
    assert (way.direct, way.writeback, way.threads) == (True, False, min(24, len(os.sched_getaffinity(0))) + 16)


def test_the_page_cache_has_room_for_so_much_and_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    way = ways.way_for(0, 9, durable=False, digest=True)
    cache = ways.PageCache(replace(way, cached=100, copiers=2))
    with cache.passed(60) as one, cache.passed(41) as no_room, cache.passed(40) as two, cache.passed(0) as no_copier:
        assert (one, no_room, two, no_copier) == (False, True, False, True)
    with suppress(KeyError), cache.passed(0) as again:
        assert not again
        raise KeyError
    with cache.passed(0) as one, cache.passed(0) as two, cache.passed(1) as full:
        assert (one, two, full) == (False, False, True)
    with ways.PageCache(replace(way, cached=0)).passed(1) as passed:
        assert passed


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("threads", [None, 1])
def test_half_past_the_page_cache_is_the_same_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    real, direct = Stage.create_blob, []

    def spy(self: Stage, folder: str, nbytes: int, **how: bool) -> _core.File:
        direct.append(how["direct"])
        return real(self, folder, nbytes, **how)

    fastckpt.save(everything(), tmp_path / "wanted")
    monkeypatch.setattr(ways, "writable", lambda: 2_000_000)
    monkeypatch.setattr(ways, "_LITTLE", 0)
    monkeypatch.setattr(Stage, "create_blob", spy)
    fastckpt.save(everything(), tmp_path / "s", durable=False, threads=threads)
    assert set(direct) == {True, False}
    assert blobs(tmp_path / "s") == blobs(tmp_path / "wanted")
    assert metas(tmp_path / "s") == metas(tmp_path / "wanted")


def test_many_tensors_rather_wait_for_others_than_be_synced_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "filesystem_of", lambda fd: DISK)
    monkeypatch.setattr(ways, "unwritten", lambda: 1 << 30)
    sync = {n: ways.way_for(0, None, durable=True, digest=True, tensors=n).sync for n in (0, 100, 20_000)}
    assert sync == {0: True, 100: True, 20_000: False}


def test_what_is_to_be_written_by_others_is_known() -> None:
    """A busy machine has some; a sandbox without /proc has none that we know of."""
    assert 0 <= ways.unwritten() < 1 << 50


# --- errors in the middle ---------------------------------------------------------------------------------------------


def refuse(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise error

    return call


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder with the snapshot `s`; what fails leaves it as it is."""
    with rig.fast_folder() as folder:
        fastckpt.save(rig.flat(1), folder / "s")
        before, open_before = rig.tree_of(folder), rig.descriptors()
        yield folder
        assert rig.tree_of(folder) == before
        assert rig.descriptors() == open_before
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastckpt")]


def resize_array(array: Any, length: int) -> None:
    array.resize(length, refcheck=False)


def resize_tensor(tensor: Any, length: int) -> None:
    tensor.resize_(length)


RESIZED: dict[str, tuple[Callable[[], Any], Callable[[Any, int], None]]] = {
    "array": (lambda: np.arange(50_000), resize_array),
    "tensor": (lambda: torch.arange(50_000), resize_tensor),
    "turned tensor": (lambda: torch.arange(50_000).reshape(100, 500).T, resize_tensor),
    "swapped array": (lambda: np.arange(50_000).astype(">i8"), resize_array),
    "small array": (lambda: np.arange(50), resize_array),
}


def test_a_tensor_that_was_saved_or_filled_can_still_be_resized(tmp_path: Path) -> None:
    """What asks torch for a numpy array makes its tensor one that can never grow or shrink again."""
    saved = {"small": torch.arange(50), "large": torch.arange(1 << 19)}
    fastckpt.save(saved, tmp_path / "s", durable=False)
    fastckpt.save_async(saved, tmp_path / "a", durable=False).result()
    fastckpt.load_into(saved, tmp_path / "s")
    for tensor in saved.values():
        tensor.resize_(1 << 20)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("length", [20, 30_000, 49_999, 50_001, 80_000])
@pytest.mark.parametrize("kind", RESIZED)
def test_what_is_resized_meanwhile_is_not_committed(
    parent: Path, monkeypatch: pytest.MonkeyPatch, kind: str, length: int
) -> None:
    """By another thread, when its size has been taken and its first byte has not been written."""
    make, resize = RESIZED[kind]
    saved = {"w": make(), "other": numbers(50_000)}
    real = ways.way_for

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        other = threading.Thread(target=resize, args=(saved["w"], length))
        other.start()
        other.join()
        return real(*arguments, **options)

    monkeypatch.setattr(saving, "way_for", meanwhile)
    with pytest.raises(UnsupportedError, match=r"/s/w: \d+ bytes when the save began, then \d+; save a copy"):
        fastckpt.save(saved, parent / "s")


@pytest.mark.parametrize("count", [2, 150], ids=["after the sync", "beside the sync"])
@pytest.mark.parametrize("length", [0, 20, 49, 51, 8000])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_what_is_resized_between_its_file_and_the_marker_is_not_committed(
    parent: Path, monkeypatch: pytest.MonkeyPatch, kind: str, length: int, count: int
) -> None:
    """The marker has copies of small tensors, each at a place that the sizes of those before it tell."""
    monkeypatch.setattr(ways, "_can_sync_whole", lambda *_: True)
    make = np.arange if kind == "array" else torch.arange
    saved = {"w": make(50), "others": {str(at): make(50) for at in range(count)}}
    real, resized = Stage.sync, threading.Event()

    def sync(self: Stage) -> None:
        if not resized.is_set():
            (resize_array if kind == "array" else resize_tensor)(saved["w"], length)
            resized.set()
        real(self)

    def copies(plan: Any, *arguments: Any) -> Any:  # those that are made beside a sync may come before it
        if count > saving._MANY_TENSORS:
            assert resized.wait(60)
        return real_copies(plan, *arguments)

    real_copies = WritePlan.small_blobs
    monkeypatch.setattr(WritePlan, "small_blobs", copies)
    monkeypatch.setattr(Stage, "sync", sync)
    found = length * 8
    with pytest.raises(UnsupportedError, match=rf"/s/w: 400 bytes when the save began, then {found}; save a copy"):
        fastckpt.save(saved, parent / "s")
    assert resized.is_set()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("kind", ["run", "turned"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "lost"), MemoryError(), KeyboardInterrupt()], ids=repr)
def test_an_error_in_one_part_stops_the_others(
    parent: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str
) -> None:
    begun: list[int] = []
    real = Stage.write_part

    def write_part(self: Stage, *arguments: Any) -> None:
        begun.append(1)
        if len(begun) == 5:
            raise error
        time.sleep(0.005)
        real(self, *arguments)

    monkeypatch.setattr(Stage, "write_part", write_part)
    saved = {"run": numbers(1_000_000)} if kind == "run" else {str(n): numbers(100, 1000).T for n in range(9)}
    with pytest.raises(type(error)) as caught:
        fastckpt.save(saved, parent / "s", threads=4)
    assert caught.value is error
    # each of the others ends its own: that is one part, or one tensor of 13
    assert len(begun) <= 5 + 3 * (1 if kind == "run" else 13)


@contextmanager
def discarded(path: Path) -> Iterator[Stage]:
    with suppress(KeyError), staging(str(path)) as stage:
        yield stage
        raise KeyError


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("threads", [1, 8])
def test_a_file_that_cannot_be_created_is_what_is_said(
    parent: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """The threads that wait for the same file do not say that its folder exists."""
    made: list[int] = []

    def no_space(*arguments: Any) -> None:
        made.append(1)
        time.sleep(0.01)
        raise OSError(errno.ENOSPC, "allocate: no space", "below")

    monkeypatch.setattr(_core, "File", no_space)
    with pytest.raises(OSError, match="no space") as caught:
        fastckpt.save({"w": numbers(100_000)}, parent / "s", threads=threads)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(parent / "s" / "w" / "out"))
    with discarded(parent / "s") as stage:
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                stage.create_blob("w", 9, direct=True, writeback=True)
            assert os.listdir(stage.fd) == []


@pytest.mark.parametrize("call", ["fallocate", "pwrite64", "mkdirat"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_much_is_wanted_and_free(parent: Path, call: str, code: int) -> None:
    saved = {"large": numbers(300_000), "small": numbers(5)}
    status = os.statvfs(parent)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        refusing(call, code, lambda: fastckpt.save(saved, parent / "s"))
    assert (caught.value.errno, type(caught.value)) == (code, OSError)
    assert caught.value.filename.startswith(str(parent / "s"))
    found = r"(?:found (\d+) bytes free(?: and room for \d+ files)?|.* quota)"
    wanted = rf": wanted (\d+) bytes for 2 tensors, of three files or folders each, {found}; .*room"
    told = re.search(wanted, str(caught.value))
    assert told, caught.value
    assert int(told[1]) == 300_005 * 8
    assert (" files; " in str(caught.value)) is (code == errno.ENOSPC and status.f_files > 0)
    assert (told[2] is None) is (code == errno.EDQUOT)
    assert 0 <= int(told[2] or 0) <= status.f_blocks * status.f_frsize


def test_what_the_disk_did_not_confirm_is_no_matter_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.commit.sync_folder", refuse(OSError(errno.ENOSPC, "no journal")))
    with pytest.raises(fastckpt.CommitUncertain) as caught:
        fastckpt.save({"w": numbers(3)}, tmp_path / "s")
    assert "wanted" not in str(caught.value)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("length", [0, 1, 5999, 6001, 200_000])
def test_small_tensors_that_are_gathered_are_right_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, length: int
) -> None:
    """Also where another thread resizes one meanwhile."""
    monkeypatch.setattr(ways, "syncs_whole", lambda system: not sync)
    turned = {f"{at}": torch.arange(6000).reshape(at, -1).T for at in (2, 3, 4, 5)}
    turned |= {"empty": torch.zeros(3, 0).T, "conj": torch.arange(6000).to(torch.complex64).conj()}
    fastckpt.save(turned, tmp_path / "s", threads=3)
    found = fastckpt.load(tmp_path / "s", verify=True)
    assert all(torch.equal(found[key], tensor) for key, tensor in turned.items())
    pieces_of = WriteItem.pieces

    def meanwhile(item: WriteItem, room: Any = None) -> Any:
        if item.folder == "4":
            item.value.resize_(length)
        return pieces_of(item, room)

    monkeypatch.setattr(WriteItem, "pieces", meanwhile)
    with pytest.raises(fastckpt.UnsupportedError, match=rf"/s/4: 48000 bytes when the save began, then {length * 8}"):
        fastckpt.save(turned, tmp_path / "s", threads=3)
    monkeypatch.undo()
    assert [*fastckpt.load(tmp_path / "s", verify=True)] == [*turned], "the old one"


@pytest.mark.usefixtures("parts")
def test_a_part_is_not_written_when_the_save_has_ended(parent: Path) -> None:
    """A pool that is interrupted while it starts a thread forgets it."""
    with discarded(parent / "s") as stage:
        file = stage.create_blob("w", 9, direct=False, writeback=False)
        stage.end()
        with pytest.raises(RuntimeError, match="the save has ended"):
            stage.write_part("w", file, bytes(9), 0, None, _core.Gate(1))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_sandbox_that_forbids_syncfs(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every file is synced by itself, and the save does not fail."""

    def refused(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ways, "filesystem_of", lambda fd: DISK)
    monkeypatch.setattr(ways, "unwritten", lambda: 0)
    with open(tmp_path / "file", "wb") as file:
        assert not ways.way_for(file.fileno(), None, durable=True, digest=True).sync
        monkeypatch.setattr(_core, "syncfs", refused)
        assert ways.way_for(file.fileno(), None, durable=True, digest=True).sync
    fastckpt.save(rig.flat(1), tmp_path / "s")
    assert rig.equal(rig.loaded(tmp_path / "s"), rig.flat(1))
