"""Small file systems of several kinds, mounted for a while: on images in memory, or on disks that a program serves."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from faults.failing_disk import Faults
from faults.programs import start
from faults.served_file import NAME
from faults.verdict import Skip

__all__ = [
    "SYSTEMS",
    "System",
    "copied",
    "drop_caches",
    "failing_disk",
    "fresh",
    "made",
    "mounted",
    "noting_disk",
    "run",
    "work_folder",
]


class System(NamedTuple):
    """How to make one kind of file system, and how small it can be."""

    make: tuple[str, ...]
    mib: int


#: What is mounted by these names; a tmpfs needs no making.
SYSTEMS = {
    "ext4": System(("mkfs.ext4", "-F", "-q"), 24),
    "xfs": System(("mkfs.xfs", "-q", "-f"), 300),
    "btrfs": System(("mkfs.btrfs", "-q", "-f"), 128),
    "tmpfs": System((), 24),
}


def run(*words: object) -> str:
    """Run a program; its output, or an OSError with what it complained of."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, f"{' '.join(map(str, words))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def drop_caches() -> None:
    """Forget all that is in memory and on a disk as well."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def work_folder(room: int = 2 << 30) -> Iterator[Path]:
    """A folder in memory."""
    if not os.access("/dev/shm", os.W_OK) or shutil.disk_usage("/dev/shm").free < room:
        raise Skip(f"needs {room >> 20} MiB in /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def copied(image: Path, copy: Path) -> Path:
    """Copy a file without its holes."""
    run("cp", "--sparse=always", image, copy)
    return copy


def made(name: str, image: Path) -> Path:
    """A fresh file system in a file; an empty file for one that needs no making."""
    system = SYSTEMS[name]
    if system.make and shutil.which(system.make[0]) is None:
        raise Skip(f"needs {system.make[0]}")
    with image.open("wb") as file:
        file.truncate(system.mib << 20)
    if system.make:
        run(*system.make, image)
    return image


@contextmanager
def mounted(name: str, device: str | Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount a device, or a file by a loop device; OSError where that cannot be done."""
    folder.mkdir(exist_ok=True)
    kind = f"size={SYSTEMS[name].mib}m" if name == "tmpfs" else "loop" if Path(device).is_file() else ""
    given = ",".join(filter(None, (kind, options)))
    run("mount", "-t", name, *(("-o", given) if given else ()), device, folder)
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def fresh(name: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Make a file system and mount it: its image, and where it is; skips where that is impossible."""
    with ExitStack() as stack:
        try:
            image = made(name, folder / "image")
            there = stack.enter_context(mounted(name, image, folder / "there"))
        except OSError as refusal:
            raise Skip(f"{name}: {refusal}") from None
        yield image, there


def _unmount(folder: Path) -> None:
    """Garbage that was loaded from there is mapped until it is collected; and the kernel may be busy for a moment."""
    for patience in range(49, -1, -1):
        gc.collect()
        try:
            run("umount", folder)
        except OSError:
            if not patience:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def _served(folder: Path, program: str, *words: object) -> Iterator[tuple[str, Path]]:
    """A disk in a program: the block device, and the folder with the file that is below it."""
    point = folder / "fuse"
    point.mkdir(exist_ok=True)
    server = start(program, point, *words)
    device = ""
    try:
        while not (point / NAME).exists():
            if server.poll() is not None:
                raise Skip(f"a disk in a program: {server.communicate()[1]}")
            time.sleep(0.01)
        try:
            device = run("losetup", "-f", "--show", point / NAME)
        except OSError as refusal:
            raise Skip(str(refusal)) from None
        yield device, point
    finally:
        if device:
            run("losetup", "-d", device)
        with suppress(OSError):
            run("umount", "-l", point)
        server.terminate()
        server.communicate()


@contextmanager
def failing_disk(folder: Path, image: Path, *, keep: bool = False) -> Iterator[tuple[str, Faults]]:
    """Give a block device with the content of an image, and what makes it fail.

    Parameters
    ----------
    folder : Path
        An existing folder, to work in.
    image : Path
        What the disk begins with.
    keep : bool
        Write what is written into the image.
    """
    told = folder / "faults"
    told.unlink(missing_ok=True)
    faults = Faults(told)
    with _served(folder, "failing_disk", image, told, *["keep"] * keep) as (device, _):
        try:
            # A request is to be one write there: of several, the loop device passes over all errors but the first's.
            Path("/sys/block", Path(device).name, "queue/max_sectors_kb").write_text("512")
        except OSError as refusal:
            raise Skip(str(refusal)) from None
        try:
            yield device, faults
        finally:
            faults.set(0, 0, 0)


@contextmanager
def noting_disk(folder: Path, image: Path, log: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Give a block device over an image, and what puts a mark into the log behind all that was done before."""
    with _served(folder, "noting_disk", image, log) as (device, point):

        def mark(text: str) -> None:
            assert not (point / text).exists()

        yield device, mark
