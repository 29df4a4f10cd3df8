"""The path that a save commits to: what may be replaced there, who else is saving to it, what stands beside it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from fastckpt.errors import BusyError, FormatError, NotCommittedError
from fastckpt.handles import FOLDER, Handle, named, opened
from fastckpt.layout import DONE, META, OUT

__all__ = ["Target", "previous_of"]

_LABEL_LIMIT = 200  # bytes of a name, so that what we put behind it still fits
_ATTEMPTS = 100  # other saves of the same target may come between


def previous_of(path: str) -> str:
    """Path where the old snapshot stands while a save without ``renameat2`` replaces it."""
    parent, name = os.path.split(path)
    return os.path.join(parent, _previous(_label(name)))


def _previous(label: str) -> str:
    return f".{label}.previous"


def _label(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LABEL_LIMIT else hashlib.sha256(encoded).hexdigest()


class Target:
    """A path in an open folder. Nothing is changed here.

    Attributes
    ----------
    path : str
        The path, without links.
    name : str
        Its last part.
    label : str
        What names of ours beside it are made of.
    previous : str
        Name where the old snapshot stands while a save without ``renameat2`` replaces it.
    parent : Handle
        The folder that all these names are in.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(os.fsdecode(path))
        folder, self.name = os.path.split(self.path)
        if not self.name:
            raise FormatError(f"{path}: the root folder cannot be a snapshot; name a new folder")
        self.label = _label(self.name)
        self.previous = _previous(self.label)
        try:
            self.parent = Handle(folder, None, FOLDER & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            text = "no such folder to save into; create it first"
            raise FileNotFoundError(errno.ENOENT, text, folder) from None
        self._serial: Handle | None = None
        self._checked: tuple[int, int, int] | None = None

    def close(self) -> None:
        """Release what is open and locked here."""
        if self._serial is not None:
            self._serial.close()
        self.parent.close()

    def beside(self, name: str) -> str:
        """Path of another name in the same folder, for messages."""
        return os.path.join(os.path.dirname(self.path), name)

    def has(self, name: str) -> bool:
        """Tell whether anything stands under a name in the parent folder."""
        return _mode(name, self.parent.fd) is not None

    def check(self, overwrite: bool, closely: bool = True) -> None:
        """Refuse what must not be replaced, `closely`: every file of it is looked at. Only under the lock is the answer
        final: another save may come between."""
        for _ in range(_ATTEMPTS):
            mode = _mode(self.name, self.parent.fd)
            if mode is None:
                return
            if not overwrite:
                raise FileExistsError(errno.EEXIST, "exists, and overwrite=False; choose another path", self.path)
            if not stat.S_ISDIR(mode):
                raise FormatError(f"{self.path}: a file, no snapshot folder, will not be replaced; choose another path")
            if self._is_replaceable(closely):
                return
        raise OSError(errno.EBUSY, "other saves replace it all the time", self.path)

    def _is_replaceable(self, closely: bool) -> bool:
        """False when another folder took its place during the look at it."""
        try:
            folder = Handle(self.name, self.parent.fd)
        except FileNotFoundError:
            return False
        with closing(folder):
            status = os.fstat(folder.fd)
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns)
            try:
                if seen != self._checked:  # a look into 20,000 folders is dear, and under the lock others wait
                    self._check_content(folder.fd, closely)
                    self._checked = seen if closely else None
                return True
            except (FormatError, NotCommittedError, FileNotFoundError):
                if folder.is_at(self.name, self.parent.fd):
                    raise
                return False

    def _check_content(self, fd: int, closely: bool) -> None:
        if not stat.S_ISREG(_mode(DONE, fd) or 0) and os.listdir(fd):
            raise NotCommittedError(
                f"{self.path}: a folder without {DONE} is no snapshot and will not be replaced; "
                "choose another path, or delete it yourself"
            )
        stranger = _stranger(fd, (DONE,)) if closely else None
        if stranger is not None:
            raise FormatError(f"{self.path}/{stranger}: is no part of the snapshot and would be lost; move it away")

    def lock_out_others(self, flags: int, limit: float) -> None:
        """Where folders cannot be locked: one save of this target at a time, by a file that is never deleted."""
        name = f".{self.label}.lock"
        with named(self.beside(name)):
            self._serial = self.lock(name, flags, limit)

    def lock(self, name: str, flags: int, limit: float) -> Handle:
        """Open and lock what stands under a name, however often that is replaced meanwhile."""
        while True:
            handle = Handle(name, self.parent.fd, flags)
            try:
                _wait_for(handle, self.beside(name), limit)
                if handle.is_at(name, self.parent.fd):
                    return handle
            except BaseException:
                handle.close()
                raise
            handle.close()

    @contextmanager
    def dead(self, name: str) -> Iterator[bool]:
        """Lock a folder and tell whether no living save can mean it: those hold the lock themselves."""
        try:
            handle = Handle(name, self.parent.fd)
        except OSError:
            yield False
            return
        try:
            locked = handle.acquire()
            # Where nothing at all can be locked, a stage may be alive; an old snapshot has at least been replaced.
            alone = name == self.previous or (self._serial is not None and self._serial.locked is True)
            yield (alone if locked is None else locked) and handle.is_at(name, self.parent.fd)
        finally:
            handle.close()


def _mode(name: str, dir_fd: int) -> int | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _stranger(fd: int, files: tuple[str, ...]) -> str | None:
    """Path of a file in a snapshot that no save put there. OneFlow's key "a/b" is a folder in a folder."""
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with opened(entry.name, fd) as inner:
                    found = _stranger(inner, (OUT, META))
                if found is not None:
                    return f"{entry.name}/{found}"
            elif entry.name not in files:
                return entry.name
    return None


def _wait_for(handle: Handle, path: str, limit: float) -> None:
    give_up = time.monotonic() + limit
    pause = 0.001
    while handle.acquire() is False:
        if handle.is_held_here():
            raise BusyError(
                f"{path}: is being replaced by a save of this same thread, which this one has interrupted, as a signal "
                "handler does; save to another path, or when that save has returned"
            )
        if time.monotonic() > give_up:
            raise TimeoutError(errno.ETIMEDOUT, f"another save has held this for {limit:.0f} s", path)
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
