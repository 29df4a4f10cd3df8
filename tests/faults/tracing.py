"""What a process asks of the kernel, as strace saw it: every call between two marks, with all that it wrote.

A mark is a question about a path that nobody has: ``os.access("/mark/acked/1", os.F_OK)``. It changes nothing, stands
in the log between the calls of its thread, and works from any program.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults.verdict import Skip, need_programs

__all__ = ["BEGIN", "END", "Call", "Unmodelled", "calls_in", "mark", "record"]

BEGIN, END = "begin", "end"
_MARK = "/mark/"
_LONGEST = 32 << 20  # bytes of one write that strace puts down
_TESTS = Path(__file__).resolve().parent.parent


class Unmodelled(Exception):
    """A call that a crash model does not know: what it did would be missing in every state."""


def mark(verb: str, version: int | str = "") -> None:
    """Leave a mark in the log."""
    os.access(f"{_MARK}{verb}/{version}", os.F_OK)


@dataclass(slots=True)
class Call:
    """One system call.

    Attributes
    ----------
    name : str
        What it is called.
    arguments : list of str
        As strace writes them; of texts, only their number in `texts` is left, as ``"0"``.
    texts : list of bytes
        What the pointers to text or data led to.
    result : int
        What it returned; -1 for an error.
    began, ended : float
        On the clock of the log, which counts its lines.
    """

    name: str
    arguments: list[str]
    texts: list[bytes]
    result: int
    began: float
    ended: float = field(default=0.0)

    @property
    def mark(self) -> tuple[str, str] | None:
        """Verb and version, if this is a mark."""
        if self.name not in ("access", "faccessat", "faccessat2"):
            return None
        path = os.fsdecode(self.texts[0])
        if not path.startswith(_MARK):
            return None
        verb, _, version = path[len(_MARK) :].partition("/")
        return verb, version

    def text(self, at: int) -> bytes:
        """Give the text that an argument stands for."""
        return self.texts[int(self.arguments[at].strip('"'))]

    def __str__(self) -> str:
        shown = [os.fsdecode(self.text(at))[:60] if a[:1] == '"' else a for at, a in enumerate(self.arguments)]
        return f"{self.name}({', '.join(shown)}) = {self.result}"


def record(order: Sequence[str], log: Path, inject: str | None = None, timeout: float = 120) -> None:
    """Run a module of these tests under strace; `inject` as strace has it, counted from the start of the process."""
    need_programs("strace")
    tracer = ["strace", "-f", "-qq", "-xx", "-s", str(_LONGEST), "-e", "signal=none", "-o", str(log)]
    if inject is not None:
        tracer += ["-e", "trace=all", "-e", f"inject={inject}"]
    places = [str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    command = [*tracer, sys.executable, "-m", *order]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=timeout, check=False)
    if "PTRACE" in done.stderr and done.returncode:
        raise Skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    if done.returncode:
        raise RuntimeError(f"{' '.join(order)}: {done.stderr[-2000:]}")


_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_CALLED = re.compile(r"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_BEGUN = re.compile(r"(\w+)\((.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def calls_in(log: Path) -> Iterator[tuple[str, Call]]:
    """Give the calls between the marks BEGIN and END, each twice: ``"enter"`` and ``"leave"``, in the log's order.

    Of one that is entered, the arguments may not all be there and the result is not known.
    """
    waiting: dict[str, tuple[str, Call]] = {}
    within = False
    for at, line in enumerate(log.read_text().splitlines()):
        thread, _, text = line.partition(" ")
        text = text.strip()
        if text.startswith(("+++", "---")):
            continue
        if resumed := _RESUMED.match(text):
            if thread not in waiting:
                continue
            head, entered = waiting.pop(thread)
            call = _call(head + text[resumed.end() :], entered.began)
            entered.arguments, entered.texts, entered.result = call.arguments, call.texts, call.result
            entered.ended = at + 0.5
            if entered.mark == (END, ""):
                return
            yield "leave", entered
            continue
        unfinished = text.endswith(_UNFINISHED)
        text = text.removesuffix(_UNFINISHED)
        if not within:
            within = "access" in text and _call(text, at, partial=unfinished).mark == (BEGIN, "")
            continue
        call = _call(text, at, partial=unfinished)
        call.ended = at + 0.5
        if not unfinished and call.mark == (END, ""):
            return
        yield "enter", call
        if unfinished:
            waiting[thread] = text, call
        else:
            yield "leave", call
    raise RuntimeError(f"{log}: a log without its two marks")


def _call(text: str, began: float, *, partial: bool = False) -> Call:
    texts: list[bytes] = []

    def kept(found: re.Match[str]) -> str:
        if found[2]:
            raise Unmodelled(f"too long to be put down: {text[:100]}")
        texts.append(bytes.fromhex(found[1].replace("\\x", "")))
        return f'"{len(texts) - 1}"'

    short = _TEXT.sub(kept, text)
    found = _CALLED.match(short)
    if found:
        number = -1 if found[3] == "?" else int(found[3], 0)
        return Call(found[1], _split(found[2]), texts, number, began)
    begun = _BEGUN.match(short)
    if begun is None or not partial:
        raise Unmodelled(f"a line that strace does not write: {short[:200]}")
    return Call(begun[1], _split(begun[2]), texts, -1, began)


def _split(arguments: str) -> list[str]:
    parts, depth, last = [], 0, 0
    for at, character in enumerate(arguments):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(arguments[last:at].strip())
            last = at + 1
    parts.append(arguments[last:].strip())
    return [part for part in parts if part]
