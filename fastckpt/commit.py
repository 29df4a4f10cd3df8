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
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from fastckpt import _core
from fastckpt.errors import CommitUncertain, FormatError
from fastckpt.handles import FOLDER, named, sync_folder
from fastckpt.layout import DONE
from fastckpt.staging import Stage, remove_tree, retire
from fastckpt.target import Target, previous_of

__all__ = ["previous_of", "staging", "target_of"]

_PUBLISH_WAIT = 600.0  # seconds that another save may take to publish and to delete what it replaced
_SAVE_WAIT = 86400.0  # where folders cannot be locked: seconds that another save may take as a whole
_ATTEMPTS = 100  # other saves of the same target may come between
_LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_RENAMEAT2 = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: some sandboxes
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}


def target_of(path: str, overwrite: bool) -> str:
    """Give the path without links; refuse now what `staging` would refuse, as far as one look tells."""
    with closing(Target(path)) as target, named(target.path):
        target.check(overwrite, closely=False)
        return target.path


@contextmanager
def staging(path: str, *, overwrite: bool = True, durable: bool = True) -> Iterator[Stage]:
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
    target = Target(path)
    stage = Stage(target.path, f".{target.label}.saving-", durable)
    try:
        with named(target.path):
            target.check(overwrite)
            _begin(target, stage)
            recovered = _recover(target)
            _sweep(target, stage)
            if recovered:
                target.check(overwrite)
        yield stage
        with named(target.path):
            _publish(target, stage, overwrite)
    except BaseException as problem:
        with suppress(OSError):
            _discard(target, stage, problem)
        raise
    finally:
        stage.close()
        target.close()


def _begin(target: Target, stage: Stage) -> None:
    if not stage.create(target.parent.fd):
        target.lock_out_others(_LOCK_FILE, _SAVE_WAIT)
        if not stage.is_at(stage.name, target.parent.fd):  # the save that had the lock took it for a dead one's
            stage.create(target.parent.fd)


def _recover(target: Target) -> bool:
    """Put back what a save without renameat2 had moved aside when it died; tell whether there was anything."""
    with target.dead(target.previous) as dead:
        if not dead or target.has(target.name) or not target.has(f"{target.previous}/{DONE}"):
            return False
        try:
            _rename(target, target.previous, target.name)
        except OSError as problem:  # another save was quicker
            if problem.errno in _TAKEN:
                return False
            raise
        sync_folder(target.parent.fd)
        return True


def _sweep(target: Target, stage: Stage) -> None:
    """Delete what dead saves of this target left, never the folder of a live one."""
    ours = re.compile(rf"\.{re.escape(target.label)}\.saving-[0-9a-f]{{8}}")
    for name in os.listdir(target.parent.fd):
        if name == target.previous or (name != stage.name and ours.fullmatch(name)):
            _sweep_one(target, name)


def _sweep_one(target: Target, name: str) -> None:
    with target.dead(name) as dead:
        if dead and (name != target.previous or target.has(target.name)):
            # Whoever left it may have died behind the exchange: its new snapshot must be durable first.
            sync_folder(target.parent.fd)
            retire(name, target.parent.fd)


def _publish(target: Target, stage: Stage, overwrite: bool) -> None:
    """Make the sealed stage the target. Returns once that is durable and the old snapshot is gone."""
    for patience in range(_ATTEMPTS, -1, -1):
        try:
            if target.has(target.name):
                _replace(target, stage, overwrite)
            else:
                _place(target, stage)
            return
        except OSError as problem:  # the target came or went since we looked: look again
            moved = problem.errno == errno.ENOENT or (overwrite and problem.errno in _TAKEN)
            if not (moved and patience and stage.is_at(stage.name, target.parent.fd)):
                raise


def _place(target: Target, stage: Stage) -> None:
    fd = target.parent.fd
    try:
        _core.renameat2(fd, stage.name, fd, target.name, _core.RENAME_NOREPLACE)
    except OSError as problem:
        if problem.errno not in _NO_RENAMEAT2:
            raise
        _rename(target, stage.name, target.name)
    _confirm(target, stage)


def _replace(target: Target, stage: Stage, overwrite: bool) -> None:
    """Two saves publish one after the other, and none sweeps the old snapshot away before the exchange is durable: the
    lock of the folder that is the target now sees to both."""
    now = target.lock(target.name, FOLDER, _PUBLISH_WAIT)
    try:
        target.check(overwrite)
        old = _exchange(target, stage)
        _confirm(target, stage)
        retire(old, target.parent.fd, durable=stage.durable)
    finally:
        now.close()


def _exchange(target: Target, stage: Stage) -> str:
    """Put the stage in the target's place, and give the name under which the old one now stands."""
    fd = target.parent.fd
    try:
        _core.renameat2(fd, stage.name, fd, target.name, _core.RENAME_EXCHANGE)
        return stage.name
    except OSError as problem:
        if problem.errno == errno.EXDEV:
            problem.strerror = "the old snapshot lies on another layer and cannot be replaced; save to a new path"
        if problem.errno not in _NO_RENAMEAT2:
            raise
    return _rename_twice(target, stage)


def _rename_twice(target: Target, stage: Stage) -> str:
    _make_way(target)
    try:
        _rename(target, target.name, target.previous)
        _rename(target, stage.name, target.name)
    except BaseException:
        if not target.has(target.name):
            _rename(target, target.previous, target.name)
        raise
    return target.previous


def _make_way(target: Target) -> None:
    """Delete what stands where the old snapshot goes: a dead save left it, and another one may be deleting it now."""
    if not target.has(target.previous):
        return
    with suppress(FileNotFoundError, NotADirectoryError), closing(target.lock(target.previous, FOLDER, _PUBLISH_WAIT)):
        sync_folder(target.parent.fd)
        retire(target.previous, target.parent.fd)
    if target.has(target.previous):
        raise FormatError(f"{target.beside(target.previous)}: stands in the way of a save; move it away")


def _rename(target: Target, old: str, new: str) -> None:
    os.rename(old, new, src_dir_fd=target.parent.fd, dst_dir_fd=target.parent.fd)


def _confirm(target: Target, stage: Stage) -> None:
    if not stage.durable:
        return
    try:
        sync_folder(target.parent.fd)
    except OSError as problem:
        text = f"the new snapshot is visible, but may not survive a power cut ({problem.strerror}); save to a new path"
        raise CommitUncertain(problem.errno, text, target.path) from problem


def _discard(target: Target, stage: Stage, problem: BaseException) -> None:
    """Leave no trace of a save that failed; but one that was interrupted behind the exchange has succeeded."""
    stage.end()
    fd = target.parent.fd
    if stage.is_at(stage.name, fd):
        remove_tree(stage.name, fd)
    elif stage.is_at(target.name, fd) and not isinstance(problem, CommitUncertain):
        sync_folder(fd)
        for old in (stage.name, target.previous):
            retire(old, fd)
