"""The ring: every byte arrives once, no room is used while a copy does, and nothing is in flight when it ends."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lane_rig import LateLane

from fastckpt import _core, parallel, ring, rooms
from fastckpt.codec import codec_for
from fastckpt.dtypes import BY_NAME
from fastckpt.lanes import Far
from fastckpt.ring import Drawer, Load, pack, stream
from fastckpt.rooms import ROOM, ROOMS, Pool, Room, allocate_locked

SMALL_ROOM = 3 * _core.DIRECT_ALIGN


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> LateLane:
    """Give a late lane, and make rooms small, so that little goes round them many times."""
    monkeypatch.setattr(ring, "ROOM", SMALL_ROOM)
    return LateLane()


def noise(nbytes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)


# ---- pack ----


@given(st.lists(st.integers(0, 5 * ROOM), max_size=30))
@example([])
@example([1] * 200)
@example([ROOM, ROOM + 1, 1, 4095, 4096, 4097])
def test_every_byte_is_packed_once_and_nothing_overlaps(sizes: list[int]) -> None:
    loads = pack((str(name), size, name) for name, size in enumerate(sizes))
    found: dict[str, list[tuple[int, int]]] = {}
    for load in loads:
        assert 0 < len(load) <= 64
        end = 0
        for piece in load:
            assert piece.blob == str(piece.flat)
            assert piece.at % _core.DIRECT_ALIGN == piece.offset % _core.DIRECT_ALIGN == 0
            assert piece.at >= end, "in order, and behind what the last one may overwrite"
            end = -(-(piece.at + piece.length) // _core.DIRECT_ALIGN) * _core.DIRECT_ALIGN
            assert end <= ROOM
            found.setdefault(piece.blob, []).append((piece.offset, piece.length))
    for name, size in enumerate(sizes):
        assert [offset for offset, _ in found.get(str(name), [])] == [*range(0, size, ROOM)]
        assert sum(length for _, length in found.get(str(name), [])) == size


# ---- stream ----


def carried(lane: LateLane, sizes: list[int], threads: int, fill: Any = None) -> tuple[list[int], Any, Any]:
    """Send blobs of noise, and give the notes, what was sent and what arrived."""
    wanted = {str(n): noise(size) for n, size in enumerate(sizes)}
    found = {name: torch.zeros(len(blob), dtype=torch.uint8) for name, blob in wanted.items()}
    loads = pack((name, len(blob), found[name]) for name, blob in wanted.items())
    number = {id(load): at for at, load in enumerate(loads)}

    def plain(load: Load, room: memoryview) -> int:
        for piece in load:
            room[piece.at : piece.at + piece.length] = memoryview(
                wanted[piece.blob][piece.offset : piece.offset + piece.length]
            )
        return number[id(load)]

    notes = stream(
        lane, loads, (lambda load, room: fill(number[id(load)], load, room, plain)) if fill else plain, threads
    )
    return notes, wanted, {name: tensor.numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("threads", [1, 2, 8, 99])
def test_more_goes_round_than_there_are_rooms(threads: int, lane: LateLane) -> None:
    sizes = [100 * SMALL_ROOM + 13, 0, 1, *range(1, 300), SMALL_ROOM, 40 * SMALL_ROOM - 1]
    notes, wanted, found = carried(lane, sizes, threads)
    assert len(notes) > 5 * ROOMS
    assert notes == sorted(notes)
    for name, blob in wanted.items():
        np.testing.assert_array_equal(found[name], blob)
    assert lane.calls == ["begin", "finish", "give_back"]


def test_few_loads_take_few_rooms(lane: LateLane) -> None:
    carried(lane, [5], 8)
    assert len(lane.pool._free) == 1
    carried(lane, [], 8)
    carried(lane, [2 * SMALL_ROOM], 8)
    assert len(lane.pool._free) == 2
    carried(lane, [200 * SMALL_ROOM], 8)
    assert len(lane.pool._free) == ROOMS


def test_rooms_that_were_used_before_are_used_again(lane: LateLane) -> None:
    carried(lane, [200 * SMALL_ROOM], 8)
    before = {id(room) for room in lane.pool._free}
    carried(lane, [200 * SMALL_ROOM], 3)
    assert {id(room) for room in lane.pool._free} == before


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("at", [0, 1, 40])
@pytest.mark.parametrize("error", [OSError(5, "no more"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_the_first_error_ends_it(error: BaseException, at: int, threads: int, lane: LateLane) -> None:
    begun = []

    def fill(number: int, load: Load, room: memoryview, plain: Any) -> int:
        begun.append(number)
        if number == at:
            raise error
        return plain(load, room)

    with pytest.raises(type(error)) as raised:
        carried(lane, [1000 * SMALL_ROOM], threads, fill)
    assert raised.value is error
    assert len(begun) < 1000
    assert not lane.waiting
    assert lane.calls == ["begin", "finish", "give_back"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastckpt")]
    _, wanted, found = carried(lane, [100 * SMALL_ROOM], threads)
    np.testing.assert_array_equal(found["0"], wanted["0"])


@pytest.mark.parametrize("threads", [1, 4])
def test_an_interrupt_while_others_read(threads: int, lane: LateLane) -> None:
    def fill(number: int, load: Load, room: memoryview, plain: Any) -> int:
        if number == 30:
            _thread.interrupt_main()
        return plain(load, room)

    with pytest.raises(KeyboardInterrupt):
        carried(lane, [3000 * SMALL_ROOM], threads, fill)
    assert not lane.waiting
    assert lane.calls[0] == "begin"
    assert lane.calls[-1] == "give_back"


@pytest.mark.parametrize("threads", [1, 8])
def test_a_copy_that_fails_ends_it(threads: int, lane: LateLane) -> None:
    lane.fail_at = 50
    with pytest.raises(RuntimeError, match="the copy failed"):
        carried(lane, [1000 * SMALL_ROOM], threads)
    assert lane.done == 50, "what was begun is waited for"
    assert lane.calls == ["begin", "finish", "give_back"]


def test_the_room_of_a_copy_that_failed_is_not_used_again(lane: LateLane, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(lane, "send", lambda copies: (_ for _ in ()).throw(RuntimeError("half of them were begun")))
    barrier = threading.Barrier(4)

    def fill(number: int, load: Load, room: memoryview, plain: Any) -> int:
        used.append(np.frombuffer(room, np.uint8).ctypes.data)
        if number < 4:
            barrier.wait(20)
        return plain(load, room)

    with pytest.raises(RuntimeError, match="half of them"):
        carried(lane, [1000 * SMALL_ROOM], 4, fill)
    assert len(used) == len(set(used)) <= 8


def test_no_room_is_given_back_that_a_thread_still_fills(lane: LateLane) -> None:
    """However often the caller is interrupted."""
    main, begun, left = threading.main_thread(), threading.Event(), threading.Event()
    filling: list[int] = []

    def fill(number: int, load: Load, room: memoryview, plain: Any) -> int:
        if threading.current_thread() is main:
            begun.wait(20)
            return plain(load, room)
        filling.append(number)
        begun.set()
        for _ in range(20):
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
            if left.wait(0.01):
                return number
        filling.clear()
        return plain(load, room)

    def finish() -> None:
        left.set()
        assert not filling, "a thread fills a room"
        real()

    real, lane.finish = lane.finish, finish  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        carried(lane, [2 * SMALL_ROOM], 2, fill)
    assert lane.calls == ["begin", "finish", "give_back"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the device is gone")], ids=repr)
def test_rooms_that_nobody_could_wait_for_are_never_used_again(error: BaseException, lane: LateLane) -> None:
    lane.fail_finish = error
    before = len(ring._abandoned)
    with pytest.raises(type(error)):
        carried(lane, [20 * SMALL_ROOM], 2)
    assert lane.calls == ["begin", *["finish"] * (1 + isinstance(error, KeyboardInterrupt))]
    assert not lane.pool._free
    assert len(ring._abandoned) == before + 1, "a copy may still read them: they are kept"
    ring._abandoned.pop()


def test_tensors_whose_copies_nobody_could_wait_for_are_kept(lane: LateLane) -> None:
    """Else their memory would be another's when a copy that was begun arrives."""
    lane.fail_finish = RuntimeError("the device is gone")
    flat = torch.zeros(20 * SMALL_ROOM, dtype=torch.uint8)
    known = weakref.ref(flat)
    with pytest.raises(RuntimeError, match="the device is gone"):
        stream(lane, pack([("x", len(flat), flat)]), lambda load, room: None, 2)
    lane.fail_finish = None  # its frames have all
    lane.waiting.clear()
    lane.sent.clear()
    del flat
    gc.collect()
    assert known() is not None
    ring._abandoned.pop()
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("times", [1, 2])
def test_one_interrupt_at_the_end_keeps_nothing(times: int, lane: LateLane, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the wait is over, or the wait can be begun again."""
    finish, interrupts = lane.finish, [KeyboardInterrupt()] * times

    def interrupted() -> None:
        finish()
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(lane, "finish", interrupted)
    before = len(ring._abandoned)
    with pytest.raises(KeyboardInterrupt):
        carried(lane, [20 * SMALL_ROOM], 2)
    assert (len(lane.pool._free) > 0) == (times == 1)
    assert len(ring._abandoned) == before + times - 1
    del ring._abandoned[before:]


# ---- rooms ----


class Locks:
    """What locks pages, and notices memory that is unmapped before it is unlocked."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.log: list[str] = []
        self.refuse = False

    def __call__(self, address: int, length: int) -> Any:
        if self.refuse:
            return None
        assert length > 0
        self.held[address] = length
        self.log.append(f"lock {length}")

        def unlock() -> None:
            assert is_mapped(address), "unmapped before it was unlocked"
            self.log.append(f"unlock {self.held.pop(address)}")

        return unlock


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps", encoding="ascii") as maps:
        spans = (line.split()[0].split("-") for line in maps)
        return any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_rooms_are_aligned_and_locked_once() -> None:
    locks = Locks()
    pool = Pool(locks)
    taken = pool.take(3)
    assert all(room.locked and len(room.view) == ROOM for room in taken)
    assert all(np.frombuffer(room.view, np.uint8).ctypes.data % _core.DIRECT_ALIGN == 0 for room in taken)
    pool.give_back(taken)
    assert {*map(id, pool.take(3))} == {*map(id, taken)}
    assert locks.log == [f"lock {ROOM}"] * 3


def test_no_more_rooms_are_kept_than_one_load_needs() -> None:
    locks = Locks()
    pool = Pool(locks)
    one, other = pool.take(ROOMS), pool.take(2)
    pool.give_back(one)
    pool.give_back(other)
    del one, other
    gc.collect()
    assert len(pool._free) == len(locks.held) == ROOMS
    pool.release()
    gc.collect()
    assert not locks.held
    assert locks.log.count(f"unlock {ROOM}") == ROOMS + 2


def test_where_locking_is_refused_rooms_are_as_good() -> None:
    locks = Locks()
    locks.refuse = True
    (room,) = Pool(locks).take(1)
    room.view[:5] = b"hello"
    assert not room.locked


def test_a_forked_child_neither_uses_nor_unlocks_rooms() -> None:
    locks = Locks()
    pool = Pool(locks)
    pool.give_back(pool.take(2))
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(0 if not pool._free and len(locks.held) == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(pool._free) == 2


def test_locked_memory_stays_locked_until_the_last_of_it_goes() -> None:
    locks = Locks()
    memories = allocate_locked([5, 0, 10_000, 1], locks)
    assert memories is not None
    assert [len(memory) for memory in memories] == [5, 0, 10_000, 1]
    assert locks.log == [f"lock {4096 + 3 * 4096 + 1}"]
    keep = memories.pop(2)
    memories.clear()
    gc.collect()
    assert locks.held
    tensor = codec_for("torch").make(keep, BY_NAME["float32"], (2500,), "x")
    del keep
    row = tensor[3:4]
    del tensor
    gc.collect()
    assert locks.held
    row.fill_(1.5)
    assert row.tolist() == [1.5]
    del row
    gc.collect()
    assert not locks.held
    assert allocate_locked([], locks) == []
    assert allocate_locked([0], locks) is not None
    locks.refuse = True
    assert allocate_locked([5], locks) is None


# ---- Drawer ----


class Here:
    """A codec whose tensors lie on a device with a late lane."""

    def __init__(self, lane: LateLane) -> None:
        self._lane = lane

    def lane(self, device: str) -> LateLane:
        assert device == "there"
        return self._lane

    def whole(self, tensor: torch.Tensor) -> Any:
        return None

    def far(self, tensor: torch.Tensor) -> Any:
        return Far("there", tensor) if tensor.dtype == torch.uint8 else None


@pytest.mark.parametrize("threads", [1, 3, 40])
def test_parts_are_drawn_by_many_threads(threads: int) -> None:
    lane = LateLane()
    tensor = torch.from_numpy(noise(3 * ROOM + 77))
    with Drawer(threads) as drawer:
        codec: Any = Here(lane)
        assert drawer.draw(codec, torch.ones(3)) is None
        drawn = drawer.draw(codec, tensor)
        assert drawn is not None
        part = drawn.part

        def work(at: int) -> bytes:
            with part(at, min(100_000, len(tensor) - at)) as view:
                return bytes(view)

        found = parallel.run(work, range(0, len(tensor), 100_000), threads)
        assert lane.calls == ["begin"]
    assert b"".join(found) == tensor.numpy().tobytes()
    assert lane.calls == ["begin", "finish", "give_back"]
    assert len(lane.pool._free) == min(threads, 12) < ROOMS, "a save needs memory for other tensors too"


def test_a_drawer_that_draws_nothing_takes_nothing() -> None:
    with Drawer(8):
        pass


def test_after_an_error_rooms_go_back_when_copies_are_done() -> None:
    lane = LateLane()
    codec: Any = Here(lane)

    def fail() -> None:
        with Drawer(2) as drawer:
            drawn = drawer.draw(codec, torch.zeros(10, dtype=torch.uint8))
            assert drawn is not None
            with drawn.part(0, 10):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert lane.calls == ["begin", "finish", "give_back"]


def test_a_room_lives_no_longer_than_anybody_has_it() -> None:
    pool = Pool(lambda address, length: None)
    (room,) = pool.take(1)
    known = weakref.ref(room)
    assert isinstance(room, Room)
    del room
    gc.collect()
    assert known() is None
    assert rooms.ROOM * rooms.ROOMS == 64 << 20
