"""A snapshot is there whole or not at all: the order of a commit, in one place.

1. lock a fresh folder beside the target, sweep what dead saves left
2. fill it, every file and folder durable (`staging.Stage`)
3. the marker, durable
4. exchange it with the target: the one step that others can see
5. the parent folder durable; only now has the save succeeded
6. only now delete the old snapshot, its marker first

A file system without ``renameat2`` gets two renames, and readers look at the old name in between; one that cannot lock
folders gets a lock file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fastckpt import _core
from fastckpt.errors import CommitUncertain, FormatError, NotCommittedError
from fastckpt.layout import DONE, META, OUT
from fastckpt.staging import FolderLock, Stage, named, remove_tree

__all__ = ["previous_of", "staging"]

_LOCK_WAIT = 60.0  # seconds; a publish takes milliseconds, so somebody is stuck
_NO_RENAMEAT2 = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_ATTEMPTS = 100  # other saves of the same target may come between
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}


@contextmanager
def staging(path: str, *, overwrite: bool = True) -> Iterator[Stage]:
    """Give a stage to fill and seal; leaving commits it as `path`, an exception discards it without a trace.

    Raises
    ------
    FileExistsError
        `path` exists and `overwrite` is False.
    NotCommittedError, FormatError
        `path` is there and is no snapshot: nothing is replaced.
    CommitUncertain
        The snapshot is visible as `path`, but the system failed to confirm that it is durable.
    """
    target = _Target(path)
    try:
        target.check(overwrite)
        with target.stage() as stage:
            yield stage
            _publish(target, stage, overwrite)
    finally:
        target.close()


def previous_of(path: str) -> str:
    """Path where the old snapshot stands while a save without ``renameat2`` replaces it."""
    parent, name = os.path.split(path)
    return os.path.join(parent, f".{_label(name)}.previous")


def _label(name: str) -> str:
    """The name, or its hash where ours would not fit behind it."""
    return name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


class _Target:
    """The path to commit to, held by its open parent folder."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        parent, self.name = os.path.split(self.path)
        if not self.name:
            raise FormatError(f"{path}: the root folder cannot be a snapshot; name a new folder")
        self.parent = parent
        self.label = _label(self.name)
        self.fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file_lock: FolderLock | None = None

    def close(self) -> None:
        if self._file_lock:
            self._file_lock.close()
        os.close(self.fd)

    def check(self, overwrite: bool) -> bool:
        """Tell whether there is something to replace, and refuse what must not be replaced."""
        try:
            mode = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "exists, and overwrite=False", self.path)
        if not stat.S_ISDIR(mode):
            raise FormatError(f"{self.path}: a file, not a snapshot folder, will not be replaced; choose another path")
        self._check_replaceable()
        return True

    def _check_replaceable(self) -> None:
        with os.scandir(self.path) as entries:
            found = {entry.name: entry for entry in entries}
        if found and DONE not in found:
            raise NotCommittedError(
                f"{self.path}: a folder without {DONE} is no snapshot and will not be replaced; "
                "choose another path, or delete it yourself"
            )
        found.pop(DONE, None)
        for name, entry in found.items():
            if not (entry.is_dir(follow_symlinks=False) and self._is_tensor(entry.path)):
                raise FormatError(f"{self.path}: holds {name!r}, which is no tensor and would be lost; move it away")

    @staticmethod
    def _is_tensor(folder: str) -> bool:
        return any(os.path.lexists(os.path.join(folder, part)) for part in (OUT, META))

    @contextmanager
    def stage(self) -> Iterator[Stage]:
        """Make a stage, sweep others' remains, and clean up whichever way it ends."""
        with named(self.path):
            stage = Stage(f".{self.label}.saving-", self.fd, self.parent)
        try:
            if not stage.lockable:
                self._lock_file()
            self._recover()
            self._sweep(stage)
            yield stage
        except BaseException as problem:
            self._abandon(stage, problem)
            raise
        finally:
            stage.close()

    def _abandon(self, stage: Stage, problem: BaseException) -> None:
        """Leave no trace of a save that failed; but one that was interrupted behind the exchange has succeeded."""
        if stage.is_at(stage.name, self.fd):
            remove_tree(stage.name, self.fd)
        elif not isinstance(problem, CommitUncertain):
            with suppress(OSError):
                _core.sync_dir(self.fd)
                remove_tree(stage.name, self.fd)

    def _lock_file(self) -> None:
        """Where folders cannot be locked, one save of this target at a time, by a file that is never deleted."""
        name = f".{self.label}.lock"
        lock = FolderLock(name, self.fd, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _wait_for(lock, os.path.join(self.parent, name))
        except BaseException:
            lock.close()
            raise
        self._file_lock = lock

    def _recover(self) -> None:
        """Put back what a save without renameat2 had moved aside when it died."""
        previous = os.path.basename(previous_of(self.path))
        try:
            lock = FolderLock(previous, self.fd)
        except OSError:
            return
        try:
            if (self._file_lock or lock.acquire()) and not _exists(self.name, self.fd):
                os.rename(previous, self.name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                _core.sync_dir(self.fd)
        finally:
            lock.close()

    def _sweep(self, own: Stage) -> None:
        """Delete what dead saves of this target left, never the folder of a live one."""
        prefix = f".{self.label}."
        mine = (f"{prefix}saving-", f"{prefix}previous")
        stale = [n for n in os.listdir(self.fd) if n.startswith(mine) and n != own.name]
        if not stale:
            return
        _core.sync_dir(self.fd)  # a dead save may have exchanged and died: its new snapshot must be durable first
        for name in stale:
            self._sweep_one(name)

    def _sweep_one(self, name: str) -> None:
        try:
            lock = FolderLock(name, self.fd)
        except OSError:
            return
        try:
            if self._file_lock or lock.acquire():
                remove_tree(name, self.fd)
        finally:
            lock.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder that is now the target: two saves publish one after the other, and no sweep
        deletes the old snapshot before the exchange is durable."""
        while True:
            lock = FolderLock(self.name, self.fd)
            try:
                _wait_for(lock, self.path)
                if lock.is_at(self.name, self.fd):
                    yield
                    return
            finally:
                lock.close()


def _publish(target: _Target, stage: Stage, overwrite: bool) -> None:
    """Make the sealed stage the target. Returns once that is durable and the old snapshot is gone."""
    with named(target.path):
        for patience in range(_ATTEMPTS, -1, -1):
            try:
                if _exists(target.name, target.fd):
                    _replace(target, stage, overwrite)
                else:
                    _rename_new(target, stage)
                    _confirm(target)
                return
            except OSError as problem:  # the target came or went since we looked: look again
                moved = problem.errno == errno.ENOENT or (overwrite and problem.errno in _TAKEN)
                if not (moved and patience and stage.is_at(stage.name, target.fd)):
                    raise


def _replace(target: _Target, stage: Stage, overwrite: bool) -> None:
    with target.locked():
        target.check(overwrite)
        old = _exchange(target, stage)
        _confirm(target)
        remove_tree(old, target.fd)


def _rename_new(target: _Target, stage: Stage) -> None:
    try:
        _core.renameat2(target.fd, stage.name, target.fd, target.name, _core.RENAME_NOREPLACE)
    except OSError as problem:
        if problem.errno not in _NO_RENAMEAT2:
            raise
        os.rename(stage.name, target.name, src_dir_fd=target.fd, dst_dir_fd=target.fd)


def _exchange(target: _Target, stage: Stage) -> str:
    """Put the stage in the target's place, and give the name under which the old one now stands."""
    try:
        _core.renameat2(target.fd, stage.name, target.fd, target.name, _core.RENAME_EXCHANGE)
        return stage.name
    except OSError as problem:
        if problem.errno == errno.EXDEV:
            problem.strerror = "the old snapshot lies on another layer and cannot be replaced; save to a new path"
        if problem.errno not in _NO_RENAMEAT2:
            raise
    return _rename_twice(target, stage)


def _rename_twice(target: _Target, stage: Stage) -> str:
    previous = os.path.basename(previous_of(target.path))
    os.rename(target.name, previous, src_dir_fd=target.fd, dst_dir_fd=target.fd)
    try:
        os.rename(stage.name, target.name, src_dir_fd=target.fd, dst_dir_fd=target.fd)
    except BaseException:
        if not _exists(target.name, target.fd):
            os.rename(previous, target.name, src_dir_fd=target.fd, dst_dir_fd=target.fd)
        raise
    return previous


def _confirm(target: _Target) -> None:
    try:
        _core.sync_dir(target.fd)
    except OSError as problem:
        text = f"the new snapshot is visible, but may not survive a power cut ({problem.strerror}); save to a new path"
        raise CommitUncertain(problem.errno, text, target.path) from problem


def _exists(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _wait_for(lock: FolderLock, path: str) -> None:
    give_up = time.monotonic() + _LOCK_WAIT
    while lock.acquire() is False:
        if time.monotonic() > give_up:
            raise TimeoutError(errno.ETIMEDOUT, f"another save has held this for {_LOCK_WAIT:.0f} s", path)
        time.sleep(0.005)
