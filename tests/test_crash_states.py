"""What a power cut may leave of a save, in seconds: a few kinds of save, and that a broken commit is noticed.

All kinds and all mutants: ``make faults``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from faults import crash_states, mutants
from faults.disk_model import Model
from faults.shapes import SHAPES
from faults.tracing import Unmodelled
from faults.verdict import Skip

import fastckpt

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]


@pytest.fixture(autouse=True)
def tracing() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")


def violations_of(shape: str) -> list[str]:
    try:
        with crash_states.modelled(shape) as (model, folder):
            found = crash_states.examine(SHAPES[shape], model, folder, samples=3, order="ordered")
    except Skip as reason:
        pytest.skip(str(reason))
    assert found.states > 30
    assert found.saved_over
    return found.violations


@pytest.mark.parametrize(
    "shape", ["first", "overwrite", "syncfs", "two renames", "large, past the cache", "dies behind the exchange"]
)
def test_a_crash_leaves_the_old_or_the_new_snapshot(shape: str) -> None:
    assert violations_of(shape) == []


@pytest.mark.parametrize(
    "mutant", ["meta is not synced", "the parent is not synced", "the old one's marker is not deleted first"]
)
def test_a_commit_that_leaves_out_a_step_is_noticed(mutant: str) -> None:
    assert mutants.first_violation(mutant)


@pytest.mark.parametrize(
    "call",
    [
        "copy_file_range(3, NULL, 4, NULL, 9, 0) = 9",
        "io_uring_setup(8, {flags=0}) = 5",
        "fallocate(3, FALLOC_FL_PUNCH_HOLE, 0, 9) = 0",
    ],
)
def test_a_call_that_is_not_known_is_refused(call: str, tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    path = str(tmp_path / "watched" / "file").encode().hex("x").replace("x", "\\x")
    (tmp_path / "log").write_text(
        '7 access("\\x2f\\x6d\\x61\\x72\\x6b\\x2f\\x62\\x65\\x67\\x69\\x6e\\x2f", F_OK) = -1 ENOENT\n'
        f'7 openat(AT_FDCWD, "\\x{path}", O_WRONLY|O_CREAT, 0666) = 3\n'
        f"7 {call}\n"
    )
    with pytest.raises(Unmodelled, match=call.partition("(")[0]):
        Model(tmp_path / "watched").replay(tmp_path / "log")


def test_what_may_be_found_after_which_marks() -> None:
    marks = [
        (1.0, "began", "1"),
        (2.0, "began", "2"),
        (3.0, "acked", "2"),
        (4.0, "uncertain", "1"),
        (5.0, "acked", "3"),
    ]
    after = [crash_states.allowed(marks[:count]) for count in range(6)]
    assert after == [{0}, {0, 1}, {0, 1, 2}, {1, 2}, {1, 2}, {3}]


def test_a_damaged_snapshot_is_no_version(tmp_path: Path) -> None:
    """The look itself: it is not content with anything that loads."""
    shape = SHAPES["overwrite"]
    say = crash_states.Labels(shape.versions)
    fastckpt.save(shape.versions[1], tmp_path / "s")
    assert say.of(tmp_path / "s") == 1
    out = tmp_path / "s" / "t0" / "out"
    os.chmod(out, 0o644)
    out.write_bytes(bytes(out.stat().st_size))
    assert say.of(tmp_path / "s") == "loads, and is none of the versions"
    shutil.rmtree(tmp_path / "s" / "t0")
    assert "refused" in str(say.of(tmp_path / "s"))
