"""Snapshots with anything in the place of anything, by every way of reading them: only documented errors come.

A case is a sound snapshot and up to three changes: of the bytes of a file at random or in its own grammar, of what kind
of file it is, of its name and size.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hostile_cases
import hypothesis
from faults.verdict import Verdict
from hostile_cases import BASES, WAYS
from hypothesis import strategies as st
from meta_words import ODD_NUMBERS, WORDS

import fastckpt
from fuzz.limits import Limit, explored, findings, scratch

ABOUT = "whatever stands in a snapshot, a load gives tensors or a documented error"
USUAL = Limit(runs=20_000)

Files = dict[str, bytes]

KEYS = """
    place count name dtype shape digest same_as container object index version dict tuple tensor as enum namedtuple
    fields values int float bytes set str _metadata OrderedDict Counter datetime tz fold zoneinfo timezone numpy.scalar
    numpy.dtype torch.Size
"""
BROKEN = (AssertionError, SystemError, UnicodeError, RecursionError, MemoryError)
_numbers = st.sampled_from(["0", "1", "2", "3", "5000", "07", "0x2", str(2**31), str(2**62), *ODD_NUMBERS])
_words = st.lists(st.sampled_from([*WORDS, "kBool", *"#\n\r\0"]) | _numbers, max_size=30).map(
    lambda words: " ".join(words).encode()
)
_keys = st.sampled_from(KEYS.split())
_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["a", "b", "model.a", "float32"]),
)
_json = st.recursive(
    _plain,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=12,
)
_name = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)


def _flip(data: bytes, at: int, by: int) -> bytes:
    return data[: at % len(data)] + bytes([data[at % len(data)] ^ by]) + data[at % len(data) + 1 :] if data else b"\1"


def _splice(data: bytes, at: int, to: int, new: bytes) -> bytes:
    at, to = sorted((at % (len(data) + 1), to % (len(data) + 1)))
    return data[:at] + new + data[to:]


_places = st.integers(0, 1 << 20)
_bytes_changes: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda at, by: lambda data: _flip(data, at, by), _places, st.integers(1, 255)),
    st.builds(lambda at, to, new: lambda data: _splice(data, at, to, new), _places, _places, st.binary(max_size=8)),
    st.builds(lambda at, to, new: lambda data: _splice(data, at, to, new), _places, _places, _words),
    st.builds(lambda at: lambda data: data[: at % (len(data) + 1)], _places),
    st.builds(lambda new: lambda data: new, _words),
)


def _in_json(pick: list[int], new: Any) -> Callable[[bytes], bytes]:
    """Put something else at a place of the JSON in a meta's comment or in a line of a marker."""

    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        starts = [at for at, line in enumerate(lines) if line.lstrip(b"# fastckpt:").startswith((b"{", b"["))]
        if not starts:
            return data + b"# fastckpt: " + json.dumps(new).encode() + b"\n"
        line = lines[starts[pick[0] % len(starts)]]
        head = line[: len(line) - len(line.lstrip(b"# fastckpt:"))]
        try:
            value = _replaced(json.loads(line[len(head) :]), pick[1:], new)
        except ValueError:
            return data
        lines[starts[pick[0] % len(starts)]] = head + json.dumps(value, separators=(",", ":")).encode()
        return b"\n".join(lines)

    return change


def _replaced(value: Any, pick: list[int], new: Any) -> Any:
    if not pick or not isinstance(value, (list, dict)) or not value:
        return new
    key = pick[0] % len(value) if isinstance(value, list) else [*value][pick[0] % len(value)]
    value[key] = _replaced(value[key], pick[1:], new)
    return value


_changes = st.one_of(
    _bytes_changes,
    st.builds(_in_json, st.lists(st.integers(0, 9), min_size=1, max_size=6), _json),
    st.builds(_in_json, st.lists(st.integers(0, 9), min_size=2, max_size=3), _json),
)


class _Kind(NamedTuple):
    """Something else than a file stands there."""

    kind: str
    goal: str

    def __call__(self, path: Path) -> None:
        path.unlink()
        made = {"fifo": os.mkfifo, "folder": os.mkdir, "socket": hostile_cases.plug, "gone": lambda path: None}
        os.symlink(self.goal, path) if self.kind == "link" else made[self.kind](path)


_kinds = st.builds(
    _Kind,
    st.sampled_from(["link", "link", "fifo", "folder", "socket", "gone"]),
    st.sampled_from(["out", "meta", "../a/out", "/etc/passwd", "nowhere", ".", "..", "../../victim"]),
)


class Snapshots:
    """Sound snapshots, kept in memory, from which cases are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bases = {base: self._files(base) for base in BASES}
        self.loads = 0

    def _files(self, base: str) -> Files:
        path = self.folder / base
        BASES[base](path)
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

    def write(self, base: str) -> Path:
        path = self.folder / "case"
        shutil.rmtree(path, ignore_errors=True)
        for name, data in self.bases[base].items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def read(self, path: Path, base: str, ways: list[str]) -> None:
        """Anything but tensors or a documented error is a finding."""
        for way in ways:
            self.loads += 1
            try:
                WAYS[way](path, base) if way in WAYS else fastckpt.verify(path)
            except fastckpt.CheckpointError as refused:
                assert str(path) in str(refused), f"{way} names no file: {refused}"
            except BROKEN:
                raise
            except OSError as refused:
                assert refused.filename is not None, f"{way} names no file: {refused}"


def check(snapshots: Snapshots) -> Callable[..., None]:
    files = sorted({name for names in snapshots.bases.values() for name in names})

    @hypothesis.given(
        st.sampled_from([*BASES]),
        st.lists(st.tuples(st.sampled_from(files), st.one_of(_changes, _changes, _kinds)), min_size=1, max_size=3),
        st.lists(_name, max_size=1),
        st.lists(st.sampled_from([*WAYS, "verify"]), min_size=3, max_size=3, unique=True),
    )
    def harmed(base: str, changes: list[tuple[str, Any]], strays: list[str], ways: list[str]) -> None:
        path = snapshots.write(base)
        for name, change in changes:
            _harm(path / name, change)
        for name in strays:
            (path / name).mkdir(exist_ok=True) if not os.path.lexists(path / name) else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            snapshots.read(path, base, ways)

    return harmed


def _harm(path: Path, change: _Kind | Callable[[bytes], bytes]) -> None:
    if not path.is_file() or path.is_symlink():
        return
    if isinstance(change, _Kind):
        change(path)
    else:
        path.write_bytes(change(path.read_bytes()))


def explore(test: Callable[..., None], examples: int, seed: int) -> list[str]:
    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
    return findings(lambda how: hypothesis.seed(seed)(how(test))(), seed, max_examples=examples, phases=phases)


def run(limit: Limit) -> Verdict:
    with scratch("fuzz-folders-") as folder:
        snapshots = Snapshots(folder)
        tried, violations = explored(limit, 250, lambda batch, seed: explore(check(snapshots), batch, seed))
        return Verdict({"snapshots": tried, "loads": snapshots.loads}, violations)
