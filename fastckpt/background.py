"""save_async(): the object is copied, and the copy becomes a snapshot while the program goes on.

One save at a time in a process. Its thread is waited for when the interpreter exits; its error waits for whoever asks,
and is printed if nobody can ask any more.
"""

from __future__ import annotations

import atexit
import os
import weakref
from functools import partial
from typing import Any, Literal

from fastckpt.commit import target_of
from fastckpt.parallel import check_threads
from fastckpt.saving import check_path, plan_of, settle, write_plan
from fastckpt.tasks import Task, Turns, arena

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

    Where no thread can be begun (the system refuses one more, or the interpreter is about to end), the save is done
    when this returns, and what it raises is raised here. So it is in a signal handler that has interrupted another
    ``save_async`` before that returned, which goes on afterwards; it then makes no copy.
    """
    check_path(path)
    check_threads(threads)
    if when_busy not in ("wait", "refuse"):
        raise ValueError(f"when_busy must be 'wait' or 'refuse', not {when_busy!r}")
    plan = plan_of(obj, index)
    task = Task(os.fspath(path), plan.nbytes)
    handle = SaveHandle(task)
    try:
        in_thread = _turns.take(task, wait=when_busy == "wait")
        task.path = target_of(task.path, overwrite)
        if copy and in_thread:
            plan = task.copied(plan)
        else:
            settle(plan)
        write = partial(write_plan, threads=threads, overwrite=overwrite, durable=durable, digest=digest)
        work = partial(write, plan, task.path, progress=task.note)
        if in_thread:
            task.start(work)
        else:
            task.do(work)
    except BaseException:
        task.withdraw()
        raise
    finally:
        _turns.leave(task)
    return handle


def release_memory() -> None:
    """Give the memory back that ``save_async`` keeps for its next copy. What a running save uses stays."""
    arena.release()


class SaveHandle:
    """A save in the background, from ``save_async``. Any thread may use it."""

    def __init__(self, task: Task) -> None:
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
        """Tell whether the save has ended.

        Returns
        -------
        bool
            True when it has, well or not; `exception` then does not wait.
        """
        return self._task.over.is_set()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end, and give what the save raised, None if nothing.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default as long as it takes.

        Returns
        -------
        BaseException or None
            What `result` would raise. It counts as asked for, and is not printed any more.

        Raises
        ------
        TimeoutError
            The save has not ended yet. It goes on, as it does after an interrupt.
        RuntimeError
            This process was forked from the one that saves, before the save had ended.
        """
        self._task.wait(timeout)
        return self._task.error

    def result(self, timeout: float | None = None) -> None:
        """Wait for the end, and raise what the save raised: on return, the snapshot is committed.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default as long as it takes.

        Raises
        ------
        TimeoutError, RuntimeError
            As from `exception`.
        CheckpointError, OSError
            What ``save`` raises: the snapshot that was there is untouched (but see ``CommitUncertain``).
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


_turns = Turns()
os.register_at_fork(after_in_child=_turns.forget)
atexit.register(_turns.end)
