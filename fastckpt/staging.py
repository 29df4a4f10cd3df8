"""The folder that a save fills: tensors and marker are created here, and synced.

A stage is locked from the moment it can be seen (``flock`` on the folder itself), so that whoever finds one that can be
locked knows that the save which made it is dead.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fastckpt import _core
from fastckpt.handles import Handle, named, opened, sync_folder
from fastckpt.layout import DONE, META, OUT
from fastckpt.plan import check_size

__all__ = ["Stage", "remove_tree", "retire"]

_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


class Stage:
    """A fresh folder beside the target, locked as long as the save lives.

    Parameters
    ----------
    path : str
        Where it will stand in the end; what errors name.
    prefix : str
        How its name begins until then.
    durable : bool
        Whether `seal` waits for the device.

    Attributes
    ----------
    name : str
        Its name in the parent folder.
    """

    def __init__(self, path: str, prefix: str, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        self.name = prefix
        self._prefix = prefix
        self._lock: Handle | None = None
        self._writing: set[int] = set()  # threads; whoever looks at `_over` is in it
        self._over = False
        self._files: set[_core.File] = set()  # that are being filled
        _stages.add(self)

    def create(self, parent_fd: int) -> bool:
        """Make and lock it; False where folders cannot be locked."""
        while not self._made(parent_fd):
            pass
        return self._lock is not None and self._lock.locked is True

    def _made(self, parent_fd: int) -> bool:
        self.name = self._prefix + secrets.token_hex(4)
        try:
            os.mkdir(self.name, dir_fd=parent_fd)
            return self._is_ours(parent_fd)
        except FileExistsError:
            return False
        except BaseException:
            with suppress(OSError):
                os.rmdir(self.name, dir_fd=parent_fd)
            raise

    def _is_ours(self, parent_fd: int) -> bool:
        """Lock it; False when a sweep, which saw it unlocked, was quicker."""
        try:
            self._lock = Handle(self.name, parent_fd)
        except FileNotFoundError:
            return False
        return self._lock.acquire() is not False and self._lock.is_at(self.name, parent_fd)

    @property
    def fd(self) -> int:
        """Descriptor that all creation is relative to; -1 before and after its life."""
        return -1 if self._lock is None else self._lock.fd

    def is_at(self, name: str, parent_fd: int) -> bool:
        """Tell whether it stands under that name now."""
        return self._lock is not None and self._lock.is_at(name, parent_fd)

    def write_tensor(
        self, folder: str, meta: bytes | Callable[[], bytes], pieces: Iterable[Any], nbytes: int, *, sync: bool
    ) -> None:
        """Create one tensor's folder with `out` and `meta`; with `sync`, wait until all three are durable.

        `meta` may be a function, which is called when all pieces are written.
        """
        with self._not_over():
            with named(os.path.join(self.path, folder)):
                os.mkdir(folder, dir_fd=self.fd)
            self.check_written(folder, nbytes, self._write(f"{folder}/{OUT}", pieces, sync, nbytes))
            self._finish_folder(folder, meta if isinstance(meta, bytes) else meta(), sync)

    def write_tensors(self, tensors: Sequence[tuple[str, Any, bytes]]) -> None:
        """Create many small tensors, given by folder, `out` and `meta`; all of them are still to be synced."""
        with self._not_over():
            try:
                _core.write_tensors(self.fd, tensors, self.durable)
            except OSError as problem:
                problem.filename = os.path.join(self.path, problem.filename or "")
                del problem.filename2
                raise

    def create_blob(self, folder: str, nbytes: int, *, direct: bool, writeback: bool) -> _core.File:
        """Create one tensor's folder, and in it the file `out`, for threads to fill; on an error neither is left."""
        with self._not_over():
            with named(os.path.join(self.path, folder)):
                os.mkdir(folder, dir_fd=self.fd)
            try:
                with named(os.path.join(self.path, folder, OUT)):
                    file = _core.File(self.fd, f"{folder}/{OUT}", nbytes, direct, writeback)
                self._files.add(file)
                return file
            except BaseException:
                remove_tree(folder, self.fd)  # or the next thread would find a folder, and say that instead
                raise

    def write_part(
        self, folder: str, file: _core.File, part: Any, at: int, bounce: _core.Mapping | None, gate: _core.Gate
    ) -> None:
        """Write one part of the file that `create_blob` gave; `bounce` and `gate` as for its `write`."""
        with self._not_over(), named(os.path.join(self.path, folder, OUT)):
            file.write(part, at, bounce, gate)

    def finish_blob(self, folder: str, file: _core.File, meta: bytes, *, sync: bool) -> None:
        """When all of the file is written: close it, and write its `meta`."""
        with self._not_over():
            with named(os.path.join(self.path, folder, OUT)):
                file.finish(sync)
            self._files.discard(file)
            self._finish_folder(folder, meta, sync)

    def check_written(self, folder: str, wanted: int, written: int) -> None:
        """Refuse a tensor that another thread has resized meanwhile."""
        check_size(self.path, folder, wanted, written)

    @contextmanager
    def _not_over(self) -> Iterator[None]:
        me = threading.get_ident()
        self._writing.add(me)
        try:
            if self._over:
                raise RuntimeError(f"{self.path}: the save has ended")
            yield
        finally:
            self._writing.discard(me)

    def stop(self) -> None:
        """Let nobody write any more; who is writing goes on for a piece."""
        self._over = True

    def end(self) -> None:
        """Wait for other threads that write, and let none begin: a pool that was interrupted may have forgotten one.

        Afterwards nothing is open in the folder.
        """
        self.stop()
        while self._writing - {threading.get_ident()}:
            time.sleep(0.001)
        self.drop()  # an error holds them; and NFS deletes no folder with an open file in it

    def forget(self) -> None:
        """Leave it to the process that this one was forked from, and whose threads are not here."""
        self._writing.clear()
        self.drop()

    def drop(self) -> None:
        """Close the files that are being filled."""
        while self._files:
            self._files.pop().abandon()

    def link_tensor(self, folder: str, meta: bytes, twin: str, *, sync: bool) -> bool:
        """Create a folder whose `out` is a hard link to that of `twin`; False where that cannot be linked."""
        with named(os.path.join(self.path, folder)):
            os.mkdir(folder, dir_fd=self.fd)
            try:
                blob, link = f"{twin}/{OUT}", f"{folder}/{OUT}"
                os.link(blob, link, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
            except OSError as problem:
                if problem.errno not in _NO_LINKS:
                    raise
                os.rmdir(folder, dir_fd=self.fd)
                return False
        self._finish_folder(folder, meta, sync)
        return True

    def _finish_folder(self, folder: str, meta: bytes, sync: bool) -> None:
        self._write(f"{folder}/{META}", [meta], sync)
        if sync:
            with named(os.path.join(self.path, folder)), opened(folder, self.fd) as fd:
                sync_folder(fd)

    def _write(self, name: str, pieces: Iterable[Any], sync: bool, nbytes: int = 0) -> int:
        with named(os.path.join(self.path, name)):
            return _core.write(self.fd, name, pieces, sync, nbytes, self.durable)

    def sync(self) -> None:
        """Make all that was written durable, and whatever else the file system has yet to write."""
        with self._not_over(), named(self.path):
            _core.syncfs(self.fd)

    def seal(self, marker: Iterable[Any]) -> None:
        """Write the marker, when all else is as durable as it shall be. Afterwards nothing may be added."""
        with named(self.path):
            self._write(DONE, marker, self.durable)
            if self.durable:
                sync_folder(self.fd)

    def close(self) -> None:
        """Release the lock; the folder stays, wherever it is by now."""
        if self._lock is not None:
            self._lock.close()


def _close_in_child() -> None:
    """A child that outlives the snapshot must not keep its files: their space would stay taken. (One that is just being
    created when the process forks is not known yet.)"""
    for stage in list(_stages):
        stage.forget()


_stages: weakref.WeakSet[Stage] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_in_child)


def retire(name: str, parent_fd: int, *, durable: bool = True) -> None:
    """Delete what was a snapshot: durably (if it shall be) its marker first, so that a half-deleted one never loads.

    What cannot be deleted stays for the next sweep.
    """
    with suppress(OSError):
        with opened(name, parent_fd) as fd, suppress(FileNotFoundError):
            os.unlink(DONE, dir_fd=fd)
            if durable:
                sync_folder(fd)
        remove_tree(name, parent_fd)


def remove_tree(name: str, parent_fd: int) -> None:
    """Delete a folder that never was a snapshot, or is none any more, as far as that goes. Follows no links."""
    with suppress(OSError):
        with opened(name, parent_fd) as fd:
            with os.scandir(fd) as entries:
                inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for entry, is_folder in inside:
                if is_folder:
                    remove_tree(entry, fd)
                else:
                    with suppress(OSError):
                        os.unlink(entry, dir_fd=fd)
        os.rmdir(name, dir_fd=parent_fd)
