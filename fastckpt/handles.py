"""Open folders that close themselves, the locks on them, and errors that name a path."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fastckpt import _core

__all__ = ["FOLDER", "Handle", "named", "opened", "sync_folder"]

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_NO_FOLDER_SYNC = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}  # folders that are shared with a virtual machine's host

_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
_opening = threading.RLock()  # held by a fork too: no handle is open without being known


def _close_in_child() -> None:
    """A child that outlives the save must not keep its locks, nor undo what it still does."""
    for handle in list(_handles):
        handle.drop()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_close_in_child)


@contextmanager
def named(path: str) -> Iterator[None]:
    """Give every OSError from within the path that the user knows, instead of a name below a descriptor."""
    try:
        yield
    except OSError as problem:
        if not (isinstance(problem.filename, str) and os.path.isabs(problem.filename)):
            problem.filename = path
            del problem.filename2
        raise


@contextmanager
def opened(name: str, dir_fd: int) -> Iterator[int]:
    """Open a folder for a moment, not through a link."""
    fd = os.open(name, FOLDER, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_folder(fd: int) -> None:
    """Make the entries of an open folder durable; where that cannot be done to a folder, the whole file system."""
    try:
        _core.sync_dir(fd)
    except OSError as problem:
        if problem.errno not in _NO_FOLDER_SYNC:
            raise
        _core.syncfs(fd)
    os.fstat(fd)  # xfs syncs a folder without an error when its journal is lost; to this it answers EIO


class Handle:
    """An open folder or lock file, closed at the latest with its last user; and the lock on it, once `acquire` got it.

    Attributes
    ----------
    fd : int
        Its descriptor; -1 when closed.
    locked : bool or None
        Whether it is locked; None where the file system cannot.
    holder : int
        The thread that locked it.
    """

    fd = -1  # here, so that one which had no memory to begin with can be closed
    locked: bool | None = False
    holder = 0

    def __init__(self, name: str, dir_fd: int | None = None, flags: int = FOLDER) -> None:
        with _opening:
            self.fd = os.open(name, flags, 0o666, dir_fd=dir_fd)
            _handles.add(self)

    def acquire(self) -> bool | None:
        """Lock without waiting, and tell whether it is `locked` now."""
        self.holder = threading.get_ident()  # first: a signal's handler must see it that comes when the lock is there
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked = True
        except BlockingIOError:
            self.locked, self.holder = False, 0
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            self.locked = None
        return self.locked

    def is_held_here(self) -> bool:
        """Tell whether this very thread has the lock already, by another handle: it cannot wait for itself."""
        status, me = os.fstat(self.fd), threading.get_ident()
        with _opening:
            known = [ref() for ref in _handles.data.copy()]  # type: ignore[attr-defined]  # at once: handlers may open others
            ours = [other for other in known if other is not None and other is not self and other.holder == me]
            return any(other.fd >= 0 and os.path.samestat(os.fstat(other.fd), status) for other in ours)

    def is_at(self, name: str, dir_fd: int) -> bool:
        """Tell whether the name leads to what is open here."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unlock and close."""
        if self.fd >= 0 and self.locked:
            with suppress(OSError):  # who was forked behind Python's back shares the lock: closing would not end it
                fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.drop()

    def drop(self) -> None:
        """Close without unlocking: another process may share the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    __del__ = close
