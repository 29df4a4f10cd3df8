"""What several test files share."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fastckpt import quick
from fastckpt.filesystems import kernel

#: Directories that OneFlow's own code wrote; they lie beside the repository, not in it.
ONEFLOW = Path(__file__).resolve().parents[2] / "shared" / "oneflow"

# A busy machine is no failure; and CI, where hypothesis would try the same examples every time, tries new ones too.
settings.register_profile("fastckpt", deadline=None, derandomize=False)
settings.load_profile("fastckpt")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def oneflow_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the snapshots that OneFlow's own code wrote, and hostile ones."""
    if not (ONEFLOW / "fixtures.tar.gz").is_file():
        pytest.skip("OneFlow's own snapshots are not beside this checkout (../shared/oneflow)")
    folder = tmp_path_factory.mktemp("oneflow")
    with tarfile.open(ONEFLOW / "fixtures.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


class _Forgetful(set[int]):
    def add(self, device: int) -> None:
        """Keep nothing."""


@pytest.fixture(autouse=True)
def no_device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every quick load ask for its file system, which tests change."""
    monkeypatch.setattr(quick, "_fast", _Forgetful())


@pytest.fixture
def run_release(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Give what makes the running kernel seem to be another release."""
    names = os.uname()

    def run(release: str) -> None:
        kernel.cache_clear()
        monkeypatch.setattr(os, "uname", lambda: os.uname_result((*names[:2], release, *names[3:])))

    yield run
    kernel.cache_clear()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in memory, where there is one: for tests that are not about the disk and would keep it busy."""
    if not os.access("/dev/shm", os.W_OK) or shutil.disk_usage("/dev/shm").free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
