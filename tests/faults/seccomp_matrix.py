"""A system call is missing, or a sandbox forbids it: what is saved is the same to the byte, and what is loaded too.

A child is forked for each row, forbids itself the call, and does all there is to do: every kind of object is saved,
replaced, read in every way and verified, on a disk, since much is not even tried in memory.

As a program: ``python -m faults.seccomp_matrix FOLDER`` and the rows as JSON; it prints what went wrong.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import commit_rig as rig
import seccomp

import fastckpt
from faults.programs import told
from faults.verdict import Skip, Verdict

ABOUT = "without system calls that newer kernels have or sandboxes forbid: the same bytes saved, the same values loaded"

#: Calls, and what they answer where they are not to be had.
ROWS: tuple[tuple[str, int], ...] = (
    *(("renameat2", code) for code in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)),
    *(("openat2", code) for code in (errno.ENOSYS, errno.EPERM)),
    *(("statx", code) for code in (errno.ENOSYS, errno.EPERM)),
    *(("cachestat", code) for code in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)),
    *(("fallocate", code) for code in (errno.EOPNOTSUPP, errno.ENOSYS)),
    *(("sync_file_range", code) for code in (errno.ENOSYS, errno.EINVAL)),
    *(("syncfs", code) for code in (errno.ENOSYS, errno.EPERM)),
    *(("linkat", code) for code in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)),
    *(("flock", code) for code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)),
    ("copy_file_range", errno.EXDEV),
    ("io_uring_setup", errno.EPERM),
    ("madvise", errno.EINVAL),
    *(("process_madvise", code) for code in (errno.ENOSYS, errno.EPERM, errno.EBADF)),
    ("mincore", errno.ENOSYS),
    ("fadvise64", errno.ENOSYS),
    ("sched_setaffinity", errno.EPERM),
    ("clone3", errno.ENOSYS),
)
OBJECTS = ("nested", "large", "tied", "bare")


def everything(folder: Path, trees: dict[str, dict[str, bytes]]) -> None:
    """Save and read every kind of object; an AssertionError where anything is not as without restrictions."""
    for case in OBJECTS:
        obj, path = rig.CASES[case][1], folder / case
        for again in ("first", "over it"):
            fastckpt.save(obj, path)
            assert rig.tree_of(path) == trees[case], f"{case}: saved other bytes ({again})"
        for how in rig.READS:
            found = rig.read(how, path, obj)
            assert found is None or rig.equal(found, obj), f"{case}: {how} gave other values"
    fastckpt.save_async(rig.CASES["large"][1], folder / "large").result()
    assert rig.tree_of(folder / "large") == trees["large"], "saved other bytes in the background"
    left = {name for name in os.listdir(folder) if not name.endswith(".lock")}
    assert left == set(OBJECTS), f"left behind: {left}"


def child(folder: Path, trees: dict[str, dict[str, bytes]], calls: list[tuple[str, int]]) -> str:
    for call, code in calls:
        if not seccomp.forbid(call, code):
            return "no seccomp"
    try:
        everything(folder, trees)
    except Exception:  # noqa: BLE001
        return traceback.format_exc(limit=-4)
    return ""


def main(folder: Path, rows: list[list[tuple[str, int]]]) -> list[str]:
    trees = {case: rig.written(rig.CASES[case][1]) for case in OBJECTS}
    results = []
    for at, calls in enumerate(rows):
        source, sink = os.pipe()
        here = folder / str(at)
        here.mkdir()
        pid = os.fork()
        if pid == 0:
            os.write(sink, child(here, trees, calls).encode()[:4000])
            os._exit(0)
        os.close(sink)
        with open(source) as told:
            text = told.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        results.append(text or (f"ended with {status}" if status else ""))
    return results


def run(scale: float) -> Verdict:
    if not seccomp.NUMBERS:
        raise Skip("the numbers of system calls on this processor are not known")
    step = max(round(1 / scale), 1) if scale < 1 else 1
    rows = [[row] for row in ROWS[::step]]
    rows.append([row for row in ROWS if row[1] in (errno.ENOSYS, errno.EXDEV) and row[0] != "syncfs"])  # all at once
    with tempfile.TemporaryDirectory() as folder:
        out, problem = told("seccomp_matrix", folder, json.dumps(rows))
    if problem:
        return Verdict({"rows": len(rows)}, [problem])
    results: list[str] = json.loads(out)
    if "no seccomp" in results:
        raise Skip("the system has no seccomp filters")
    bad: list[Any] = [f"{named(row)}: {text}" for row, text in zip(rows, results, strict=True) if text]
    reads = len(rows) * len(OBJECTS) * len(rig.READS)
    return Verdict({"rows": len(rows), "saves": len(rows) * (2 * len(OBJECTS) + 1), "reads": reads}, bad)


def named(row: list[tuple[str, int]]) -> str:
    return ", ".join(f"{call} {errno.errorcode[code]}" for call, code in row)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
