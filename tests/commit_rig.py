"""What the tests of the commit save and look at, and the process that saves for them until it is killed.

As a program this is that process. It reads one order a line (JSON), forks a child for it, and says its number; the
child waits until it is told to go on, so that strace can be attached to it in between. What the child reports comes
back when it ended. Nothing but numpy is imported, and everything is saved once before: a child does nothing but a save.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seccomp

import fastckpt
from fastckpt import _core, saving, ways, writing
from fastckpt.filesystems import FileSystem
from fastckpt.snapshot import TensorHandle

STRACE = shutil.which("strace")
BEGIN, END = "/begin", "/end"  # asked for, so that a log shows where the save began and ended


def flat(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {"w": random.random((5, 7), np.float32), "b": random.integers(0, 99, 3), f"only{seed}": np.array([seed])}


def tied(seed: int) -> dict[str, Any]:
    shared = np.full(6, seed, np.float64)
    return {"wte": shared, "head": shared, "other": shared + 1}


def nested(seed: int) -> dict[str, Any]:
    return {"model": flat(seed), "epoch": seed, "rates": [0.1 * seed, (seed, None)]}


def big(seed: int) -> dict[str, Any]:
    shared = np.full(170_000, seed, np.float64)
    return {"large": shared, "tied": shared, "small": np.array([seed])}


def large(seed: int) -> dict[str, Any]:
    """In one run and not, each of more than one part and of a length that no block has."""
    run = np.full(170_000, seed, np.float64)
    return {"run": run, "tied": run, "turned": np.full((400, 413), seed, np.float64).T, "small": np.array([seed])}


def bare(seed: int) -> dict[str, Any]:
    return {"none": np.zeros((0, seed)), "scalar": np.array(seed + 0.5)}


def state(number: int) -> dict[str, Any]:
    """Something that tells which save wrote each part of it; every other one is nested."""
    tensors = {f"t{at}": np.full(20 + number % 7, number) for at in range(3 + number % 4)}
    return {"model": tensors, "number": number} if number % 2 else tensors


def number_of(found: Any) -> int:
    """Which state this is; wrong if it is none in whole."""
    tensors = found.get("model", found)
    number = int(tensors["t0"][0])
    assert equal(found, state(number)), found
    return number


#: What stands there before, if anything, and what is saved.
CASES: dict[str, tuple[Any, Any]] = {
    "first": (None, flat(2)),
    "overwrite": (flat(1), flat(2)),
    "nested": (nested(1), nested(2)),
    "tied": (tied(1), tied(2)),
    "bare": (bare(1), bare(2)),
    "kind": (flat(1), nested(2)),
    "big": (big(1), big(2)),
    "large": (large(1), large(2)),
    "older": (None, bare(1)),
}
#: How it is saved: synced one by one or all at once; large blobs past the page cache; without renameat2; without locks
#: on folders as well. Also with "threads" in front of the first three, as it is normally; these take their steps in one
#: order. And "lax": not durable.
WAYS = ("each", "syncfs", "direct", "direct-syncfs", "renames", "lockfile")
_PART = 512 << 10  # bytes, where large blobs are to have several
_PATIENCE = 20  # seconds that a child may take


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content, every folder too."""
    return {
        path.relative_to(folder).as_posix(): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def written(obj: Any) -> dict[str, bytes]:
    """The files that a save of `obj` leaves."""
    with fast_folder() as folder:
        fastckpt.save(obj, folder / "s")
        return tree_of(folder / "s")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same_kind and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def loaded(path: Path) -> Any:
    return fastckpt.load(path, as_="numpy")


@contextmanager
def fast_folder(way: str = "") -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process leaves does not depend on the disk."""
    memory = "/dev/shm"
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 100 << 20
    in_memory = roomy and ("direct" not in way or takes_direct(memory))
    with tempfile.TemporaryDirectory(dir=memory if in_memory else None) as folder:
        yield Path(folder).resolve()


def takes_direct(folder: str | Path) -> bool:
    """Whether files there can be written with O_DIRECT."""
    with tempfile.TemporaryFile(dir=folder) as file, mmap.mmap(-1, _core.DIRECT_ALIGN) as page:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
            return os.pwrite(file.fileno(), page, 0) == len(page)
        except OSError:
            return False


#: Whatever changes the disk or a lock; a process that dies elsewhere leaves what it leaves at the next of these.
CHANGES = "mkdirat,openat,fallocate,ftruncate,pwrite64,fsync,syncfs,renameat,renameat2,linkat,unlinkat,flock"


# --- the process that saves -------------------------------------------------------------------------------------------


#: The functions through which a save changes or locks anything.
STEPS: tuple[tuple[Any, str], ...] = (
    *((_core, name) for name in ("write", "write_tensors", "File", "sync_dir", "syncfs", "renameat2")),
    *((os, name) for name in ("mkdir", "link", "rename", "unlink", "rmdir", "open")),
    (fcntl, "flock"),
)


@contextmanager
def every_step(before: Callable[[int, str], None], after: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Number the calls of `STEPS` and do something before and after each; gives their names so far."""
    names: list[str] = []
    kept = [(owner, name, getattr(owner, name)) for owner, name in STEPS]

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            number = len(names)
            before(number, name)
            result = real(*arguments, **options)
            after(number, name)
            return result

        return step

    class Watched:
        """A file whose parts and whose end are steps as well."""

        def __init__(self, *arguments: Any) -> None:
            self._file = real_file(*arguments)
            self.direct = self._file.direct
            self.write = counted("File.write", self._file.write)
            self.finish = counted("File.finish", self._file.finish)
            self.abandon = self._file.abandon

    real_file = _core.File
    for owner, name, real in kept:
        setattr(owner, name, counted(name, Watched if name == "File" else real))
    try:
        yield names
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)


def no_renameat2(*_: Any) -> None:
    raise OSError(errno.EINVAL, "refused")


def flock_for_files_only(real: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def flock(fd: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, "refused")
        real(fd, how)

    return flock


def prepare(way: str, patch: Callable[[Any, str, Any], None], *, for_good: bool = False) -> None:
    """Let `fastckpt.save` work in that way from now on. `for_good`: the kernel may be asked to refuse."""
    if way.startswith("threads"):
        patch(saving, "_MANY_TENSORS", 0)  # as of many tensors, the marker's text is made in a thread
    else:
        patch(ways, "_WRITERS", 1)
    patch(ways, "_can_sync_whole", lambda *_: way.endswith("syncfs"))
    if "direct" in way:
        patch(ways, "filesystem_of", lambda fd: FileSystem("one that takes O_DIRECT"))
    if "direct" in way or way == "lax":
        patch(writing, "PART", _PART)
    if way in ("renames", "lockfile"):
        really = for_good and seccomp.NUMBERS and seccomp.forbid("renameat2", errno.EINVAL)
        if not really:
            patch(_core, "renameat2", no_renameat2)
    if way == "lockfile":
        patch(fcntl, "flock", flock_for_files_only(fcntl.flock))


def descriptors() -> dict[int, str]:
    """What is open, and where that leads."""
    found = {}
    for fd in range(64):
        with suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def save_as_told(order: dict[str, Any]) -> dict[str, Any]:
    """Save, perhaps die in it, and report what happened."""

    def die(number: int, name: str) -> None:
        if number == order.get("die_before"):
            os.kill(os.getpid(), signal.SIGKILL)

    report: dict[str, Any] = {}
    os.access(BEGIN, os.F_OK)
    with every_step(die, lambda number, name: None) as names:
        try:
            fastckpt.save(CASES[order["case"]][1], order["path"], durable=order["way"] != "lax")
        except REFUSALS as problem:
            report = problem_report(problem)
        report["steps"] = names
    os.access(END, os.F_OK)
    return report


#: What a save or a load may raise when the system refuses something.
REFUSALS = (OSError, MemoryError, fastckpt.CheckpointError)


def problem_report(problem: BaseException) -> dict[str, Any]:
    return {
        "errno": getattr(problem, "errno", None),
        "filename": getattr(problem, "filename", None),
        "uncertain": isinstance(problem, fastckpt.CommitUncertain),
        "text": f"{type(problem).__name__}: {problem}",
    }


#: The ways to look at a snapshot: each gives what it found, to be compared, or nothing where it found all in order.
READS = ("auto", "mmap", "read", "direct", "into", "open", "verify")


def read_as_told(order: dict[str, Any]) -> dict[str, Any]:
    """Look at the snapshot and report whether it is what was saved."""
    new, report = CASES[order["case"]][1], dict[str, Any]()
    warnings.simplefilter("ignore")  # an index that cannot be read is passed over
    os.access(BEGIN, os.F_OK)
    try:
        found = read(order["read"], order["path"], new, order.get("checked", False))
        report["right"] = found is None or equal(found, new)
    except REFUSALS as problem:
        report = problem_report(problem)
    os.access(END, os.F_OK)
    return report


def read(how: str, path: str | Path, like: Any, checked: bool = False) -> Any:
    """Read a snapshot in one of the `READS`; `like`: an object of its form; `checked`: its digests are looked at."""
    if how == "verify":
        found = fastckpt.verify(path)
        if not found:
            raise fastckpt.CorruptError(found.problems[0])
        return None
    if how == "open":
        return handles_taken(fastckpt.open(path, as_="numpy").tree)
    if how == "into":
        goal = emptied(like)
        fastckpt.load_into(goal, path, verify=checked)
        return goal
    return fastckpt.load(path, as_="numpy", mode=how, threads=1, verify=checked)


def emptied(obj: Any) -> Any:
    """The same with other numbers in every array, ties kept."""
    return changed(obj, np.ndarray, lambda array: np.full_like(array, 77))


def handles_taken(obj: Any) -> Any:
    return changed(obj, TensorHandle, np.array)


def changed(obj: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any] | None = None) -> Any:
    done = {} if done is None else done
    if isinstance(obj, kind):
        return done.setdefault(id(obj), change(obj))
    if isinstance(obj, dict):
        return {key: changed(value, kind, change, done) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(changed(value, kind, change, done) for value in obj)
    return obj


def allow_tracer() -> None:
    """Yama (ptrace_scope 1) lets only ancestors trace; strace is a brother."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1).value, 0, 0, 0)


def child(order: dict[str, Any], go: int, out: int) -> None:
    os.dup2(out, 900)  # the numbers that a save uses stay free
    os.closerange(max(3, go + 1), 900)
    prepare(order["way"], setattr, for_good=True)
    allow_tracer()
    before = descriptors()
    os.write(900, b"\n")  # ready
    select.select([go], [], [])  # no read, which strace might be told to make fail
    signal.alarm(_PATIENCE)
    report = read_as_told(order) if "read" in order else save_as_told(order)
    report["leaked"] = [what for fd, what in descriptors().items() if fd not in before]
    os.write(900, json.dumps(report).encode())


def serve() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # what chooses by it takes one thread
    for case in CASES.values():
        with fast_folder() as folder:
            fastckpt.save(case[1], folder / "s")
            for how in READS:
                read(how, folder / "s", case[1])
    for line in sys.stdin:
        go, tell_go = os.pipe()
        out, tell_out = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line), go, tell_out)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        os.close(tell_out)
        os.read(out, 1)
        print(pid, flush=True)  # noqa: T201
        sys.stdin.readline()
        os.write(tell_go, b"!")
        with open(out, "rb") as reported:
            text = reported.read()
        _, status = os.waitpid(pid, 0)
        os.close(go)
        os.close(tell_go)
        outcome = {"killed": os.WIFSIGNALED(status), "report": json.loads(text) if text else None}
        print(json.dumps(outcome), flush=True)  # noqa: T201


Report = dict[str, Any]  # of a child


class Outcome(NamedTuple):
    killed: bool
    report: Report | None


class Saver:
    """The door to that process."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", __file__]
        alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # what has threads had better not fork
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)

    def save(self, path: Path, case: str, way: str = "each", *, strace: tuple[str, ...] = (), **order: Any) -> Outcome:
        """Save as `way` says, under strace with these arguments if any; with `read`, look at the new one instead."""
        pid = self._tell({"path": str(path), "case": case, "way": way, **order})
        try:
            tracer = attach(pid, strace) if strace else None
        finally:
            outcome = Outcome(**self._tell("go"))
        if tracer:
            tracer.communicate(timeout=20)
        return outcome

    def _tell(self, order: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Scene:
    """A folder with the old snapshot of a case, to be set up again and again."""

    def __init__(self, folder: Path, case: str, way: str) -> None:
        self.folder, self.case, self.way = folder, case, way
        old, new = CASES[case]
        self.old = None if old is None else written(old)
        self.new = written(new)
        self.after = written(CASES["older"][1])
        self.others = {".s.lock"} if way == "lockfile" else set()

    def set_up(self) -> Path:
        """Give the path to save to."""
        shutil.rmtree(self.folder / "there", ignore_errors=True)
        (self.folder / "there").mkdir(parents=True)
        if self.old is not None:
            fastckpt.save(CASES[self.case][0], self.folder / "there" / "s")
        return self.folder / "there" / "s"

    def check(self, path: Path, published: bool, when: str) -> None:
        """What was committed is there to the byte, and can be loaded."""
        old, new = CASES[self.case]
        wanted, tree = (new, self.new) if published else (old, self.old)
        if wanted is None:
            assert not path.exists(), when
            return
        standing = path if path.exists() else path.parent / ".s.previous"
        assert tree_of(standing) == tree, when
        assert equal(loaded(path), wanted), when

    def check_refusal(self, path: Path, report: dict[str, Any], what: str, *, swept: bool = True) -> None:
        """A save that failed has changed nothing, or says that it is uncertain; `swept`: it has also cleared up."""
        left = set(os.listdir(path.parent)) - {"s"} - self.others
        if report["uncertain"]:
            assert [tree_of(path.parent / kept) for kept in left] == ([self.old] if self.old else []), what
        elif swept:
            assert not left, what
        self.check(path, report["uncertain"], what)

    def check_next(self, saver: Saver, path: Path, when: str) -> None:
        """The next save does its work and clears up."""
        outcome = saver.save(path, "older", self.way)
        assert outcome.report is not None, when
        assert "errno" not in outcome.report, (when, outcome.report)
        assert tree_of(path) == self.after, when
        assert set(os.listdir(path.parent)) - {"s"} == self.others, when


def attach(pid: int, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    """Trace a process that waits; PermissionError where the system does not let us."""
    assert STRACE
    command = [STRACE, "-f", "-y", "-p", str(pid), *arguments]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.communicate()
        raise PermissionError(line)
    return tracer


class Call(NamedTuple):
    """One system call of a save, as strace saw it."""

    name: str
    ordinal: int  # among those of its name
    text: str
    began: int  # number of the line where it began
    ended: int


def calls_in(log: Path) -> list[Call]:
    """The calls between BEGIN and END, in the order in which they began; those of threads may overlap."""
    lines = log.read_text().splitlines()
    marks = [at for at, line in enumerate(lines) if f'"{BEGIN}"' in line or f'"{END}"' in line]
    counts: dict[str, int] = {}
    calls: list[Call] = []
    open_calls: dict[str, int] = {}
    for at, line in enumerate(lines[: marks[-1]]):
        pid, _, text = line.partition(" ")
        text = text.strip()
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", text):
            begun = open_calls.pop(pid)
            calls[begun] = calls[begun]._replace(ended=at, text=calls[begun].text + text[resumed.end() :])
        elif called := re.match(r"(\w+)\(", text):
            name = called[1]
            counts[name] = counts.get(name, 0) + 1
            if text.endswith("<unfinished ...>"):
                open_calls[pid] = len(calls)
                text = text.removesuffix("<unfinished ...>").rstrip()
            calls.append(Call(name, counts[name], text, at, at))
    return [call for call in calls if call.began > marks[0]]


if __name__ == "__main__":
    assert threading.active_count() == 1
    serve()
