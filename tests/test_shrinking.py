"""Files that somebody cuts or lengthens while a snapshot is read: a map dies with them, everything else says so.

What could kill its process runs in one of its own: ``python test_shrinking.py FOLDER CASE HOW WHEN``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commit_rig as rig
import pytest

import fastckpt
from fastckpt import contents, filling, folders, loading, verifying

COPIED = ("read", "direct", "into", "verify")
#: Behind which every size has been checked.
CHECKED = {"read": (loading, "fetch"), "direct": (loading, "fetch"), "into": (filling, "_fill")}


def cut(folder: Path, share: float = 0.0) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, int(file.stat().st_size * share))


def before(module: Any, name: str, act: Callable[[], None]) -> None:
    real = getattr(module, name)

    def first(*arguments: Any, **options: Any) -> Any:
        act()
        return real(*arguments, **options)

    setattr(module, name, first)


def in_a_process(*arguments: Any) -> str:
    """Give the last line that it printed; a failure says by which signal it died."""
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stderr}"
    return done.stdout.strip()


@pytest.mark.parametrize("case", ["nested", "large"])
@pytest.mark.parametrize("how", ["read", "direct", "into"])
def test_what_was_read_stays_when_the_files_are_cut(how: str, case: str, tmp_path: Path) -> None:
    assert in_a_process(tmp_path, case, how, "afterwards") == "right"


@pytest.mark.parametrize("case", ["nested", "large"])
@pytest.mark.parametrize("how", COPIED)
def test_what_is_cut_while_it_is_read_is_an_error(how: str, case: str, tmp_path: Path) -> None:
    """Also the index: nothing looks at a map of it."""
    assert in_a_process(tmp_path, case, how, "before the index") == "error"
    if how != "verify":
        assert in_a_process(tmp_path, case, how, "after the checks") == "error"


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("how", rig.READS)
@pytest.mark.parametrize(
    ("case", "name"), [("nested", "snapshot_done"), ("large", "turned/out"), ("large", "small/out")]
)
def test_another_size_than_the_meta_says_is_an_error(
    case: str, name: str, how: str, change: int, tmp_path: Path
) -> None:
    obj = rig.CASES[case][1]
    fastckpt.save(obj, tmp_path / "s")
    os.truncate(tmp_path / "s" / name, (tmp_path / "s" / name).stat().st_size + change)
    with pytest.raises((fastckpt.CorruptError, fastckpt.FormatError), match=name):
        rig.read(how, tmp_path / "s", obj)


def main(folder: Path, case: str, how: str, when: str) -> str:
    obj, path = rig.CASES[case][1], folder / "s"
    fastckpt.save(obj, path)
    if when == "before the index":
        before(contents, "read_index", lambda: cut(path, 0.5))
        before(folders.Folders, "metas", lambda: cut(path, 0.5))
        before(verifying, "read_table", lambda: cut(path, 0.5))
    elif when == "after the checks":
        before(*CHECKED[how], lambda: cut(path, 0.5))
    try:
        found = rig.read(how, path, obj)
    except (fastckpt.CheckpointError, OSError):
        return "error"
    if when == "afterwards":
        cut(path)
    return "right" if rig.equal(found, obj) else "wrong"


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1]), *sys.argv[2:]))
