"""What a power cut may leave of a save, in seconds: a few kinds of save, and that a broken commit is noticed.

All kinds and all mutants: ``make faults``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import crash_states, mutants
from faults.crash_model import Trees, moments, states
from faults.disk_model import Model
from faults.shapes import SHAPES
from faults.tracing import Unmodelled
from faults.verdict import Skip

import fastckpt

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]


@contextmanager
def where_it_can_be() -> Iterator[None]:
    try:
        yield
    except Skip as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    "shape", ["first", "overwrite", "syncfs", "two renames", "large, past the cache", "dies behind the exchange"]
)
def test_a_crash_leaves_the_old_or_the_new_snapshot(shape: str) -> None:
    with where_it_can_be(), crash_states.modelled(shape) as (model, folder):
        found = crash_states.examine(SHAPES[shape], model, folder, samples=3, order="ordered")
    assert found.states > 30
    assert found.saved_over
    assert found.violations == []


@pytest.mark.parametrize(
    "mutant", ["meta is not synced", "the parent is not synced", "the old one's marker is not deleted first"]
)
def test_a_commit_that_leaves_out_a_step_is_noticed(mutant: str) -> None:
    with where_it_can_be():
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
    with pytest.raises(Unmodelled, match=call.partition("(")[0]):
        modelled(
            tmp_path, f"openat(AT_FDCWD, {quoted(tmp_path / 'watched' / 'file')}, O_WRONLY|O_CREAT, 0666) = 3", call
        )


def quoted(text: object) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in str(text).encode()) + '"'


def modelled(folder: Path, *calls: str) -> Model:
    (folder / "watched").mkdir()
    begin, end = (f"access({quoted(f'/mark/{mark}/')}, F_OK) = -1 ENOENT" for mark in ("begin", "end"))
    (folder / "log").write_text("".join(f"7 {call}\n" for call in (begin, *calls, end)))
    return Model(folder / "watched").replay(folder / "log")


def trees_at_the_end(model: Model) -> list[dict[str, bytes | None]]:
    trees, durable = Trees(model), moments(model)[-1].durable
    found: list[dict[str, bytes | None]] = []
    for state in states(model, samples=1):
        harm = 0 if state.harmed is None else 1 << state.harmed[0]
        if state.ops & durable == durable and not harm & durable and trees.of(state) not in found:
            found.append(trees.of(state))
    return found


CREATED = "openat(3, {name}, O_WRONLY|O_CREAT, 0666) = 4"
PENDING = [{"f": content} for content in (b"", b"ab", b"\0\0", b"\xa5\xa5", b"a", b"\0b", b"a\0")]


@pytest.mark.parametrize(
    ("calls", "wanted"),
    [
        ((), [{}, *PENDING]),
        (("fsync(4) = 0",), [{}, {"f": b"ab"}]),
        (("fsync(3) = 0",), PENDING),
        (("fsync(3) = 0", "fsync(4) = 0"), [{"f": b"ab"}]),
        (("syncfs(3) = 0",), [{"f": b"ab"}]),
        (("fsync(3) = 0", "fsync(4) = -1 EIO", "fsync(4) = 0"), PENDING),
        (("fsync(4) = 0", "fallocate(4, 0, 0, 3) = 0", "fsync(3) = 0"), [{"f": b"ab"}, {"f": b"ab\0"}]),
        (("fsync(4) = 0", "fsync(3) = 0", "renameat(3, {name}, 3, {other}) = 0"), [{"f": b"ab"}, {"g": b"ab"}]),
    ],
)
def test_only_a_sync_makes_durable(calls: tuple[str, ...], wanted: list[dict[str, bytes]], tmp_path: Path) -> None:
    opened = f"openat(AT_FDCWD, {quoted(tmp_path / 'watched')}, O_RDONLY|O_DIRECTORY) = 3"
    wrote = f"pwrite64(4, {quoted('ab')}, 2, 0) = 2"
    steps = [call.format(name=quoted("f"), other=quoted("g")) for call in (opened, CREATED, wrote, *calls)]
    found = trees_at_the_end(modelled(tmp_path, *steps))
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


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
