"""save_async: the bytes of save, an object that may be changed at once, no error lost, an exit that waits."""

from __future__ import annotations

import copy
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np
import pytest
import torch
from lane_rig import FakeCuda
from torch import nn

import fastckpt
from fastckpt import _core, background, parallel, tasks
from fastckpt.codec import codec_for
from fastckpt.staging import Stage
from fastckpt.torch import pinned

PATIENCE = 60.0  # seconds until a test gives up; none takes that long
LARGE = 3 << 20  # bytes: more than goes through the page cache


class Gate:
    """Between the copy and the first byte that is written."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, write_plan = Gate(), background.write_plan

    def gated(*arguments: Any, **options: Any) -> None:
        gate.reached.set()
        assert gate.opened.wait(PATIENCE)
        write_plan(*arguments, **options)

    monkeypatch.setattr(background, "write_plan", gated)
    yield gate
    gate.opened.set()


@pytest.fixture
def uncaught(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What nobody has asked for."""
    found: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    return found


@pytest.fixture(autouse=True)
def _no_memory_kept() -> Iterator[None]:
    fastckpt.release_memory()
    yield
    background._turns.wait()
    fastckpt.release_memory()


def kept() -> Any:
    """The memory that waits for the next copy."""
    return tasks.arena._free


def until(condition: Callable[[], bool]) -> None:
    stop = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.001)


def ints(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape)


def complexes() -> torch.Tensor:
    return torch.view_as_complex(torch.randn(60, 50, 2))


def tensors() -> dict[str, Any]:
    wide = ints(1200, 700)
    return {
        "small": ints(7),
        "large": ints(LARGE // 8 + 5),
        "odd": torch.arange(LARGE + 13, dtype=torch.uint8),
        "transposed": wide.t(),
        "stepped": ints(1200, 700)[:, ::3],
        "expanded": ints(1000).expand(600, 1000),
        "conjugate": complexes().conj(),
        "conjugate, strided": complexes().t().conj(),
        "negative": complexes().conj().imag,
        "bool": ints(5000) % 3 == 0,
        "bool, strided": (ints(90, 90) % 3 == 0).t(),
        "bfloat16": torch.randn(33).bfloat16(),
        "bfloat16, strided": torch.randn(33, 44).bfloat16().t(),
        "float8": torch.randn(33, 44).to(torch.float8_e4m3fn).t(),
        "uint16": ints(40, 50).to(torch.uint16).t(),
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(1.5),
        "parameter": nn.Parameter(torch.randn(3, 4)),
        "tied": wide.t(),
        "tied, small": None,
        "tied, empty": None,
    }


def arrays() -> dict[str, Any]:
    wide = np.arange(1200 * 700).reshape(1200, 700)
    return {
        "large": wide.copy(),
        "big endian": wide.astype(">i8"),
        "Fortran": np.asfortranarray(wide[:50]),
        "backward": wide[::-1, ::-2],
        "complex": (wide[:9] * 1j).astype(">c16"),
        "bool": (wide % 2 == 0).T,
        "float16": (wide % 99).astype(np.float16)[:, 3],
        "nothing": np.empty((3, 0)),
        "number": np.array(3.5, ">f4"),
    }


def tied() -> dict[str, Any]:
    found = tensors()
    found["tied, small"], found["tied, empty"] = found["small"], found["none"]
    return found


def nested() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(700, 600), nn.BatchNorm1d(600), nn.Linear(600, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 700)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "also": [arrays(), (1, "x")]}


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "direct"])
@pytest.mark.parametrize("make", [tied, arrays, nested, dict], ids=["torch", "numpy", "nested", "empty"])
def test_the_bytes_are_those_of_save(tmp_path: Path, make: Callable[[], Any], copy: bool) -> None:
    obj = make()
    fastckpt.save(obj, tmp_path / "one", durable=False)
    handle = fastckpt.save_async(obj, tmp_path / "other", copy=copy, durable=False)
    handle.result(PATIENCE)
    assert rig.tree_of(tmp_path / "other") == rig.tree_of(tmp_path / "one")
    inodes = [
        [(tmp_path / snapshot / folder / "out").stat().st_ino for folder in ("transposed", "tied")]
        for snapshot in ("one", "other")
        if make is tied
    ]
    assert all(one == other for one, other in inodes)


def test_the_options_are_those_of_save(tmp_path: Path) -> None:
    options: dict[str, Any] = {"index": True, "digest": False, "durable": True, "threads": 1}
    fastckpt.save(arrays(), tmp_path / "one", **options)
    fastckpt.save_async(arrays(), tmp_path / "other", **options).result(PATIENCE)
    assert rig.tree_of(tmp_path / "other") == rig.tree_of(tmp_path / "one")


def test_a_tie_that_cannot_be_linked_has_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMLINK, "links")

    monkeypatch.setattr(os, "link", refuse)
    fastckpt.save_async(tied(), tmp_path / "s", durable=False).result(PATIENCE)
    fastckpt.verify(tmp_path / "s")
    assert (tmp_path / "s/tied/out").read_bytes() == tied()["tied"].contiguous().numpy().tobytes()


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_the_object_may_be_changed_at_once(tmp_path: Path, gate: Gate) -> None:
    state = {"large": torch.zeros(LARGE), "small": np.zeros(3), "strided": torch.zeros(40, 50).t(), "list": [1]}
    alive = weakref.ref(state["large"])
    handle = fastckpt.save_async(state, tmp_path / "s")
    for tensor in state.values():
        tensor[:] = [7] if isinstance(tensor, list) else 7
    state.clear()
    del tensor
    assert alive() is None
    gate.opened.set()
    handle.result(PATIENCE)
    loaded = fastckpt.load(tmp_path / "s")
    assert loaded.pop("list") == [1]
    assert len(loaded) == 3
    assert not any(tensor.any() for tensor in loaded.values())


def test_without_a_copy_the_object_itself_is_written(tmp_path: Path, gate: Gate) -> None:
    tensor = torch.zeros(LARGE)
    handle = fastckpt.save_async({"w": tensor}, tmp_path / "s", copy=False)
    tensor.fill_(7)
    gate.opened.set()
    handle.result(PATIENCE)
    assert (fastckpt.load(tmp_path / "s")["w"] == 7).all()
    assert kept() is None
    alive = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert alive() is None


def test_the_memory_is_kept_for_the_next_copy_and_given_back(tmp_path: Path) -> None:
    def saved(*sizes: int) -> Any:
        obj = {str(at): np.ones(size, np.uint8) for at, size in enumerate(sizes)}
        fastckpt.save_async(obj, tmp_path / "s", durable=False).result(PATIENCE)
        return weakref.ref(kept())

    first = saved(LARGE, 100, LARGE)
    assert saved(LARGE - 5, LARGE) is first
    assert saved(2, 2 * LARGE * 7 // 8) is first
    larger = saved(3 * LARGE)
    assert first() is None
    smaller = saved(LARGE)
    assert larger() is None
    fastckpt.release_memory()
    assert smaller() is None


def test_a_little_save_in_between_costs_the_next_large_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would fault on every page anew, and CUDA lock them."""

    def allocate(sizes: list[int], *, inherited: bool = True) -> Any:
        if not inherited:  # which is what copies lie in
            allocated.extend(sizes)
        return real(sizes, inherited=inherited)

    real, allocated = _core.allocate, list[int]()
    monkeypatch.setattr(_core, "allocate", allocate)
    large = {"w": np.ones(8 * LARGE, np.uint8)}
    for _ in range(3):
        for obj in (large, {"epoch": 1}, {}, {"w": np.ones(LARGE, np.uint8)}):
            fastckpt.save_async(obj, tmp_path / "s", durable=False).result(PATIENCE)
            fastckpt.verify(tmp_path / "s")
    assert allocated == [8 * LARGE]


def test_no_more_than_an_eighth_of_what_is_kept_is_unused_when_much_is_needed() -> None:
    arena, all_of_it = tasks.Arena(), 8 << 20
    for need in (0, 1, 1 << 20, (1 << 20) + 1, 4 << 20, (7 << 20) - 1, 7 << 20, all_of_it, all_of_it + 1):
        arena.give(arena.take(all_of_it))
        memory = arena.take(need)
        if need in (0, 1, 1 << 20, 7 << 20, all_of_it):
            assert len(memory) == all_of_it
        else:
            assert len(memory) == need


def test_large_tensors_are_written_from_where_they_were_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File:
        def __init__(self, *arguments: Any) -> None:
            self.real = real(*arguments)
            self.direct, self.finish = self.real.direct, self.real.finish

        def write(self, piece: Any, offset: int, room: None, gate: _core.Gate) -> None:
            addresses.append(np.frombuffer(piece, np.uint8).ctypes.data)
            self.real.write(piece, offset, room, gate)

    real, addresses = _core.File, list[int]()
    monkeypatch.setattr(_core, "File", File)
    fastckpt.save_async(tied() | {"other": ints(LARGE)}, tmp_path / "s").result(PATIENCE)
    assert len(addresses) > 8
    assert not [address for address in addresses if address % _core.DIRECT_ALIGN]
    fastckpt.verify(tmp_path / "s")


PEAK = """
    import re
    import numpy as np
    import fastckpt

    def read(name):
        with open("/proc/self/status") as status:
            return int(re.search(name + r":\\s+(\\d+) kB", status.read())[1]) >> 10

    state = {str(at): np.ones(32 << 20, np.uint8) for at in range(5)}
    state["strided"] = np.ones((4096, 4096), np.uint16).T
    fastckpt.save({"warm": np.ones(3 << 20)}, folder + "/w")
    before = read("VmRSS")
    for _ in range(2):
        fastckpt.save_async(state, folder + "/s", copy=copy).result()
    assert read("VmHWM") - before <= (192 if copy else 0) + 64, (read("VmHWM"), before)
"""


def run(script: str, folder: Path, *, code: int = 0, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that knows these names."""
    lines = [f"{name} = {value!r}" for name, value in {"folder": str(folder), **settings}.items()]
    text = "\n".join([*lines, textwrap.dedent(script)])
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.no_asan
@pytest.mark.parametrize("copy", [True, False], ids=["copied", "direct"])
def test_memory_is_one_copy(tmp_path: Path, copy: bool) -> None:
    run(PEAK, tmp_path, copy=copy)


# --- what is refused at once ------------------------------------------------------------------------------------------


def test_what_save_refuses_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").write_text("")
    fastckpt.save({}, tmp_path / "s")
    refusals: list[tuple[type[Exception], Any, Any, dict[str, Any]]] = [
        (fastckpt.UnsupportedError, {"f": print}, "new", {}),
        (fastckpt.FormatError, {}, "file", {}),
        (fastckpt.NotCommittedError, {}, "folder", {}),
        (FileExistsError, {}, "s", {"overwrite": False}),
        (FileNotFoundError, {}, "no/parent", {}),
        (ValueError, {}, "new", {"when_busy": "queue"}),
    ]
    for error, obj, name, options in refusals:
        with pytest.raises(error):
            fastckpt.save_async(obj, tmp_path / name, **options)
    with pytest.raises(TypeError):
        fastckpt.save_async({}, 3)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "s"}
    fastckpt.save_async({}, tmp_path / "new", when_busy="refuse").result(PATIENCE)


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(600), torch.arange(600).reshape(20, 30).T, np.arange(600), np.arange(600).astype(">i8")],
    ids=["tensor", "turned tensor", "array", "swapped array"],
)
@pytest.mark.parametrize("length", [20, 599, 601, 9000])
def test_what_is_resized_while_it_is_copied_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: Any, length: int
) -> None:
    """By another thread, when its size has been taken."""
    tensor = copy.deepcopy(tensor)
    places_of = tasks.places_of

    def meanwhile(plan: Any) -> Any:
        if isinstance(tensor, torch.Tensor):
            tensor.resize_(length)
        else:
            tensor.resize(length, refcheck=False)
        return places_of(plan)

    monkeypatch.setattr(tasks, "places_of", meanwhile)
    wanted = rf"{tmp_path}/s/w: 4800 bytes when the save began, then {length * 8}; save a copy"
    with pytest.raises(fastckpt.UnsupportedError, match=wanted):
        fastckpt.save_async({"v": np.arange(30).reshape(5, 6).T, "w": tensor}, tmp_path / "s")
    assert not [*tmp_path.iterdir()]


def test_the_path_is_the_one_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.chdir(tmp_path)
    handle = fastckpt.save_async({}, "s")
    monkeypatch.chdir("/")
    gate.opened.set()
    handle.result(PATIENCE)
    assert handle.path == str(tmp_path.resolve() / "s")
    fastckpt.verify(tmp_path / "s")


# --- the handle -------------------------------------------------------------------------------------------------------


def test_the_handle_tells_how_far_it_is(tmp_path: Path, gate: Gate) -> None:
    obj = tied()
    total = sum(tensor.numel() * tensor.itemsize for tensor in obj.values()) - sum(
        obj[name].numel() * obj[name].itemsize for name in ("tied", "tied, small")
    )
    handle = fastckpt.save_async(obj, tmp_path / "s", durable=False)
    assert not handle.done()
    assert handle.progress == (0, total)
    assert f"0 of {total} bytes" in repr(handle)
    with pytest.raises(TimeoutError, match="goes on"):
        handle.result(0.01)
    with pytest.raises(TimeoutError):
        handle.exception(0)
    gate.opened.set()
    handle.result(PATIENCE)
    assert handle.done()
    assert handle.exception() is None
    assert handle.progress == (total, total)
    assert repr(handle) == f"<SaveHandle {handle.path!r}: saved>"


def test_an_interrupt_while_waiting_leaves_the_save_alone(tmp_path: Path, gate: Gate) -> None:
    handle = fastckpt.save_async({"w": ints(5)}, tmp_path / "s")
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        handle.result(PATIENCE)
    gate.opened.set()
    handle.result(PATIENCE)
    fastckpt.verify(tmp_path / "s")


@pytest.mark.parametrize("where", [(tasks, "copied"), (tasks, "places_of"), (background, "partial")], ids=itemgetter(1))
def test_an_interrupt_before_the_save_has_begun_undoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[types.ModuleType, str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fastckpt.save_async({"w": ints(5)}, tmp_path / "s")
    assert not list(tmp_path.iterdir())
    fastckpt.save_async({"w": ints(5)}, tmp_path / "s", when_busy="refuse").result(PATIENCE)


def test_an_interrupt_while_the_thread_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            started.append(self)
            raise KeyboardInterrupt

    started: list[threading.Thread] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fastckpt.save_async({"w": ints(5)}, tmp_path / "s")
    started[0].join(PATIENCE)
    assert not started[0].is_alive()
    assert not list(tmp_path.iterdir())
    fastckpt.save_async({"w": ints(5)}, tmp_path / "s", when_busy="refuse").result(PATIENCE)


# --- errors -----------------------------------------------------------------------------------------------------------


class NoSpace:
    def __init__(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")


def test_an_error_reaches_result_and_the_old_snapshot_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncaught: list[BaseException]
) -> None:
    old, new = {"w": np.arange(3)}, {"w": np.arange(LARGE), "v": np.arange(4)}
    fastckpt.save(old, tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(_core, "File", NoSpace)
        handle = fastckpt.save_async(new, tmp_path / "s")
        for _ in range(2):
            with pytest.raises(OSError, match="no space") as caught:
                handle.result(PATIENCE)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(tmp_path / "s/w/out")
    assert handle.exception() is caught.value
    assert "failed: OSError" in repr(handle)
    assert rig.equal(rig.loaded(tmp_path / "s"), old)
    assert {path.name for path in tmp_path.iterdir()} == {"s"}
    memory = weakref.ref(kept())
    fastckpt.release_memory()
    assert memory() is None  # the error does not hold it
    fastckpt.save_async(new, tmp_path / "s").result(PATIENCE)
    assert rig.equal(rig.loaded(tmp_path / "s"), new)
    del handle
    assert uncaught == []


@pytest.mark.parametrize("dropped", ["at once", "afterwards"])
def test_an_error_that_nobody_asks_for_is_reported_once(
    tmp_path: Path, gate: Gate, uncaught: list[BaseException], dropped: str
) -> None:
    (tmp_path / "parent").mkdir()
    handle = fastckpt.save_async({"w": ints(5)}, tmp_path / "parent/s")
    (tmp_path / "parent").rmdir()
    if dropped == "at once":
        del handle
        assert gate.reached.wait(PATIENCE)
        gate.opened.set()
    else:
        gate.opened.set()
        until(handle.done)
        with pytest.raises(TimeoutError):
            fastckpt.SaveHandle(tasks.Task("other", 0)).result(0)
        assert uncaught == []
        del handle
    until(lambda: bool(uncaught))
    (problem,) = uncaught
    assert isinstance(problem, FileNotFoundError)
    assert str(tmp_path / "parent") in str(problem)
    fastckpt.save_async({}, tmp_path / "s").result(PATIENCE)  # the next one is not held responsible
    assert len(uncaught) == 1


@pytest.mark.parametrize("where", [(traceback, "clear_frames"), (tasks.arena, "give")], ids=itemgetter(1))
def test_what_goes_wrong_behind_the_save_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncaught: list[BaseException], where: tuple[Any, str]
) -> None:
    def fail(_: Any) -> None:
        raise MemoryError("behind the save")

    with monkeypatch.context() as patch:
        patch.setattr(_core, "File", NoSpace)
        patch.setattr(*where, fail)
        handle = fastckpt.save_async({"w": ints(LARGE)}, tmp_path / "s")
        thread = handle._task._thread
        assert thread is not None
        thread.join(PATIENCE)
        over = handle.done()
        handle._task.over.set()  # or what comes next would wait for ever
    assert over
    with pytest.raises(OSError, match="no space"):
        handle.result(PATIENCE)
    assert [str(problem) for problem in uncaught] == ["behind the save"]
    fastckpt.save_async({"w": ints(5)}, tmp_path / "s", when_busy="refuse").result(PATIENCE)


# --- several saves ----------------------------------------------------------------------------------------------------


def test_a_second_save_is_refused_or_waits(tmp_path: Path, gate: Gate) -> None:
    first = fastckpt.save_async({"w": ints(LARGE)}, tmp_path / "one")
    with pytest.raises(fastckpt.BusyError, match=r"other.*one"):
        fastckpt.save_async({}, tmp_path / "other", when_busy="refuse")
    second: list[fastckpt.SaveHandle] = []
    waiting = threading.Thread(target=lambda: second.append(fastckpt.save_async({"v": ints(9)}, tmp_path / "other")))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert not first.done()
    gate.opened.set()
    waiting.join(PATIENCE)
    assert first.done()
    second[0].result(PATIENCE)
    for name in ("one", "other"):
        fastckpt.verify(tmp_path / name)


def test_a_plain_save_to_the_same_path_meanwhile(tmp_path: Path) -> None:
    objects = [{"w": np.full(LARGE // 4, at)} for at in range(2)]
    for _ in range(10):
        handle = fastckpt.save_async(objects[0], tmp_path / "s", durable=False)
        fastckpt.save(objects[1], tmp_path / "s", durable=False)
        handle.result(PATIENCE)
        fastckpt.verify(tmp_path / "s")
        assert any(rig.equal(rig.loaded(tmp_path / "s"), obj) for obj in objects)
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


# --- signal handlers --------------------------------------------------------------------------------------------------

IN_HANDLER = """
    import signal, threading
    import numpy as np
    import fastckpt
    from fastckpt import _core, tasks

    def copy(*arguments, **options):
        core_copy(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)  # the handler is called before the next line

    def handler(*_):
        try:
            handle = fastckpt.save_async(state, folder + "/" + name, when_busy=when_busy)
            handle.result()
        except fastckpt.BusyError as problem:
            told.append(str(problem))
        else:
            told.append(f"{handle.done()}, {tasks.arena._free}")

    core_copy, _core.copy = _core.copy, copy
    signal.signal(signal.SIGTERM, handler)
    state, told = {"w": np.arange(3 << 20), "v": np.arange(4)}, []
    fastckpt.save_async(state, folder + "/s").result()
    print(*told)
"""


@pytest.mark.parametrize("name", ["s", "other"])
def test_a_signal_handler_saves_first(tmp_path: Path, name: str) -> None:
    """What it has interrupted cannot go on before it returns. It makes no second copy."""
    assert run(IN_HANDLER, tmp_path, name=name, when_busy="wait").stdout == "True, None\n"
    for each in ("s", name):
        fastckpt.verify(tmp_path / each)
    assert {path.name for path in tmp_path.iterdir()} == {"s", name}


def test_a_signal_handler_is_refused(tmp_path: Path) -> None:
    done = run(IN_HANDLER, tmp_path, name="other", when_busy="refuse")
    assert done.stdout == f"{tmp_path}/other: came in the middle of a save to {tmp_path}/s, which has to go on first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


AT_ANY_LINE = """
    import os, sys
    import numpy as np
    import fastckpt
    from fastckpt import background, tasks

    ours = {background.__file__, tasks.__file__}

    def save(name):
        fastckpt.save_async({"w": np.arange(9)}, folder + "/" + name, durable=False).result()

    def trace(frame, event, argument):
        global left
        if frame.f_code.co_filename not in ours:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                save("inner")
        return trace

    lines = 0
    while True:
        lines += 1
        left = lines
        sys.settrace(trace)
        save("outer")
        sys.settrace(None)
        fastckpt.load(folder + "/outer")
        if left > 0:
            break
        fastckpt.load(folder + "/inner")
        os.rename(folder + "/inner", folder + f"/inner {lines}")
    assert lines > 50, lines
"""


def test_a_handler_that_saves_at_any_line_of_a_save(tmp_path: Path) -> None:
    run(AT_ANY_LINE, tmp_path)


# --- the end of the process -------------------------------------------------------------------------------------------

SLOW = """
    import atexit, os, signal, sys, threading, time
    import numpy as np
    import fastckpt
    from fastckpt import background

    main, write_plan = threading.main_thread(), background.write_plan

    def late(*arguments, **options):
        while main.is_alive():  # the interpreter is on its way out, and waits
            time.sleep(0.01)
        write_plan(*arguments, **options)

    def fail(*arguments, **options):
        while main.is_alive():
            time.sleep(0.01)
        raise OSError(28, "no space", folder + "/s")

    state = {str(at): np.full(3 << 20, at, np.uint8) for at in range(9)} | {"small": np.arange(3)}
"""

EXIT = """
    background.write_plan = fail if failing else late
    handle = fastckpt.save_async(state, folder + "/s")
    if drop:
        del handle
"""

AT_EXIT = """
    atexit.register(lambda: fastckpt.save_async(state, folder + "/s"))
"""


@pytest.mark.parametrize("drop", [False, True], ids=["kept", "dropped"])
def test_the_interpreter_waits(tmp_path: Path, drop: bool) -> None:
    done = run(SLOW + EXIT, tmp_path, drop=drop, failing=False)
    assert done.stderr == ""
    fastckpt.verify(tmp_path / "s")
    assert len(fastckpt.load(tmp_path / "s")) == 10


def test_a_save_at_exit(tmp_path: Path) -> None:
    done = run(SLOW + AT_EXIT, tmp_path)
    assert done.stderr == ""
    fastckpt.verify(tmp_path / "s")


@pytest.mark.parametrize("drop", [False, True], ids=["kept", "dropped"])
def test_a_failure_at_exit_is_printed(tmp_path: Path, drop: bool) -> None:
    done = run(SLOW + EXIT, tmp_path, drop=drop, failing=True).stderr
    assert done.count("Traceback") == 1
    assert f"Exception in thread save_async to {tmp_path}/s" in done
    assert done.rstrip().endswith(f"OSError: [Errno 28] no space: '{tmp_path}/s'")
    assert not list(tmp_path.iterdir())


def test_the_exit_waits_until_an_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """The interpreter would end in the middle of the text: what Python waits for by itself are no saves at exit."""

    def told(_: Any) -> None:
        waited.wait(0.3)
        order.append("told")

    def wait() -> None:
        background._turns.wait()
        order.append("waited")
        waited.set()

    waited, order = threading.Event(), list[str]()
    monkeypatch.setattr(threading, "excepthook", told)
    (tmp_path / "parent").mkdir()
    fastckpt.save_async({"w": ints(5)}, tmp_path / "parent/s")  # and no handle
    (tmp_path / "parent").rmdir()
    exiting = threading.Thread(target=wait)
    exiting.start()
    gate.opened.set()
    exiting.join(PATIENCE)
    until(lambda: len(order) == 2)
    assert order == ["told", "waited"]


BEFORE_IMPORT = """
    import atexit

    def last():
        fastckpt.save_async({"w": np.arange(3 << 20)}, folder + "/s")

    atexit.register(last)
    import numpy as np
    import fastckpt
"""


def test_a_save_by_an_exit_handler_that_is_older_than_the_module(tmp_path: Path) -> None:
    """It is called when this module has waited already."""
    assert run(BEFORE_IMPORT, tmp_path).stderr == ""
    fastckpt.verify(tmp_path / "s")


FORK = """
    go = threading.Event()

    def gated(*arguments, **options):
        go.wait()
        write_plan(*arguments, **options)

    background.write_plan = gated
    handle = fastckpt.save_async(state, folder + "/s")
    child = os.fork()
    if child == 0:
        assert not handle.done()
        assert not handle._task._memory.any()  # not inherited, so that no page need be copied
        try:
            handle.result()
        except RuntimeError as refusal:
            assert "forked" in str(refusal)
        background.write_plan = write_plan
        fastckpt.save_async({"own": np.arange(9)}, folder + "/child", when_busy="refuse").result()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not handle.done()
    go.set()
    handle.result()
"""


def test_a_forked_child_has_no_part_in_it(tmp_path: Path) -> None:
    done = run("import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(SLOW + FORK), tmp_path)
    assert done.stderr == ""
    for name in ("s", "child"):
        fastckpt.verify(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"s", "child"}


KILL = """
    def killed(plan, path, *, progress, **options):
        def die(nbytes):
            progress(nbytes)
            if handle.progress[0] > 5 << 20:
                os.kill(os.getpid(), signal.SIGKILL)

        write_plan(plan, path, progress=die, **options)

    fastckpt.save({"old": np.arange(5)}, folder + "/s")
    background.write_plan = killed
    handle = fastckpt.save_async(state, folder + "/s")
    handle.result()
"""


def test_a_kill_in_the_middle_leaves_the_old_snapshot(tmp_path: Path) -> None:
    run(SLOW + KILL, tmp_path, code=-signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2  # what it was writing lies there still
    assert list(fastckpt.load(tmp_path / "s")) == ["old"]
    fastckpt.save_async({"new": ints(4)}, tmp_path / "s").result(PATIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


class NoThread(threading.Thread):
    """What the system says to one too many, and Python 3.12 to each that an exit handler asks for."""

    def start(self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "direct"])
def test_without_a_thread_the_save_is_done_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool) -> None:
    monkeypatch.setattr(threading, "Thread", NoThread)
    obj = {"w": np.arange(LARGE), "v": np.arange(4)}
    handle = fastckpt.save_async(obj, tmp_path / "s", copy=copy)
    assert handle.done()
    assert handle.progress == (obj["w"].nbytes + obj["v"].nbytes,) * 2
    handle.result(0)
    assert rig.equal(rig.loaded(tmp_path / "s"), obj)
    fastckpt.save_async({}, tmp_path / "s", when_busy="refuse").result(0)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()], ids=repr)
def test_what_a_save_without_a_thread_raises_is_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncaught: list[BaseException], error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)
        patch.setattr(background, "write_plan", fail)
        with pytest.raises(type(error)) as caught:
            fastckpt.save_async({"w": ints(LARGE)}, tmp_path / "s")
    assert caught.value is error
    assert error.__context__ is None
    assert uncaught == []
    assert kept() is not None
    fastckpt.save_async({"w": ints(5)}, tmp_path / "s", when_busy="refuse").result(PATIENCE)


NO_THREADS = """
    def start(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    def last():
        threading.Thread.start = start
        fastckpt.save_async(state, folder + "/s")

    atexit.register(last)
"""


def test_a_save_at_exit_without_threads(tmp_path: Path) -> None:
    assert run(SLOW + NO_THREADS, tmp_path).stderr == ""
    fastckpt.verify(tmp_path / "s")
    assert len(fastckpt.load(tmp_path / "s")) == 10


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_that_the_system_refuses_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Few(threading.Thread):
        def start(self) -> None:
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    started: list[threading.Thread] = []
    monkeypatch.setattr(parallel, "Thread", Few)
    assert parallel.run(str, range(100), 8) == [*map(str, range(100))]
    assert len(started) == 2
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("in_helper", [True, False])
def test_the_first_error_ends_all_threads(in_helper: bool) -> None:
    def work(job: int) -> None:
        done.append(job)
        if job >= 4 and (threading.current_thread() is not me) is in_helper:
            raise ValueError(job)
        time.sleep(0.001)

    me, done = threading.current_thread(), list[int]()
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"\d"):
        parallel.run(work, range(10_000), 3)
    assert threading.active_count() == before
    assert len(done) < 1000


class Impatient:
    """Work that interrupts the main thread again and again, and says when it is over."""

    def __init__(self) -> None:
        self.begun, self.left, self.over = threading.Event(), threading.Event(), False
        self.main = threading.main_thread()

    def __call__(self, job: int = 0) -> None:
        if threading.current_thread() is self.main:
            self.begun.wait(PATIENCE)
            return
        self.begun.set()
        for _ in range(20):
            signal.pthread_kill(self.main.ident or 0, signal.SIGINT)
            if self.left.wait(0.01):
                return
        self.over = True


@pytest.mark.parametrize("how", ["run", "beside"])
def test_no_number_of_interrupts_leaves_a_thread_at_work(how: str) -> None:
    """Whoever is interrupted gives away what the thread still uses."""
    work = Impatient()

    def act() -> None:
        try:
            parallel.run(work, range(2), 2) if how == "run" else parallel.beside(work, work.begun.wait)
        finally:
            work.left.set()

    with pytest.raises(KeyboardInterrupt):
        act()
    assert work.over


def test_a_second_interrupt_does_not_wait_for_all_of_a_long_job() -> None:
    """What is told that all is over ends early."""
    begun, over, done = threading.Event(), threading.Event(), []

    def work(job: int) -> None:
        if threading.current_thread() is threading.main_thread():
            begun.wait(PATIENCE)
            raise KeyboardInterrupt
        begun.set()
        done.append(over.wait(PATIENCE))

    with pytest.raises(KeyboardInterrupt):
        parallel.run(work, range(2), 2, stop=over.set)
    assert done == [True]


@pytest.mark.parametrize("how", ["page cache", "gathered"])
def test_an_interrupted_save_of_few_large_tensors_ends_in_the_middle_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Through the page cache a thread writes all of one."""
    written, begun = list[int](), threading.Event()
    write_part = Stage.write_part

    def slowly(stage: Stage, folder: str, file: Any, part: Any, at: int, *how: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            begun.wait(PATIENCE)
            raise KeyboardInterrupt
        write_part(stage, folder, file, part, at, *how)
        written.append(at)
        begun.set()
        while not stage._over and len(written) < 2:
            time.sleep(0.001)

    monkeypatch.setattr(Stage, "write_part", slowly)
    tensors = {name: torch.ones(3000, 4000) for name in "ab"}  # 46 MiB
    if how == "gathered":
        tensors = {name: tensor.T for name, tensor in tensors.items()}
    with pytest.raises(KeyboardInterrupt):
        fastckpt.save(tensors, tmp_path / "s", threads=2, durable=False)
    assert len(written) == 1
    assert not [*tmp_path.iterdir()]


def test_a_forked_child_waits_for_no_threads_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked by a handler in the middle of jobs, and unwound: they are not there."""
    busy = parallel._Busy()
    busy.threads.add(1)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    busy.call_off(deque([1]))
    assert not busy.threads


@pytest.mark.parametrize("refused", [False, True])
def test_work_is_done_beside_a_wait(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    class No(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    def work() -> str:
        done.append("work")
        return "made"

    done: list[str] = []
    if refused:
        monkeypatch.setattr(parallel, "Thread", No)
    assert parallel.beside(work, lambda: done.append("wait")) == "made"
    assert sorted(done) == ["wait", "work"]
    assert not refused or done == ["wait", "work"]


def test_work_beside_a_wait_keeps_nobody_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep the GIL, and what shall be waited for would begin late."""

    def start(*arguments: Any) -> None:
        real(*arguments)
        time.sleep(0.02)
        order.append("started")

    real, order = parallel._start, list[str]()
    monkeypatch.setattr(parallel, "_start", start)
    parallel.beside(lambda: order.append("work"), lambda: time.sleep(0.02))
    assert order == ["started", "work"]


@pytest.mark.parametrize("failing", ["work", "wait", "both"])
def test_an_error_of_either_is_raised_when_both_have_ended(failing: str) -> None:
    def act(name: str) -> None:
        time.sleep(0.02 if name == "work" else 0)
        ended.append(name)
        if failing in (name, "both"):
            raise ValueError(name)

    ended: list[str] = []
    before = threading.active_count()
    with pytest.raises(ValueError, match="work" if failing == "work" else "wait"):
        parallel.beside(lambda: act("work"), lambda: act("wait"))
    assert sorted(ended) == ["wait", "work"]
    assert threading.active_count() == before


# --- CUDA -------------------------------------------------------------------------------------------------------------


def test_memory_for_cuda_is_registered_once_and_until_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def called(name: str, result: Any = 0) -> Callable[..., Any]:
        return lambda *_: (calls.append(name), result)[1]

    class Entered:
        def __init__(self, *_: Any) -> None:
            self.wait_stream, self.synchronize = called("wait_stream"), called("synchronize")

        def __enter__(self) -> None:
            calls.append("enter")

        def __exit__(self, *_: object) -> None:
            calls.append("exit")

    runtime = types.SimpleNamespace(cudaHostRegister=called("register"), cudaHostUnregister=called("unregister", None))
    names = {"Stream": Entered, "stream": Entered, "current_stream": str, "cudart": lambda: runtime}
    monkeypatch.setattr(pinned, "cuda", types.SimpleNamespace(**names))
    memory = np.zeros(100, np.uint8)
    for _ in range(2):
        with pinned.copying({torch.device("cuda")}, memory):
            calls.append("copies")
    copies = ["wait_stream", "enter", "copies", "exit", "synchronize"]
    assert calls == ["register", *copies, *copies]
    del memory
    assert calls[-1] == "unregister"
    assert not pinned._registered


LATE: list[Callable[[], object]] = []  # copies that were asked for and are not done


class There(torch.Tensor):
    """Takes itself for a tensor on a CUDA device: what is copied from it without a wait arrives late, but is conjugated
    or negated by the host at once, as torch does it."""

    is_cuda = True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.copy_ or not (kwargs or {}).get("non_blocking"):
            return super().__torch_function__(func, types, args, kwargs or {})
        target, source = args[0], args[1].as_subclass(torch.Tensor)
        bits = source.conj() if source.is_conj() else source
        bits = torch._neg_view(bits) if bits.is_neg() else bits
        LATE.append(lambda: target.copy_(bits.clone()))
        if source.is_conj():
            target.conj_physical_()
        if source.is_neg():
            target.neg_()
        return target


@pytest.mark.parametrize("kind", ["conjugate", "conjugate, strided", "negative", "plain", "bool, strided"])
def test_what_a_device_brings_late_is_what_the_tensor_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "cuda", FakeCuda())
    wanted = complexes() if kind == "plain" else tensors()[kind]
    (mapping,) = _core.allocate([wanted.nbytes])
    memory = np.frombuffer(memoryview(mapping), np.uint8)
    codec_for("torch").collect([(wanted.as_subclass(There), memory)], memory)
    assert len(LATE) == (kind in ("plain", "bool, strided")), "all others need not be waited for"
    for late in LATE:
        late()
    LATE.clear()
    assert torch.equal(torch.from_numpy(memory).view(wanted.dtype).view(wanted.shape), wanted)
    del memory, mapping
    gc.collect()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_from_a_cuda_device(tmp_path: Path) -> None:
    obj = {name: tensor.cuda() for name, tensor in tensors().items() if tensor is not None} | {"host": ints(LARGE)}
    expected = {name: tensor.cpu().clone() for name, tensor in obj.items()}
    for _ in range(2):
        handle = fastckpt.save_async(obj, tmp_path / "s")
        assert torch.from_numpy(handle._task._memory).is_pinned() or handle.done()
        for tensor in obj.values():
            if 0 not in tensor.stride():
                tensor.zero_()
        handle.result(PATIENCE)
        assert rig.equal(rig.loaded(tmp_path / "s"), expected)
        obj = {name: tensor.cuda() for name, tensor in expected.items()}
