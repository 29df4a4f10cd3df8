"""The child: holds one rival, obeys commands of one line of JSON, and answers each with one line of what it measured.

State is made before the clock starts and dropped after it has stopped, so that an idle child holds no tensors, and no
map that would keep pages in the cache.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastckpt.bench.catalogue import LIMIT, RIVALS
from fastckpt.bench.limits import Limits
from fastckpt.bench.measuring import measured, sync_tree, touch_memory
from fastckpt.bench.workloads import Workload, find

__all__ = ["main"]

_PAGE = 4096
_FEW = 16 * _PAGE

Answer = dict[str, Any]


class _Worker:
    """A rival's measurements, by the name of the operation."""

    def __init__(self, name: str) -> None:
        from fastckpt.bench import rivals, states, training

        self._beside_training = training.beside_training
        self._states = states
        self._side = rivals.make(name)
        self._syncs = RIVALS[name].syncs

    def save(self, workload: Workload, path: Path, seed: int) -> Answer:
        """Save without syncing."""
        state = self._state(workload, seed)
        return _timed(workload, lambda: self._side.save(state, path, False), settled=True)[0]

    def save_durable(self, workload: Workload, path: Path, seed: int) -> Answer:
        """Save and sync; those that do not sync themselves are helped."""
        return _timed(workload, self._durable(workload, path, seed), settled=True)[0]

    def train_durable(self, workload: Workload, path: Path, seed: int) -> Answer:
        """The same, while another thread trains."""
        return self._beside_training(self._durable(workload, path, seed))

    def train_async(self, workload: Workload, path: Path, seed: int) -> Answer:
        """Begin a save and wait for its end, while another thread trains."""
        state = self._state(workload, seed)

        def work() -> None:
            self._side.save_async(state, path)()

        return self._beside_training(work)

    def _durable(self, workload: Workload, path: Path, seed: int) -> Callable[[], None]:
        state = self._state(workload, seed)

        def work() -> None:
            self._side.save(state, path, True)
            if not self._syncs:
                sync_tree(path)

        return work

    def save_async(self, workload: Workload, path: Path, seed: int) -> Answer:
        """Begin a save: the time that the caller is blocked, and until all is done."""
        state = self._state(workload, seed)
        self._side.ready(state)
        found, wait = _timed(workload, lambda: self._side.save_async(state, path))
        begin = time.perf_counter()
        wait()
        return {**found, "total": found["seconds"] + time.perf_counter() - begin}

    def load(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Load to a dict, untouched."""
        found, loaded = _timed(workload, lambda: self._side.load(path))
        return {**found, "sum": _touched(self._states.flat(loaded))}

    def touch(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Load, and read one byte of every page."""
        return self._touched_load(workload, path)

    def _touched_load(self, workload: Workload, path: Path, *, settled: bool = False) -> Answer:
        total = 0

        def work() -> Any:
            nonlocal total
            loaded = self._side.load(path)
            total = _touched(self._states.flat(loaded))
            return loaded

        return {**_timed(workload, work, settled=settled)[0], "sum": total}

    def cold(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """The same, with nothing in the page cache."""
        self._side.first()
        return self._touched_load(workload, path, settled=True)

    def warm(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Bring a snapshot into the page cache as its own users do: by loading it, and loading it again."""
        touch_memory(workload.nbytes)  # in large pieces, as it is found after this
        for _ in range(2):
            _touched(self._states.flat(self._side.load(path)))
        return {}

    def into(self, workload: Workload, path: Path, seed: int) -> Answer:
        """Load into live tensors."""
        return self._into(workload, path, seed)

    def _into(self, workload: Workload, path: Path, seed: int, *, settled: bool = False) -> Answer:
        live = self._states.like(workload, seed)
        found, _ = _timed(workload, lambda: self._side.load_into(path, live), settled=settled)
        return {**found, "sum": _touched(live)}

    def into_cold(self, workload: Workload, path: Path, seed: int) -> Answer:
        """The same, with nothing in the page cache."""
        self._side.first()
        return self._into(workload, path, seed, settled=True)

    def one(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Read the largest tensor alone."""
        return self._part(path, workload.largest[0], None)

    def rows(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Read an eighth of the largest tensor's rows, from its middle."""
        name, shape, _ = workload.largest
        return self._part(path, name, slice(shape[0] // 2, shape[0] // 2 + shape[0] // 8))

    def gpu(self, workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG002
        """Load to a GPU."""
        import torch

        def work() -> Any:
            loaded = self._side.load(path, "cuda")
            torch.cuda.synchronize()
            return loaded

        torch.empty(1, device="cuda")
        return _timed(workload, work)[0]

    gpu_cold = gpu

    def _part(self, path: Path, key: str, rows: slice | None) -> Answer:
        total = 0

        def work() -> Any:
            nonlocal total
            part = self._side.part(path, key, rows)
            total = _touched({key: part})
            return part

        return {**measured(work)[0], "sum": total}

    def _state(self, workload: Workload, seed: int) -> Any:
        state = self._states.made(workload, seed)
        return state if self._side.nested else self._states.flat(state)


class _Limits:
    """The limits, under the names of the operations beside which they are measured."""

    def __init__(self) -> None:
        self._limits = Limits()

    def __getattr__(self, op: str) -> Callable[[Workload, Path, int], Answer]:
        measure = getattr(self._limits, op)

        def act(workload: Workload, path: Path, seed: int) -> Answer:  # noqa: ARG001
            answer: Answer = measure(path, workload.nbytes)
            return answer

        return act


def _timed(workload: Workload, work: Callable[[], Any], *, settled: bool = False) -> tuple[Answer, Any]:
    """Measure it with as much memory at hand as a save, a page cache or a load can want; `settled`: what fills the page
    cache notices what is taken meanwhile."""
    touch_memory(workload.nbytes, settled=settled)
    return measured(work)


def _touched(tensors: dict[str, Any]) -> int:
    """Read a byte of every page, and give their sum: whoever read the same bytes gives the same."""
    return sum(map(_sum_of_pages, tensors.values()))


def _sum_of_pages(tensor: Any) -> int:
    if not (hasattr(tensor, "data_ptr") and tensor.is_contiguous()):
        return int(tensor.reshape(-1).view("u1")[::_PAGE].sum())
    if tensor.nbytes <= _FEW:  # a view of it would take longer than its bytes
        first = tensor.data_ptr()
        return sum(ctypes.c_ubyte.from_address(at).value for at in range(first, first + tensor.nbytes, _PAGE))
    import torch

    return int(tensor.reshape(-1).view(torch.uint8).numpy()[::_PAGE].sum())


def _own_stdout() -> Any:
    """Keep the way to the parent for answers: whatever a rival prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(worker: Any, command: dict[str, Any]) -> Answer:
    workload = find(command["workload"], command["size"])
    try:
        answer: Answer = getattr(worker, command["op"])(workload, Path(command["path"]), command["seed"])
    except Exception as problem:  # noqa: BLE001
        answer = {"error": _reason(problem)}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # the next one finds what a fresh process finds, no memory to use again
    return answer


def _reason(problem: Exception) -> str:
    """Give a problem in a line; what is only not there needs no name of an exception."""
    name = type(problem).__name__
    return (str(problem) if name == "NotAvailable" else f"{name}: {problem}")[:300]


def main() -> None:
    """Serve until the parent closes the pipe."""
    answers = _own_stdout()
    warnings.simplefilter("ignore")
    name = sys.argv[1]
    try:
        worker: Any = _Limits() if name == LIMIT else _Worker(name)
        hello: Answer = {"ready": name}
    except Exception as problem:  # noqa: BLE001
        hello = {"error": _reason(problem)}
    gc.collect()
    gc.freeze()  # what is imported stays, and need not be looked at after every command
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(worker, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
