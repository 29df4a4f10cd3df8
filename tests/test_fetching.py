"""Where the bytes of a load come from: maps of what is in the page cache, reads past it of what is not, the index."""

from __future__ import annotations

import gc
import itertools
import logging
import mmap
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import evict, maps_of, resident

import fastckpt
from fastckpt import _core, choosing, fetching, filesystems, loading, memory, quick
from fastckpt import indexed as indexed_file
from fastckpt import meta as meta_file
from fastckpt.choosing import MODES
from fastckpt.folders import Folders
from fastckpt.opening import read_marker
from fastckpt.torch import pinned
from fastckpt.torch.pinned import HostLane
from fastckpt.torch.tensors import TORCH

LENGTHS = (1, 4095, 4096, 4097, 16_384, 16_385, (1 << 20) + 3, (9 << 20) + 4097)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"of {length}": torch.randint(0, 256, (length,), dtype=torch.uint8, generator=generator) for length in LENGTHS
    }
    tied = torch.rand(70, 100, generator=generator)
    half = torch.rand(300, 300, generator=generator).to(torch.bfloat16)
    return {**tensors, "none": torch.zeros(0, 3), "tied": tied, "bool": tied > 0.5, "half": half, "twin": tied}


def same(found: Any, expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


def evict_all(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file() and file.stat().st_size:
            evict(file)


@pytest.fixture(params=[False, True], ids=["folders", "index"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fastckpt.save(state(), tmp_path / "s", index=request.param)
    return tmp_path / "s"


def read_all(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.read_bytes()


@pytest.mark.usefixtures("slow_maps")
def test_every_way_without_huge_pages(path: Path) -> None:
    for mode, verify in itertools.product(MODES, [False, True]):
        evict_all(path)
        assert same(fastckpt.load(path, mode=mode, verify=verify), state())
        assert same(fastckpt.load(path, mode=mode, verify=verify, keys=list(state())), state())


def test_what_is_cold_is_mapped_where_that_is_fast(path: Path) -> None:
    if not choosing.maps_fast(filesystems.filesystem_of(path)):
        pytest.skip("no huge pages in the page cache of this file system")
    large, middling = path / f"of {LENGTHS[-1]}" / "out", path / f"of {LENGTHS[-2]}" / "out"
    for keys in (None, list(state())):
        evict_all(path)
        found = fastckpt.load(path, keys=keys)
        assert maps_of(large) == maps_of(middling) == 1
        assert resident(large) == 0, "nothing is read before it is touched"
        end = time.monotonic() + 20
        while resident(middling) < LENGTHS[-2] and time.monotonic() < end:  # a hint was given
            time.sleep(0.01)
        assert resident(middling) >= LENGTHS[-2]
        assert int(found[f"of {LENGTHS[-1]}"][5 << 20]) == int(state()[f"of {LENGTHS[-1]}"][5 << 20])
        assert 0 < resident(large) < LENGTHS[-1]
        assert same(found, state())
        del found
    evict_all(path)
    found = fastckpt.load(path, mode="mmap")
    assert resident(large) == resident(middling) == 0
    assert same(found, state())


@pytest.mark.parametrize(
    ("name", "release", "fast"),
    [("ext4", "6.16.0", True), ("ext4", "6.15.9", False), ("xfs", "5.18", True), ("btrfs", "7.0.1-x", False)],
)
def test_where_maps_are_fast(name: str, release: str, fast: bool, run_release: Callable[[str], None]) -> None:
    run_release(release)
    assert choosing.maps_fast(filesystems.FileSystem.named(name)) == fast


@pytest.mark.parametrize(
    ("resident", "processors", "folders", "threads"),
    [
        (True, 2, 1000, 2),
        (True, 64, 100, 3),
        (True, 2, 40, 1),
        (False, 2, 1000, 16),
        (False, 2, 40, 10),
        (False, 2, 4, 1),
        (False, 2, 0, 0),
    ],
)
def test_how_many_threads_look_into_folders(
    resident: bool, processors: int, folders: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the disk by itself, where the metas must come from there, and for several files at a time."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processors))
    monkeypatch.setattr(_core, "is_resident", lambda *_: resident)
    asked = []

    def scanned(_: int, names: list[str], *, threads: int, ahead: bool, **how: Any) -> list[tuple[bytes, int]]:
        asked.append((threads, ahead))
        return [(b'shape {\n}\ndata_type: kInt8\n# fastckpt: {"place":0,"count":1}\n', 1)] * len(names)

    monkeypatch.setattr(_core, "scan", scanned)
    Folders(str(tmp_path), -1, None).metas([str(at) for at in range(folders)], "none")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512 + len(os.listdir("/proc/self/fd")), -1))
    Folders(str(tmp_path), -1, None).metas([str(at) for at in range(folders)], "none")
    assert asked == [(threads, not resident and folders > 0), (threads, False)], "the others need descriptors, too"


@pytest.mark.parametrize("wrap", [lambda tensors: tensors, lambda tensors: {"epoch": 1, "model": tensors}])
@pytest.mark.parametrize("index", [False, True])
def test_what_is_usual_is_left_to_c(index: bool, wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meta of a plain tensor is parsed by Python, and no such tensor made alone."""
    plain = {f"t{at}": torch.full((at + 1, 3), float(at)) for at in range(50)}
    unusual = {"bool": torch.tensor([True, False]), "a/b": torch.ones(2), "tie": plain["t3"]}
    fastckpt.save(wrap({**plain, **unusual}), tmp_path / "s", index=index)
    parsed, made = [], []
    parse, make = meta_file.parse, TORCH.make
    monkeypatch.setattr(meta_file, "parse", lambda data, where: parsed.append(where) or parse(data, where))
    monkeypatch.setattr(type(TORCH), "make", lambda _, *args: made.append(args[-1]) or make(*args))
    loaded = fastckpt.load(tmp_path / "s", device="cpu")
    assert same(loaded if "t0" in loaded else loaded["model"], {**plain, **unusual})
    assert len(parsed) <= len(unusual) + 1  # the first meta of a flat dict may say of what kind that is
    assert [key.rpartition(".")[2] for key in made] == ["bool"]


@pytest.mark.parametrize(("mode", "warm", "verify"), [*itertools.product(MODES, [False, True], [False, True])])
def test_every_way_gives_the_same(mode: Any, warm: bool, verify: bool, path: Path) -> None:
    expected = state()
    (read_all if warm else evict_all)(path)
    found = fastckpt.load(path, mode=mode, verify=verify)
    assert same(found, expected)
    assert found["tied"].data_ptr() == found["twin"].data_ptr()
    for tensor in found.values():
        tensor.zero_()
    assert same(fastckpt.load(path, mode=mode, keys=["twin", "half"]), {key: expected[key] for key in ("half", "twin")})
    assert fastckpt.verify(path)


@pytest.mark.parametrize("mode", MODES)
def test_threads_and_numpy(mode: Any, path: Path) -> None:
    expected = {key: value for key, value in state().items() if key != "half"}
    for threads in (1, 3, 50):
        found = fastckpt.load(path, mode=mode, threads=threads, as_="numpy", keys=expected)
        assert all((found[key] == expected[key].numpy()).all() for key in expected)


def test_one_thread_is_one_for_the_copies_in_an_index_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {f"t{at}": torch.full((4000,), float(at)) for at in range(400)}  # more than one part
    fastckpt.save(small, tmp_path / "s", index=True)
    read_parts, told = _core.read_parts, list[tuple[int, int]]()

    def noted(fd: int, parts: Any, *, threads: int = 1, **options: Any) -> None:
        told.append((len(parts), threads))
        read_parts(fd, parts, threads=threads, **options)

    monkeypatch.setattr(_core, "read_parts", noted)
    for threads, expected in ((1, 1), (None, 8)):
        told.clear()
        assert same(fastckpt.load(tmp_path / "s", mode="read", threads=threads), small)
        assert max(number for parts, number in told if parts) == expected


def set_maps_fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    for module in (choosing, quick):
        monkeypatch.setattr(module, "maps_fast", lambda system: fast)


@pytest.fixture
def slow_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system whose page cache has no huge pages."""
    set_maps_fast(monkeypatch, False)
    choosing.forget_loads()


@pytest.mark.usefixtures("slow_maps")
def test_what_is_in_memory_is_mapped_and_what_is_not_is_read(path: Path) -> None:
    large = path / f"of {LENGTHS[-1]}" / "out"
    evict_all(path)
    if not can_pass_the_cache(path):
        pytest.skip("this file system has no O_DIRECT")
    kept = fastckpt.load(path)
    assert resident(large) == 0
    assert maps_of(large) == 0
    large.read_bytes()
    for keys in (None, [f"of {LENGTHS[-1]}"]):
        kept = fastckpt.load(path, keys=keys)
        assert maps_of(large) == 1
    del kept
    assert maps_of(large) == 0
    assert fastckpt.load(path, mode="direct")
    assert fastckpt.load(path, mode="read")
    assert maps_of(path) == 0
    kept = fastckpt.load(path, mode="mmap")
    assert maps_of(large) == 1
    assert kept


def can_pass_the_cache(path: Path) -> bool:
    system = filesystems.filesystem_of(path)
    return not (system.in_memory or system.remote)


def test_over_a_network_nothing_is_mapped(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (fetching, choosing):
        monkeypatch.setattr(module, "filesystem_of", lambda path: filesystems.FileSystem.named("nfs4"))
    with caplog.at_level(logging.INFO, "fastckpt"):
        found = fastckpt.load(path)
    assert same(found, state())
    assert maps_of(path / f"of {LENGTHS[-1]}") == 0
    assert "nfs4, so tensors are read in large parts and not mapped" in caplog.text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_byte_that_flipped_is_noticed(length: int, mode: Any, path: Path) -> None:
    out = path / f"of {length}" / "out"
    data = bytearray(out.read_bytes())
    data[length // 2] ^= 4
    out.write_bytes(data)
    marker = (path / "snapshot_done").read_bytes()
    if marker and length <= 16_384:  # its copy is what a load looks at
        assert fastckpt.load(path, mode=mode, verify=True)
        assert f"of {length}/out: its bytes have changed" in fastckpt.verify(path).problems[0]
        at = marker.index(bytes(state()[f"of {length}"].tolist())) + length // 2
        (path / "snapshot_done").write_bytes(marker[:at] + bytes([marker[at] ^ 4]) + marker[at + 1 :])
    for warm in (True, False):
        (read_all if warm else evict_all)(path)
        with pytest.raises(fastckpt.CorruptError, match=f"of {length}/out: its bytes have changed since"):
            fastckpt.load(path, mode=mode, verify=True)
    assert fastckpt.load(path, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_noticed(mode: Any, change: int, path: Path) -> None:
    out = path / f"of {LENGTHS[-1]}" / "out"
    out.write_bytes(bytes(LENGTHS[-1] + change))
    for options in ({}, {"keys": [f"of {LENGTHS[-1]}"]}, {"verify": True}):
        with pytest.raises(fastckpt.CorruptError, match=f"of {LENGTHS[-1]}/out"):
            fastckpt.load(path, mode=mode, **options)


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_blob_is_noticed(mode: Any, path: Path) -> None:
    (path / f"of {LENGTHS[-1]}" / "out").unlink()
    with pytest.raises((fastckpt.CorruptError, FileNotFoundError), match=f"of {LENGTHS[-1]}/out"):
        fastckpt.load(path, mode=mode)


# ---- the index ----


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    fastckpt.save(state(), tmp_path / "s", index=True)
    return tmp_path / "s"


def test_small_tensors_come_from_the_index(indexed: Path) -> None:
    (indexed / "of 4096" / "out").write_bytes(bytes(4096))
    (indexed / "of 4096" / "meta").write_bytes(b"nothing that can be read")
    found = fastckpt.load(indexed)
    assert same(found, state())
    found["of 4096"].zero_()
    assert same(fastckpt.load(indexed), state()), "private"
    assert not fastckpt.verify(indexed), "the folders are the truth"
    assert maps_of(indexed / "snapshot_done") == 1
    kept = found["of 1"]
    del found
    assert kept.tolist() == state()["of 1"].tolist()
    del kept
    gc.collect()
    assert maps_of(indexed) == 0


def test_a_folder_that_is_gone_is_noticed_with_an_index(indexed: Path) -> None:
    shutil.rmtree(indexed / "of 1")
    with pytest.raises(fastckpt.CorruptError, match="1 of 13 tensor folders are missing"):
        fastckpt.load(indexed)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"dim: 4097", b"dim: 4098"), (b'[["of 1"', b'[["of 1,'), (b",4097,", b",4097;"), (b"kUInt8", b"kUInt9")],
)
def test_an_index_that_cannot_be_read_is_passed_over(old: bytes, new: bytes, indexed: Path) -> None:
    marker = (indexed / "snapshot_done").read_bytes()
    head, table = marker.split(b"\n", 1)
    assert old in table
    (indexed / "snapshot_done").write_bytes(head + b"\n" + table.replace(old, new, 1))
    with pytest.warns(UserWarning, match="snapshot_done: .*; the folders were read instead"):
        assert same(fastckpt.load(indexed), state())


def test_copies_behind_the_end_are_refused(indexed: Path) -> None:
    marker = (indexed / "snapshot_done").read_bytes()
    moved = marker.replace(b",16384,12416]", b",16384,92416]", 1)
    assert moved != marker
    (indexed / "snapshot_done").write_bytes(moved)
    with pytest.warns(UserWarning, match="the folders were read instead"):
        assert same(fastckpt.load(indexed), state())


# ---- prefetch, the collector, arguments ----


def test_prefetch_brings_maps_into_memory(path: Path) -> None:
    out = path / f"of {LENGTHS[-1]}" / "out"
    evict(out)
    found = fastckpt.load(path, mode="mmap", prefetch=True)
    end = time.monotonic() + 20
    while resident(out) < LENGTHS[-1] and time.monotonic() < end:
        time.sleep(0.01)
    assert resident(out) >= LENGTHS[-1]
    assert same(found, state())


def test_much_that_is_cold_is_prefetched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless that is refused, or is not worth it; what is there already is left alone."""
    set_maps_fast(monkeypatch, True)
    warmed: list[Any] = []
    for module in (loading, quick):
        monkeypatch.setattr(module, "warm", warmed.extend)
    for worth, left, options, expected in [
        (1, 1 << 30, {}, True),
        (1, 1 << 30, {"keys": [f"of {LENGTHS[-1]}"]}, True),
        (1, 1 << 30, {"prefetch": False}, False),
        (1, 1 << 30, {"mode": "mmap"}, False),
        (1, 1 << 30, {"mode": "mmap", "prefetch": True}, True),
        (64 << 20, 1 << 30, {}, False),
        (1, 16 << 20, {}, False),
    ]:
        for module in (choosing, quick):
            monkeypatch.setattr(module, "WORTH_WARMING", worth)
        monkeypatch.setattr(choosing, "available", lambda left=left: left)
        evict(path / f"of {LENGTHS[-1]}" / "out")
        warmed.clear()
        fastckpt.load(path, **options)
        assert bool(warmed) == expected, (worth, left, options)
    monkeypatch.setattr(choosing, "available", lambda: 1 << 30)
    read_all(path)
    warmed.clear()
    fastckpt.load(path)
    assert not warmed
    set_maps_fast(monkeypatch, False)
    evict(path / f"of {LENGTHS[-1]}" / "out")
    fastckpt.load(path)
    assert not warmed, "it was read"


def test_prefetch_does_without_threads_that_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert same(fastckpt.load(path, mode="mmap", prefetch=True), state())


def test_prefetch_keeps_nothing_alive(path: Path) -> None:
    fastckpt.load(path, mode="mmap", prefetch=True)
    end = time.monotonic() + 20
    while maps_of(path) and time.monotonic() < end:
        time.sleep(0.01)
    assert maps_of(path) == 0


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool, path: Path) -> None:
    (gc.enable if enabled else gc.disable)()
    fastckpt.load(path)
    assert gc.isenabled() == enabled
    with pytest.raises(KeyError):
        fastckpt.load(path, keys=["nothing"])
    assert gc.isenabled() == enabled


def test_modes_that_cannot_be(path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be one of 'auto', 'mmap', 'read', 'direct', not 'fast'"):
        fastckpt.load(path, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mmap and mode mean the same"):
        fastckpt.load(path, mode="read", mmap=True)


def test_an_interrupt_between_two_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one call has begun it finishes; the next one never begins."""
    calls = itertools.count()

    def interrupted(*args: Any, **options: Any) -> None:
        if next(calls):
            raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_BATCH", 1 << 20)
    monkeypatch.setattr(_core, "read_parts", interrupted)
    monkeypatch.setattr(fetching, "PART", 1 << 20)
    with pytest.raises(KeyboardInterrupt):
        fastckpt.load(path, mode="read")
    assert maps_of(path) == 0


# ---- what is cold, and mapped nevertheless ----


@pytest.mark.usefixtures("slow_maps")
def test_what_is_loaded_again_is_mapped(path: Path) -> None:
    large = path / f"of {LENGTHS[-1]}" / "out"
    if not can_pass_the_cache(path):
        pytest.skip("this file system has no O_DIRECT")
    for times in range(3):
        evict_all(path)
        found = fastckpt.load(path)
        assert maps_of(large) == min(times, 1)
        assert same(found, state())
        del found
    fastckpt.save(state(), path)
    evict_all(path)
    found = fastckpt.load(path)
    assert maps_of(large) == 0, "another snapshot by now"
    assert same(found, state())


@pytest.mark.usefixtures("slow_maps")
def test_what_is_more_than_the_memory_is_mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evict_all(path)
    monkeypatch.setattr(choosing, "available", lambda: 9 << 20)
    found = fastckpt.load(path)
    assert maps_of(path / f"of {LENGTHS[-1]}" / "out") == 1
    assert same(found, state())


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", 4096 << 10), ("10000", "4000", 6000), ("10000", "20000", 0), (None, None, 4096 << 10)],
)
def test_available_memory(
    limit: str | None, used: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 4096 kB\nDirty: 3 kB\nWriteback: 4 kB\n")
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(memory, "_GROUP", str(tmp_path))
    assert memory.available() == expected
    assert memory.unwritten() == 7 << 10
    monkeypatch.setattr(memory, "_MEMINFO", str(tmp_path / "absent"))
    assert memory.unwritten() == 0


@pytest.mark.parametrize(("held", "expected"), [("8388608", 550), ("2097152", 175), ("0", 0)])
def test_what_the_page_cache_takes_without_waiting(
    held: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of both limits, in a container as much of that as it has of the memory, less what is there already."""
    (tmp_path / "meminfo").write_text("MemAvailable: 4096 kB\nDirty: 100 kB\nWriteback: 100 kB\n")
    limits = {"nr_dirty_threshold": 1000 << 10, "nr_dirty_background_threshold": 500 << 10, "nr_dirty": 7}
    (tmp_path / "vmstat").write_text("".join(f"{name} {size // mmap.PAGESIZE}\n" for name, size in limits.items()))
    (tmp_path / "memory.max").write_text(held)
    (tmp_path / "memory.current").write_text("0")
    for name, value in (("_MEMINFO", "meminfo"), ("_VMSTAT", "vmstat"), ("_GROUP", "")):
        monkeypatch.setattr(memory, name, str(tmp_path / value))
    assert memory.writable() == expected << 10
    monkeypatch.setattr(memory, "_VMSTAT", str(tmp_path / "absent"))
    assert memory.writable() == sys.maxsize


# ---- over a network, and of an index that is not mapped ----


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all snapshots lay on a server."""
    for module in (fetching, choosing, indexed_file):
        monkeypatch.setattr(module, "filesystem_of", lambda path: filesystems.FileSystem.named("nfs4"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Paths and lengths of all parts of tensors that are read, also of their copies in an index."""
    parts: list[tuple[str, int]] = []
    real = _core.read_parts

    def noted(fd: int, wanted: list[Any], **options: Any) -> None:
        for path, at, view, *_ in wanted:
            index = read_marker("", fd).index if path == "snapshot_done" else None
            if index is None or at >= index[1]:  # what lies before are its metas
                parts.append((path, len(view)))
        real(fd, wanted, **options)

    monkeypatch.setattr(_core, "read_parts", noted)
    return parts


COPY = 16 << 10  # bytes: as many as an index copies


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A nested snapshot, which always has an index, with 300 tensors that have copies in it; one is empty."""
    tensors = {f"{at}": torch.full((COPY,), at % 251, dtype=torch.uint8) for at in range(300)}
    tensors["100"] = torch.zeros(0)
    fastckpt.save({"model": tensors, "epoch": 3}, tmp_path / "s", durable=False)
    return tmp_path / "s", {f"model.{key}": tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("options", [{"mode": "read"}, {"mode": "direct"}, {"mode": "read", "verify": True}], ids=str)
def test_of_an_index_those_copies_are_read_that_are_wanted(
    options: Any, copies: tuple[Path, dict[str, torch.Tensor]], asked: list[tuple[str, int]]
) -> None:
    path, tensors = copies
    for numbers, reads in (
        ([7], [COPY]),
        ([100], []),
        ([98, 100, 99, 101], [3 * COPY]),
        ([3, 5, 299], [3 * COPY, COPY]),
        ([3, 6, 8, 100], [COPY, 3 * COPY]),
        ([], []),
        (range(300), [4 << 20, 299 * COPY - (4 << 20)]),
    ):
        asked.clear()
        wanted = {f"model.{number}": tensors[f"model.{number}"] for number in sorted(numbers)}
        assert same(fastckpt.load(path, keys=[f"model.{number}" for number in numbers], **options), wanted)
        assert asked == [("snapshot_done", size) for size in reads], numbers
    assert same(fastckpt.load(path, **options)["model"], {key.partition(".")[2]: t for key, t in tensors.items()})


@pytest.mark.usefixtures("network")
def test_over_a_network_copies_are_read_that_are_wanted(
    copies: tuple[Path, dict[str, torch.Tensor]], asked: list[tuple[str, int]]
) -> None:
    path, tensors = copies
    assert same(fastckpt.load(path, keys=["model.8"]), {"model.8": tensors["model.8"]})
    assert asked == [("snapshot_done", COPY)]
    for keys in (None, ["model.8", "model.100", "model.200"]):
        asked.clear()
        snapshot = fastckpt.open(path, keys=keys, verify=True)
        assert asked == []
        part = snapshot["model.200"][3:5]
        assert part.tolist() == [200, 200]
        assert asked == [("snapshot_done", COPY)]
        part[:] = 0
        assert snapshot["model.200"][3] == 200, "every index reads"
        assert snapshot["model.100"][...].shape == (0,)
        assert asked == [("snapshot_done", COPY)] * 2


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_an_empty_copy_may_lie_where_another_begins(tmp_path: Path, order: str) -> None:
    """Others may write such an index; sorted by their places alone the two come in any order."""
    (tmp_path / "snapshot_done").write_bytes(bytes(range(200)))
    copies = indexed_file.Copies("", 200, {"c": 32, "a": 64, "b": 64}, {"c": 7, "a": 0, "b": 20})
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert [(begin, end) for _, begin, end in copies._runs(["c", *order])] == [(32, 84)]
        found = copies.read(fd, ["c", *order])
    finally:
        os.close(fd)
    assert {key: bytes(memoryview(memory)) for key, memory in found.items()} == {
        "a": b"",
        "b": bytes(range(64, 84)),
        "c": bytes(range(32, 39)),
    }


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("as_", ["torch", "numpy"])
def test_over_a_network_open_reads_what_is_asked_for(
    as_: str, path: Path, asked: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fastckpt"):
        snapshot = fastckpt.open(path, as_=as_)
    assert "nfs4, so tensors are read when they are asked for, and not mapped" in caplog.text
    assert (asked, maps_of(path)) == ([], 0), "nothing is read or mapped before"
    keys = [key for key in snapshot if as_ == "torch" or key != "half"]
    assert same({key: torch.as_tensor(snapshot[key][...]) for key in keys}, {key: state()[key] for key in keys})
    large, length = f"of {LENGTHS[-1]}", LENGTHS[-1]
    assert sum(size for name, size in asked if name == f"{large}/out") == length
    assert max(size for _, size in asked) == fetching.PART
    asked.clear()
    part = snapshot[large][5 << 20 : (5 << 20) + 7]
    assert part.tolist() == state()[large][5 << 20 : (5 << 20) + 7].tolist()
    assert asked == [(f"{large}/out", 7)]
    part[:] = 0
    assert snapshot[large][5 << 20] == state()[large][5 << 20], "every index reads"
    assert maps_of(path) == 0
    assert fastckpt.verify(path)


def into_targets(path: Path) -> Any:
    target = {key: torch.zeros_like(tensor) for key, tensor in state().items()}
    fastckpt.load_into(target, path)
    return target


CHOICES: dict[str, Callable[[Path], Any]] = {
    "all": fastckpt.load,
    "some": lambda path: fastckpt.load(path, keys=state().keys()),
    "bounded": lambda path: fastckpt.load(path, max_bytes=1 << 40),
    "checked": lambda path: fastckpt.load(path, verify=True),
    "device": lambda path: fastckpt.load(path, device="cpu"),
    "pinned": lambda path: fastckpt.load(path, pin=True),
    "targets": into_targets,
    "open": lambda path: fastckpt.open(path, keys=["half"]),
}


@pytest.fixture
def said(network: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Give what was logged; the CPU is a device, too, and its memory page-locked."""
    monkeypatch.setattr("fastckpt.loading.load_plain", lambda *_: None)
    monkeypatch.setitem(pinned.LANES, "cpu", HostLane)
    monkeypatch.setattr(pinned, "allocate", _core.allocate)
    caplog.set_level(logging.INFO, "fastckpt")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("call", CHOICES)
def test_over_a_network_the_choice_is_logged_once_with_the_path(
    call: str, path: Path, said: Callable[[], list[str]]
) -> None:
    CHOICES[call](path)
    (line,) = said()
    assert line.startswith(f"{path}: on nfs4, so tensors are read ")


def test_over_a_network_it_is_logged_once_for_arrays_beside_tensors(path: Path, said: Callable[[], list[str]]) -> None:
    fastckpt.save({"tensors": state(), "arrays": [np.arange(40_000.0), np.arange(50_000.0)]}, path)
    fastckpt.load(path, device="cpu")
    assert said() == [f"{path}: on nfs4, so tensors are read in large parts and not mapped"]


@pytest.mark.parametrize("options", [{"mode": "read"}, {"mode": "direct"}, {"mmap": False}], ids=str)
def test_over_a_network_what_the_caller_chose_is_not_logged(
    options: Any, path: Path, said: Callable[[], list[str]]
) -> None:
    fastckpt.load(path, **options)
    fastckpt.load(path, keys=["half"], **options)
    fastckpt.load_into(state(), path, mode="read")
    assert said() == []


@pytest.mark.parametrize("remote", [True, False])
def test_live_tensors_are_filled_over_a_network_by_more_threads_than_processors(
    remote: bool, path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a server, which does at the same time what it is asked at the same time."""
    if remote:
        request.getfixturevalue("network")
    read_all(path)
    live = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    read_parts, told = _core.read_parts, set[int]()

    def noted(*arguments: Any, threads: int = 1, **options: Any) -> None:
        told.add(threads)
        read_parts(*arguments, threads=threads, **options)

    monkeypatch.setattr(_core, "read_parts", noted)
    fastckpt.load_into(live, path)
    assert max(told) == (16 if remote else len(os.sched_getaffinity(0)))
    assert all(torch.equal(live[name], tensor) for name, tensor in state().items())


@pytest.mark.usefixtures("network")
def test_over_a_network_small_gaps_are_read_and_large_ones_are_not(
    tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    matrix = torch.arange(40 * 8192, dtype=torch.int32).reshape(40, 8192)  # rows of 32 KiB
    fastckpt.save({"x": matrix}, tmp_path / "s")
    handle = fastckpt.open(tmp_path / "s")["x"]
    for index, reads in (
        ((slice(None), 5), [4] * 40),
        ((3, slice(10, 20)), [40]),
        ((slice(3, 5), slice(None, None, 2)), [32_768 - 4] * 2),
        (slice(20, 10, -1), [10 * 32_768]),
        (slice(None, None, 39), [32_768] * 2),
        (slice(5, 5), []),
    ):
        asked.clear()
        expected = torch.from_numpy(matrix.numpy()[index].copy())
        assert torch.equal(handle[index], expected)
        assert [size for _, size in asked] == reads, index


@pytest.mark.usefixtures("network")
def test_over_a_network_a_replaced_snapshot_says_so(path: Path, tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    snapshot = fastckpt.open(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    large = f"of {LENGTHS[-1]}"
    kept = snapshot[large][...]
    path.rename(tmp_path / "elsewhere")
    assert torch.equal(snapshot[large][...], state()[large]), "the folder is held, whatever its name"
    (tmp_path / "elsewhere").rename(path)
    fastckpt.save({large: torch.zeros(3)}, path)
    with pytest.raises(FileNotFoundError, match=r"replaced or deleted after it was opened; open it again") as gone:
        snapshot[large][5]
    assert gone.value.filename == str(path / large / "out")
    assert torch.equal(kept, state()[large]), "what was handed out stays"
    assert fastckpt.open(path)[large][...].tolist() == [0, 0, 0]
    del snapshot, gone
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.usefixtures("network")
def test_over_a_network_an_open_that_checks(path: Path, asked: list[tuple[str, int]]) -> None:
    large = f"of {LENGTHS[-1]}"
    snapshot = fastckpt.open(path, as_="numpy", verify=True)
    assert asked == []
    assert snapshot[large][7] == state()[large][7]
    assert sum(size for _, size in asked) == LENGTHS[-1], "all of it is read, once"
    assert snapshot[large][8] == state()[large][8]
    assert sum(size for _, size in asked) == LENGTHS[-1] + 1
    out = path / large / "out"
    data = bytearray(out.read_bytes())
    data[-1] ^= 4
    out.write_bytes(data)
    snapshot = fastckpt.open(path, as_="numpy", verify=True)
    for _ in range(2):
        with pytest.raises(fastckpt.CorruptError, match=f"{large}/out: its bytes have changed"):
            snapshot[large][0]


@pytest.mark.usefixtures("network")
def test_over_a_network_a_blob_of_another_size_is_noticed(path: Path) -> None:
    snapshot = fastckpt.open(path)
    os.truncate(path / f"of {LENGTHS[-1]}" / "out", 5)
    with pytest.raises(fastckpt.CorruptError, match=f"of {LENGTHS[-1]}/out"):
        snapshot[f"of {LENGTHS[-1]}"][:2]


# ---- load_into ----


@pytest.mark.parametrize("mode", ["auto", "read"])
@pytest.mark.parametrize("system", ["local", "nfs4"])
def test_maps_only_of_local_files_and_when_it_may(
    path: Path, mode: Any, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = _core.read_parts, []

    def spy(*args: Any, **options: Any) -> None:
        if args[1][0][0] != "snapshot_done":
            asked.append(options["mapped"])
        read(*args, **options)

    monkeypatch.setattr(_core, "read_parts", spy)
    if system == "nfs4":
        monkeypatch.setattr(fetching, "filesystem_of", lambda file: filesystems.FileSystem.named(system))
    read_all(path)
    target = {key: torch.zeros_like(tensor) for key, tensor in state().items()}
    fastckpt.load_into(target, path, mode=mode)
    assert same(target, state())
    assert set(asked) == {mode == "auto" and system == "local"}


@pytest.mark.parametrize("processors", [1, 2, 4, 5, 16, 64])
def test_no_more_than_64_mib_are_mapped_at_a_time(
    tmp_path: Path, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(_core, "read_parts", lambda fd, parts, **options: asked.append((parts, options["threads"])))
    state = {"w": torch.zeros(20 << 18)}
    fastckpt.save(state, tmp_path / "s", durable=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(processors))
    fastckpt.load_into(state, tmp_path / "s")
    ((parts, threads),) = asked
    largest = max(len(view) for _, _, view, _, _ in parts)
    assert sum(len(view) for _, _, view, _, _ in parts) == 20 << 20
    assert largest * min(threads, 16) <= 64 << 20, "C has 16 threads at most"
    assert largest == (8 << 20 if processors <= 4 else 4 << 20), "few threads have larger maps, and so fewer of them"


@pytest.mark.parametrize("mode", ["auto", "read"])
def test_what_is_cold_is_filled_in_by_more_threads(tmp_path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read_parts, asked = _core.read_parts, []

    def noted(fd: int, parts: list[Any], **options: Any) -> None:
        asked.append((options["threads"], max(len(view) for _, _, view, _, _ in parts)))
        read_parts(fd, parts, **options)

    monkeypatch.setattr(_core, "read_parts", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    saved = {"small": torch.ones(3), "w": torch.arange(5 << 20)}
    fastckpt.save(saved, tmp_path / "s")
    evict(tmp_path / "s" / "w" / "out")
    for _ in range(2):
        target = {key: torch.zeros_like(tensor) for key, tensor in saved.items()}
        fastckpt.load_into(target, tmp_path / "s", mode=mode)
        assert same(target, saved)
    assert asked == [(8, 4 << 20), (2, 8 << 20 if mode == "auto" else 4 << 20)], "and then it is in the page cache"


def test_load_into_knows_two_modes(path: Path) -> None:
    with pytest.raises(ValueError, match="'auto' or 'read', not 'mmap'"):
        fastckpt.load_into(state(), path, mode="mmap")  # type: ignore[arg-type]


@pytest.mark.parametrize(("mebibytes", "wanted"), [(7, [7]), (8, [8]), (9, [9]), (10, [8, 2]), (17, [8, 9]), (0, [])])
def test_what_is_mapped_leaves_no_rest_of_less_than_a_huge_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, wanted: list[int]
) -> None:
    monkeypatch.setattr(fetching.os, "sched_getaffinity", lambda _: {0, 1})
    read_parts, sizes = _core.read_parts, list[int]()

    def noted(fd: int, parts: list[Any], **options: Any) -> None:
        sizes.extend(len(part[2]) >> 20 for part in parts)
        read_parts(fd, parts, **options)

    monkeypatch.setattr(fetching._core, "read_parts", noted)
    saved = {"w": torch.randint(0, 256, (mebibytes << 20,), dtype=torch.uint8)}
    fastckpt.save(saved, tmp_path / "s", durable=False)  # and so in the page cache
    target = {"w": torch.zeros_like(saved["w"])}
    fastckpt.load_into(target, tmp_path / "s")
    assert sizes == wanted
    assert torch.equal(target["w"], saved["w"])
