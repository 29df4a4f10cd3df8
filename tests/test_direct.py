"""Large files in parts past the page cache: their bytes, what is refused, what a system that refuses leads to."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_core import close_all, refusing
from test_core import open_files as open_files_and_garbage

from fastckpt import _core
from fastckpt.filesystems import filesystem_of

ALIGN = _core.DIRECT_ALIGN
MIB = 1 << 20
LENGTHS = [0, 1, ALIGN - 1, ALIGN, ALIGN + 1, 3 * ALIGN + 5, MIB - 1, MIB, MIB + 1, (4 << 20) + 13]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """The open folder that everything is written to."""
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield folder
    os.close(folder)


def open_files() -> int:
    gc.collect()  # an error that was caught may be in a cycle with all that it came through
    return open_files_and_garbage()


def noise(length: int, *, aligned: bool) -> memoryview:
    """Bytes that nothing else has, at an address that O_DIRECT takes, or at one that it never does."""
    (memory,) = _core.allocate([length + 1])
    view = memoryview(memory)[:length] if aligned else memoryview(memory)[1:]
    view[:] = np.random.default_rng(length).bytes(length)
    return view


def direct_file(fd: int, size: int, name: str = "out") -> _core.File:
    file = _core.File(fd, name, size)
    if not file.direct and size:
        pytest.skip("the file system of the temporary folder refuses O_DIRECT")
    return file


def pages_in_cache(path: Path) -> int:
    """How many pages of a file the system holds in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        found = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(pages)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), found) == 0
        finally:
            del start
        return sum(page & 1 for page in found)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder whose files need not be in memory."""
    if filesystem_of(tmp_path).in_memory:
        pytest.skip("the temporary folder lies in memory")
    return tmp_path


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
@pytest.mark.parametrize("length", LENGTHS)
def test_parts_in_any_order(tmp_path: Path, fd: int, length: int, direct: bool, aligned: bool, threads: int) -> None:
    data = noise(length, aligned=aligned)
    step = ALIGN if length < 10 * ALIGN else 33 * ALIGN
    starts = list(range(0, length, step))
    random.Random(length).shuffle(starts)
    file = _core.File(fd, "out", length, direct)
    mine = threading.local()

    def write(at: int) -> None:
        if not hasattr(mine, "room"):
            (mine.room,) = _core.allocate([16 * ALIGN])
        file.write(data[at : at + step], at, None if aligned else mine.room)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, starts))
    assert file.size == length
    file.finish()
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_blocks * 512 >= length


def test_the_space_and_the_size_are_there_from_the_beginning(tmp_path: Path, fd: int) -> None:
    file = _core.File(fd, "out", MIB + 1)
    found = (tmp_path / "out").stat()
    assert found.st_size == MIB + 1
    assert found.st_blocks * 512 > MIB
    file.abandon()


@pytest.mark.parametrize(("threads", "length"), [(1, 9 << 20), (4, (40 << 20) + 1)])
def test_parts_larger_than_a_window(tmp_path: Path, fd: int, threads: int, length: int) -> None:
    """What is buffered is sent to the device in windows of 8 MiB."""
    data = noise(length, aligned=True)
    file = _core.File(fd, "out", length, False)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: file.write(data[at : at + (20 << 20)], at), range(0, length, 20 << 20)))
    file.finish()
    assert (tmp_path / "out").read_bytes() == data


def test_the_page_cache_is_passed(disk: Path, fd: int) -> None:
    length = 2 * MIB + 1
    data = noise(length, aligned=True)
    for direct in (True, False):
        file = direct_file(fd, length) if direct else _core.File(fd, "other", length, False)
        file.write(data, 0)
        file.finish()
    pages = -(-length // mmap.PAGESIZE)
    assert pages_in_cache(disk / "out") <= 1  # the tail
    assert pages_in_cache(disk / "other") == pages
    (memory,) = _core.allocate([length])
    _core.read_into(fd, "out", 0, memory, room=-(-length // ALIGN) * ALIGN)
    assert pages_in_cache(disk / "out") <= 1
    assert memoryview(memory) == data
    _core.read_into(fd, "out", 0, memory)
    assert pages_in_cache(disk / "out") == pages


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_there_is_left(tmp_path: Path, fd: int) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError) as caught:
            _core.File(fd, name, 3)
        assert caught.value.filename == name
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_is_noticed_at_once(fd: int) -> None:
    before = open_files()
    with pytest.raises(OSError, match="allocate: ") as caught:
        _core.File(fd, "out", 1 << 60)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    assert caught.value.filename == "out"
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError, match=f"allocate: {os.strerror(code)}") as caught:
            refusing("fallocate", code, lambda code=code: _core.File(fd, f"out{code}", MIB))  # type: ignore[misc]
        assert (caught.value.errno, caught.value.filename) == (code, f"out{code}")
    assert open_files() == before


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, fd: int) -> None:
    data = noise(4 * ALIGN, aligned=True)
    for direct in (True, False):
        file = _core.File(fd, f"out{direct}", 3 * ALIGN + 7, direct)
        for piece, at in ((data[:ALIGN], 1), (data[:ALIGN], 512), (data[: ALIGN + 7], 0), (data[:100], ALIGN)):
            with pytest.raises(OSError, match="part: ") as caught:
                file.write(piece, at)
            assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, f"out{direct}")
        beyond: list[tuple[memoryview | bytes, int]] = [
            (data, 0),
            (data[:8], 3 * ALIGN),
            (data[:ALIGN], 3 * ALIGN),
            (data[:1], 4 * ALIGN),
            (b"", 4 * ALIGN),
            (data[:ALIGN], -ALIGN),
            (data[:ALIGN], 2**63 - ALIGN),
        ]
        for part, at in beyond:
            with pytest.raises(ValueError, match="does not lie within"):
                file.write(part, at)
        with pytest.raises(OverflowError):
            file.write(b"", 2**64)
        file.write(data[: 3 * ALIGN + 7], 0)
        file.finish()
        assert (tmp_path / f"out{direct}").read_bytes() == data[: 3 * ALIGN + 7]
    with pytest.raises(ValueError, match="-1 bytes"):
        _core.File(fd, "other", -1)
    assert {path.name for path in tmp_path.iterdir()} == {"outTrue", "outFalse"}


def test_unaligned_memory_without_room_is_buffered(tmp_path: Path, fd: int) -> None:
    data = noise(2 * ALIGN + 1, aligned=False)
    file = direct_file(fd, len(data))
    file.write(data[:ALIGN], 0)
    assert not file.direct
    file.write(data[ALIGN:], ALIGN)
    file.finish()
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
def test_whoever_fails_makes_room_at_the_gate(disk: Path, fd: int, aligned: bool) -> None:
    """And so does whoever succeeds: more threads than places write all parts."""
    gate, data = _core.Gate(2), noise(2 * MIB, aligned=aligned)
    file = direct_file(fd, len(data))
    mine = threading.local()

    def write(at: int) -> None:
        if not hasattr(mine, "room"):
            (mine.room,) = _core.allocate([64 << 10])
        file.write(data[at : at + (64 << 10)], at, None if aligned else mine.room, gate)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limit[1]))
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="File too large"):
                write(MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, len(data), 64 << 10)))
    file.finish()
    assert (disk / "out").read_bytes() == data


SLOW_WRITES = """
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int now, most;

int most_at_once(void)
{
    return atomic_exchange(&most, 0);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    int count = atomic_fetch_add(&now, 1) + 1, known = most;
    while (known < count && !atomic_compare_exchange_weak(&most, &known, count))
        ;
    usleep(2000);
    ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);
    atomic_fetch_sub(&now, 1);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite(fd, data, length, offset);
}
"""
AT_ONCE = """
import ctypes, os, sys
from concurrent.futures import ThreadPoolExecutor
from fastckpt import _core

(data,) = _core.allocate([64 * _core.DIRECT_ALIGN])
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
for gate in (None, _core.Gate(3)):
    file = _core.File(fd, f"{gate is None}", len(data))
    parts = [(at, memoryview(data)[at : at + _core.DIRECT_ALIGN]) for at in range(0, len(data), _core.DIRECT_ALIGN)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: file.write(part[1], part[0], None, gate), parts))
    print(file.direct, ctypes.CDLL(None).most_at_once())
"""


@pytest.mark.no_asan
def test_no_more_parts_than_places_are_written_at_a_time(disk: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (disk / "slow.c").write_text(SLOW_WRITES)
    command = [compiler, "-shared", "-fPIC", "-o", str(disk / "slow.so"), str(disk / "slow.c")]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(disk)],
        env={**os.environ, "LD_PRELOAD": str(disk / "slow.so")},
        check=True,
        capture_output=True,
        text=True,
    )
    (direct, free), (_, gated) = (line.split() for line in done.stdout.splitlines())
    if direct != "True":
        pytest.skip("the file system of the temporary folder refuses O_DIRECT")
    assert int(free) > 3 == int(gated)


def test_a_gate_has_places(fd: int) -> None:
    with pytest.raises(ValueError, match="without places"):
        _core.Gate(0)
    with pytest.raises(OSError, match="gate"):
        _core.Gate(1 << 31)
    with pytest.raises(TypeError):
        _core.File(fd, "out", ALIGN).write(bytes(ALIGN), 0, None, threading.Semaphore(1))  # type: ignore[arg-type]


def test_room_must_be_aligned_memory(fd: int) -> None:
    file = _core.File(fd, "out", ALIGN)
    for room in _core.allocate([0, ALIGN - 1]):
        with pytest.raises(ValueError, match="bounce must be"):
            file.write(bytes(ALIGN), 0, room)
    with pytest.raises(TypeError):
        file.write(bytes(ALIGN), 0, bytearray(ALIGN))  # type: ignore[arg-type]
    for piece in (np.zeros((64, 64), np.uint8).T, "text", None):
        with pytest.raises((BufferError, TypeError)):
            file.write(piece, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [lambda file: file.finish(), lambda file: file.abandon()], ids=["finish", "abandon"])
def test_what_is_closed_stays_closed(tmp_path: Path, fd: int, end: Callable[[_core.File], None]) -> None:
    file = _core.File(fd, "out", 3)
    file.write(b"abc", 0)
    end(file)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)  # which gets its number
    with pytest.raises(ValueError, match="'out' is closed"):
        file.write(b"abc", 0)
    for sync in (True, False):
        with pytest.raises(ValueError, match="'out' is closed"):
            file.finish(sync)
    file.abandon()
    del file
    assert os.fstat(other).st_size == 0
    os.close(other)


def test_nothing_stays_open(tmp_path: Path, fd: int) -> None:
    before = open_files()

    def half_written() -> None:
        _core.File(fd, "half", 2 * ALIGN).write(bytes(ALIGN), 0)

    def unfinished() -> None:
        file = _core.File(fd, "cut", ALIGN)
        (tmp_path / "cut").write_bytes(b"")
        found = rf"size after writing: wanted {ALIGN} bytes, found 0; \w.* save again"
        with pytest.raises(OSError, match=found) as caught:
            file.finish()
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, "cut")
        assert open_files() == before

    half_written()
    unfinished()
    _core.File(fd, "out", 0).finish()
    for folder, name in ((fd, "out"), (-1, "new"), (fd, "a/b")):
        with pytest.raises(OSError, match="create: "):
            _core.File(folder, name, 1)
    assert open_files() == before


# --- what the system refuses ------------------------------------------------------------------------------------------


def written(file: _core.File, data: memoryview) -> bool:
    """Write all of a file; whether it was direct in the end."""
    (room,) = _core.allocate([16 * ALIGN])
    for at in range(0, len(data), 64 * ALIGN):
        file.write(data[at : at + 64 * ALIGN], at, room)
    direct = file.direct
    file.finish()
    return direct


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_file_system_without_o_direct(tmp_path: Path, fd: int, code: int, aligned: bool) -> None:
    data = noise(MIB + 13, aligned=aligned)
    assert refusing("fcntl", code, lambda: written(_core.File(fd, "out", len(data)), data)) is False
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("length", [MIB, MIB + 13])
def test_a_file_system_that_takes_o_direct_and_then_refuses_the_writing(
    tmp_path: Path, fd: int, code: int, length: int
) -> None:
    data = noise(length, aligned=False)
    file = direct_file(fd, length)
    assert refusing("pwrite64", code, lambda: written(file, data), 16 * ALIGN) is False
    assert (tmp_path / "out").read_bytes() == data


def test_a_file_system_that_does_not_tell_what_it_wants(tmp_path: Path, fd: int) -> None:
    data = noise(MIB + 13, aligned=False)
    refusing("statx", errno.ENOSYS, lambda: written(_core.File(fd, "out", len(data)), data))
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR])
def test_a_file_system_that_cannot_allocate(tmp_path: Path, fd: int, code: int) -> None:
    """Or never can to the end: on tmpfs a signal undoes it, and the next may come before it is through."""
    data = noise(MIB + 13, aligned=True)
    refusing("fallocate", code, lambda: written(_core.File(fd, "out", len(data)), data))
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_part_that_is_lost_is_an_error(fd: int, code: int, direct: bool) -> None:
    data = noise(2 * ALIGN, aligned=True)
    file = _core.File(fd, "out", len(data), direct)
    with pytest.raises(OSError, match=f"write: {os.strerror(code)}") as caught:
        refusing("pwrite64", code, lambda: file.write(data, 0))
    assert (caught.value.errno, caught.value.filename) == (code, "out")


def test_write_back_that_lost_something(fd: int) -> None:
    file = _core.File(fd, "out", ALIGN, False)
    with pytest.raises(OSError, match="write back: ") as caught:
        refusing("sync_file_range", errno.EIO, lambda: file.write(bytes(ALIGN), 0))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "out")
    quiet = _core.File(fd, "other", ALIGN, False, False)
    refusing("sync_file_range", errno.EIO, lambda: quiet.write(bytes(ALIGN), 0))


@pytest.mark.parametrize("direct", [True, False])
def test_an_end_that_fails_closes_once(tmp_path: Path, fd: int, direct: bool) -> None:
    before = open_files()
    file = _core.File(fd, "synced", 3, direct)
    with pytest.raises(OSError, match="fsync: ") as caught:
        refusing("fsync", errno.EIO, file.finish)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "synced")
    assert open_files() == before
    refusing("fsync", errno.EIO, lambda: _core.File(fd, "unsynced", 3, direct).finish(sync=False))
    file = _core.File(fd, "closed", 3, direct)
    with pytest.raises(OSError, match="close: ") as caught:
        refusing("close", errno.EDQUOT, file.finish)
    assert (caught.value.errno, caught.value.filename) == (errno.EDQUOT, "closed")
    assert close_all(tmp_path / "closed") == 1


def test_a_tail_that_cannot_be_buffered_is_an_error(fd: int) -> None:
    file = direct_file(fd, ALIGN + 1)
    file.write(noise(ALIGN + 1, aligned=True), 0)
    with pytest.raises(OSError, match="O_DIRECT: ") as caught:
        refusing("fcntl", errno.EIO, file.finish)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "out")


# --- memory -----------------------------------------------------------------------------------------------------------


def address_of(memory: _core.Mapping) -> int:
    return int(np.frombuffer(memoryview(memory), np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("sizes", [[0, 1, ALIGN, 0, ALIGN + 1, 3 << 20, 7], [5], [0], []])
def test_memory_is_aligned_zeroed_and_nobody_elses(sizes: list[int]) -> None:
    mappings = _core.allocate(sizes)
    assert [len(mapping) for mapping in mappings] == sizes
    spans = []
    for number, mapping in enumerate(mappings):
        view = np.frombuffer(memoryview(mapping), np.uint8)
        assert not view.any()
        if len(view):
            at = address_of(mapping)
            assert at % ALIGN == 0
            spans.append((at, at + -(-len(view) // ALIGN) * ALIGN))
        view[:] = number + 1
    assert all(one[1] <= other[0] for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False))
    for number, mapping in enumerate(mappings):
        assert set(bytes(mapping)) <= {number + 1}


def test_memory_lives_as_long_as_its_last_part() -> None:
    first, last = _core.allocate([MIB, MIB])
    view = memoryview(last)
    view[-1] = 7
    del first, last
    assert view[-1] == 7


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="memory of -1 bytes"):
        _core.allocate([3, -1])
    with pytest.raises(MemoryError):
        _core.allocate([1 << 50])
    for size in (1 << 63, 1 << 70):
        with pytest.raises((OverflowError, MemoryError)):
            _core.allocate([size, size])


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, ALIGN, 2 * ALIGN])
@pytest.mark.parametrize("length", LENGTHS[1:])
def test_reading_past_the_cache(tmp_path: Path, fd: int, length: int, offset: int) -> None:
    data = noise(offset + length, aligned=True)
    (tmp_path / "out").write_bytes(data)
    rounded = -(-length // ALIGN) * ALIGN
    for room in sorted({length, length + 1, rounded, rounded + ALIGN}):
        (memory,) = _core.allocate([rounded + 2 * ALIGN])
        view = np.frombuffer(memoryview(memory), np.uint8)
        view[:] = 0xA5
        _core.read_into(fd, "out", offset, view[:length], size=offset + length, room=room)
        assert view[:length].tobytes() == data[offset:]
        assert (view[max(room, length) :] == 0xA5).all(), "it wrote beyond the room"


def test_reading_a_piece_of_a_longer_file(tmp_path: Path, fd: int) -> None:
    data = noise(8 * ALIGN + 3, aligned=True)
    (tmp_path / "out").write_bytes(data)
    (memory,) = _core.allocate([8 * ALIGN])
    view = np.frombuffer(memoryview(memory), np.uint8)
    for offset, length, room in ((0, 5, ALIGN), (ALIGN, ALIGN + 5, 2 * ALIGN), (4 * ALIGN, ALIGN + 5, 2 * ALIGN - 1)):
        view[:] = 0xA5
        _core.read_into(fd, "out", offset, view[:length], room=room)
        assert view[:length].tobytes() == data[offset : offset + length]
        assert (view[room:] == 0xA5).all()


@pytest.mark.parametrize("left", [0, 1, ALIGN, ALIGN + 1, 2 * ALIGN + 6])
def test_a_file_that_shrank(tmp_path: Path, fd: int, left: int) -> None:
    (tmp_path / "out").write_bytes(bytes(left))
    (memory,) = _core.allocate([3 * ALIGN])
    for options in ({}, {"size": 2 * ALIGN + 7}):
        with pytest.raises(_core.SizeChanged) as caught:
            _core.read_into(fd, "out", 0, memoryview(memory)[: 2 * ALIGN + 7], room=3 * ALIGN, **options)
        assert caught.value.found == left


def test_reading_past_the_cache_needs_alignment(tmp_path: Path, fd: int) -> None:
    (tmp_path / "out").write_bytes(bytes(4 * ALIGN))
    (memory,) = _core.allocate([4 * ALIGN])
    view = memoryview(memory)
    for offset, part, room in ((1, view[:ALIGN], ALIGN), (0, view[1:9], ALIGN), (0, view[:ALIGN], ALIGN - 1)):
        with pytest.raises(ValueError, match="not aligned"):
            _core.read_into(fd, "out", offset, part, room=room)


@pytest.mark.parametrize(("call", "code", "third"), [("fcntl", errno.EINVAL, None), ("pread64", errno.EINVAL, 2 * MIB)])
def test_reading_where_o_direct_is_refused(tmp_path: Path, fd: int, call: str, code: int, third: int | None) -> None:
    data = noise(2 * MIB - 5, aligned=True)
    (tmp_path / "out").write_bytes(data)
    (memory,) = _core.allocate([len(data)])
    refusing(call, code, lambda: _core.read_into(fd, "out", 0, memory, room=2 * MIB), third)
    assert memoryview(memory) == data


def test_reading_that_the_disk_refuses(tmp_path: Path, fd: int) -> None:
    (tmp_path / "out").write_bytes(bytes(ALIGN))
    (memory,) = _core.allocate([ALIGN])
    before = open_files()
    with pytest.raises(OSError, match="read: ") as caught:
        refusing("pread64", errno.EIO, lambda: _core.read_into(fd, "out", 0, memory, room=ALIGN))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "out")
    assert open_files() == before
