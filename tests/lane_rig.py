"""A lane whose copies are done as late as anybody lets them, and a CUDA that is none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fastckpt.lanes import Copy
from fastckpt.rooms import Pool, Room
from fastckpt.torch.pinned import HostLane


class LateLane(HostLane):
    """Copies only when somebody waits: who touches a room, or a tensor, before that is found out by its content."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(device or torch.device("cpu"))
        self.pool = Pool(lambda address, length: None)
        self.calls: list[str] = []
        self.sent: list[Sequence[Copy]] = []
        self.waiting: list[Callable[[], Any]] = []
        self.done = 0
        self.fail_at: int | None = None
        self.fail_finish: BaseException | None = None
        self.guard = threading.RLock()

    def begin(self) -> None:
        self.calls.append("begin")

    def _later(self, copy: Callable[[], Any]) -> int:
        with self.guard:
            if self.fail_at == self.done + len(self.waiting):
                raise RuntimeError("the copy failed")
            self.waiting.append(copy)
            return self.done + len(self.waiting)

    def send(self, copies: Sequence[Copy]) -> int:
        self.sent.append(copies)
        return self._later(lambda: super(LateLane, self).send(copies))

    def fetch(self, flat: torch.Tensor, offset: int, room: Any) -> int:
        room[:] = bytes(len(room))
        return self._later(lambda: super(LateLane, self).fetch(flat, offset, room))

    def wait(self, ticket: int) -> None:
        with self.guard:
            while self.done < ticket:
                self.waiting.pop(0)()
                self.done += 1

    def finish(self) -> None:
        self.calls.append("finish")
        if self.fail_finish is not None:
            raise self.fail_finish
        self.wait(self.done + len(self.waiting))

    def give_back(self, rooms: list[Room]) -> None:
        assert not self.waiting, "a copy is in flight"
        self.calls.append("give_back")
        super().give_back(rooms)


class FakeCuda:
    """Says what was asked of it; its streams copy at once."""

    def __init__(self, available: bool = True, code: int = 0) -> None:
        self.said: list[str] = []
        self.available = available
        self.code = code
        self.locked: dict[int, int] = {}
        self.local = threading.local()
        self.default = FakeStream(self, "default")

    def is_available(self) -> bool:
        return self.available

    def current_device(self) -> int:
        return 0

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, length: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        assert address % 4096 == 0
        assert not any(at < address + length and address < at + size for at, size in self.locked.items())
        if not self.code:
            self.locked[address] = length
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.said.append(f"device {device}")
        yield

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.local.stream = self.current_stream(), stream
        yield
        self.local.stream = before

    def current_stream(self, device: object = None) -> FakeStream:
        return getattr(self.local, "stream", self.default)

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        return FakeStream(self, "side")

    def Event(self, *, blocking: bool) -> FakeEvent:  # noqa: N802
        assert blocking, "who waits must not keep a processor busy"
        return FakeEvent(self)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda = cuda
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.cuda.said.append(f"host waits for {self.name}")


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.recorded = False

    def record(self, stream: FakeStream) -> None:
        assert stream is self.cuda.current_stream()
        assert stream.name == "side"
        self.cuda.said.append("event recorded")
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded
        self.cuda.said.append("host waits for event")
