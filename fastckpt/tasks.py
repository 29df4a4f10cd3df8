"""Saves in the background: what a handle and the thread that saves have in common, and whose turn it is."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

from fastckpt.arena import Arena, Bytes, copied, places_of
from fastckpt.errors import BusyError
from fastckpt.garbage import collector_at_rest
from fastckpt.plan import WritePlan

__all__ = ["Task", "Turns", "arena"]


class Task:
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
            self._memory = arena.take(places.room)
            return copied(plan, places, self._memory, self.path)

    def start(self, work: Callable[[], None]) -> None:
        """Go on in a thread, which begins when this one has nothing to wait for any more, or both wait for the GIL."""
        self._work = work
        self._thread = threading.Thread(target=self._run, name=f"save_async to {self.path}", daemon=False)
        try:
            self._thread.start()
        except RuntimeError:  # too many threads; or, since Python 3.12, the interpreter is about to end
            self._thread = None
        if self._thread is None:
            self.do(work)
        else:
            self._go.set()

    def do(self, work: Callable[[], None]) -> None:
        """Do it in this thread, and raise what it raises: kept, an error would hold the frames of all who called."""
        work()
        self._end()

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

    def join(self) -> None:
        """Wait until it is over, and its thread has told what nobody asked for."""
        self.over.wait()
        if self._thread is not None and self._thread.is_alive():  # an interrupt may have kept it from starting
            self._thread.join()

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
            self.error = problem  # first: whatever goes wrong from here on, the save has failed by this
            self._unasked.append(problem)
            traceback.clear_frames(problem.__traceback__)  # they hold the tensors
        finally:
            self._end()
        if self._abandoned:
            self._report()

    def _end(self) -> None:
        """Let go of all that is large, and let the next one begin."""
        memory, self._memory, self._work = self._memory, None, None
        try:
            if memory is not None:
                arena.give(memory)
        finally:
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


class Turns:
    """One save after the other."""

    def __init__(self) -> None:
        self._ended = False
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: what ran does not run there."""
        self._lock = threading.Lock()
        self._last: Task | None = None
        self._here = threading.local()  # its `task`: what this thread is about to let go on by itself

    def take(self, task: Task, *, wait: bool) -> bool:
        """Return when no other task runs; it then is `task` that does, until it is over.

        True when it may go on in a thread; False when it has to be over before the caller goes on. So it is for a
        signal handler that has interrupted another save before that could: to wait for it would be to wait for oneself.
        """
        outer: Task | None = getattr(self._here, "task", None)
        if outer is None or outer.over.is_set():
            self._here.task = task
            return self._taken(task, wait)
        if not wait:
            raise BusyError(f"{task.path}: came in the middle of a save to {outer.path}, which has to go on first")
        return False

    def _taken(self, task: Task, wait: bool) -> bool:
        while True:
            with self._lock:
                before = self._last
                if before is None or before.over.is_set():
                    self._last = task
                    return not self._ended
            if not wait:
                raise BusyError(f"{task.path}: a save to {before.path} still runs; wait for its result() first")
            before.over.wait()

    def leave(self, task: Task) -> None:
        """Say that the caller does nothing more for `task`."""
        if getattr(self._here, "task", None) is task:
            self._here.task = None

    def wait(self) -> None:
        """Wait for what runs: Python itself does not wait for a save that begins in an exit handler."""
        if self._last is not None:
            self._last.join()

    def end(self) -> None:
        """Wait at exit. Nobody would wait for a save that an exit handler begins which is called after this one."""
        self._ended = True
        self.wait()


arena = Arena()  # the copies of all tasks
os.register_at_fork(after_in_child=arena.forget)
