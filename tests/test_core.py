"""The door to C: what it writes, renames, scans, maps and reads; what it refuses, without waiting or leaking."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seccomp
from pages import evict

from fastckpt import _core
from fastckpt.dtypes import BY_NAME, BY_NUMBER
from fastckpt.entries import Entry
from fastckpt.meta import Meta, format_meta

GIB = 1 << 30


@dataclass(frozen=True)
class Folder:
    """An open folder, as every function of the core wants one."""

    path: Path
    fd: int

    def tensor(self, name: str, meta: bytes = b"", out: bytes = b"") -> str:
        (self.path / name).mkdir()
        (self.path / name / "meta").write_bytes(meta)
        (self.path / name / "out").write_bytes(out)
        return name

    def file(self, name: str, content: bytes | bytearray) -> str:
        (self.path / name).write_bytes(content)
        return name


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Folder(tmp_path, fd)
    os.close(fd)


def promptly(function: Callable[[], Any]) -> Any:
    """What `function` gives or raises, unless it hangs."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append((function(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            told.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert told, "it waits for something"
    result, error = told[0]
    if error is not None:
        raise error
    return result


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f" {path}")


# --- write


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b""],
        [b"abc"],
        [b"", b"a", bytearray(b"bc"), b"", memoryview(b"xdx")[1:2]],
        [np.arange(12, dtype="<f8").reshape(3, 4), np.float32(1.5), np.array(7), np.zeros((3, 0))],
        [os.urandom(17 << 20), b"tail", os.urandom(8 << 20)],
    ],
    ids=["nothing", "empty", "one", "several", "arrays", "large"],
)
def test_write_joins_its_pieces(folder: Folder, pieces: list[Any], sync: bool) -> None:
    expected = b"".join(memoryview(piece).tobytes() for piece in pieces)
    assert _core.write(folder.fd, "out", pieces, sync) == len(expected)
    assert (folder.path / "out").read_bytes() == expected


def test_a_loan_is_its_owners_memory_and_keeps_him() -> None:
    owner = np.arange(8, dtype=np.uint8)
    there = weakref.ref(owner)
    view = memoryview(_core.Loan(owner.ctypes.data + 2, 4, owner))
    assert (bytes(view), view.readonly, view.format) == (b"\2\3\4\5", False, "B")
    view[0] = 99
    assert owner[2] == 99
    del owner
    gc.collect()
    assert there() is not None
    del view
    assert there() is None
    assert bytes(_core.Loan(0, 0, None)) == b"", "of nothing, nowhere"


def test_write_asks_for_a_piece_when_the_one_before_is_written(folder: Folder) -> None:
    def pieces() -> Iterator[bytes]:
        for count in range(5):
            assert (folder.path / "out").stat().st_size == 3 * count
            yield b"abc"

    assert _core.write(folder.fd, "out", pieces()) == 15


def test_write_leaves_what_is_there(folder: Folder) -> None:
    folder.file("file", b"old")
    (folder.path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError) as caught:
            _core.write(folder.fd, name, [b"new"])
        assert caught.value.filename == name
    assert (folder.path / "file").read_bytes() == b"old"
    assert not (folder.path / "nowhere").exists()


def test_write_obeys_the_umask(folder: Folder) -> None:
    old = os.umask(0o027)
    try:
        _core.write(folder.fd, "out", [b"x"])
    finally:
        os.umask(old)
    assert (folder.path / "out").stat().st_mode & 0o777 == 0o640


def test_write_gives_back_what_it_reserved_in_vain(folder: Folder) -> None:
    assert _core.write(folder.fd, "out", [b"abc"], size_hint=8 << 20) == 3
    found = (folder.path / "out").stat()
    assert found.st_size == 3
    assert found.st_blocks * 512 < 1 << 20


def test_write_notices_a_full_disk_before_it_writes(folder: Folder) -> None:
    pieces = iter([b"abc"])
    with pytest.raises(OSError, match="allocate: ") as caught:
        _core.write(folder.fd, "out", pieces, size_hint=1 << 60)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    assert caught.value.filename == "out"
    assert list(pieces) == [b"abc"]


def test_write_stops_where_the_system_stops_it(folder: Folder) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(OSError, match="write: ") as caught:
            _core.write(folder.fd, "out", [bytes(3 << 19), bytes(3 << 19)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "out")
    assert (folder.path / "out").stat().st_size == 1 << 20


@pytest.mark.parametrize(
    "piece",
    [memoryview(b"abcdef")[::2], np.zeros((3, 4)).T, np.zeros(6)[::2]],
    ids=["memoryview", "transposed", "strided"],
)
def test_memory_with_gaps_is_refused(folder: Folder, piece: Any) -> None:
    with pytest.raises(BufferError, match="not C-contiguous"):
        _core.write(folder.fd, "out", [b"begin", piece])
    with pytest.raises(BufferError):
        _core.read_into(folder.fd, "out", 0, piece)


@pytest.mark.parametrize("error", [KeyError("key"), KeyboardInterrupt()])
def test_write_passes_on_what_its_pieces_raise(folder: Folder, error: BaseException) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begin"
        raise error

    before = open_files()
    with pytest.raises(type(error)):
        _core.write(folder.fd, "out", pieces())
    assert open_files() == before


class Stop(Exception):
    """What the handler of a signal raises."""


def test_write_can_be_interrupted_between_pieces(folder: Folder) -> None:
    def stop(number: int, frame: object) -> None:
        raise Stop

    pieces = [b"x"] * 500_000  # in a list: no Python code runs between them
    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(Stop):
            _core.write(folder.fd, "out", pieces)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert (folder.path / "out").stat().st_size < len(pieces)


@pytest.mark.parametrize("pieces", [b"abc", ["text"], [None], 3])
def test_write_wants_buffers(folder: Folder, pieces: Any) -> None:
    with pytest.raises(TypeError):
        _core.write(folder.fd, "out", pieces)


def test_names_are_those_of_os(folder: Folder) -> None:
    for name in ("ü", b"\xff", os.fsdecode(b"\xfe"), "a\nb"):
        _core.write(folder.fd, name, [b"x"])
        assert os.fsencode(name) in os.listdir(os.fsencode(folder.path))
    with pytest.raises(ValueError, match="null"):
        _core.write(folder.fd, "a\0b", [b"x"])
    with pytest.raises(TypeError):
        _core.write(folder.fd, 3, [b"x"])  # type: ignore[arg-type]


# --- rename, sync


def test_exchange_swaps_two_folders(folder: Folder) -> None:
    folder.tensor("old", out=b"old")
    folder.tensor("new", out=b"new")
    _core.renameat2(folder.fd, "new", folder.fd, b"old", _core.RENAME_EXCHANGE)
    assert (folder.path / "old" / "out").read_bytes() == b"new"
    assert (folder.path / "new" / "out").read_bytes() == b"old"


def test_noreplace_needs_a_free_name(folder: Folder) -> None:
    folder.file("a", b"a")
    folder.file("b", b"b")
    with pytest.raises(FileExistsError) as caught:
        _core.renameat2(folder.fd, "a", folder.fd, "b", _core.RENAME_NOREPLACE)
    assert (caught.value.filename, caught.value.filename2) == ("a", "b")
    _core.renameat2(folder.fd, "a", folder.fd, "c", _core.RENAME_NOREPLACE)
    _core.renameat2(folder.fd, "c", folder.fd, "b", 0)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == {"b": b"a"}


@pytest.mark.parametrize("sync", [_core.sync_dir, _core.syncfs])
def test_sync(folder: Folder, sync: Callable[..., None]) -> None:
    sync(folder.fd)
    with pytest.raises(OSError, match="sync") as caught:
        sync(-1, "model")
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, "model")


# --- scan


@pytest.mark.parametrize("ahead", [False, True])
def test_scan_reads_in_order(folder: Folder, ahead: bool) -> None:
    names = [folder.tensor(f"t{i}", b"meta %d" % i, bytes(i)) for i in range(20)]
    expected = [(b"meta %d" % i, i) for i in range(20)]
    assert _core.scan(folder.fd, names, ahead=ahead) == expected
    assert _core.scan(folder.fd, [os.fsencode(name) for name in reversed(names)]) == expected[::-1]
    assert _core.scan(folder.fd, []) == []


def test_scan_reads_one_byte_more_than_a_meta_may_have(folder: Folder) -> None:
    metas = [bytes([i]) * size for i, size in enumerate((60_000, 60_000, 65_536, 65_537, 70_000, 3, 60_000))]
    names = [folder.tensor(f"t{i}", meta) for i, meta in enumerate(metas)]
    assert [meta for meta, _ in _core.scan(folder.fd, names)] == [meta[:65_537] for meta in metas]


def make_odd(path: Path, kind: str) -> None:
    """Put something at `path` that is no regular file of the snapshot."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            old = os.getcwd()
            os.chdir(path.parent)  # a socket's name has a hundred bytes
            listener.bind(path.name)
            os.chdir(old)


IN_OPEN, IN_CLOSE = 0x20, 0x10  # of inotify: the latter of what was opened to be read
ODD = {"absent": errno.ENOENT, "fifo": errno.EINVAL, "folder": errno.EISDIR, "link": errno.ELOOP, "socket": errno.ENXIO}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_scan_notes_what_is_no_file(folder: Folder, kind: str, ahead: bool) -> None:
    odd_meta, odd_out, good = (folder.tensor(name, b"meta", b"out") for name in ("odd_meta", "odd_out", "good"))
    for name, file in ((odd_meta, "meta"), (odd_out, "out")):
        (folder.path / name / file).unlink()
        make_odd(folder.path / name / file, kind)
    code = -ODD[kind]
    by_name = -errno.EINVAL if kind == "socket" else code  # asked for its size only, a socket is not opened
    expected = [(code, 3), (b"meta", by_name), (b"meta", 3)]
    assert promptly(lambda: _core.scan(folder.fd, [odd_meta, odd_out, good], ahead=ahead)) == expected
    found = promptly(lambda: _core.scan(folder.fd, [odd_meta, odd_out, good], map=True, ahead=ahead))
    assert [meta for meta, _ in found] == [code, b"meta", b"meta"]
    assert [out for _, out in found][:2] == [3, code]


def test_scan_stays_in_its_folder(folder: Folder) -> None:
    folder.tensor("outside", b"meta", b"out")
    (folder.path / "inside").mkdir()
    (folder.path / "inside" / "link").symlink_to("../outside")
    (folder.path / "inside" / "absolute").symlink_to(folder.path / "outside")
    names = ["link", "absolute", "../outside", str(folder.path / "outside"), "x" * 300, "y/" * 2100]
    codes = [-errno.ELOOP] * 2 + [-errno.EXDEV] * 2 + [-errno.ENAMETOOLONG] * 2
    inside = os.open(folder.path / "inside", os.O_RDONLY)
    try:
        assert _core.scan(inside, names) == [(code, code) for code in codes]
    finally:
        os.close(inside)


def test_scan_maps_what_it_finds(folder: Folder) -> None:
    names = [folder.tensor(f"t{i}", b"m" * (30_000 + i), b"x" * (i * 4096)) for i in range(9)]
    found = _core.scan(folder.fd, names, map=True)
    assert [(meta, bytes(out)) for meta, out in found if isinstance(out, _core.Mapping)] == [
        (b"m" * (30_000 + i), b"x" * (i * 4096)) for i in range(9)
    ]
    assert maps_of(folder.path) == 4  # up to 16 KiB they are read instead
    del found
    assert maps_of(folder.path) == 0


def test_small_blobs_in_one_memory(folder: Folder) -> None:
    names = [folder.tensor(f"t{i}", b"meta", bytes([i]) * 4096) for i in range(40)]
    blobs = [out for _, out in _core.scan(folder.fd, names, map=True) if isinstance(out, _core.Mapping)]
    memoryview(blobs[7])[:] = bytes(4096)
    assert [np.frombuffer(memoryview(blob), "u1").ctypes.data % 64 for blob in blobs] == [0] * 40
    assert not any(gc.is_tracked(blob) for blob in blobs)  # a collector that clears one would cut it from its memory
    last = blobs[1::2]
    del blobs
    assert [bytes(blob) for blob in last] == [bytes([0 if i == 7 else i]) * 4096 for i in range(1, 40, 2)]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("threads", [0, 1, 2, 7, 100])
def test_scan_by_threads_gives_the_same(folder: Folder, threads: int, ahead: bool) -> None:
    names = [folder.tensor(f"t{i}", b"m" * (i * 100), bytes([i % 251]) * (i * 97)) for i in range(200)]
    expected = [(b"m" * (i * 100), bytes([i % 251]) * (i * 97)) for i in range(200)]
    before = len(os.listdir("/proc/self/task"))
    found = _core.scan(folder.fd, [*names, "absent"], map=True, threads=threads, ahead=ahead)
    for _ in range(1000):  # one that began too late to be of use may still be ending
        if len(os.listdir("/proc/self/task")) == before:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a thread is left")
    assert found.pop() == (-errno.ENOENT, -errno.ENOENT)
    assert [(meta, bytes(out)) for meta, out in found if isinstance(out, _core.Mapping)] == expected
    assert _core.scan(folder.fd, names, threads=threads, ahead=ahead) == [(meta, len(out)) for meta, out in expected]


@pytest.mark.parametrize("left", [0, 3, 30])
@pytest.mark.parametrize("mapped", [False, True])
def test_scan_ahead_does_with_few_descriptors_and_leaves_none_open(folder: Folder, mapped: bool, left: int) -> None:
    names = [folder.tensor(f"t{i}", b"meta", bytes([i]) * 97) for i in range(20)]
    before = os.listdir("/proc/self/fd")
    limits, spare = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 50, limits[1]))
    try:
        with suppress(OSError):  # until there are no more
            while True:
                spare.append(os.open(folder.path, os.O_RDONLY))
        for _ in range(left):
            os.close(spare.pop())
        found = _core.scan(folder.fd, names, map=mapped, ahead=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            os.close(fd)
    assert {meta for meta, _ in found} == {b"meta" if left else -errno.EMFILE}
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(("ahead", "order"), [(False, "oc" * 20), (True, 2 * ("o" * 8 + "c" * 8 + "oocc"))])
def test_scan_ahead_opens_eight_files_before_it_is_done_with_the_first(folder: Folder, ahead: bool, order: str) -> None:
    names = [folder.tensor(f"t{i}", b"meta", b"out") for i in range(20)]  # two runs of ten
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        for name in names:
            assert libc.inotify_add_watch(watch, os.fsencode(folder.path / name / "meta"), IN_OPEN | IN_CLOSE) > 0
        _core.scan(folder.fd, names, ahead=ahead)
        events = os.read(watch, 1 << 16)
    finally:
        os.close(watch)
    masks = [mask for _, mask, _, _ in struct.iter_unpack("iIII", events)]  # of a watched file an event has no name
    assert "".join("o" if mask & IN_OPEN else "c" for mask in masks) == order


def test_scan_on_one_processor(folder: Folder) -> None:
    names = [folder.tensor(f"t{i}", b"meta", bytes([i]) * 97) for i in range(200)]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        found = _core.scan(folder.fd, names, map=True, threads=8)
    finally:
        os.sched_setaffinity(0, allowed)
    assert [bytes(out)[:1] for _, out in found if isinstance(out, _core.Mapping)] == [bytes([i]) for i in range(200)]


# --- dlpack


def test_dlpack_tensor_keeps_the_memory(folder: Folder) -> None:
    import torch  # here: the other tests shall do without it, as valgrind takes minutes for its import

    folder.file("out", np.arange(6, dtype="<f4").tobytes() * 4096)
    (mapping,) = _core.map_files(folder.fd, ["out"], [6 * 4 * 4096])
    tensor = torch.utils.dlpack.from_dlpack(mapping.dlpack(2, 32, (4096, 2, 3)))
    del mapping
    assert maps_of(folder.path) == 1
    assert tensor.dtype == torch.float32
    assert tensor[7].tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor[7] = 0  # private and writable
    assert tensor[6:9].sum() == 30
    del tensor
    assert maps_of(folder.path) == 0


def test_dlpack_that_nobody_takes_is_released(folder: Folder) -> None:
    folder.file("out", bytes(1 << 20))
    (mapping,) = _core.map_files(folder.fd, ["out"], [1 << 20])
    capsules = [mapping.dlpack(1, 8, (1 << 20,)) for _ in range(3)]
    del mapping
    assert maps_of(folder.path) == 1
    del capsules
    assert maps_of(folder.path) == 0


@pytest.mark.parametrize(
    ("bits", "shape"),
    [(32, (7,)), (32, (3, 0)), (32, (-3, -2)), (16, (6,)), (0, (6,)), (192, (1,)), (64, ()), (32, (2**62, 2**62, 6))],
)
def test_dlpack_of_another_size_is_refused(folder: Folder, bits: int, shape: tuple[int, ...]) -> None:
    folder.file("out", bytes(24))
    (mapping,) = _core.map_files(folder.fd, ["out"], [24])
    with pytest.raises(ValueError, match="24 bytes are no tensor"):
        mapping.dlpack(2, bits, shape)


@pytest.mark.parametrize("kind", ODD)
def test_scan_maps_no_more_than_it_reads(folder: Folder, kind: str) -> None:
    odd_meta, odd_out, good = (folder.tensor(name, b"meta", b"out") for name in ("odd_meta", "odd_out", "good"))
    for name, file in ((odd_meta, "meta"), (odd_out, "out")):
        (folder.path / name / file).unlink()
        make_odd(folder.path / name / file, kind)
    code = -ODD[kind]
    (*failed, (meta, out)) = promptly(lambda: _core.scan(folder.fd, [odd_meta, odd_out, good], map=True))
    assert (failed, meta, bytes(out)) == ([(code, 3), (b"meta", code)], b"meta", b"out")
    assert maps_of(folder.path) == 0  # so small a blob is read


# --- map_files


def test_map_is_private_and_writable(folder: Folder) -> None:
    folder.file("out", b"abcdef")
    first, second = _core.map_files(folder.fd, ["out", b"out"], [6, 6])
    memoryview(first)[0:3] = b"XYZ"
    assert (bytes(first), bytes(second), len(first)) == (b"XYZdef", b"abcdef", 6)
    assert (folder.path / "out").read_bytes() == b"abcdef"


def test_map_is_a_buffer_of_bytes(folder: Folder) -> None:
    folder.file("out", np.arange(4, dtype="<f4").tobytes())
    (mapping,) = _core.map_files(folder.fd, ["out"], [16])
    view = memoryview(mapping)
    assert (view.format, view.itemsize, view.shape, view.readonly) == ("B", 1, (16,), False)
    assert np.frombuffer(memoryview(mapping), "<f4").tolist() == [0, 1, 2, 3]
    assert np.frombuffer(memoryview(mapping), "<f4").flags.writeable


def test_map_outlives_the_name(folder: Folder) -> None:
    for name in ("unlinked", "replaced", "exchanged"):
        folder.tensor(name, out=name.encode())
    names = [f"{name}/out" for name in ("unlinked", "replaced", "exchanged")]
    maps = _core.map_files(folder.fd, names, [8, 8, 9])
    (folder.path / "unlinked" / "out").unlink()
    os.rename(folder.file("other", b"........"), folder.path / "replaced" / "out", src_dir_fd=folder.fd)
    folder.tensor("new", out=b".........")
    _core.renameat2(folder.fd, "new", folder.fd, "exchanged", _core.RENAME_EXCHANGE)
    assert [bytes(mapping) for mapping in maps] == [b"unlinked", b"replaced", b"exchanged"]


def test_map_lives_as_long_as_its_memory_is_used(folder: Folder) -> None:
    path = folder.path / folder.file("out", b"abcdef")
    (mapping,) = _core.map_files(folder.fd, ["out"], [6])
    gone = weakref.ref(mapping)
    array = np.frombuffer(memoryview(mapping), "u1")
    del mapping
    assert bytes(array) == b"abcdef"
    assert maps_of(path) == 1
    del array
    assert gone() is None
    assert maps_of(path) == 0


def test_parts_of_shared_memory_lie_within_it(folder: Folder) -> None:
    folder.file("out", b"abcdef")
    whole = _core.share_file(folder.fd, "out", 6)
    assert bytes(whole.part(2, 3)) == b"cde"
    for offset, size in ((0, 7), (6, 1), (2**63, 1)):
        with pytest.raises(ValueError, match="no part of shared memory of 6 bytes"):
            whole.part(offset, size)
    with pytest.raises(ValueError, match="a map of 0 bytes"):
        _core.share_file(folder.fd, "out", 0)
    with pytest.raises(_core.SizeChanged, match="wanted 7 bytes, found 6"):
        _core.share_file(folder.fd, "out", 7)
    with pytest.raises(FileNotFoundError):
        _core.share_file(folder.fd, "gone", 7)


def test_empty_file_is_an_empty_map(folder: Folder) -> None:
    path = folder.path / folder.file("out", b"")
    (mapping,) = _core.map_files(folder.fd, ["out"], [0], advice=_core.MADV_WILLNEED)
    assert (len(mapping), bytes(mapping), maps_of(path)) == (0, b"", 0)
    assert memoryview(mapping).shape == (0,)
    mapping.advise(_core.MADV_POPULATE_READ)


def test_map_wants_the_size_that_was_checked(folder: Folder) -> None:
    names = [folder.tensor(f"t{i}", out=bytes(4096)) for i in range(3)]
    sizes = [size for _, size in _core.scan(folder.fd, names)]
    paths = [f"{name}/out" for name in names]
    for found in (4095, 4097, 0):
        os.truncate(folder.path / paths[2], found)
        with pytest.raises(_core.SizeChanged, match=f"'t2/out': wanted 4096 bytes, found {found}") as caught:
            _core.map_files(folder.fd, paths, sizes)
        assert (caught.value.index, caught.value.found) == (2, found)
        assert maps_of(folder.path) == 0


@pytest.mark.parametrize("kind", ODD)
def test_map_and_read_refuse_what_is_no_file(folder: Folder, kind: str) -> None:
    make_odd(folder.path / "odd", kind)
    folder.file("good", b"abc")
    for call in (
        lambda: _core.map_files(folder.fd, ["good", "odd"], [3, 3]),
        lambda: _core.read_into(folder.fd, "odd", 0, bytearray(3)),
    ):
        with pytest.raises(OSError, match=r": [A-Z]") as caught:
            promptly(call)
        assert (caught.value.errno, caught.value.filename) == (ODD[kind], "odd")
    assert maps_of(folder.path) == 0


def test_devices_are_refused() -> None:
    dev = os.open("/dev", os.O_RDONLY)
    try:
        for name in ("null", "zero"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                _core.map_files(dev, [name], [0])
            assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, name)
    finally:
        os.close(dev)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../out", errno.EXDEV),
        ("a/../../out", errno.EXDEV),
        ("a/..", errno.EXDEV),
        ("/etc/hostname", errno.EXDEV),
        ("", errno.ENOENT),
        ("link/out", errno.ELOOP),
        ("a/link/out", errno.ELOOP),
        ("a/out/x", errno.ENOTDIR),
        ("a/none/out", errno.ENOENT),
        ("x" * 300 + "/out", errno.ENAMETOOLONG),
        ("a/" + "x" * 300, errno.ENAMETOOLONG),
        ("a//./..out", errno.ENOENT),
    ],
)
def test_no_path_leads_out(folder: Folder, path: str, code: int) -> None:
    folder.tensor("a", out=b"abc")
    (folder.path / "link").symlink_to("a")
    (folder.path / "a" / "link").symlink_to(".")
    with pytest.raises(OSError, match="open: ") as caught:
        _core.read_into(folder.fd, path, 0, bytearray(3))
    assert (caught.value.errno, caught.value.filename) == (code, path)


def test_odd_spellings_of_a_path(folder: Folder) -> None:
    folder.tensor("a", out=b"abc")
    for path in ("a/out", "a//out", "./a/./out", "a/./out"):
        assert bytes(_core.map_files(folder.fd, [path], [3])[0]) == b"abc"
    folder.tensor("..b", out=b"abc")
    assert bytes(_core.map_files(folder.fd, ["..b/out"], [3])[0]) == b"abc"


def vast_file(folder: Folder) -> Path:
    """8 TiB, none of them on the disk."""
    path = folder.path / folder.file("out", b"")
    try:
        os.truncate(path, 8 << 40)
    except OSError:
        pytest.skip("no file system for large files")
    return path


@pytest.mark.skipif(Path("/proc/sys/vm/overcommit_memory").read_text() == "2\n", reason="every map counts as memory")
@pytest.mark.skipif("FASTCKPT_NO_ROOM" in os.environ, reason="the tool that this runs under leaves no such addresses")
def test_map_may_be_larger_than_memory(folder: Folder) -> None:
    vast_file(folder)
    (mapping,) = _core.map_files(folder.fd, ["out"], [8 << 40])
    assert len(mapping) == 8 << 40
    assert memoryview(mapping)[-3:].tobytes() == b"\0\0\0"


@pytest.mark.skipif("FASTCKPT_NO_ROOM" in os.environ, reason="the tool that this runs under leaves no such addresses")
def test_maps_that_do_not_fit_are_all_undone(folder: Folder) -> None:
    path = vast_file(folder)
    with pytest.raises(OSError, match="map: ") as caught:
        _core.map_files(folder.fd, ["out"] * 100, [8 << 40] * 100)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOMEM, "out")
    assert maps_of(path) == 0


def test_map_needs_a_size_for_each_path(folder: Folder) -> None:
    with pytest.raises(ValueError, match="1 paths but 2 sizes"):
        _core.map_files(folder.fd, ["out"], [1, 2])
    assert _core.map_files(folder.fd, [], []) == []
    with pytest.raises(OverflowError):
        _core.map_files(folder.fd, ["out"], [1 << 64])


def test_advice(folder: Folder) -> None:
    folder.file("out", bytes(10_000))
    (mapping,) = _core.map_files(folder.fd, ["out"], [10_000], advice=_core.MADV_RANDOM)
    for place in ({}, {"offset": 5000}, {"offset": 5000, "length": 3}, {"offset": 10_000}, {"length": 0}):
        mapping.advise(_core.MADV_WILLNEED, **place)
    for place in (
        {"offset": -1},
        {"offset": 10_001},
        {"length": 10_001},
        {"offset": 5000, "length": 5001},
        {"length": -1},
    ):
        with pytest.raises(ValueError, match="are not within a map of 10000 bytes"):
            mapping.advise(_core.MADV_WILLNEED, **place)


def test_advice_that_the_kernel_does_not_know(folder: Folder) -> None:
    folder.file("out", b"abc")
    (mapping,) = _core.map_files(folder.fd, ["out"], [3], advice=12_345)
    with pytest.raises(OSError, match="advise: ") as caught:
        mapping.advise(12_345)
    assert caught.value.errno == errno.EINVAL


# --- read_into


@pytest.mark.parametrize("offset", [0, 1, 5, 4096, 9_999, 10_000])
def test_read_fills_the_buffer(folder: Folder, offset: int) -> None:
    content = os.urandom(10_000)
    folder.file("out", content)
    for length in {0, 1, 10_000 - offset}:
        if length > 10_000 - offset:
            continue
        for buffer in (bytearray(length), np.zeros((1, length), "u1")):
            _core.read_into(folder.fd, "out", offset, buffer, size=10_000)
            assert bytes(buffer) == content[offset : offset + length]


def test_read_into_part_of_a_buffer(folder: Folder) -> None:
    folder.file("out", b"abcdef")
    arena = bytearray(b"........")
    _core.read_into(folder.fd, b"out", 2, memoryview(arena)[3:6])
    assert arena == b"...cde.."


@pytest.mark.parametrize(
    ("offset", "length", "size"), [(0, 7, -1), (6, 1, -1), (99, 1, -1), (0, 3, 5), (0, 3, 7), (0, 0, 0)]
)
def test_read_wants_the_file_as_it_was(folder: Folder, offset: int, length: int, size: int) -> None:
    folder.file("out", b"abcdef")
    wanted = size if size >= 0 else offset + length
    with pytest.raises(_core.SizeChanged, match=f"'out': wanted {wanted} bytes, found 6") as caught:
        _core.read_into(folder.fd, "out", offset, bytearray(length), size=size)
    assert (caught.value.index, caught.value.found) == (0, 6)


@pytest.mark.parametrize("mapped", [False, True])
def test_parts_of_any_place_and_length(folder: Folder, mapped: bool) -> None:
    """2 MiB and more are copied out of maps, when asked."""
    size, least = (9 << 20) + 77, 2 << 20
    content = np.random.default_rng(3).integers(0, 256, size, np.uint8)
    folder.file("out", content.tobytes())
    wanted = [
        (0, size),
        (0, least - 1),
        (4095, least),
        (1, 3 * least + 5),
        (size - least, least),
        (size - 1, 1),
        (5, 0),
    ]
    buffers = [np.zeros(length, np.uint8) for _, length in wanted]
    parts = [("out", at, buffer, size, 0) for (at, _), buffer in zip(wanted, buffers, strict=True)]
    _core.read_parts(folder.fd, parts, threads=3, mapped=mapped)
    for (at, length), buffer in zip(wanted, buffers, strict=True):
        assert np.array_equal(buffer, content[at : at + length])
    assert f" {folder.path}" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("offset", "size"), [(1, -1), (0, 5 << 20), (0, 3 << 20)])
def test_mapped_parts_want_the_file_as_it_was(folder: Folder, offset: int, size: int) -> None:
    folder.file("out", bytes(4 << 20))
    with pytest.raises(_core.SizeChanged, match=f"found {4 << 20}"):
        _core.read_parts(folder.fd, [("out", offset, bytearray(4 << 20), size, 0)], mapped=True)


def test_only_what_is_in_huge_pages_is_copied_out_of_maps(folder: Folder) -> None:
    """What is read, the kernel counts."""
    size, least = 64 << 20, 2 << 20
    folder.file("small", bytes(least - 1))
    folder.file("large", bytes(size))

    def asked(name: str, length: int, *, at: int = 0, mapped: bool = True) -> int:
        own = rchar()
        before = rchar()
        _core.read_parts(folder.fd, [(name, at, bytearray(length), -1, 0)], mapped=mapped)
        return rchar() - before - (before - own)

    evict(folder.path / "large")
    with (folder.path / "large").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead: page by page
        for at in range(0, size, 4096):
            os.pread(file.fileno(), 1, at)
    assert asked("large", 8 << 20) == 8 << 20, "small pages"
    evict(folder.path / "large")
    (mapping,) = _core.map_files(folder.fd, ["large"], [size], advice=14)  # MADV_HUGEPAGE
    assert sum(memoryview(mapping)[:: 4 << 10]) == 0
    if huge_bytes(folder.path / "large") < size:
        pytest.skip("not all of it is in huge pages")
    assert asked("large", 8 << 20) == 0
    assert asked("large", 8 << 20, at=4097) == 0
    assert asked("large", 8 << 20, mapped=False) == 8 << 20
    assert asked("large", least, at=4096) == least, "no whole huge page in it"
    assert asked("small", least - 1) == least - 1


def test_what_is_cold_comes_in_huge_pages_and_is_copied_out_of_maps(folder: Folder) -> None:
    size = 64 << 20
    content = np.random.default_rng(5).integers(0, 256, size, np.uint8)
    folder.file("out", content.tobytes())
    evict(folder.path / "out")
    (mapping,) = _core.map_files(folder.fd, ["out"], [size], advice=14)  # MADV_HUGEPAGE
    assert memoryview(mapping)[0] == content[0]
    huge = huge_bytes(folder.path / "out")
    del mapping
    if not huge:
        pytest.skip("no huge pages in the page cache of this file system")
    evict(folder.path / "out")
    buffer, before = np.zeros(size, np.uint8), rchar()
    _core.read_parts(
        folder.fd, [("out", at, buffer[at : at + (8 << 20)], size, 0) for at in range(0, size, 8 << 20)], mapped=True
    )
    assert rchar() - before < 1 << 20, "what is not huge is read, and counted"
    assert np.array_equal(buffer, content)


def rchar() -> int:
    """Bytes that this process has asked for by reading."""
    return int(Path("/proc/self/io").read_text().split()[1])


def huge_bytes(file: Path) -> int:
    """What of this process's map of a file is huge pages, by the kernel's own word."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(f" {file}"):
            return next(int(field.split()[1]) << 10 for field in lines if field.startswith("FilePmdMapped:"))
    raise AssertionError(f"{file} is not mapped")


@pytest.mark.parametrize("length", [0, 1, 63, 4096, (256 << 10) - 1, 256 << 10, (1 << 20) + 77])
def test_copy(length: int) -> None:
    """Wherever it begins, it ends there, and nothing beside it changes."""
    source = np.random.default_rng(4).integers(1, 256, length + 100, np.uint8)
    for at, begin in itertools.product((0, 1, 17, 64), (0, 1, 31)):
        target = np.zeros(length + 200, np.uint8)
        _core.copy([(target[at : at + length], source[begin : begin + length])])
        assert np.array_equal(target[at : at + length], source[begin : begin + length])
        assert not target[:at].any()
        assert not target[at + length :].any()


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_many_copies_in_threads(threads: int) -> None:
    """However long they are: shorter and longer than a thread's share, with nothing among them."""
    lengths = [0, 5, 4 << 20, 0, 0, 1, (9 << 20) + 3, *range(300), (4 << 20) - 1, 0]
    sources = [np.random.default_rng(at).integers(1, 256, length, np.uint8) for at, length in enumerate(lengths)]
    targets = [np.zeros(length, np.uint8) for length in lengths]
    _core.copy(zip(targets, sources, strict=True), threads=threads)
    assert all(map(np.array_equal, targets, sources))
    _core.copy([], threads=threads)


def test_copy_wants_as_many_bytes_and_memory_to_write_to() -> None:
    with pytest.raises(ValueError, match="as many bytes"):
        _core.copy([(bytearray(3), b"abcd")])
    with pytest.raises(BufferError):
        _core.copy([(b"abc", b"abc")])
    with pytest.raises(TypeError):
        _core.copy([(bytearray(3), 3)])  # type: ignore[list-item]
    held = bytearray(3)
    with pytest.raises(BufferError):
        _core.copy([(held, b"abc"), (b"abc", b"abc")])
    held.clear()  # nobody holds it


def test_read_at_the_end_of_all_numbers(folder: Folder) -> None:
    folder.file("out", b"abcdef")
    with pytest.raises((_core.SizeChanged, OSError), match=f"wanted {2**63} bytes|Invalid argument"):
        _core.read_into(folder.fd, "out", 2**63 - 1, bytearray(1))
    with pytest.raises(OverflowError):
        _core.read_into(folder.fd, "out", 2**63, bytearray(1))


def test_read_needs_memory_to_write_to(folder: Folder) -> None:
    folder.file("out", b"abcdef")
    with pytest.raises(BufferError):
        _core.read_into(folder.fd, "out", 0, b"abc")
    with pytest.raises(ValueError, match="offset -1 is negative"):
        _core.read_into(folder.fd, "out", -1, bytearray(3))


def test_read_beyond_2_gib(folder: Folder) -> None:
    with open(folder.path / "out", "wb") as file:
        file.truncate(5 * GIB)
        os.pwrite(file.fileno(), b"far away", 4 * GIB + 12_345)
    buffer = bytearray(10)
    _core.read_into(folder.fd, "out", 4 * GIB + 12_344, buffer, size=5 * GIB)
    assert buffer == b"\0far away\0"


@pytest.mark.slow
def test_more_than_one_call_can_move(folder: Folder) -> None:
    size = GIB + 4097
    data = np.zeros(size, "u1")
    data[GIB - 2 : GIB + 2] = data[-2:] = 7
    assert _core.write(folder.fd, "out", [data], False, size) == size
    found = np.empty(size, "u1")
    _core.read_into(folder.fd, "out", 0, found, size=size)
    assert np.count_nonzero(found) == np.count_nonzero(found[GIB - 2 : GIB + 2]) + np.count_nonzero(found[-2:]) == 6


def test_scan_maps_no_more_than_it_may(folder: Folder) -> None:
    for at in range(40):
        folder.tensor(f"{at:02}", b"meta", bytes(20_000 if at % 2 else 5))
    names = [f"{at:02}" for at in range(40)]
    for most, threads in itertools.product((0, 1, 7, 40, -1), (1, 3)):
        found = _core.scan(folder.fd, names, map=True, threads=threads, most=most)
        assert [len(out) for _, out in found[::2] if isinstance(out, _core.Mapping)] == [5] * 20, "small ones are read"
        mapped = [out for _, out in found[1::2] if isinstance(out, _core.Mapping)]
        assert len(mapped) <= (most if most >= 0 else 20)
        assert len(mapped) >= (20 if most in (40, -1) else most // 2 - threads)
        assert all(out == 20_000 for _, out in found[1::2] if isinstance(out, int))


# --- all of them


def failing_calls(folder: Folder) -> list[Callable[[], Any]]:
    folder.file("good", b"abc")
    folder.tensor("tensor", b"meta", b"out")
    (folder.path / folder.tensor("half", b"meta") / "out").unlink()
    for kind in ODD:
        make_odd(folder.path / kind, kind)
    return [
        lambda: _core.write(folder.fd, "good", [b"x"]),
        lambda: _core.write(folder.fd, f"new{time.monotonic_ns()}", [b"x", "no buffer"]),  # type: ignore[list-item]
        lambda: _core.write(-1, "new", [b"x"]),
        lambda: _core.write_tensors(folder.fd, [("tensor", b"x", b"x")]),
        lambda: _core.write_tensors(folder.fd, [("other", b"x", b"x"), ("third", "no buffer", b"x")]),  # type: ignore[list-item]
        lambda: _core.renameat2(folder.fd, "absent", folder.fd, "b", 0),
        lambda: _core.sync_dir(-1),
        lambda: _core.map_files(folder.fd, ["good", "good"], [3, 4]),
        *(lambda kind=kind: _core.map_files(folder.fd, ["good", kind], [3, 3]) for kind in ODD),
        *(lambda kind=kind: _core.read_into(folder.fd, kind, 0, bytearray(1)) for kind in ODD),
        lambda: _core.read_into(folder.fd, "good", 0, bytearray(4)),
        lambda: _core.read_into(folder.fd, "good", 0, bytearray(1), size=2),
        lambda: _core.read_into(folder.fd, "good", 0, b"readonly"),
    ]


def test_failing_calls_leak_nothing(folder: Folder) -> None:
    calls = failing_calls(folder)
    before = open_files()
    for _ in range(2_000 // len(calls) + 1):
        for call in calls:
            with pytest.raises((OSError, ValueError, TypeError, BufferError)):
                call()
        _core.scan(folder.fd, [*ODD, "good", "..", ""])
        _core.scan(folder.fd, ["tensor", "half", "good", "..", ""], map=True)
    assert open_files() == before
    assert maps_of(folder.path) == 0


def canonical(at: int, count: int, **more: Any) -> Meta:
    return Meta((at + 1, 2), BY_NAME["float32"], at, count, **more)


def test_scan_makes_a_meta_of_what_says_nothing_unusual(folder: Folder) -> None:
    plain, named = canonical(0, 9, digest="crc32:0123abcd"), canonical(1, 9, name="other")
    folder.tensor("plain", format_meta(plain), bytes(8))
    folder.tensor("named", format_meta(named), bytes(16))
    folder.tensor("short", format_meta(plain), bytes(7))
    folder.tensor("foreign", b"shape {\n  dim: 2\n}\ndata_type: kFloat\n", bytes(8))
    names = ["plain", "named", "short", "foreign", "absent"]
    for mapped in (False, True):
        found = dict(zip(names, _core.scan(folder.fd, names, map=mapped, kind=Meta, types=BY_NUMBER), strict=True))
        assert found["plain"][0] == plain
        assert isinstance(found["plain"][0], Meta)
        assert found["named"][0] == format_meta(named)
        assert found["short"][0] == format_meta(plain)
        assert isinstance(found["foreign"][0], bytes)
        assert found["absent"] == (-errno.ENOENT, -errno.ENOENT)
    assert isinstance(_core.scan(folder.fd, ["plain"])[0][0], bytes)


def test_entries_in_the_order_of_their_places() -> None:
    metas = {"b": canonical(1, 3, same_as="c"), "c": canonical(2, 3), "a": canonical(0, 3, name="first")}
    entries, ties, whole = _core.in_order(metas, Entry) or ({}, [], False)
    assert [*entries.values()] == [
        Entry("first", "a", metas["a"], "a"),
        Entry("b", "b", metas["b"], "b"),
        Entry("c", "c", metas["c"], "c"),
    ]
    assert [*entries] == ["first", "b", "c"]
    assert ties == [entries["b"]]
    assert whole
    assert _core.in_order({}, Entry) == ({}, [], True)


@pytest.mark.parametrize(
    "metas",
    [
        {"a": canonical(0, 2), "b": canonical(0, 2)},
        {"a": canonical(0, 3), "b": canonical(2, 3)},
        {"a": canonical(0, 2), "b": Meta((), BY_NAME["int8"])},
        {"a": canonical(0, 2), "b": canonical(1, 2, name="a")},
    ],
)
def test_entries_without_an_order(metas: dict[str, Meta]) -> None:
    assert _core.in_order(metas, Entry) is None


@pytest.mark.parametrize("counts", [(2, 3), (3, 3), (2, None)])
def test_entries_of_which_some_are_missing(counts: tuple[int, int | None]) -> None:
    metas = {str(at): canonical(at, 2)._replace(count=count) for at, count in enumerate(counts)}
    *_, whole = _core.in_order(metas, Entry) or (None, True)
    assert not whole


@pytest.mark.parametrize("metas", [{"a": None}, {"a": (1, 2)}, {"a": 5}])
def test_what_is_no_meta_is_refused(metas: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        _core.in_order(metas, Entry)
    with pytest.raises((TypeError, ValueError)):
        _core.hand_over([b""], [*metas.values()], id)


def test_what_is_handed_over_is_the_memory_itself() -> None:
    metas = [canonical(0, 5), canonical(0, 5)._replace(dtype=BY_NAME["bool"], shape=(8,)), canonical(0, 5)]
    memory, *others = [*_core.allocate([8, 8]), bytearray(8)]
    made, *left = _core.hand_over([memory, *others], metas, torch_from)
    assert left == [None, None]
    made[0, 0] = 3.5
    assert np.frombuffer(memory, "f4").tolist() == [3.5, 0]
    with pytest.raises(ValueError, match="8 bytes are no tensor of"):
        _core.hand_over([memory], [canonical(1, 5)], torch_from)


def torch_from(capsule: Any) -> Any:
    return pytest.importorskip("torch").utils.dlpack.from_dlpack(capsule)


def test_many_parts_of_one_memory() -> None:
    (memory,) = _core.allocate([8192])
    parts = memory.parts({"a": 0, "b": 64}, {"a": 3, "b": 128})
    assert {key: len(part) for key, part in parts.items()} == {"a": 3, "b": 128}
    memoryview(parts["b"])[:1] = b"x"
    assert memoryview(memory)[64] == ord("x")
    del memory
    assert bytes(parts["b"])[:2] == b"x\0"
    (memory,) = _core.allocate([8192])
    for places in ({"a": 8190}, {"a": -1}):
        with pytest.raises((ValueError, OverflowError)):
            memory.parts(places, {"a": 3})


WITHOUT_MEMORY = """
import itertools, json, os, sys, torch, zlib, _testcapi
import fastckpt
from fastckpt import _core
from fastckpt.dtypes import BY_NAME, BY_NUMBER
from fastckpt.entries import Entry
from fastckpt.meta import Meta, format_meta

fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
numbers = itertools.count()
meta = format_meta(Meta((2, 3), BY_NAME["float32"], 0, 1))
table = json.dumps([[f"t{at}", meta.decode(), 24, None] for at in range(20)], separators=(",", ":")).encode() + b"\\n"
metas = {str(at): Meta((8,), BY_NAME["float32"], at, 20) for at in range(20)}
memory = _core.allocate([32] * 20)
plain = {f"of {at}": torch.ones(9000 if at % 2 else 3) for at in range(20)}
fastckpt.save(plain, f"{sys.argv[1]}/plain", index=True)
fastckpt.save({**plain, "twin": plain["of 1"], "word": ["snow"]}, f"{sys.argv[1]}/more")
kinds = {number: (dtype.dlpack, dtype.itemsize) for number, dtype in BY_NUMBER.items() if dtype.dlpack is not None}


def note(folder, text, count):
    place = json.loads(text.split(b"fastckpt: ")[1])["place"]
    return folder, place, b"same_as" in text


def load_plain(name):
    whole = os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY)
    try:
        return _core.load_plain(
            whole, "snapshot_done", kinds, id, note, zlib.crc32, most_maps=99, most_tensors=99, most_bytes=99999
        )
    finally:
        os.close(whole)


whole = os.open(f"{sys.argv[1]}/plain", os.O_RDONLY)


def read_some():
    rooms = [bytearray(3) for _ in range(20)]
    _core.read_parts(fd, [(f"t{at}/out", 0, room, 3, 0) for at, room in enumerate(rooms)])


def write_some():
    name = next(numbers)
    _core.write_tensors(fd, [(f"{name}.{at}", b"abc", meta) for at in range(20)])


CALLS = [
    read_some,
    write_some,
    lambda: _core.scan(fd, [f"t{at}" for at in range(20)]),
    lambda: _core.scan(fd, [f"t{at}" for at in range(20)], map=True),
    lambda: _core.map_files(fd, [f"t{at}/out" for at in range(20)], [3] * 20),
    lambda: _core.allocate([5000] * 20),
    lambda: _core.copy([(bytearray(3), b"abc") for _ in range(20)]),
    lambda: _core.parse_meta(meta),
    lambda: _core.parse_table(table, Meta, BY_NUMBER),
    lambda: _core.in_order(metas, Entry),
    lambda: _core.hand_over(memory, metas.values(), id),
    lambda: _core.scan(fd, [f"t{at}" for at in range(20)], map=True, kind=Meta, types=BY_NUMBER),
    lambda: _core.allocate([5000])[0].parts({"a": 0, "b": 64}, {"a": 64, "b": 64}),
    lambda: load_plain("plain"),
    lambda: load_plain("more"),
    lambda: _core.load_folders(whole, list(plain), kinds, id, note, most=99),
]
assert all(call() is not None for call in CALLS[2:6] + CALLS[7:])
refused = 0
for call in CALLS:
    left = 3
    for at in range(1, 100_000):
        _testcapi.set_nomemory(at, at + 1)
        try:
            call()
            fine = True
        except MemoryError:
            fine = False
        _testcapi.remove_mem_hooks()
        refused += not fine
        left -= fine  # some requests can be done without
        if left < 0:
            break
    else:
        sys.exit("it never ended")
print(refused)
"""


@pytest.mark.no_asan  # it has a memory of its own
def test_no_call_harms_the_process_when_memory_is_refused(folder: Folder) -> None:
    """Every request of Python's once. Found: a list that could not grow let go twice of what it was to take."""
    pytest.importorskip("_testcapi")
    for at in range(20):
        folder.tensor(f"t{at}", b"meta", b"abc")
    command = [sys.executable, "-c", WITHOUT_MEMORY, str(folder.path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def calls_that_take_a_while(folder: Folder) -> dict[str, Callable[[], Any]]:
    folder.tensor("t", out=b"abc")
    data = bytearray(64 << 20)
    folder.file("large", data)
    file = _core.File(folder.fd, "parts", len(data))
    numbers = itertools.count()
    return {
        "write": lambda: _core.write(folder.fd, f"out{next(numbers)}", [data]),
        "write_tensors": lambda: _core.write_tensors(folder.fd, [(f"t{next(numbers)}", data, b"")]),
        "read_into": lambda: _core.read_into(folder.fd, "large", 0, data),
        "scan": lambda: _core.scan(folder.fd, ["t"] * 10_000),
        "scan and map": lambda: _core.scan(folder.fd, ["t"] * 10_000, map=True),
        "map_files": lambda: _core.map_files(folder.fd, ["t/out"] * 10_000, [3] * 10_000),
        "part": lambda: file.write(data, 0),
        "end": lambda: _core.File(folder.fd, f"end{next(numbers)}", 1 << 20).finish(),
    }


@pytest.mark.parametrize(
    "name", ["write", "write_tensors", "read_into", "scan", "scan and map", "map_files", "part", "end"]
)
def test_other_threads_run_meanwhile(folder: Folder, name: str) -> None:
    call = calls_that_take_a_while(folder)[name]
    ticks = [0]
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.0001)

    old = sys.getswitchinterval()
    sys.setswitchinterval(100)  # from here on a thread runs only when another one lets it
    thread = threading.Thread(target=tick)
    try:
        thread.start()
        before, end = ticks[0], time.monotonic() + 20
        while ticks[0] == before:  # on a busy machine the other thread may come too late for the first call
            assert time.monotonic() < end, "no other thread ran"
            call()
    finally:
        done.set()
        sys.setswitchinterval(old)
        thread.join()


# --- what the system refuses


def refusing(call: str, code: int, function: Callable[[], Any], third: int | None = None) -> Any:
    """Run `function` in a thread that cannot make this system call (with this third argument)."""

    def run() -> Any:
        if not seccomp.NUMBERS or not seccomp.forbid(call, code, third):
            pytest.skip("no seccomp here")
        return function()

    return promptly(run)


@pytest.mark.parametrize(
    ("call", "code", "op", "found"),
    [
        ("pwrite64", errno.ENOSPC, "write", errno.ENOSPC),
        ("pwrite64", 0, "write", errno.EIO),
        ("fallocate", errno.ENOSPC, "allocate", errno.ENOSPC),
        ("ftruncate", errno.EIO, "truncate", errno.EIO),
        ("fsync", errno.EIO, "fsync", errno.EIO),
    ],
)
def test_write_that_the_system_refuses(folder: Folder, call: str, code: int, op: str, found: int) -> None:
    before = open_files()
    with pytest.raises(OSError, match=f"{op}: {os.strerror(found)}") as caught:
        refusing(call, code, lambda: _core.write(folder.fd, "out", [b"abc"], size_hint=2 << 20))
    assert (caught.value.errno, caught.value.filename) == (found, "out")
    assert open_files() == before


_NO_LITTLE = bytes(range(256)) * 64 + b"."  # a file that the device begins with at once


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM])
@pytest.mark.parametrize("call", ["fallocate", "sync_file_range"])
def test_write_can_do_without_a_hint(folder: Folder, call: str, code: int) -> None:
    assert refusing(call, code, lambda: _core.write(folder.fd, "out", [_NO_LITTLE], False, 2 << 20)) == len(_NO_LITTLE)
    assert (folder.path / "out").read_bytes() == _NO_LITTLE


def test_a_reservation_that_signals_interrupt_for_ever_is_done_without(folder: Folder) -> None:
    """The kernel begins anew each time on tmpfs, and a timer may come again before it is through."""
    data = bytes(range(256)) * 8192
    assert refusing("fallocate", errno.EINTR, lambda: _core.write(folder.fd, "out", [data], False, 2 << 20)) == 2 << 20
    assert (folder.path / "out").read_bytes() == data


def test_little_files_are_left_to_the_sync_at_the_end(folder: Folder) -> None:
    little = _NO_LITTLE[1:]
    assert refusing("sync_file_range", errno.EIO, lambda: _core.write(folder.fd, "out", [little], False)) == len(little)


@pytest.mark.parametrize(("size", "sync"), [(len(_NO_LITTLE), False), (9 << 20, True)])
def test_write_back_that_lost_something(folder: Folder, size: int, sync: bool) -> None:
    with pytest.raises(OSError, match="write back: ") as caught:
        refusing("sync_file_range", errno.EIO, lambda: _core.write(folder.fd, "out", [bytes(size)], sync))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "out")


def test_small_tensors_are_written_in_one_call(folder: Folder) -> None:
    tensors = [(f"t/{at}" if at == 2 else f"ü{at}", np.full((at, 3), at, np.int32), b"meta %d" % at) for at in range(9)]
    (folder.path / "t").mkdir()
    _core.write_tensors(folder.fd, iter(tensors))
    _core.write_tensors(folder.fd, [])
    for name, out, meta in tensors:
        assert {file.name: file.read_bytes() for file in (folder.path / name).iterdir()} == {
            "out": out.tobytes(),
            "meta": meta,
        }


def test_of_small_tensors_those_before_a_failure_stay(folder: Folder) -> None:
    folder.tensor("there", b"old", b"old")
    before = open_files()
    with pytest.raises(FileExistsError, match="mkdir: ") as caught:
        _core.write_tensors(folder.fd, [("a", b"1", b"2"), ("there", b"3", b"4"), ("z", b"5", b"6")])
    assert caught.value.filename == "there"
    assert sorted(os.listdir(folder.path)) == ["a", "there"]
    assert (folder.path / "there" / "out").read_bytes() == b"old"
    assert open_files() == before


@pytest.mark.parametrize(
    ("call", "code", "op", "named"),
    [
        ("mkdirat", errno.EACCES, "mkdir", "a"),
        ("openat", errno.EMFILE, "create", "a/out"),
        ("pwrite64", errno.ENOSPC, "write", "a/out"),
        ("sync_file_range", errno.EIO, "write back", "a/out"),
        ("close", errno.EDQUOT, "close", "a/out"),
    ],
)
def test_small_tensors_that_the_system_refuses(folder: Folder, call: str, code: int, op: str, named: str) -> None:
    with pytest.raises(OSError, match=f"{op}: {os.strerror(code)}") as caught:
        refusing(call, code, lambda: _core.write_tensors(folder.fd, [("a", _NO_LITTLE, b"2"), ("b", b"3", b"4")]))
    assert (caught.value.errno, caught.value.filename) == (code, named)
    close_all(folder.path / "a" / "out")
    assert not (folder.path / "b").exists()


def test_of_a_small_tensor_the_meta_is_named_too(folder: Folder) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(OSError, match="write: ") as caught:
            _core.write_tensors(folder.fd, [("a", b"1", bytes(3 << 19))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "a/meta")


def test_small_tensors_that_cannot_be_written_are_refused_before_any_is(folder: Folder) -> None:
    good = ("good", b"1", b"2")
    for bad in [("a", np.zeros((3, 4)).T, b""), ("a", "no buffer", b""), ("a", b"", "no bytes"), ("a\0b", b"", b"")]:
        with pytest.raises((BufferError, TypeError, ValueError)):
            _core.write_tensors(folder.fd, [good, bad])  # type: ignore[list-item]
    for name, code in (("a" * 256, errno.ENAMETOOLONG), ("a/" * 2047 + "a", errno.ENAMETOOLONG), ("", errno.ENOENT)):
        with pytest.raises(OSError, match="mkdir: ") as caught:
            _core.write_tensors(folder.fd, [(name, b"1", b"2")])
        assert caught.value.errno == code
    assert os.listdir(folder.path) == []


def close_all(path: Path) -> int:
    """Close what this process has open of `path`: how many that were."""
    fds = [int(fd) for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").resolve() == path]
    for fd in fds:
        os.close(fd)
    return len(fds)


def test_write_checks_close_and_closes_once(folder: Folder) -> None:
    def write() -> int:
        return _core.write(folder.fd, "out", [b"abc"])

    with pytest.raises(OSError, match="close: ") as caught:
        refusing("close", errno.EDQUOT, write)
    assert (caught.value.errno, caught.value.filename) == (errno.EDQUOT, "out")
    assert close_all(folder.path / "out") == 1
    (folder.path / "out").unlink()
    assert refusing("close", errno.EINTR, write) == 3  # which on Linux means that it did close
    assert close_all(folder.path / "out") == 1


def test_read_that_the_disk_refuses(folder: Folder) -> None:
    folder.tensor("t", b"meta", b"out")
    with pytest.raises(OSError, match="read: ") as caught:
        refusing("pread64", errno.EIO, lambda: _core.read_into(folder.fd, "t/out", 0, bytearray(3)))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "t/out")
    assert refusing("pread64", errno.EIO, lambda: _core.scan(folder.fd, ["t"])) == [(-errno.EIO, 3)]


def test_advice_that_fails_undoes_the_maps(folder: Folder) -> None:
    folder.file("out", b"abc")
    with pytest.raises(OSError, match="advise: ") as caught:
        refusing("madvise", errno.EFAULT, lambda: _core.map_files(folder.fd, ["out"] * 2, [3, 3], advice=1))
    assert (caught.value.errno, caught.value.filename) == (errno.EFAULT, "out")
    assert maps_of(folder.path) == 0


def advised(path: Path) -> set[str]:
    """Folders below `path` of whose files this process has maps that want huge pages."""
    found, name = set(), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        at, space, file = line.partition(f" {path}/")
        name = file.partition("/")[0] if space else "" if re.match("[0-9a-f]+-", at) else name
        if name and line.startswith("VmFlags:") and "hg" in line.split():
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("cold", "refusal"),
    [
        *((cold, None) for cold in (_core.COLD_MAP, _core.COLD_HUGE, _core.COLD_ADVISE)),
        *((_core.COLD_HUGE, code) for code in (errno.ENOSYS, errno.EPERM, errno.EBADF)),
    ],
)
def test_large_maps_want_huge_pages(folder: Folder, cold: int, refusal: int | None) -> None:
    """More of them than one system call is asked for at a time; also where the system has no such call."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no huge pages")
    large = [folder.tensor(f"large {at}") for at in range(130)]
    for name in large:
        os.truncate(folder.path / name / "out", 2 << 20)
    names = [*large[:70], folder.tensor("none"), folder.tensor("other", out=bytes(100_000)), *large[70:]]

    def look() -> Any:
        return _core.scan(folder.fd, names, map=True, cold=cold, metas=False)

    found = look() if refusal is None else refusing("process_madvise", refusal, look)
    assert advised(folder.path) == (set() if cold == _core.COLD_MAP else set(large))
    assert maps_of(folder.path) == len(large) + 1
    del found


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_file_system_that_cannot_exchange(folder: Folder, code: int) -> None:
    with pytest.raises(OSError, match="rename: ") as caught:
        refusing("renameat2", code, lambda: _core.renameat2(folder.fd, "a", folder.fd, "b", _core.RENAME_EXCHANGE))
    assert caught.value.errno == code


def test_what_is_resident_where_the_kernel_cannot_count_pages(folder: Folder) -> None:
    """Before Linux 6.5 some bytes are asked for without waiting; where that cannot be, all is taken to be there."""

    def resident() -> bool:
        return bool(refusing("cachestat", errno.ENOSYS, lambda: _core.is_resident(folder.fd, "out")))

    folder.file("out", os.urandom(4 << 20))
    assert resident()
    evict(folder.path / "out")
    assert not resident()
    evict(folder.path / "out")
    assert refusing("preadv2", errno.EOPNOTSUPP, resident)


def test_threads_that_cannot_be_made_are_not_needed(folder: Folder) -> None:
    names = [folder.tensor(f"t{i}", b"meta", b"out") for i in range(50)]
    found = refusing("clone3", errno.EAGAIN, lambda: _core.scan(folder.fd, names, threads=8))
    assert found == [(b"meta", 3)] * 50


@pytest.mark.skipif("FASTCKPT_WITHOUT_OPENAT2" in os.environ, reason="this is the run without openat2")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM], ids=["old kernel", "sandbox"])
def test_reading_is_the_same_without_openat2(code: int, tmp_path: Path) -> None:
    tests = "scan or map or read or path or device or leak"
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner"), "-m", "not slow", "-k", tests]
    done = subprocess.run(
        [sys.executable, seccomp.__file__, "openat2", str(code), "-m", "pytest", *options, __file__],
        env={**os.environ, "FASTCKPT_WITHOUT_OPENAT2": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == seccomp.UNAVAILABLE:
        pytest.skip("no seccomp here")
    assert done.returncode == 0, done.stdout + done.stderr
