"""Every step of a commit goes wrong once: the process is killed there, or the system refuses it.

What can be loaded afterwards is the old or the new snapshot, whole; and the next save clears up. Also: the order of the
steps, as the system sees them.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commit_rig as rig
import pytest

pytestmark = pytest.mark.slow

PUBLISHED = re.compile(r'"s"(, RENAME_\w+)?\) += 0')
RUNS = [
    *((case, "each") for case in ("first", "overwrite", "nested", "tied", "bare", "kind")),
    *(("overwrite", way) for way in ("syncfs", "renames", "lockfile")),
]


@pytest.fixture(scope="module")
def saver() -> Iterator[rig.Saver]:
    with rig.Saver() as saver:
        yield saver


@pytest.fixture
def tracing(saver: rig.Saver) -> None:
    """Skip where strace cannot be had."""
    if rig.STRACE is None:
        pytest.skip("strace is not installed")
    with rig.fast_folder() as folder:
        try:
            saver.save(folder / "s", "first", strace=("-o", "/dev/null", "-e", "trace=fsync"))
        except PermissionError as refusal:
            pytest.skip(f"strace may not trace here: {refusal}")


def traced(saver: rig.Saver, scene: rig.Scene, names: str) -> list[rig.Call]:
    """The system calls of an undisturbed save."""
    log = scene.folder / "log"
    saver.save(scene.set_up(), scene.case, scene.way, strace=("-o", str(log), "-e", f"trace={names},access"))
    return rig.calls_in(log)


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
@pytest.mark.parametrize(("case", "way"), RUNS)
def test_killed_before_every_system_call(saver: rig.Saver, case: str, way: str) -> None:
    with rig.fast_folder() as folder:
        scene = rig.Scene(folder, case, way)
        calls = traced(saver, scene, rig.CHANGES)
        published = next(call.began for call in calls if PUBLISHED.search(call.text))
        steps = [call for call in calls if call.name != "openat" or "O_CREAT" in call.text]
        assert {"mkdirat", "openat", "fsync", "renameat2", "pwrite64"} <= {call.name for call in steps}
        for call in steps:
            path = scene.set_up()
            kill = f"inject={call.name}:signal=KILL:when={call.ordinal}"
            outcome = saver.save(path, case, way, strace=("-o", "/dev/null", "-e", f"trace={call.name}", "-e", kill))
            assert outcome.killed, call.text
            scene.check(path, call.began > published, f"killed before {call.text}")
            scene.check_next(saver, path, f"after a kill before {call.text}")


@pytest.mark.parametrize(("case", "way"), RUNS)
def test_killed_before_every_call_of_python(saver: rig.Saver, case: str, way: str) -> None:
    """The same without strace, in bigger steps."""
    with rig.fast_folder() as folder:
        scene = rig.Scene(folder, case, way)
        outcome = saver.save(scene.set_up(), case, way)
        assert outcome.report is not None
        steps = outcome.report["steps"]
        renames = [at for at, step in enumerate(steps) if step in ("rename", "renameat2")]
        for at, step in enumerate(steps):
            path = scene.set_up()
            assert saver.save(path, case, way, die_before=at + 1).killed
            scene.check(path, at > renames[-1], f"killed before {step}, number {at + 1}")
            scene.check_next(saver, path, f"after a kill before {step}, number {at + 1}")


# --- refused ----------------------------------------------------------------------------------------------------------

EVERYTHING = f"{rig.CHANGES},close,fcntl,getdents64,?newfstatat,?fstat,fallocate,ftruncate,sync_file_range"


def refused(saver: rig.Saver, scene: rig.Scene, call: rig.Call, code: str, when: str = "") -> tuple[Path, Any, str]:
    """Save while one call (with "+": and all like it after it) answers an error; the path, the report, the log."""
    path, log = scene.set_up(), scene.folder / "log"
    inject = f"inject={call.name}:error={code}:when={call.ordinal}{when}"
    strace = ("-o", str(log), "-e", "trace=fsync,syncfs" + f",{call.name}", "-e", inject)
    outcome = saver.save(path, scene.case, scene.way, strace=strace)
    assert outcome.report is not None, f"{code} from {call.text}"
    return path, outcome.report, log.read_text()


def check_refusal(scene: rig.Scene, path: Path, report: dict[str, Any], code: int, what: str) -> None:
    if "errno" not in report:  # a hint or a clearing up
        scene.check(path, True, what)
        return
    assert report["errno"] == code, (what, report)
    assert str(report["filename"]).startswith(str(path.parent)), (what, report)
    left = {entry.name for entry in path.parent.iterdir()} - {"s"} - scene.others
    if report["uncertain"]:
        assert [rig.tree_of(path.parent / kept) for kept in left] == ([scene.old] if scene.old else []), what
        scene.check(path, True, what)
    else:
        assert not left, what
        scene.check(path, False, what)


def check_never_synced_again(log: str, what: str) -> None:
    lost = {found[1] for found in re.finditer(r"(?:fsync|syncfs)\((\d+<.*?>)\) .*INJECTED", log)}
    for file in lost:
        later = log[log.index("INJECTED") :]
        assert f"({file})" not in later, what


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
@pytest.mark.parametrize(
    ("case", "way", "names", "code"),
    [
        ("big", "each", EVERYTHING, "EIO"),
        ("big", "each", "openat,mkdirat,pwrite64,fsync,renameat2,linkat,fallocate", "ENOSPC"),
        ("big", "each", "openat,mkdirat,unlinkat,renameat2,linkat", "EACCES"),
        ("overwrite", "syncfs", rig.CHANGES + ",sync_file_range", "EIO"),
        ("overwrite", "renames", rig.CHANGES, "EIO"),
        ("overwrite", "lockfile", rig.CHANGES, "EIO"),
        ("first", "each", rig.CHANGES, "EIO"),
    ],
)
def test_refused_at_every_call(saver: rig.Saver, case: str, way: str, names: str, code: str) -> None:
    raised = 0
    with rig.fast_folder() as folder:
        scene = rig.Scene(folder, case, way)
        for call in traced(saver, scene, names):
            if " = -1 " in call.text or (way != "each" and call.name == "renameat2"):
                continue
            what = f"{code} from {call.text}"
            path, report, log = refused(saver, scene, call, code)
            assert "INJECTED" in log, what
            check_refusal(scene, path, report, getattr(errno, code), what)
            if call.name != "close":  # strace answers in its place: the descriptor does stay open
                assert report["leaked"] == [], what
            check_never_synced_again(log, what)
            scene.check_next(saver, path, f"after {what}")
            raised += "errno" in report
    assert raised > 10


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
def test_refused_from_a_call_on(saver: rig.Saver) -> None:
    """A disk that is gone takes the clearing up with it; what was committed stays, and the next save clears up."""
    with rig.fast_folder() as folder:
        scene = rig.Scene(folder, "overwrite", "each")
        calls = traced(saver, scene, rig.CHANGES)
        published = next(call.began for call in calls if PUBLISHED.search(call.text))
        for call in calls:
            if " = -1 " not in call.text:
                what = f"EIO from {call.text} on"
                path, report, log = refused(saver, scene, call, "EIO", "+")
                assert report.get("errno", errno.EIO) == errno.EIO
                assert report["leaked"] == [], what
                check_never_synced_again(log, what)
                scene.check(path, call.began > published, what)
                scene.check_next(saver, path, f"after {what}")


# --- in order ---------------------------------------------------------------------------------------------------------


class Order:
    """The system calls of one save, to be asked which came before which."""

    def __init__(self, calls: list[rig.Call], parent: Path) -> None:
        """The folder beside the target is STAGE until the exchange, and OLD then."""
        exchange = next(call for call in calls if call.name.startswith("renameat"))
        self.calls = [
            call._replace(text=re.sub(r"\.s\.saving-\w+", "OLD" if call.began > exchange.began else "STAGE", call.text))
            for call in calls
        ]
        self.parent = parent

    def all(self, pattern: str) -> list[rig.Call]:
        pattern = pattern.replace("HERE", re.escape(str(self.parent)))
        return [call for call in self.calls if re.match(pattern, call.text)]

    def check(self, *patterns: str) -> None:
        """Every call of one pattern has ended before any of the next begins."""
        for earlier, later in itertools.pairwise(patterns):
            first, then = self.all(earlier), self.all(later)
            assert first, f"no call like {earlier}"
            assert then, f"no call like {later}"
            assert max(call.ended for call in first) < min(call.began for call in then), f"{earlier} before {later}"


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
@pytest.mark.parametrize("way", ["threads", "threads-syncfs"])
@pytest.mark.parametrize("case", ["overwrite", "tied", "nested"])
def test_the_order_of_a_save(saver: rig.Saver, case: str, way: str) -> None:
    with rig.fast_folder() as folder:
        scene = rig.Scene(folder, case, way)
        order = Order(traced(saver, scene, rig.CHANGES + ",close"), folder / "there")
        tensors = sorted({name.partition("/")[0] for name in scene.new} - {"snapshot_done"})
        marker = r'openat\(.*"snapshot_done".*O_CREAT'
        for name in tensors:
            order.check(rf'mkdirat\(.*"{name}"', rf'(openat|linkat)\(.*"{name}/', marker)
            for file in (f"{name}/meta", f"{name}/out"):
                check_file(order, file, rf"fsync\(\d+<HERE/STAGE/{name}>" if way == "threads" else "", marker)
        if way == "threads-syncfs":
            order.check(r"close\(\d+<HERE/STAGE/.*/", r"syncfs\(", marker)
            assert not order.all(r"fsync\(\d+<HERE/STAGE/.*/")
        else:
            assert not order.all(r"syncfs\(")
        order.check(
            marker,
            r"fsync\(\d+<HERE/STAGE/snapshot_done>",
            r"fsync\(\d+<HERE/STAGE>",
            r"renameat2\(.*RENAME_EXCHANGE",
            r"fsync\(\d+<HERE>",
            r'unlinkat\(.*"snapshot_done"',
            r"fsync\(\d+<HERE/OLD>",
            r'unlinkat\(.*"(meta|out)"',
        )


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
@pytest.mark.parametrize("way", ["threads", "renames"])
def test_the_order_of_a_first_save(saver: rig.Saver, way: str) -> None:
    with rig.fast_folder() as folder:
        order = Order(traced(saver, rig.Scene(folder, "first", way), rig.CHANGES), folder / "there")
        rename = r"renameat2\(.*RENAME_NOREPLACE\) += 0" if way == "threads" else r"renameat\("
        order.check(r"fsync\(\d+<HERE/STAGE>", rename, r"fsync\(\d+<HERE>")


def check_file(order: Order, file: str, folder_synced: str, marker: str) -> None:
    if order.all(rf'linkat\(.*"{file}", \w+\)'):
        order.check(rf'linkat\(.*"{file}", \w+\)', *filter(None, [folder_synced]), marker)
        return
    wrote = [rf"pwrite64\(\d+<HERE/STAGE/{file}>"] if order.all(rf"pwrite64\(\d+<HERE/STAGE/{file}>") else []
    order.check(rf'openat\(.*"{file}".*O_CREAT', *wrote, rf"close\(\d+<HERE/STAGE/{file}>", marker)
    if folder_synced:
        order.check(*wrote, rf"fsync\(\d+<HERE/STAGE/{file}>", folder_synced, marker)
