"""What stands in a snapshot's folder, all of it checked before a byte of a tensor is handed out.

Everything is opened relative to one descriptor of the folder, so that a save which replaces the snapshot in the middle
is noticed: then the reading begins again, with the new one.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from fastckpt import _core
from fastckpt import meta as meta_file
from fastckpt.commit import previous_of
from fastckpt.entries import Entry, check_count, entries_of
from fastckpt.errors import CheckpointError, CorruptError, FormatError, NotCommittedError
from fastckpt.layout import DONE, META, OUT, PICKLE
from fastckpt.marker import LINE_LIMIT, PREFIX, Marker, parse_marker
from fastckpt.meta import Meta

__all__ = ["MAP_LIMIT", "Contents", "Entry", "map_files", "reading"]

T = TypeVar("T")

_PLAIN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GRAPH = "model.mlir"  # stands where OneFlow's nn.Graph has no snapshot_done
MAP_LIMIT = 30_000  # maps of one load; the kernel gives a process 65,530 unless told otherwise
_READERS = 8  # threads: on a cold disk each waits for its own folder
_WORTH_A_THREAD = 64  # folders
_ATTEMPTS = 100
_RENAMES = 3  # how often a reader may see neither name of a snapshot that is being replaced
_DEPTH = 50  # slashes in a key of others
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EXDEV}
_NO_ENTRY = -errno.ENOENT
_NO_FOLDER = -errno.ENOTDIR


def reading(path: str | os.PathLike[str], act: Callable[[Contents], T], *, map_all: bool = False) -> T:
    """Open and check the snapshot at `path` and act on it; from the top again if a save replaced it meanwhile.

    Parameters
    ----------
    path : str or os.PathLike
        Folder of the snapshot.
    act : callable
        Gets the contents; its result is returned.
    map_all : bool
        Every blob will be asked for: map them in the same pass that reads the metas.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    NotCommittedError
        The folder has no ``snapshot_done``.
    CorruptError, FormatError
        A file is missing, has the wrong size, or is not understood; the message names it.
    """
    where = os.fspath(path)
    for patience in range(_ATTEMPTS, -1, -1):
        fd = _open_folder(where)
        try:
            contents = Contents(where, fd, map_all)
            result = act(contents)
        except (CheckpointError, FileNotFoundError):
            if not (patience and _was_replaced(where, fd)):
                raise
        else:
            for note in contents.notes:
                warnings.warn(note, stacklevel=3)
            return result
        finally:
            os.close(fd)
    raise AssertionError("the last attempt raises")


class Contents:
    """A committed snapshot, checked; it borrows the folder's descriptor from `reading`.

    Attributes
    ----------
    path : str
        Folder of the snapshot.
    fd : int
        Descriptor of the folder.
    marker : Marker
        What ``snapshot_done`` says.
    entries : dict of str to Entry
        The tensors in their saved order; by name where others wrote them.
    notes : list of str
        What was passed over, for a warning.
    """

    def __init__(self, path: str, fd: int, map_all: bool = False) -> None:
        self.path = path
        self.fd = fd
        self.notes: list[str] = []
        self._maps: dict[str, _core.Mapping] = {}
        self.marker = _read_marker(path, fd)
        names = os.listdir(fd)
        mark = DONE if DONE in names else _GRAPH
        folders = [name for name in names if name != mark]
        metas = self._metas(folders, map_all and len(folders) <= MAP_LIMIT)
        if self.notes and not metas:
            raise FormatError(f"no tensor can be loaded: {self.notes[0]}")
        check_count(metas, self.marker.count, path)
        self.entries = entries_of(metas, path)
        first = next(iter(self.entries.values()), None)
        if first is not None and first.meta.container == DONE and not self.marker.nested:
            raise CorruptError(f"{path}/{DONE}: has lost the record of the saved object; load an earlier snapshot")
        _check_still_there(mark, path, fd)

    def _metas(self, folders: Sequence[str], map_all: bool) -> dict[str, Meta]:
        """Folder to meta; others' folders may lie one in the other (a key "a/b" of OneFlow)."""
        metas: dict[str, Meta] = {}
        foreign: list[str] = []
        for folder, (text, out) in zip(folders, _scan(self.fd, folders, map_all), strict=True):
            if isinstance(out, _core.Mapping):
                self._maps[folder] = out
            size = out if isinstance(out, int) else len(out)
            if isinstance(text, bytes) and size >= 0:
                where = f"{self.path}/{folder}"
                meta = meta_file.parse(text, f"{where}/{META}")
                metas[folder] = meta if meta.nbytes == size else meta_file.with_file_size(meta, size, where)
                if meta.count is None:
                    foreign.append(folder)
            elif text == size == _NO_ENTRY:
                foreign.append(folder)
            else:
                self._pass_over(f"{self.path}/{folder}", text, size)
        for folder in foreign:
            metas.update(self._nested(folder, folder in metas))
        return metas

    def _nested(self, folder: str, is_tensor: bool) -> dict[str, Meta]:
        inner = [f"{folder}/{name}" for name in _folders_in(folder, self.fd)] if folder.count("/") < _DEPTH else []
        if not inner and not is_tensor:
            self.notes.append(f"{self.path}/{folder}: no tensor, passed over (neither {META} nor {OUT} in it)")
        return self._metas(inner, map_all=False) if inner else {}

    def _pass_over(self, where: str, text: bytes | int, size: int) -> None:
        """Note what is no tensor of anybody's; raise for a tensor that is damaged."""
        if text == _NO_FOLDER:
            self.notes.append(f"{where}: a file that belongs to no snapshot, passed over")
        elif text == _NO_ENTRY and size >= 0:
            self.notes.append(
                f"{where}/{META}: missing, so shape and dtype of {OUT} are unknown; passed over (OneFlow before 0.3.1 "
                f"wrote no {META}: read such a blob with numpy.fromfile)"
            )
        elif isinstance(text, int):
            raise _unreadable(-text, f"{where}/{META}")
        else:
            raise _unreadable(-size, f"{where}/{OUT}")

    def select(self, keys: Iterable[str] | None) -> list[Entry]:
        """Give the entries of some keys (of all for None), in saved order.

        Raises
        ------
        KeyError
            A key is not in the snapshot.
        """
        if keys is None:
            return list(self.entries.values())
        wanted = {keys} if isinstance(keys, str) else set(keys)
        missing = sorted(wanted - self.entries.keys())
        if missing:
            more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise KeyError(f"{self.path}: no tensor {missing[0]!r}{more}; fastckpt.open() shows its keys")
        return [entry for key, entry in self.entries.items() if key in wanted]

    def map(self, entries: Sequence[Entry]) -> list[_core.Mapping]:
        """Map the blobs of some entries, privately; a tie gives the same map twice. Nothing is read."""
        blobs = {entry.blob: entry.meta.nbytes for entry in entries if entry.blob not in self._maps}
        maps = self._maps | dict(zip(blobs, map_files(self.fd, blobs, self.path), strict=True)) if blobs else self._maps
        return [maps[entry.blob] for entry in entries]


def map_files(fd: int, blobs: dict[str, int], path: str) -> list[_core.Mapping]:
    """Map the blobs of an open snapshot, given their folders and sizes.

    Raises
    ------
    CorruptError
        A file has another size by now.
    OSError
        What the system refused, with errno and path.
    """
    try:
        return _core.map_files(fd, [f"{blob}/{OUT}" for blob in blobs], list(blobs.values()))
    except _core.SizeChanged as change:
        raise CorruptError(f"{path}: {change}; it was changed while being read, load it again") from None
    except OSError as problem:
        if problem.errno == errno.ENOMEM:
            problem.strerror = f"{problem.strerror} (vm.max_map_count limits a process: load with mmap=False)"
        problem.filename = os.path.join(path, os.fsdecode(problem.filename or ""))
        raise


def _open_folder(path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for patience in range(_RENAMES, -1, -1):
        try:
            return os.open(path, flags)
        except NotADirectoryError:
            raise FormatError(
                f"{path}: a file; a snapshot is a folder (torch.load or safetensors may read it)"
            ) from None
        except FileNotFoundError:
            with suppress(OSError):  # between two renames it stands there; behind them it is where it was looked for
                return os.open(previous_of(os.path.realpath(path)), flags)
            if not patience:
                raise
    raise AssertionError("the last attempt raises")


def _scan(fd: int, folders: Sequence[str], map_all: bool) -> list[tuple[bytes | int, int | _core.Mapping]]:
    return _core.scan(fd, folders, map=map_all, threads=min(_READERS, len(folders) // _WORTH_A_THREAD))


def _unreadable(code: int, where: str) -> Exception:
    """What is missing or no plain file is damage; everything else is the system's refusal."""
    if code in _DAMAGE:
        return CorruptError(f"{where}: {os.strerror(code)}; a plain file was wanted, load an earlier snapshot")
    return OSError(code, os.strerror(code), where)


def _was_replaced(path: str, fd: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return True


def _read_marker(path: str, fd: int) -> Marker:
    where = os.path.join(path, DONE)
    try:
        marker = os.open(DONE, _PLAIN_FILE, dir_fd=fd)
    except FileNotFoundError:
        return _unmarked(path, fd)
    except OSError as problem:
        raise CorruptError(f"{where}: {problem.strerror}; a plain file was wanted") from None
    try:
        status = os.fstat(marker)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{where}: no plain file, so nothing says that this snapshot is complete")
        if not status.st_size:
            return Marker()
        with open(marker, "rb", closefd=False) as file:
            ours = file.peek(len(PREFIX)).startswith(PREFIX)
            return parse_marker(file.readline(LINE_LIMIT + 1), status.st_size, where) if ours else Marker()
    finally:
        os.close(marker)


def _unmarked(path: str, fd: int) -> Marker:
    names = os.listdir(fd)
    if _GRAPH in names:
        return Marker()
    if PICKLE in names:
        raise NotCommittedError(
            f"{path}: no {DONE}, but {PICKLE}: a pickle directory of OneFlow 0.6 or later, which is not read here; "
            "save its state dict with this library instead"
        )
    raise NotCommittedError(
        f"{path}: no {DONE}, so this is no snapshot, or one whose save never finished; load an earlier one"
    )


def _check_still_there(mark: str, path: str, fd: int) -> None:
    """Who deletes a snapshot that was replaced takes the mark first: while it is there, nothing else is missing."""
    try:
        os.stat(mark, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        raise NotCommittedError(f"{path}: {mark} vanished during the look at it; load it again") from None


def _folders_in(folder: str, dir_fd: int) -> list[str]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    finally:
        os.close(fd)
