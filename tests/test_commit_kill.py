"""Every step of a commit goes wrong once: the process is killed there, or the system refuses it.

What can be loaded afterwards is the old or the new snapshot, whole; and the next save clears up. Also: the order of the
steps, as the system sees them.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commit_rig as rig
import pytest

pytestmark = pytest.mark.slow

PUBLISHED = re.compile(r'"s"(, RENAME_\w+)?\) += 0')
RUNS = [
    *((case, "each") for case in ("first", "overwrite", "nested", "tied", "bare", "kind")),
    *(("overwrite", way) for way in ("syncfs", "renames", "lockfile")),
    *(("large", way) for way in ("direct", "direct-syncfs", "lax")),
    ("overwrite", "lax"),
]

SYNCS: dict[str, set[str]] = {"syncfs": {"fsync", "syncfs"}, "direct-syncfs": {"fsync", "syncfs"}, "lax": set()}


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


@contextmanager
def scene_of(case: str, way: str) -> Iterator[rig.Scene]:
    with rig.fast_folder(way) as folder:
        if "direct" in way and not rig.takes_direct(folder):
            pytest.skip("O_DIRECT is refused here")
        yield rig.Scene(folder, case, way)


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
    with scene_of(case, way) as scene:
        calls = traced(saver, scene, rig.CHANGES)
        published = next(call.began for call in calls if PUBLISHED.search(call.text))
        steps = [call for call in calls if call.name != "openat" or "O_CREAT" in call.text]
        names = {call.name for call in steps}
        assert {"mkdirat", "openat", "renameat2", "pwrite64"} <= names
        assert names & {"fsync", "syncfs"} == SYNCS.get(way, {"fsync"})
        check_is_in_parts(calls, way)
        for call in steps:
            path = scene.set_up()
            kill = f"inject={call.name}:signal=KILL:when={call.ordinal}"
            outcome = saver.save(path, case, way, strace=("-o", "/dev/null", "-e", f"trace={call.name}", "-e", kill))
            assert outcome.killed, call.text
            scene.check(path, call.began > published, f"killed before {call.text}")
            scene.check_next(saver, path, f"after a kill before {call.text}")


def check_is_in_parts(calls: list[rig.Call], way: str) -> None:
    """Several parts of whole blocks, and what is left behind the last one."""
    if "direct" not in way:
        return
    assert "fallocate" in {call.name for call in calls}
    for name, nbytes in (("run", 1_360_000), ("turned", 1_321_600)):
        parts = [call for call in calls if call.name == "pwrite64" and f"/{name}/out>" in call.text]
        lengths = [int(call.text.rpartition(" = ")[2]) for call in parts]
        assert lengths == [512 << 10, 512 << 10, (nbytes & -4096) - (1 << 20), nbytes % 4096]


@pytest.mark.parametrize(("case", "way"), RUNS)
def test_killed_before_every_call_of_python(saver: rig.Saver, case: str, way: str) -> None:
    """The same without strace, in bigger steps."""
    with scene_of(case, way) as scene:
        outcome = saver.save(scene.set_up(), case, way)
        assert outcome.report is not None
        steps = outcome.report["steps"]
        assert (case == "large") == ({"File", "File.write", "File.finish"} <= set(steps))
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
    scene.check_refusal(path, report, what)


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
        ("large", "direct", "openat,fallocate,ftruncate,fcntl,statx,pwrite64,fsync,sync_file_range", "EIO"),
        ("large", "direct-syncfs", rig.CHANGES, "EIO"),
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
    with scene_of(case, way) as scene:
        for call in traced(saver, scene, names):
            if " = -1 " in call.text or (way in ("renames", "lockfile") and call.name == "renameat2"):
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
@pytest.mark.parametrize(("case", "way"), [("overwrite", "each"), ("large", "direct-syncfs")])
def test_refused_from_a_call_on(saver: rig.Saver, case: str, way: str) -> None:
    """A disk that is gone takes the clearing up with it; what was committed stays, and the next save clears up."""
    with scene_of(case, way) as scene:
        calls = traced(saver, scene, rig.CHANGES)
        published = next(call.began for call in calls if PUBLISHED.search(call.text))
        for call in calls:
            if " = -1 " not in call.text:
                what = f"EIO from {call.text} on"
                path, report, log = refused(saver, scene, call, "EIO", "+")
                assert report.get("errno", errno.EIO) == errno.EIO
                assert report["leaked"] == [], what
                check_never_synced_again(log, what)
                scene.check(path, call.began > published or "errno" not in report, what)
                scene.check_next(saver, path, f"after {what}")


@pytest.mark.usefixtures("tracing")
@pytest.mark.no_asan
def test_a_part_that_cannot_be_direct_goes_through_the_page_cache(saver: rig.Saver) -> None:
    """Some file systems take O_DIRECT and refuse the writing."""
    with scene_of("large", "direct") as scene:
        calls = [call for call in traced(saver, scene, "pwrite64,fcntl") if re.search(r"/(run|turned)/out>", call.text)]
        tails = [call for call in calls if re.search(r" = (128|2688)$", call.text)]
        ends = [call for call in calls if "F_SETFL" in call.text and "O_DIRECT" not in call.text]
        assert (len(calls), len(tails), len(ends)) == (12, 2, 2)
        for call in calls:
            path, report, log = refused(saver, scene, call, "EINVAL")
            assert "INJECTED" in log
            what = f"EINVAL from {call.text}"
            if call in tails + ends:
                check_refusal(scene, path, report, errno.EINVAL, what)
                assert "errno" in report, what
            else:
                assert "errno" not in report, what
                scene.check(path, True, what)


# --- in order ---------------------------------------------------------------------------------------------------------


class Order:
    """The system calls of one save, to be asked which came before which."""

    def __init__(self, calls: list[rig.Call], parent: Path) -> None:
        """The folder beside the target is STAGE until the exchange, and OLD then. Only the last sync of the whole file
        system is relied upon."""
        exchange = next(call for call in calls if call.name.startswith("renameat"))
        self.syncs = [call for call in calls if call.name == "syncfs"]
        self.calls = [
            call._replace(text=re.sub(r"\.s\.saving-\w+", "OLD" if call.began > exchange.began else "STAGE", call.text))
            for call in calls
            if call not in self.syncs[:-1]
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
@pytest.mark.parametrize(
    ("case", "way"),
    [
        *((case, way) for case in ("overwrite", "tied", "nested") for way in ("threads", "threads-syncfs")),
        *(("large", way) for way in ("threads-direct", "threads-direct-syncfs")),
    ],
)
def test_the_order_of_a_save(saver: rig.Saver, case: str, way: str) -> None:
    with scene_of(case, way) as scene:
        order = Order(traced(saver, scene, rig.CHANGES + ",close,fcntl"), scene.folder / "there")
        tensors = sorted({name.partition("/")[0] for name in scene.new} - {"snapshot_done"})
        marker = r'openat\(.*"snapshot_done".*O_CREAT'
        each = not way.endswith("syncfs")
        for name in tensors:
            synced = rf"fsync\(\d+<HERE/STAGE/{name}>" if each else r"syncfs\(\d+<HERE/STAGE>"
            order.check(rf'mkdirat\(.*"{name}"', rf'openat\(.*"{name}/', synced, marker)
            for file in (f"{name}/meta", f"{name}/out"):
                check_file(order, file, synced, marker, each=each)
        assert len(order.syncs) == (0 if each else 2 if case == "large" else 1)
        if not each:
            order.check(r"(openat|fallocate|pwrite64|close)\(\d+<HERE/STAGE/[^>]+/", r"syncfs\(", marker)
            assert not order.all(r"fsync\(\d+<HERE/STAGE/(?!snapshot_done>)")
        if case == "large":
            check_large_file(order, "run/out")
            check_large_file(order, "turned/out")
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


def check_file(order: Order, file: str, synced: str, marker: str, *, each: bool) -> None:
    """What is written of it is synced, then its folder or, at once with it, the whole file system; then the marker."""
    if order.all(rf'linkat\(.*"{file}", \w+\)'):
        folder = file.partition("/")[0]
        order.check(rf'mkdirat\(.*"{folder}"', rf'linkat\(.*"{file}", \w+\)', synced, marker)
        return
    wrote = [rf"pwrite64\(\d+<HERE/STAGE/{file}>"] if order.all(rf"pwrite64\(\d+<HERE/STAGE/{file}>") else []
    order.check(rf'openat\(.*"{file}".*O_CREAT', *wrote, rf"close\(\d+<HERE/STAGE/{file}>", synced, marker)
    if each:
        order.check(*wrote, rf"fsync\(\d+<HERE/STAGE/{file}>", synced, marker)


def check_large_file(order: Order, file: str) -> None:
    """The space is there before the first part; the rest behind the last block comes when no more is to be direct."""
    of = rf"\(\d+<HERE/STAGE/{file}>"
    tail = rf"pwrite64{of}.* = (128|2688)$"
    order.check(
        rf"fallocate{of}",
        rf"fcntl{of}, F_SETFL, .*O_DIRECT",
        rf"pwrite64{of}.* = (524288|\d+[02468])$(?<! = 128)(?<! = 2688)",
        rf"fcntl{of}, F_SETFL, (?!.*O_DIRECT)",
        tail,
        rf"close{of}",
    )
    assert len(order.all(rf"pwrite64{of}")) == 4
