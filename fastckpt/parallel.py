"""Several threads at one list of jobs. What they do is system calls, made without the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

__all__ = ["run"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def run(work: Callable[[Job], Result], jobs: Sequence[Job], threads: int) -> list[Result]:
    """Do all jobs, in at most `threads` threads of which the caller is one.

    Parameters
    ----------
    work : callable
        What to do with a job.
    jobs : sequence
        Taken in order, each by whoever is free.
    threads : int
        At least 1.

    Returns
    -------
    list
        The results in the order of the jobs.

    Raises
    ------
    BaseException
        The first error, or an interrupt; no further job is begun, and no thread is left when this returns.
    """
    results: list[Any] = [None] * len(jobs)
    todo = deque(enumerate(jobs))

    def take() -> tuple[int, Job] | None:
        try:
            return todo.popleft()
        except IndexError:
            return None

    def worker() -> None:
        try:
            while taken := take():
                results[taken[0]] = work(taken[1])
        except BaseException:
            todo.clear()
            raise

    helpers = min(threads, len(jobs)) - 1
    if helpers < 1:
        worker()
        return results
    with ThreadPoolExecutor(helpers, "fastckpt") as pool:
        others = [pool.submit(worker) for _ in range(helpers)]
        try:
            worker()
            wait(others)
        except BaseException:
            todo.clear()
            wait(others)
            raise
    for other in others:
        other.result()
    return results
