"""Loads in a process that may have no more maps, or few: what cannot be mapped is read, and others find maps too."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import evict, maps_of

import fastckpt
from fastckpt import _core, choosing, fetching, folders, mapping, memory, quick

COUNT = 300  # tensors,
LENGTH = 20_000  # bytes each: too many for the copies of an index
MOST = Path("/proc/sys/vm/max_map_count")

ALONE = """
import ctypes, mmap, sys
import numpy as np
import fastckpt

LIBC = ctypes.CDLL(None, use_errno=True)

def use_up(left):
    '''Have so many maps that the kernel gives `left` more: pages that may be read in turn with pages that may not.'''
    global room
    room = None
    more = int(open("/proc/sys/vm/max_map_count").read()) - sum(1 for _ in open("/proc/self/maps")) - left
    room = mmap.mmap(-1, (more + 2) * mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for page in range(1, more, 2):
        assert LIBC.mprotect(ctypes.c_void_p(at + page * mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ) == 0

def check(found):
    assert len(found) == 300
    for key in found:
        assert np.array_equal(found[key][...], np.full(20_000, int(key) % 251, np.uint8)), key

path = sys.argv[1]
check(fastckpt.load(path, as_="numpy"))
"""

WAYS = """
def into():
    found = {str(n): np.zeros(20_000, np.uint8) for n in range(300)}
    fastckpt.load_into(found, path)
    return found

ways = {
    "load": lambda: fastckpt.load(path, as_="numpy"),
    "not at once": lambda: fastckpt.load(path, as_="numpy", max_bytes=1 << 30),
    "verify": lambda: fastckpt.load(path, as_="numpy", verify=True),
    "keys": lambda: fastckpt.load(path, as_="numpy", keys=[str(key) for key in range(300)]),
    "open": lambda: fastckpt.open(path, as_="numpy"),
    "open some": lambda: fastckpt.open(path, as_="numpy", keys=[str(key) for key in range(300)]),
    "into": into,
}
for maps in (30, 70, 150, 250):
    use_up(maps)
    for way, load in ways.items():
        found = load()
        check(found)
        del found
"""

ASKED = """
use_up(60)
for load in (
    lambda: fastckpt.load(path, as_="numpy", mode="mmap"),
    lambda: fastckpt.load(path, as_="numpy", mode="mmap", keys=[str(key) for key in range(300)]),
):
    try:
        load()
    except OSError as problem:
        print(problem)
check(fastckpt.load(path, as_="numpy"))
"""


@pytest.fixture(params=[False, True], ids=["folders", "index"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    state = {str(key): np.full(LENGTH, key % 251, np.uint8) for key in range(COUNT)}
    fastckpt.save(state, tmp_path / "s", index=request.param, durable=False)
    return tmp_path / "s"


def alone(code: str, path: Path) -> str:
    if not MOST.is_file() or int(MOST.read_text()) > 4 << 20:
        pytest.skip("there is no end to the maps of a process")
    command = [sys.executable, "-c", ALONE + code, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


MEMORY = """
for count in range(3):
    use_up(0)
    (memory,) = fastckpt._core.allocate([1 << 20])
    assert len(memory) == 1 << 20
    del memory, room
    check(fastckpt.load(path, as_="numpy"))

whole = [fastckpt._core.allocate([4096])[0] for _ in range(64)]  # which lie together, and are one map to the kernel
places = [ctypes.addressof(ctypes.c_char.from_buffer(memoryview(memory))) for memory in whole[1:63:2]]
use_up(0)
del whole[1:63:2]
lines = [line.split()[0].split("-") for line in open("/proc/self/maps")]
there = [(int(begin, 16), int(end, 16)) for begin, end in lines]
print(len(places), sum(begin <= at < end for begin, end in there for at in places))
"""


@pytest.mark.no_asan
def test_where_no_map_is_left_there_is_memory(path: Path) -> None:
    """The maps that are held are for it; so they are for what is unmapped in the middle of a map."""
    assert alone(MEMORY, path).split() == ["31", "0"]


@pytest.mark.no_asan
def test_what_cannot_be_mapped_is_read(path: Path) -> None:
    alone(WAYS, path)


@pytest.mark.no_asan
def test_who_asks_for_maps_is_told_why_there_are_none(path: Path) -> None:
    said = alone(ASKED, path).splitlines()
    assert len(said) == 2
    assert all("vm.max_map_count" in line and "mode='read'" in line and str(path) in line for line in said)


@pytest.fixture
def few_maps(monkeypatch: pytest.MonkeyPatch) -> int:
    """As if the kernel gave a process fewer maps: 400 more of ours, as an eighth is for others."""
    most = 8 * ((_core.count_maps() + 400) // 7 + 1)
    monkeypatch.setattr(memory, "_most_maps", lambda: most)
    return most // 8 * 7


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 1 << 30}, {"keys": [*map(str, range(COUNT))]}], ids=len)
def test_several_loads_share_what_maps_there_are(
    options: Any, fast: bool, path: Path, few_maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "maps_fast", lambda system: fast)
    monkeypatch.setattr(quick, "maps_fast", lambda system: fast)
    kept = []
    for _ in range(4):
        kept.append(fastckpt.load(path, as_="numpy", **options))
        assert _core.count_maps() <= few_maps + 4, "and memory for what is read"
        assert maps_of(path) >= min(COUNT * len(kept), 390), "as many as there may be"
        for key, array in kept[-1].items():
            assert (array == int(key) % 251).all(), key


def test_what_is_cold_for_the_second_time_is_read_where_maps_are_few(
    path: Path, tmp_path: Path, few_maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "maps_fast", lambda system: False)
    monkeypatch.setattr(quick, "maps_fast", lambda system: False)
    other = tmp_path / "other"
    fastckpt.save({key: np.full(LENGTH, 3) for key in "abcdefgh"}, other, durable=False)
    kept = fastckpt.load(path, as_="numpy")
    for left, mapped in ((True, 0), (True, 8), (False, 0)):
        for file in other.rglob("out"):
            evict(file)
        if not left:
            kept |= {f"more {key}": array for key, array in fastckpt.load(path, as_="numpy").items()}
        found = fastckpt.load(other, as_="numpy")
        assert all((array == 3).all() for array in found.values())
        assert maps_of(other) == mapped
        del found


@pytest.mark.parametrize("room", [0, 1 << 40])
def test_what_memory_has_no_room_for_is_mapped_beyond_the_share(
    path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(folders, "maps_left", lambda: 0)
    monkeypatch.setattr(fetching, "maps_left", lambda: 100)
    monkeypatch.setattr(fetching, "available", lambda: room)
    monkeypatch.setattr(fetching, "better_mapped", lambda fd, nbytes: True)
    found = fastckpt.load(path, as_="numpy", max_bytes=1 << 30)
    assert maps_of(path) == (COUNT if room == 0 else 0)
    assert all((array == int(key) % 251).all() for key, array in found.items())


@pytest.mark.parametrize("keys", [None, ["7", "8"]])
def test_an_open_snapshot_reads_what_cannot_be_mapped_whatever_its_size(
    path: Path, monkeypatch: pytest.MonkeyPatch, keys: Any
) -> None:
    """Only what is asked for will be read."""

    def refuse(*arguments: Any) -> Any:
        raise OSError(errno.ENOMEM, "no maps")

    monkeypatch.setattr(mapping, "map_files", refuse)
    monkeypatch.setattr(mapping, "available", lambda: 0)
    monkeypatch.setattr(folders, "maps_left", lambda: 0)
    snapshot = fastckpt.open(path, as_="numpy", keys=keys)
    assert (snapshot["7"][:10] == 7).all()
    assert maps_of(path) == 0


def test_several_snapshots_are_open_at_a_time(path: Path, few_maps: int) -> None:
    handles = [fastckpt.open(path, as_="numpy") for _ in range(3)]
    for at, snapshot in enumerate(handles):
        for key in snapshot:
            part = snapshot[key][5:]
            assert (part == int(key) % 251).all()
            part[:] = at
        assert _core.count_maps() <= few_maps + 4, "and memory for what is read"
    assert (fastckpt.load(path, as_="numpy")["7"] == 7).all()


def test_maps_are_counted(path: Path) -> None:
    there = _core.count_maps()
    array = fastckpt.load(path, as_="numpy", mode="mmap")["7"]
    assert _core.count_maps() == there + 1
    memory = _core.allocate([1, 5])
    assert _core.count_maps() == there + 2
    del array, memory
    assert _core.count_maps() == there


def test_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MOST_MAPS", str(tmp_path / "absent"))
    memory._most_maps.cache_clear()
    assert memory.maps_left() > 1 << 40
    memory._most_maps.cache_clear()
