"""Which file system a file lies on: made-up lists of mounts, and this machine's."""

from __future__ import annotations

import errno
import os
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastckpt import filesystems
from fastckpt.filesystems import FileSystem, filesystem_of, find_mount

MOUNTS = rf"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 254:1 / /mnt rw shared:7 master:2 - xfs /dev/vdb rw
29 27 0:40 / /mnt/my\040disk\134x rw,noatime shared:1 propagate_from:2 - fuse.sshfs me@host:/\040-\040/x rw
30 27 0:41 /sub /data rw - btrfs /dev/vdc rw,subvol=/sub
31 27 0:42 / /twice rw - nfs4 a:/b rw
32 31 0:43 / /twice rw - overlay overlay rw,lowerdir=/a:/b
33 27 0:44 / /odd-
34 27 0:45 / /odd rw - {""}
35 27 nonsense
36 27 0:46
-
37 27 0:47 - - - - - cifs //host/share rw
38 27 0:48 / /opt/x rw -
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is known yet."""
    monkeypatch.setattr(filesystems, "_known", {})
    return monkeypatch


@pytest.mark.parametrize(
    ("major", "minor", "name"),
    [
        (254, 0, "ext4"),
        (254, 1, "xfs"),
        (0, 40, "fuse.sshfs"),
        (0, 41, "btrfs"),
        (0, 43, "overlay"),
        (0, 99, None),
        (0, 44, None),
        (0, 45, None),
        (0, 46, None),
        (0, 48, None),
    ],
)
def test_a_device_leads_to_its_mount(major: int, minor: int, name: str | None) -> None:
    assert find_mount(MOUNTS, device=os.makedev(major, minor)) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "ext4"),
        ("/home/me", "ext4"),
        ("/mnt", "xfs"),
        ("/mnt/a", "xfs"),
        ("/mnt2", "ext4"),
        ("/mnt/my disk\\x", "fuse.sshfs"),
        ("/mnt/my disk\\x/a/b", "fuse.sshfs"),
        ("/mnt/my disk\\xy", "xfs"),
        ("/data/model", "btrfs"),
        ("/twice/a", "overlay"),  # what was mounted last is what one sees
    ],
)
def test_a_path_leads_to_the_innermost_mount(path: str, name: str) -> None:
    assert find_mount(MOUNTS, path=path) == name


def test_no_mount_at_all() -> None:
    assert find_mount("", path="/a") is None
    assert find_mount("", device=1) is None
    assert find_mount("1 2 0:3 / /b rw - ext4 x rw", path="/a") is None


@pytest.mark.parametrize(
    "text", ["\0", " " * 50, "- " * 50, "\\", "a\\777 - b", "\udcff - \udcff", "1 2 0:1 / / - - - -"]
)
def test_odd_lines_never_raise(text: str) -> None:
    find_mount(text, path="/")
    find_mount(text, device=os.makedev(0, 1))


@pytest.mark.parametrize(
    ("name", "remote", "in_memory"),
    [
        ("ext4", False, False),
        ("xfs", False, False),
        ("btrfs", False, False),
        ("overlay", False, False),
        ("ocfs2", False, False),
        ("fuseblk", False, False),
        ("fuse", True, False),
        ("fuse.sshfs", True, False),
        ("nfs", True, False),
        ("nfs4", True, False),
        ("cifs", True, False),
        ("lustre", True, False),
        ("9p", True, False),
        ("virtiofs", True, False),
        ("tmpfs", False, True),
        ("ramfs", False, True),
        ("unknown", False, False),
    ],
)
def test_kinds(name: str, remote: bool, in_memory: bool) -> None:
    assert FileSystem.named(name) == FileSystem(name, remote, in_memory)


def test_this_machine(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    stat = subprocess.run(["findmnt", "-nro", "FSTYPE", "-T", tmp_path], check=False, capture_output=True, text=True)
    found = filesystem_of(tmp_path)
    if stat.returncode == 0:
        assert found.name == stat.stdout.strip()
    with (tmp_path / "file").open("w") as stream:
        assert filesystem_of(stream.fileno()) is found
    assert filesystem_of("/proc").name == "proc"
    if os.path.ismount("/dev/shm"):
        assert filesystem_of("/dev/shm") == FileSystem("tmpfs", in_memory=True)


def test_a_device_is_asked_for_once(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    if not os.statvfs(tmp_path).f_fsid:
        pytest.skip("a file system without a number of its own")
    found = filesystem_of(tmp_path)
    fresh.setattr(filesystems, "_MOUNTS", "/nowhere")
    assert filesystem_of(str(tmp_path)) is found


@pytest.mark.parametrize("text", [None, "", "nonsense"])
def test_what_could_not_be_found_out_is_asked_for_again(
    tmp_path: Path, fresh: pytest.MonkeyPatch, text: str | None
) -> None:
    """A process may be out of descriptors for a moment, and would write to a network's file system as to a disk."""
    found = filesystem_of(tmp_path)
    fresh.setattr(filesystems, "_known", {})
    mounts = tmp_path / "mounts"
    if text is not None:
        mounts.write_text(text)
    with fresh.context() as for_now:
        for_now.setattr(filesystems, "_MOUNTS", str(mounts))
        assert filesystem_of(tmp_path) == FileSystem("unknown")
    assert filesystem_of(tmp_path) == found != FileSystem("unknown")


def mounted(fresh: pytest.MonkeyPatch, folder: Path, name: str, number: int) -> None:
    """Let a file system be mounted where another was, with the same number of no block device."""
    mounts = folder / "mounts"
    mounts.write_text(f"1 2 0:77 / / rw - {name} a rw\n")
    fresh.setattr(os, "stat", lambda _: types.SimpleNamespace(st_dev=os.makedev(0, 77)))
    fresh.setattr(filesystems, "_MOUNTS", str(mounts))
    status = types.SimpleNamespace(f_fsid=number)
    for call in ("statvfs", "fstatvfs"):
        fresh.setattr(os, call, lambda _: status)


def test_a_number_that_another_file_system_has_got_is_asked_for_again(
    tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    """Those without a block device are numbered by the kernel, which takes again what was unmounted."""
    for name, number in [("tmpfs", 5), ("btrfs", 6), ("fuse.sshfs", 0), ("overlay", 7), ("nfs4", 0), ("9p", 0)]:
        mounted(fresh, tmp_path, name, number)
        assert filesystem_of(tmp_path) == FileSystem.named(name)
        with open(tmp_path / "mounts", "rb") as stream:
            assert filesystem_of(stream.fileno()) == FileSystem.named(name)


def test_a_block_device_is_asked_for_once(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    mounted(fresh, tmp_path, "xfs", 0)
    (tmp_path / "mounts").write_text("1 2 8:1 / / rw - xfs a rw\n")
    fresh.setattr(os, "stat", lambda _: types.SimpleNamespace(st_dev=os.makedev(8, 1)))
    assert filesystem_of(tmp_path) == FileSystem.named("xfs")
    fresh.setattr(filesystems, "_MOUNTS", str(tmp_path / "absent"))
    assert filesystem_of(tmp_path) == FileSystem.named("xfs")


def test_a_file_system_that_does_not_say_its_own_number_is_asked_for_each_time(
    tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    for name in ("fuse.one", "nfs4"):
        mounted(fresh, tmp_path, name, 0)
        for call in ("statvfs", "fstatvfs"):
            fresh.setattr(os, call, refused)
        assert filesystem_of(tmp_path) == FileSystem.named(name)


def test_a_device_of_its_own_is_found_by_its_path(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    """As on btrfs, whose subvolumes have devices that no list has."""
    real = tmp_path.resolve() / "my disk"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"1 2 0:9999 / / rw - ext4 a rw\n3 4 0:9998 / {real}".replace("my ", "my\\040") + " rw - btrfs b rw\n"
    )
    fresh.setattr(filesystems, "_MOUNTS", str(mounts))
    assert filesystem_of(tmp_path / "link").name == "btrfs"
    fresh.setattr(filesystems, "_known", {})
    fd = os.open(real, os.O_RDONLY)
    try:
        assert filesystem_of(fd).name == "btrfs"
    finally:
        os.close(fd)


def test_without_proc_it_is_unknown(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(filesystems, "_MOUNTS", "/nowhere")
    assert filesystem_of(tmp_path) == FileSystem("unknown")


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filesystem_of(tmp_path / "missing")
