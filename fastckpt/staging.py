"""The folder that a save fills: tensors and marker are created here, and synced.

A stage is locked from the moment it can be seen (``flock`` on the folder itself), so that whoever finds one that can be
locked knows that the save which made it is dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastckpt import _core
from fastckpt.layout import DONE, META, OUT

__all__ = ["FolderLock", "Stage", "named", "remove_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_held: set[int] = set()  # descriptors whose lock a forked child must not keep alive


def _forget_locks_in_child() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks_in_child)


@contextmanager
def named(path: str) -> Iterator[None]:
    """Give every OSError from within the path that the user knows, instead of a name below a descriptor."""
    try:
        yield
    except OSError as problem:
        problem.filename = path
        raise


class FolderLock:
    """An open folder (or lock file), and the exclusive lock on it if `acquire` got one."""

    def __init__(self, name: str, dir_fd: int | None, flags: int = _DIRECTORY) -> None:
        self.fd = os.open(name, flags, 0o666, dir_fd=dir_fd)
        _held.add(self.fd)

    def acquire(self) -> bool | None:
        """Lock without waiting: True when locked, False when another holds it, None when the system cannot."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as problem:
            if problem.errno in _NO_FOLDER_LOCKS:
                return None
            raise
        return True

    def is_at(self, name: str, dir_fd: int) -> bool:
        """Tell whether the name still leads to what was opened."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self.fd in _held:
            _held.discard(self.fd)
            with suppress(OSError):  # a forked child may share the open file: unlock for all
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)


class Stage:
    """A fresh, locked folder beside the target.

    Attributes
    ----------
    name : str
        Its name in the parent folder.
    path : str
        Its path, for messages.
    fd : int
        Descriptor that all creation is relative to.
    lockable : bool
        False where the file system cannot lock folders.
    """

    def __init__(self, prefix: str, parent_fd: int, parent_path: str) -> None:
        while True:
            self.name = prefix + secrets.token_hex(4)
            self.path = os.path.join(parent_path, self.name)
            if self._made(parent_fd):
                return

    def _made(self, parent_fd: int) -> bool:
        """Make and lock; False when the name is taken, or a sweep took the folder before the lock."""
        try:
            os.mkdir(self.name, dir_fd=parent_fd)
        except FileExistsError:
            return False
        try:
            self._lock = FolderLock(self.name, parent_fd)
        except FileNotFoundError:
            return False
        locked = self._lock.acquire()
        self.lockable = locked is not None
        if locked is not False and self._lock.is_at(self.name, parent_fd):
            return True
        self._lock.close()
        return False

    @property
    def fd(self) -> int:
        return self._lock.fd

    def is_at(self, name: str, parent_fd: int) -> bool:
        return self._lock.is_at(name, parent_fd)

    def write_tensor(self, folder: str, meta: bytes, pieces: Iterable[Any], nbytes: int, *, sync: bool) -> None:
        """Create one tensor's folder with `out` and `meta`; with `sync`, wait until all three are durable."""
        with named(os.path.join(self.path, folder)):
            os.mkdir(folder, dir_fd=self.fd)
        written = _core.write(self.fd, f"{folder}/{OUT}", pieces, sync, nbytes)
        assert written == nbytes, f"{folder}: planned {nbytes} bytes, wrote {written}"
        self._finish_folder(folder, meta, sync)

    def link_tensor(self, folder: str, meta: bytes, twin: str, *, sync: bool) -> bool:
        """Create a folder whose `out` is a hard link to that of `twin`; False where that cannot be linked."""
        with named(os.path.join(self.path, folder)):
            os.mkdir(folder, dir_fd=self.fd)
            try:
                os.link(f"{twin}/{OUT}", f"{folder}/{OUT}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except OSError as problem:
                if problem.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                os.rmdir(folder, dir_fd=self.fd)
                return False
        self._finish_folder(folder, meta, sync)
        return True

    def _finish_folder(self, folder: str, meta: bytes, sync: bool) -> None:
        _core.write(self.fd, f"{folder}/{META}", [meta], sync)
        if sync:
            with named(os.path.join(self.path, folder)):
                sync_folder(folder, self.fd)

    def seal(self, marker: Iterable[Any], *, sync_all: bool) -> None:
        """Write the marker and make the whole folder durable. Afterwards nothing may be added."""
        with named(self.path):
            if sync_all:
                _core.syncfs(self.fd)
            _core.write(self.fd, DONE, marker, True)
            _core.sync_dir(self.fd)

    def close(self) -> None:
        """Release the lock; the folder stays, wherever it is by now."""
        self._lock.close()


def sync_folder(name: str, dir_fd: int) -> None:
    """Make the entries of one folder durable."""
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        _core.sync_dir(fd)
    finally:
        os.close(fd)


def remove_tree(name: str, parent_fd: int) -> None:
    """Delete a folder that is no longer anybody's snapshot: its marker first, so that a half-deleted one never loads.

    What cannot be deleted stays for the next sweep.
    """
    with suppress(OSError):
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        try:
            with suppress(FileNotFoundError):
                os.unlink(DONE, dir_fd=fd)
                _core.sync_dir(fd)
        finally:
            os.close(fd)
    with suppress(OSError):
        for _, folders, files, fd in os.fwalk(name, topdown=False, dir_fd=parent_fd):
            for entry in files:
                with suppress(OSError):
                    os.unlink(entry, dir_fd=fd)
            for entry in folders:
                with suppress(OSError):
                    os.rmdir(entry, dir_fd=fd)
        os.rmdir(name, dir_fd=parent_fd)
