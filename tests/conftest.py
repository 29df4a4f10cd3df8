"""What several test files share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT.parent / "shared" / "oneflow" / "fixtures.tar.gz"

settings.register_profile("fastckpt", deadline=None)  # a busy machine is no failure
settings.load_profile("fastckpt")


@pytest.fixture(scope="session")
def oneflow_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the snapshots that OneFlow's own code wrote, and hostile ones."""
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE.name} does not lie beside the repository, in shared/oneflow")
    folder = tmp_path_factory.mktemp("oneflow")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder
