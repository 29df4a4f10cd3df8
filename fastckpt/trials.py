"""What a folder can do, found out by doing it there: the one place beside commits that creates anything.

Files lose their name before anything is written to them, and what needs names happens in a private folder that is taken
away at once. Ctrl-C waits for as long as there is a name; so only a kill in that millisecond can leave one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastckpt import _core
from fastckpt.filesystems import FileSystem, filesystem_of
from fastckpt.handles import opened
from fastckpt.layout import DONE
from fastckpt.probing import Answer, Refused, answer, direct_alignment
from fastckpt.staging import remove_tree

__all__ = ["Folder", "nameless", "reopened", "try_folder"]

_NAME = ".fastckpt-doctor-"
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_A_FILE_MOST = 100  # entries looked at for a file to ask about


@dataclass(frozen=True)
class Folder:
    """What a folder and its file system can do; in place of a fact stands Refused with the reason.

    Attributes
    ----------
    file_system : FileSystem
        What it lies on.
    free_bytes : int
        Space for who asks.
    writable : bool
        Whether files can be created.
    direct_io : bool
        Whether files can be opened with O_DIRECT.
    direct_memory_alignment, direct_offset_alignment : int
        What addresses, and offsets and lengths, must be multiples of for it.
    exchange, no_replace : bool
        Whether renameat2 can exchange two folders, and rename one without replacing another.
    folder_lock : bool
        Whether flock can lock a folder.
    hard_links : bool
        Whether a file can have two names.
    """

    file_system: FileSystem
    free_bytes: Answer[int]
    writable: Answer[bool]
    direct_io: Answer[bool]
    direct_memory_alignment: Answer[int]
    direct_offset_alignment: Answer[int]
    exchange: Answer[bool]
    no_replace: Answer[bool]
    folder_lock: Answer[bool]
    hard_links: Answer[bool]


def try_folder(fd: int) -> Folder:
    """Find out what an open folder can do, and leave it as it was.

    Parameters
    ----------
    fd : int
        Descriptor of the folder.

    Returns
    -------
    Folder
        All facts that could be found.
    """
    writable = answer(_is_writable, fd)
    file = answer(nameless if writable else _a_file, fd)
    try:
        alignment = file if isinstance(file, Refused) else answer(direct_alignment, file)
        memory, offset = (alignment,) * 2 if isinstance(alignment, Refused) else alignment
        direct = file if isinstance(file, Refused) else answer(_opens_direct, file)
    finally:
        if not isinstance(file, Refused):
            os.close(file)
    names = answer(_try_names, fd) if writable else Refused("not tried: the folder is not writable")
    found = (names,) * 4 if isinstance(names, Refused) else names
    return Folder(filesystem_of(fd), answer(_free, fd), writable, direct, memory, offset, *found)


def _is_writable(fd: int) -> bool:
    if _has(DONE, fd):
        raise OSError(errno.EROFS, "a snapshot, which nothing is added to; name the folder that it lies in")
    os.close(nameless(fd))
    return True


def _has(name: str, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _free(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def nameless(fd: int) -> int:
    """Open a new file in a folder under no name, for reading and writing; it is gone when it is closed."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=fd)
    except OSError as problem:
        if problem.errno not in _NO_TMPFILE:
            raise
    name = _NAME + secrets.token_hex(8)
    with _undisturbed():
        file = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=fd)
        try:
            os.unlink(name, dir_fd=fd)
        except BaseException:
            os.close(file)
            raise
    return file


def reopened(file: int, flags: int) -> int:
    """Open a file again that may have no name any more."""
    return os.open(f"/proc/self/fd/{file}", flags | os.O_CLOEXEC)


def _opens_direct(file: int) -> bool:
    os.close(reopened(file, os.O_RDONLY | os.O_DIRECT))
    return True


def _a_file(fd: int, depth: int = 1) -> int:
    """Open some file below a folder, where none can be created."""
    with os.scandir(fd) as entries:
        for entry, _ in zip(entries, range(_A_FILE_MOST), strict=False):
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    return os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
                if depth and entry.is_dir(follow_symlinks=False):
                    with opened(entry.name, fd) as inner:
                        return _a_file(inner, depth - 1)
    raise OSError(errno.ENOENT, "not tried: no file can be created, and there is none to ask about")


def _try_names(parent_fd: int) -> tuple[Answer[bool], ...]:
    """Give `exchange`, `no_replace`, `folder_lock` and `hard_links`."""
    name = _NAME + secrets.token_hex(8)
    with _undisturbed():
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        try:
            with opened(name, parent_fd) as fd:
                return tuple(answer(probe, fd) for probe in (_exchanges, _renames, _locks, _links))
        finally:
            remove_tree(name, parent_fd)


def _exchanges(fd: int) -> bool:
    os.mkdir("this", dir_fd=fd)
    os.mkdir("that", dir_fd=fd)
    _core.renameat2(fd, "this", fd, "that", _core.RENAME_EXCHANGE)
    return True


def _renames(fd: int) -> bool:
    os.mkdir("old", dir_fd=fd)
    _core.renameat2(fd, "old", fd, "new", _core.RENAME_NOREPLACE)
    return True


def _locks(fd: int) -> bool:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _links(fd: int) -> bool:
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd))
    os.link("file", "link", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals that end the program wait. Only the main thread can do that, and only it is sent them."""
    waiting: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for one in _SIGNALS:
                if signal.getsignal(one) not in (None, signal.SIG_IGN):  # None: a handler that is not Python's
                    before[one] = signal.signal(one, lambda number, _: waiting.append(number))
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in waiting:
            signal.raise_signal(number)
