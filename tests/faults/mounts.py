"""Real file systems on images in memory: made, mounted, copied; and work in processes of its own."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.verdict import Skip

__all__ = ["SIZES", "copied", "forked", "made", "mounted", "run", "work_folder"]

#: Bytes; the least with which each can be made.
SIZES = {"ext4": 24 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}
_MAKE = {
    "ext4": ["mkfs.ext4", "-F", "-q"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


def run(*command: str) -> str:
    """Run a program; its output, or an OSError with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def work_folder(room: int = 2 << 30) -> Iterator[Path]:
    """A folder in memory."""
    if not os.access("/dev/shm", os.W_OK) or shutil.disk_usage("/dev/shm").free < room:
        raise Skip(f"needs {room >> 20} MiB in /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def made(kind: str, image: Path) -> Path:
    """A fresh file system in a file."""
    if shutil.which(_MAKE[kind][0]) is None:
        raise Skip(f"needs {_MAKE[kind][0]}")
    with open(image, "wb") as file:
        file.truncate(SIZES[kind])
    run(*_MAKE[kind], str(image))
    return image


@contextmanager
def mounted(kind: str, device: str | Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount a device, or a file by a loop device; OSError where that cannot be done."""
    folder.mkdir(exist_ok=True)
    given = [option for option in ("loop" if Path(device).is_file() else "", options) if option]
    run("mount", "-t", kind, *(["-o", ",".join(given)] if given else []), str(device), str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    """Garbage that was loaded from there is mapped until it is collected; and the kernel may be busy for a moment."""
    for patience in range(49, -1, -1):
        gc.collect()
        try:
            run("umount", str(folder))
        except OSError:
            if not patience:
                raise
            time.sleep(0.1)
        else:
            return


def copied(image: Path, copy: Path) -> Path:
    """Copy a file without its holes."""
    run("cp", "--sparse=always", str(image), str(copy))
    return copy


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own, whose module globals may be changed at will; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
