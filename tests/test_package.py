"""What is handed out: a wheel with everything that runs and nothing that does not, an sdist that builds."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastckpt

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc", "fastckpt", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would hand out: a build leaves its traces there, not in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *SOURCES]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_what_runs_and_no_sources(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    (extension,) = (name for name in names if name.endswith(".so"))
    assert extension.startswith("fastckpt/_core.")
    assert {"fastckpt/py.typed", "fastckpt/_core.pyi"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastckpt").rglob("*.py")} <= names
    built_later = {f"fastckpt/bench/{name}.c" for name in ("floor", "save_floor")}  # where there is a compiler
    assert {name for name in names if name.endswith((".c", ".h", ".pyx", ".pyc"))} == built_later
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"fastckpt"}


def test_wheel_needs_numpy_and_zlib_ng_only(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(path).decode().splitlines()
    assert f"Version: {fastckpt.__version__}" in lines
    needs = [line for line in lines if line.startswith("Requires-Dist:")]
    always = sorted(need.removeprefix("Requires-Dist: ").partition(">=")[0] for need in needs if "extra ==" not in need)
    assert always == ["numpy", "zlib-ng"]


def test_sdist_holds_every_source(source: Path) -> None:
    run("setup.py", "--quiet", "sdist", "--dist-dir", "dist", cwd=source)
    (path,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [
        *(ROOT / "csrc").glob("*.[ch]"),
        *(ROOT / "fastckpt").glob("_core.p*"),
        *(ROOT / "fastckpt").rglob("*.py"),
    ]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} | {"LICENSE", "pyproject.toml", "setup.py"} <= names
    assert not {name for name in names if name.endswith(("/_core.c", ".so"))}
