"""Which file system a file lies on, and what kind that is: the kernel's list of mounts, asked once for each of them.

It decides which way is taken, never what is stored. A missing answer costs speed only; a wrong one could cost more: how
a save is synced, and whether files of a network are mapped. So what could not be found out is asked again.
"""

from __future__ import annotations

import functools
import os
import re
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["FileSystem", "filesystem_of", "find_mount", "kernel"]

_MOUNTS = "/proc/self/mountinfo"

# Where a page that is not in memory costs a question to a server, or to a program (FUSE). fuseblk, ocfs2 and gfs2 are
# not among them: they read a block device through the page cache, as ext4 does; the other hosts of a cluster are asked
# for locks only.
_REMOTE = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "fhgfs", "9p", "virtiofs", "afs"),
    *("coda", "glusterfs", "orangefs", "pvfs2", "panfs", "wekafs", "vboxsf", "prl_fs", "fuse"),
}
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class FileSystem:
    """Kind of a file system.

    Attributes
    ----------
    name : str
        As the kernel calls it: ``ext4``, ``nfs4``, ``fuse.sshfs``, …; ``unknown`` where that cannot be told.
    remote : bool
        Whether data comes from another machine, or through a program: what is read there is best read in large parts.
    in_memory : bool
        Whether the page cache is all there is: nothing is durable there, and nothing to be gained by O_DIRECT.
    """

    name: str
    remote: bool = False
    in_memory: bool = False

    @classmethod
    def named(cls, name: str) -> FileSystem:
        """Know a file system by its name."""
        return cls(name, name in _REMOTE or name.startswith("fuse."), name in _IN_MEMORY)


_UNKNOWN = FileSystem("unknown")
_known: dict[tuple[int, int], FileSystem] = {}  # by device, and by the file system's own number


def filesystem_of(file: int | str | os.PathLike[str]) -> FileSystem:
    """Tell on which file system an open file or a path lies.

    Parameters
    ----------
    file : int or path
        A descriptor, or a path; a link is followed.

    Returns
    -------
    FileSystem
        From memory, after the first question about a file system that has a number of its own: device numbers are given
        to others after an unmount, where there is no block device.

    Raises
    ------
    OSError
        The path or descriptor leads nowhere. Not being able to tell is no error but ``unknown``.
    """
    device = os.stat(file).st_dev
    own = device if os.major(device) else _own_number(file)  # a block device is one's own
    found = _known.get((device, own))
    if found is None:
        found = _look_up(file, device)
        if own and found is not _UNKNOWN:
            _known[device, own] = found
    return found


def _own_number(file: int | str | os.PathLike[str]) -> int:
    """Give the number that a file system has for itself; 0 for most of a network, of FUSE, and where nobody says."""
    with suppress(OSError):
        return os.statvfs(file).f_fsid
    return 0


def _look_up(file: int | str | os.PathLike[str], device: int) -> FileSystem:
    try:
        with open(_MOUNTS, "rb", buffering=0) as stream:
            text = os.fsdecode(stream.read() or b"")
        name = find_mount(text, device=device)
        if name is None:  # btrfs: a subvolume has a device of its own, which is in no list
            path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.realpath(file)
            name = find_mount(text, path=path)
    except OSError:
        return _UNKNOWN
    return _UNKNOWN if name is None else FileSystem.named(name)


def find_mount(text: str, *, device: int | None = None, path: str | None = None) -> str | None:
    """Find the type of a file system in the text of a mountinfo file.

    Parameters
    ----------
    text : str
        Lines that are not understood are passed over.
    device : int, optional
        The file's ``st_dev``: any mount of it will do.
    path : str, optional
        The file's path, without links: the innermost mount above it, of two at one place the later.

    Returns
    -------
    str or None
        None if there is no such mount.
    """
    wanted = None if device is None else f"{os.major(device)}:{os.minor(device)}"
    best, longest = None, 0
    for line in text.split("\n"):
        fields = line.split(" ")
        if (wanted is not None and wanted not in fields[2:3]) or "-" not in fields[6:-1]:
            continue
        kind = _unescaped(fields[fields.index("-", 6) + 1])
        if wanted is not None:
            return kind or None
        length = _covers(_unescaped(fields[4]), path or "")
        if length >= longest > 0 or length > longest:
            best, longest = kind, length
    return best


def _covers(mount: str, path: str) -> int:
    """Give the length of a mount point that a path lies below, else 0."""
    inside = path == mount or path.startswith(mount if mount.endswith("/") else mount + "/")
    return len(mount) if inside else 0


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), field) if "\\" in field else field


@functools.cache
def kernel() -> tuple[int, ...]:
    """Give major and minor version of the running kernel."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
