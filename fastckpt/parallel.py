"""Several threads at one list of jobs. What they do is system calls, made without the GIL.

Plain threads: Python's pools take no work once the main thread has ended, when a save may still run in the background.
"""

from __future__ import annotations

import operator
import os
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock, Thread, get_ident
from typing import Any, TypeVar

from fastckpt import _core

__all__ = ["beside", "check_threads", "run"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def check_threads(threads: Any) -> None:
    """Refuse what a caller cannot mean by a number of threads: it is at least 1, or None for as many as suit."""
    if threads is None:
        return
    try:
        count = operator.index(threads)
    except TypeError:
        count = None
    if count is None or isinstance(threads, bool):
        raise TypeError(f"threads must be an int or None, not {type(threads).__name__}")
    if count < 1:
        raise ValueError(f"threads must be at least 1, or None for as many as suit, not {count}")


class _Busy:
    """The helpers that may take a job; each adds itself before it takes one, and leaves when it takes no other."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self._owner = os.getpid()

    def call_off(self, todo: deque[Any]) -> None:
        """Let no job be begun any more, and wait for those who are at one; in a forked child there are none."""
        if os.getpid() != self._owner:
            self.threads.clear()
        _core.call_off(todo, self.threads)


def run(
    work: Callable[[Job], Result], jobs: Sequence[Job], threads: int, *, stop: Callable[[], None] | None = None
) -> list[Result]:
    """Do all jobs, in at most `threads` threads of which the caller is one.

    Parameters
    ----------
    work : callable
        What to do with a job.
    jobs : sequence
        Taken in order, each by whoever is free.
    threads : int
        At least 1. A thread that the system refuses is done without.
    stop : callable, optional
        Called when this thread is interrupted, or its job failed: lets long jobs of others end before they are done.

    Returns
    -------
    list
        The results in the order of the jobs.

    Raises
    ------
    BaseException
        The first error, or an interrupt; no further job is begun, and no thread is at one when this returns, however
        often it is interrupted: a second interrupt waits for the jobs that are being done.
    """
    results: list[Any] = [None] * len(jobs)
    todo = deque(enumerate(jobs))
    problems, helpers, busy = list[BaseException](), list[Thread](), _Busy()

    def worker() -> None:
        while taken := _taken(todo):
            results[taken[0]] = work(taken[1])

    def helper() -> None:
        busy.threads.add(get_ident())
        try:
            worker()
        except BaseException as problem:  # noqa: BLE001
            todo.clear()
            problems.append(problem)
        finally:
            busy.threads.discard(get_ident())

    try:
        _start(helper, min(threads, len(jobs)) - 1, helpers)
        worker()
        _wait_for(helpers)
    except BaseException:
        if stop is not None:
            stop()
        busy.call_off(todo)
        _wait_for(helpers)
        problems.clear()  # whose frames hold this one, and all that the jobs hold
        raise
    try:
        if problems:
            raise problems[0]
        return results
    finally:
        problems.clear()


def _taken(todo: deque[Job]) -> Job | None:
    try:
        return todo.popleft()
    except IndexError:
        return None


def beside(work: Callable[[], Result], wait: Callable[[], None]) -> Result:
    """Give what `work` gives, which a thread does while this one does `wait`; errors as from `run`."""
    made: list[Result] = []
    problems: list[BaseException] = []
    helpers: list[Thread] = []
    todo, busy = deque([work]), _Busy()
    begun = Lock()  # or it would keep the GIL, and what waits would begin when it is interrupted

    def helper() -> None:
        busy.threads.add(get_ident())
        try:
            with begun:
                made.append(todo.popleft()())
        except BaseException as problem:  # noqa: BLE001
            problems.append(problem)
        finally:
            busy.threads.discard(get_ident())

    try:
        with begun:
            _start(helper, 1, helpers)
        wait()
    finally:
        try:
            _wait_for(helpers)
        finally:
            busy.call_off(todo)
    try:
        if problems:
            raise problems[0]
        return made[0] if helpers else work()
    finally:
        problems.clear()


def _start(work: Callable[[], None], count: int, started: list[Thread]) -> None:
    for _ in range(count):
        thread = Thread(target=work, name="fastckpt", daemon=False)
        started.append(thread)
        try:
            thread.start()
        except RuntimeError:  # too many threads; or, in some Pythons, the main one has ended
            started.pop()
            return


def _wait_for(threads: list[Thread]) -> None:
    for thread in threads:
        if thread.is_alive():  # one that an interrupt kept from starting cannot be waited for
            thread.join()
