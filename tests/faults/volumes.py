"""Small file systems of several kinds, mounted for a while: on images in memory, through loop devices."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import commit_rig as rig

from faults.failing_disk import Faults
from faults.programs import start
from faults.verdict import Skip, need_programs, need_root

__all__ = ["KINDS", "Kind", "command", "drop_caches", "failing_disk", "volume"]


class Kind(NamedTuple):
    """How to make one kind of file system, and how small it can be."""

    make: tuple[str, ...]
    mib: int


#: What is mounted by these names; a tmpfs needs no making.
KINDS = {
    "ext4": Kind(("mkfs.ext4", "-F", "-q"), 24),
    "xfs": Kind(("mkfs.xfs", "-q", "-f"), 300),
    "btrfs": Kind(("mkfs.btrfs", "-q", "-f"), 128),
    "tmpfs": Kind((), 24),
}


def command(*words: object) -> str:
    """Run a program; what it says is the error when it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout


def drop_caches() -> None:
    """Forget all that is in memory and on a disk as well."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def volume(name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give an empty file system's folder, and what mounts it anew.

    Raises
    ------
    Skip
        Not root, or the system has no such thing.
    """
    need_root()
    kind = KINDS[name]
    need_programs(*kind.make[:1], "mount", "umount")
    with rig.fast_folder() as folder, tempfile.TemporaryDirectory() as elsewhere:
        image, point = folder / "image", Path(elsewhere) / "volume"
        point.mkdir()
        if kind.make:
            with image.open("wb") as file:
                file.truncate(kind.mib << 20)
            command(*kind.make, image)
        options = ("-o", "loop", image) if kind.make else ("-t", "tmpfs", "-o", f"size={kind.mib}m", "tmpfs")

        def again() -> None:
            if kind.make:
                command("umount", point)
                drop_caches()
                command("mount", *options, point)

        try:
            command("mount", *options, point)
        except OSError as refusal:
            raise Skip(f"{name}: {refusal}") from None
        try:
            yield point, again
        finally:
            with suppress(OSError):
                command("umount", point)


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
    point = folder / "fuse"
    point.mkdir(exist_ok=True)
    told = folder / "faults"
    told.unlink(missing_ok=True)
    faults = Faults(told)
    server = start("failing_disk", point, image, told, *["keep"] * keep)
    device = ""
    try:
        while not (point / "disk").exists():
            if server.poll() is not None:
                raise Skip(f"a disk in a program: {server.communicate()[1]}")
            time.sleep(0.01)
        try:
            device = command("losetup", "-f", "--show", point / "disk").strip()
            # A request is to be one write there: of several, the loop device passes over all errors but the first's.
            Path("/sys/block", Path(device).name, "queue/max_sectors_kb").write_text("512")
        except OSError as refusal:
            raise Skip(str(refusal)) from None
        yield device, faults
    finally:
        faults.set(0, 0, 0)
        if device:
            command("losetup", "-d", device)
        with suppress(OSError):
            command("umount", "-l", point)
        server.terminate()
        server.communicate()
