"""What a save did to a folder, as operations that a crash may or may not have brought to the disk.

The model is weaker than any file system in use, so that what holds here holds on all of them: only a sync orders
anything. ``fsync`` of a file covers its bytes and its size, of a folder the names in it, ``syncfs`` all that had
returned before. Everything else may reach the disk in any order or not at all; a rename or exchange does so as a whole.

A call that is not known here is refused: what it did would be missing in every state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from faults.tracing import Call, Unmodelled, calls_in

__all__ = ["Inode", "Model", "Op"]


@dataclass(slots=True, eq=False)
class Inode:
    """A file or a folder: as it was before, and as the process sees it now."""

    kind: Literal["d", "f"]
    names: dict[str, Inode] = field(default_factory=dict)
    data: bytes = b""  # before
    size: int = 0  # now
    before: dict[str, Inode] = field(default_factory=dict)
    mine: int = 0  # bits of the operations on its bytes or names


@dataclass(slots=True, eq=False)
class Op:
    """One change, whole or not at all; `bit` is its place in the order in which they ended.

    `changes` are names of folders that it gives or takes; else it writes `data` at `at`, or, where that is None, makes
    `at` the size. `lost`: a sync of it has failed, so none will make it durable.
    """

    bit: int
    call: str
    began: float
    ended: float
    inode: Inode | None = None
    at: int = 0
    data: bytes | None = None
    changes: tuple[tuple[Inode, str, Inode | None], ...] = ()
    durable: float = float("inf")
    lost: bool = False

    def touches(self) -> set[Inode]:
        return {self.inode} if self.inode is not None else {folder for folder, _, _ in self.changes}


@dataclass(slots=True)
class _Open:
    inode: Inode | None  # None: not below the root
    at: int = 0
    append: bool = False
    writable: bool = False


#: Calls that change neither a file nor a name, whatever they are asked.
_HARMLESS = frozenset(
    name
    for line in (
        "access faccessat faccessat2 arch_prctl brk cachestat clock_getres clock_gettime clock_nanosleep",
        "epoll_create1 epoll_ctl epoll_wait eventfd2 exit exit_group fadvise64 flock fstat fstatfs futex getcwd",
        "getdents64 getegid geteuid getgid getpid getppid getrandom getrlimit getrusage gettid gettimeofday getuid",
        "getxattr ioprio_get lgetxattr madvise membarrier mincore mlock mprotect mremap munmap nanosleep",
        "newfstatat pipe2 poll pread64 preadv prctl prlimit64 process_madvise read readahead readlink readlinkat readv",
        "restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_getparam",
        "sched_getscheduler sched_setaffinity sched_yield set_robust_list set_tid_address sigaltstack stat statfs",
        "statx sync_file_range sysinfo times umask uname",
    )
    for name in line.split()
)
_FCNTL = ("F_SETFL", "F_GETFL", "F_GETFD", "F_SETFD", "F_GETLK", "F_SETLK", "F_OFD_SETLK")


class Model:
    """The folder `root` before, and what the calls of a log did to it.

    Attributes
    ----------
    ops : list of Op
        All changes.
    marks : list of (float, str, str)
        When, verb and version.
    syncs : list of float
        When something became durable.
    root : Inode
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self.path = os.path.realpath(root)
        self.root = self._scan(self.path, {})
        self.ops: list[Op] = []
        self.marks: list[tuple[float, str, str]] = []
        self.syncs: list[float] = []
        self.end = 0.0
        self._fds: dict[int, _Open] = {}

    def _scan(self, path: str, known: dict[int, Inode]) -> Inode:
        status = os.lstat(path)
        if status.st_ino in known:
            return known[status.st_ino]
        if os.path.islink(path):
            raise Unmodelled(f"{path}: a symbolic link")
        if not os.path.isdir(path):
            content = Path(path).read_bytes()
            inode = known[status.st_ino] = Inode("f", data=content, size=len(content))
            return inode
        inode = known[status.st_ino] = Inode("d")
        inode.before = {name: self._scan(os.path.join(path, name), known) for name in sorted(os.listdir(path))}
        inode.names = dict(inode.before)
        return inode

    def replay(self, log: Path) -> Model:
        """Take in a log."""
        opened: dict[int, list[_Open | None]] = {}
        for event, call in calls_in(log):
            if event == "enter":  # another thread may be given the same number before this call is seen to end
                opened[id(call)] = [self._opened(text) for text in call.arguments]
                if call.name == "close":
                    self._fds.pop(int(call.arguments[0]), None)
                continue
            self._take(call, opened.pop(id(call)))
            self.end = call.ended
        return self

    def _opened(self, argument: str) -> _Open | None:
        number = argument.split("<")[0]
        return self._fds.get(int(number)) if number.isdigit() else None

    def _take(self, call: Call, files: list[_Open | None]) -> None:
        if call.mark is not None:
            self.marks.append((call.ended, *call.mark))
        elif call.name not in _HARMLESS and call.name != "close":
            step = getattr(self, f"_do_{call.name}", None)
            if step is None:
                raise Unmodelled(f"{call}: not known to the model")
            if call.result >= 0:
                step(call, files)
            elif call.name in ("fsync", "fdatasync", "syncfs"):
                self._lose(call, files)

    # --- names -------------------------------------------------------------------------------------------------------

    def _find(self, call: Call, at: int, folder: _Open | None) -> tuple[Inode, str] | None:
        """Folder and name of a path; None where it is not below the root."""
        path = os.fsdecode(call.text(at))
        if path.startswith("/"):
            if not os.path.normpath(path).startswith(self.path + "/"):
                return None
            parts, inode = os.path.normpath(path)[len(self.path) + 1 :].split("/"), self.root
        elif folder is None or folder.inode is None:
            return None
        else:
            parts, inode = path.split("/"), folder.inode
        if not {"..", ".", ""}.isdisjoint(parts):
            raise Unmodelled(f"{call}: a path that goes back")
        for part in parts[:-1]:
            inode = inode.names[part]
        return inode, parts[-1]

    def _change(self, call: Call, *changes: tuple[Inode, str, Inode | None]) -> None:
        op = Op(len(self.ops), str(call), call.began, call.ended, changes=changes)
        for folder, name, inode in changes:
            folder.mine |= 1 << op.bit
            if inode is None:
                folder.names.pop(name)
            else:
                folder.names[name] = inode
        self.ops.append(op)

    def _do_openat(self, call: Call, files: list[_Open | None]) -> None:
        flags = call.arguments[2]
        writable = "O_WRONLY" in flags or "O_RDWR" in flags
        self._fds[call.result] = opened = _Open(None, append="O_APPEND" in flags, writable=writable)
        if os.path.normpath(os.fsdecode(call.text(1))) == self.path:
            opened.inode = self.root
            return
        place = self._find(call, 1, files[0])
        if place is None:
            return
        folder, name = place
        if "O_TMPFILE" in flags:
            raise Unmodelled(f"{call}: a file without a name")
        if name in folder.names:
            opened.inode = folder.names[name]
            if "O_TRUNC" in flags and opened.inode.size:
                self._resize(call, opened.inode, 0)
        else:
            opened.inode = Inode("f")
            self._change(call, (folder, name, opened.inode))

    _do_openat2 = _do_openat

    def _do_open(self, call: Call, files: list[_Open | None]) -> None:
        call.arguments.insert(0, "AT_FDCWD")
        self._do_openat(call, [None, *files])

    def _do_mkdirat(self, call: Call, files: list[_Open | None]) -> None:
        place = self._find(call, 1, files[0])
        if place is not None:
            self._change(call, (*place, Inode("d")))

    def _do_mkdir(self, call: Call, _: list[_Open | None]) -> None:
        place = self._find(call, 0, None)
        if place is not None:
            self._change(call, (*place, Inode("d")))

    def _do_unlinkat(self, call: Call, files: list[_Open | None]) -> None:
        place = self._find(call, 1, files[0])
        if place is not None:
            self._change(call, (*place, None))

    def _do_unlink(self, call: Call, _: list[_Open | None]) -> None:
        place = self._find(call, 0, None)
        if place is not None:
            self._change(call, (*place, None))

    _do_rmdir = _do_unlink

    def _do_linkat(self, call: Call, files: list[_Open | None]) -> None:
        old, new = self._find(call, 1, files[0]), self._find(call, 3, files[2])
        self._both(call, old, new)
        if old is not None and new is not None:
            self._change(call, (*new, old[0].names[old[1]]))

    def _do_renameat2(self, call: Call, files: list[_Open | None]) -> None:
        old, new = self._find(call, 1, files[0]), self._find(call, 3, files[2])
        self._rename(call, old, new, exchange="RENAME_EXCHANGE" in call.arguments[4])

    def _do_renameat(self, call: Call, files: list[_Open | None]) -> None:
        self._rename(call, self._find(call, 1, files[0]), self._find(call, 3, files[2]))

    def _do_rename(self, call: Call, _: list[_Open | None]) -> None:
        self._rename(call, self._find(call, 0, None), self._find(call, 1, None))

    def _both(self, call: Call, old: object, new: object) -> None:
        if (old is None) != (new is None):
            raise Unmodelled(f"{call}: into or out of the folder that is watched")

    def _rename(
        self, call: Call, old: tuple[Inode, str] | None, new: tuple[Inode, str] | None, *, exchange: bool = False
    ) -> None:
        self._both(call, old, new)
        if old is None or new is None:
            return
        moved = old[0].names[old[1]]
        back = new[0].names[new[1]] if exchange else None
        self._change(call, (*old, back), (*new, moved))

    # --- bytes -------------------------------------------------------------------------------------------------------

    def _file(self, files: list[_Open | None]) -> Inode | None:
        return None if files[0] is None else files[0].inode

    def _write(self, call: Call, inode: Inode, at: int, data: bytes) -> None:
        if len(data) < call.result:
            raise Unmodelled(f"{call}: not all that it wrote was put down")
        op = Op(len(self.ops), str(call), call.began, call.ended, inode=inode, at=at, data=data[: call.result])
        inode.mine |= 1 << op.bit
        inode.size = max(inode.size, at + call.result)
        self.ops.append(op)

    def _resize(self, call: Call, inode: Inode, size: int) -> None:
        op = Op(len(self.ops), str(call), call.began, call.ended, inode=inode, at=size)
        inode.mine |= 1 << op.bit
        inode.size = size
        self.ops.append(op)

    def _do_pwrite64(self, call: Call, files: list[_Open | None]) -> None:
        inode = self._file(files)
        if inode is not None:
            self._write(call, inode, int(call.arguments[3]), call.text(1))

    def _do_write(self, call: Call, files: list[_Open | None]) -> None:
        file = files[0]
        if file is not None and file.inode is not None:
            at = file.inode.size if file.append else file.at
            self._write(call, file.inode, at, b"".join(call.texts))
            file.at = at + call.result

    _do_writev = _do_write

    def _do_lseek(self, call: Call, files: list[_Open | None]) -> None:
        if files[0] is not None:
            files[0].at = call.result

    def _do_ftruncate(self, call: Call, files: list[_Open | None]) -> None:
        inode = self._file(files)
        if inode is not None:
            self._resize(call, inode, int(call.arguments[1]))

    def _do_fallocate(self, call: Call, files: list[_Open | None]) -> None:
        inode = self._file(files)
        end = int(call.arguments[2]) + int(call.arguments[3])
        if inode is None or call.arguments[1] == "FALLOC_FL_KEEP_SIZE":
            return
        if call.arguments[1] != "0":
            raise Unmodelled(f"{call}: a kind of fallocate that is not known")
        if end > inode.size:  # what is allocated and not written reads as zeros
            self._resize(call, inode, end)

    # --- syncs -------------------------------------------------------------------------------------------------------

    def _cover(self, call: Call, covered: Callable[[Op], bool]) -> None:
        for op in self.ops:
            if not op.lost and op.durable > call.ended and op.ended <= call.began and covered(op):
                op.durable = call.ended
        self.syncs.append(call.ended)

    def _lose(self, call: Call, files: list[_Open | None]) -> None:
        """A sync that failed has thrown away the bytes it could not write: no later one brings them to the disk.

        Names are otherwise: a journal that cannot be written makes the file system read-only.
        """
        inode = self._file(files)
        for op in self.ops:
            if op.durable > call.ended and op.inode is not None and (call.name == "syncfs" or op.inode is inode):
                op.lost = True

    def _do_fsync(self, call: Call, files: list[_Open | None]) -> None:
        inode = self._file(files)
        if inode is not None:
            self._cover(call, lambda op: op.touches() <= {inode})

    _do_fdatasync = _do_fsync

    def _do_syncfs(self, call: Call, files: list[_Open | None]) -> None:
        if self._file(files) is not None:
            self._cover(call, lambda _: True)

    def _do_sync(self, call: Call, _: list[_Open | None]) -> None:
        self._cover(call, lambda _: True)

    # --- what is harmless by its arguments ---------------------------------------------------------------------------

    def _do_fcntl(self, call: Call, files: list[_Open | None]) -> None:
        if "F_DUPFD" in call.arguments[1]:
            self._copy(call.result, files[0])
        elif call.arguments[1] not in _FCNTL:
            raise Unmodelled(f"{call}: not known to the model")

    def _copy(self, number: int, file: _Open | None) -> None:
        if file is not None:
            self._fds[number] = file

    def _do_dup(self, call: Call, files: list[_Open | None]) -> None:
        self._copy(call.result, files[0])

    _do_dup2 = _do_dup3 = _do_dup

    def _do_mmap(self, call: Call, files: list[_Open | None]) -> None:
        file = files[4] if len(files) > 4 else None
        if file is not None and file.inode is not None and "MAP_SHARED" in call.arguments[3] and file.writable:
            raise Unmodelled(f"{call}: what is stored through a map is not seen")

    def _do_ioctl(self, call: Call, files: list[_Open | None]) -> None:
        if self._file(files) is not None and call.arguments[1] != "TCGETS":
            raise Unmodelled(f"{call}: not known to the model")

    def _do_clone3(self, call: Call, _: list[_Open | None]) -> None:
        if "CLONE_FILES" not in " ".join(call.arguments):
            raise Unmodelled(f"{call}: a process, whose descriptors are its own")

    _do_clone = _do_clone3
