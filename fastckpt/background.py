"""save_async(): the object is copied, and the copy becomes a snapshot while the program goes on.

One save at a time in a process. Its thread is waited for when the interpreter exits; its error waits for whoever asks,
and is printed if nobody can ask any more.
"""

from __future__ import annotations

import atexit
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from fastckpt.arena import Arena, Bytes, copied, places_of
from fastckpt.commit import target_of
from fastckpt.errors import BusyError
from fastckpt.garbage import collector_at_rest
from fastckpt.plan import WritePlan
from fastckpt.saving import check_path, plan_of, settle, write_plan

__all__ = ["SaveHandle", "release_memory", "save_async"]


def save_async(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    copy: bool = True,
    when_busy: Literal["wait", "refuse"] = "wait",
    threads: int | None = None,
    index: bool = False,
    overwrite: bool = True,
    durable: bool = True,
    digest: bool = True,
) -> SaveHandle:
    """Save as `save` does, in the background: when this returns, the object may be changed again.

    Parameters
    ----------
    obj, path
        As for ``save``; what that refuses is refused at once here too.
    copy : bool
        Copy the tensors first, into memory that is kept for the next save (see ``release_memory``). It is pinned when
        tensors come from CUDA devices. False: write from the object itself, without a second copy in memory; it must
        not be changed until the save is done.
    when_busy : {"wait", "refuse"}
        What to do while an earlier ``save_async`` of this process still runs, to whatever path: wait until it has
        ended, or raise BusyError.
    threads, index, overwrite, durable, digest
        As for ``save``.

    Returns
    -------
    SaveHandle
        Tells how far it is, and whether it failed.

    Raises
    ------
    BusyError
        Another save runs, and `when_busy` is "refuse".
    UnsupportedError, NotCommittedError, FormatError, OSError
        As from ``save``, for what the arguments, the object and one look at `path` tell; the rest comes from the
        handle.

    Notes
    -----
    The interpreter does not exit before the save has ended (``os._exit`` and signals do not ask). An error that nobody
    has asked the handle for goes to ``threading.excepthook``, which prints it: when the handle is no longer there, or
    at exit. The exit status stays what it was: a program that must not end well without its snapshot calls
    ``result()``. A forked child has no part in the save.
    """
    check_path(path)
    if when_busy not in ("wait", "refuse"):
        raise ValueError(f"when_busy must be 'wait' or 'refuse', not {when_busy!r}")
    plan = plan_of(obj, index)
    task = _Task(os.fspath(path), plan.nbytes)
    handle = SaveHandle(task)
    try:
        _turns.take(task, wait=when_busy == "wait")
        task.path = target_of(task.path, overwrite)
        if copy:
            plan = task.copied(plan)
        else:
            settle(plan)
        write = partial(write_plan, threads=threads, overwrite=overwrite, durable=durable, digest=digest)
        task.start(partial(write, plan, task.path, progress=task.note))
    except BaseException:
        task.withdraw()
        raise
    return handle


def release_memory() -> None:
    """Give the memory back that ``save_async`` keeps for its next copy. What a running save uses stays."""
    _arena.release()


class SaveHandle:
    """A save in the background, from ``save_async``. Any thread may use it."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        weakref.finalize(self, task.abandon)

    @property
    def path(self) -> str:
        """Where the snapshot goes, without links."""
        return self._task.path

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of tensors that are written, and that will be. The commit comes after the last of them."""
        return self._task.written, self._task.total

    def done(self) -> bool:
        """Tell whether the save has ended, well or not."""
        return self._task.over.is_set()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end, and give what the save raised, None if nothing.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Raises
        ------
        TimeoutError
            The save has not ended yet. It goes on, as it does after an interrupt.
        """
        self._task.wait(timeout)
        return self._task.error

    def result(self, timeout: float | None = None) -> None:
        """Wait for the end, and raise what the save raised: on return, the snapshot is committed.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; TimeoutError then, as from `exception`.
        """
        problem = self.exception(timeout)
        try:
            if problem is not None:
                raise problem
        finally:
            del problem  # else its traceback would hold this frame, and this frame it

    def __repr__(self) -> str:
        written, total = self.progress
        state = f"{written} of {total} bytes"
        if self.done():
            state = "saved" if self._task.error is None else f"failed: {self._task.error!r}"
        return f"<SaveHandle {self.path!r}: {state}>"


class _Task:
    """What a handle and the thread that saves have in common. It does not know the handle, which so can go away.

    Attributes
    ----------
    over : threading.Event
        Set once, as the last act; nothing else of it changes after that.
    error : BaseException or None
        What the save raised.
    """

    def __init__(self, path: str, total: int) -> None:
        self.path = path
        self.total = total
        self.written = 0
        self.over = threading.Event()
        self.error: BaseException | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._memory: Bytes | None = None
        self._work: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._abandoned = False
        self._unasked: list[BaseException] = []  # the error, until somebody has it: taking it out is atomic

    def copied(self, plan: WritePlan) -> WritePlan:
        """Give the plan over a copy, in memory that is this save's until it is over."""
        with collector_at_rest():
            places = places_of(plan)
            self._memory = _arena.take(places.room)
            return copied(plan, places, self._memory, self.path)

    def start(self, work: Callable[[], None]) -> None:
        """Go on in a thread, which begins when this one has nothing to wait for any more, or both wait for the GIL."""
        self._work = work
        self._thread = threading.Thread(target=self._run, name=f"save_async to {self.path}", daemon=False)
        self._thread.start()
        self._go.set()

    def withdraw(self) -> None:
        """End it, unless it goes on in its thread: an interrupt may come when it just does."""
        if not self._go.is_set():
            self._end()
        self._go.set()

    def note(self, nbytes: int) -> None:
        """Count what was written."""
        with self._lock:
            self.written += nbytes

    def wait(self, timeout: float | None) -> None:
        """Wait until it is over; from then on somebody knows of the error."""
        if not self.over.is_set() and os.getpid() != self._owner:
            raise RuntimeError(f"{self.path}: is being saved by the process that this one was forked from")
        if not self.over.wait(timeout):
            raise TimeoutError(f"{self.path}: not saved after {timeout} s; the save goes on")
        self._unasked.clear()

    def abandon(self) -> None:
        """Know that nobody can ask any more. Called in any thread, at any point: it must not wait for a lock."""
        self._abandoned = True
        if self.over.is_set():
            self._report()

    def _run(self) -> None:
        self._go.wait()
        if self.over.is_set():
            return
        assert self._work is not None, "start() has set it"
        try:
            self._work()
        except BaseException as problem:  # noqa: BLE001
            traceback.clear_frames(problem.__traceback__)  # they hold the tensors
            self.error = problem
            self._unasked.append(problem)
        self._end()
        if self._abandoned:
            self._report()

    def _end(self) -> None:
        """Let go of all that is large, and let the next one begin."""
        self._work = None
        if self._memory is not None:
            _arena.give(self._memory)
            self._memory = None
        self.over.set()

    def _report(self) -> None:
        if os.getpid() != self._owner:
            return
        try:
            problem = self._unasked.pop()
        except IndexError:
            return
        args = (type(problem), problem, problem.__traceback__, self._thread)
        threading.excepthook(threading.ExceptHookArgs(args))


class _Turns:
    """One save after the other."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: what ran does not run there."""
        self._lock = threading.Lock()
        self._last: _Task | None = None

    def take(self, task: _Task, *, wait: bool) -> None:
        """Return when no other task runs; it then is `task` that does, until it is over."""
        while True:
            with self._lock:
                before = self._last
                if before is None or before.over.is_set():
                    self._last = task
                    return
            if not wait:
                raise BusyError(f"{task.path}: a save to {before.path} still runs; wait for its result() first")
            before.over.wait()

    def wait(self) -> None:
        """Wait for what runs: Python itself does not wait for a save that begins in an exit handler."""
        if self._last is not None:
            self._last.over.wait()


_arena = Arena()
_turns = _Turns()
os.register_at_fork(after_in_child=_arena.forget)
os.register_at_fork(after_in_child=_turns.forget)
atexit.register(_turns.wait)
