"""The folder of a snapshot, its marker, and whether a save has replaced it meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from fastckpt.commit import previous_of
from fastckpt.errors import CorruptError, FormatError, NotCommittedError
from fastckpt.layout import DONE, PICKLE
from fastckpt.marker import LINE_LIMIT, PREFIX, Marker, is_nearly_ours, parse_marker

__all__ = ["GRAPH", "GRAPH_OPTIONS", "PLAIN_FILE", "check_still_there", "no_snapshot", "open_folder", "open_snapshot"]
__all__ += ["read_marker", "unreadable", "was_replaced"]

PLAIN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
GRAPH = "model.mlir"  # stands where OneFlow's nn.Graph has no snapshot_done
GRAPH_OPTIONS = "one_embedding_options.json"  # may stand beside it
_FIRST, _MOST = 4 << 10, 1 << 20  # bytes of the marker read at a time: what follows the first line is not wanted
_DAMAGE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EXDEV),
    *(errno.ENXIO, errno.ENODEV),  # a socket, or a device that is not there
}
_RENAMES = 3  # how often a reader may see neither name of a snapshot that is being replaced


def open_folder(path: str) -> int:
    """Give a descriptor of the snapshot at `path`, also in the moment between two renames of a save."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for patience in range(_RENAMES, -1, -1):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            with suppress(OSError):  # between two renames it stands there; behind them it is where it was looked for
                return os.open(previous_of(os.path.realpath(path)), flags)
            if not patience:
                raise
    raise AssertionError("the last attempt raises")


def open_snapshot(path: str) -> tuple[int, str, str | None]:
    """Give a descriptor of a folder, its path, and the file in it that is the snapshot, where that is a single file."""
    try:
        return open_folder(path), path, None
    except NotADirectoryError:
        folder, file = os.path.split(os.path.realpath(path))
    try:
        return open_folder(folder), folder, file
    except NotADirectoryError:
        raise no_snapshot(path) from None


def no_snapshot(path: str) -> FormatError:
    """Say of a file that it is none of ours."""
    return FormatError(
        f"{path}: a file; a snapshot is a folder, or one file that OneFlow 1.0 or later saved (torch.load or "
        "safetensors may read it)"
    )


def was_replaced(path: str, fd: int) -> bool:
    """Tell whether `path` is another folder by now."""
    try:
        return not os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return True


def read_marker(path: str, fd: int) -> Marker:
    """Read the first line of the marker.

    Raises
    ------
    NotCommittedError
        There is none.
    CorruptError, FormatError
        It is damaged, or not understood.
    """
    where = os.path.join(path, DONE)
    try:
        marker = os.open(DONE, PLAIN_FILE, dir_fd=fd)
    except FileNotFoundError:
        return _unmarked(path, fd)
    except OSError as problem:
        raise unreadable(problem.errno or errno.EIO, where) from None
    try:
        status = os.fstat(marker)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{where}: no plain file, so nothing says that this snapshot is complete")
        if not status.st_size:
            return Marker()
        return parse_marker(_first_line(marker, where), status.st_size, where)
    except OSError as problem:
        problem.filename = where
        raise
    finally:
        os.close(marker)


def _first_line(fd: int, where: str) -> bytes:
    """Read no more than a line can be: none of ours is without our prefix, or has a NUL."""
    size = _FIRST
    piece = os.pread(fd, size, 0)
    ours, line = piece.startswith(PREFIX), bytearray()
    if not ours and is_nearly_ours(piece[: len(PREFIX)]):
        raise CorruptError(f"{where}: damaged in its first bytes; load an earlier snapshot")
    while piece:
        line += piece[: piece.find(b"\n") + 1] or piece
        if not ours or b"\n" in piece or b"\0" in piece or len(line) > LINE_LIMIT:
            break
        size = min(16 * size, _MOST)
        piece = os.pread(fd, size, len(line))
    return bytes(line)


def unreadable(code: int, where: str) -> Exception:
    """What is missing or no plain file is damage; everything else is the system's refusal."""
    if code in _DAMAGE:
        return CorruptError(f"{where}: {os.strerror(code)}; a plain file was wanted, load an earlier snapshot")
    return OSError(code, os.strerror(code), where)


def _unmarked(path: str, fd: int) -> Marker:
    names = os.listdir(fd)
    if GRAPH in names:
        return Marker()
    if PICKLE in names:
        raise NotCommittedError(
            f"{path}: no {DONE}, and {PICKLE} is no plain file as OneFlow 0.6 and later write it; take another copy"
        )
    raise NotCommittedError(
        f"{path}: no {DONE}, so this is no snapshot, or one whose save never finished; load an earlier one"
    )


def check_still_there(mark: str, path: str, fd: int) -> None:
    """Who deletes a snapshot that was replaced takes the mark first: while it is there, nothing else is missing."""
    try:
        os.stat(mark, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        raise NotCommittedError(f"{path}: {mark} vanished during the look at it; load it again") from None
