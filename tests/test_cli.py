"""The command line: what programs read, what people see on a terminal, and how it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import zlib
from collections import OrderedDict, namedtuple
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastckpt
from fastckpt.dtypes import BY_NAME
from fastckpt.meta import Meta, format_meta

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from fastckpt import rendering
from fastckpt.cli import commands
from fastckpt.nodetext import human, label, printable, safe

EVIL = "evil\x1b[31m\r\n\tname"
LONG = "transformer.blocks." + "very_long_part_of_a_name." * 5 + "weight"


class Mood(Enum):
    GOOD = 1


Point = namedtuple("Point", "x y")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(commands, [*map(str, arguments)], catch_exceptions=False)


def rows(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


def document(*arguments: Any, status: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == status, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    wte = np.zeros((5, 4), "f4")
    state = {
        "wte": wte,
        "h.0.w": np.ones((3, 2, 1), "f2"),
        "h.0.b": np.array(7, "i8"),
        "head": wte,
        "none": np.empty((0, 3)),
    }
    fastckpt.save(state, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def training(tmp_path: Path) -> Path:
    model: OrderedDict[str, Any] = OrderedDict({"l1.w": np.ones((2, 3), "f4"), EVIL: np.ones(1)})
    model._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    group = {"lr": 0.001, "betas": (0.9, 0.999), "params": list(range(148))}
    values = {
        "epoch": 3,
        "mood": Mood.GOOD,
        "at": Point(1, "two"),
        "note": "x" * 500,
        "half": np.float16(0.5),
        "big": 2**70,
    }
    fastckpt.save(
        {"model": model, "groups": [group], **values, "raw": b"\0" * 99, 7: None, "7": {1}}, tmp_path / "training"
    )
    return tmp_path / "training"


# ---- ls ----


def test_ls_in_a_pipe_is_a_line_a_tensor(model: Path) -> None:
    result = run("ls", model)
    assert result.exit_code == 0
    assert result.stdout == (
        "wte\t[5,4]\tfloat32\t80\t\n"
        "h.0.w\t[3,2,1]\tfloat16\t12\t\n"
        "h.0.b\t[]\tint64\t8\t\n"
        "head\t[5,4]\tfloat32\t80\twte\n"
        "none\t[0,3]\tfloat64\t0\t\n"
    )


def test_ls_json(model: Path) -> None:
    found = document("ls", model)
    assert [*found] == ["path", "tensors", "totals"]
    assert found["path"] == str(model)
    assert found["totals"] == {"tensors": 5, "elements": 27, "bytes": 100}  # what is tied counts once
    assert found["tensors"][3] == {
        "name": "head",
        "shape": [5, 4],
        "dtype": "float32",
        "bytes": 80,
        "place": 3,
        "tied_to": "wte",
        "digest": f"crc32:{zlib.crc32(bytes(80)):08x}",
        "folder": "head",
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["wte", "h.0.w", "h.0.b", "head", "none"]),
        (["--reverse"], ["none", "head", "h.0.b", "h.0.w", "wte"]),
        (["--sort", "name"], ["h.0.b", "h.0.w", "head", "none", "wte"]),
        (["--sort", "size"], ["wte", "head", "h.0.w", "h.0.b", "none"]),
        (["--sort", "size", "--reverse"], ["none", "h.0.b", "h.0.w", "head", "wte"]),
        (["--sort", "dtype"], ["h.0.w", "wte", "head", "none", "h.0.b"]),
        (["--filter", "h.*"], ["h.0.w", "h.0.b"]),
        (["--filter", "*.w", "--filter", "n?ne"], ["h.0.w", "none"]),
        (["--filter", "H*"], []),
        (["--dtype", "int64"], ["h.0.b"]),
        (["--dtype", "float16", "--dtype", "float64"], ["h.0.w", "none"]),
        (["--dtype", "float16", "--filter", "none"], []),
    ],
)
def test_ls_sorts_and_filters(model: Path, options: list[str], names: list[str]) -> None:
    assert [tensor["name"] for tensor in document("ls", model, *options)["tensors"]] == names


def test_ls_totals_are_of_what_is_listed(model: Path) -> None:
    assert document("ls", model, "--filter", "head")["totals"] == {"tensors": 1, "elements": 20, "bytes": 80}
    assert document("ls", model, "--filter", "x")["totals"] == {"tensors": 0, "elements": 0, "bytes": 0}


def test_ls_knows_dtypes(model: Path) -> None:
    result = run("ls", model, "--dtype", "flaot32")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'flaot32'" in result.stderr
    assert "float32" in result.stderr


def test_names_are_never_printed_raw(training: Path) -> None:
    for command in ("ls", "show"):
        result = run(command, training)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", result.stdout)
        assert r"evil\x1b[31m\r\n\tname" in result.stdout or r"evil\u001b[31m\r\n\tname" in result.stdout
    assert document("ls", training)["tensors"][1]["name"] == f"model.{EVIL}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("l1.weight", "l1.weight"),
        ("naïve weight", "naïve weight"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("", "''"),
        (" x", "' x'"),
        ("'x'", "\"'x'\""),
        ("\u202etxt", r"'\u202etxt'"),
        ("\udc80", r"'\udc80'"),
        ("a\u200bb", r"'a\u200bb'"),
    ],
)
def test_safe(name: str, shown: str) -> None:
    assert safe(name) == shown


# ---- show ----


def test_show_a_nested_object(training: Path) -> None:
    result = run("show", training)
    assert result.exit_code == 0
    assert rows(result) == [
        ["obj", "dict of 11"],
        ['obj["model"]', "OrderedDict of 2"],
        ['obj["model"]["l1.w"]', "float32[2, 3]"],
        [r'obj["model"]["evil\u001b[31m\r\n\tname"]', "float64[1]"],
        ['obj["model"]._metadata', "OrderedDict of 1, shown by --full"],
        ['obj["groups"]', "list of 1"],
        ['obj["groups"][0]', "dict of 3"],
        ['obj["groups"][0]["lr"]', "0.001"],
        ['obj["groups"][0]["betas"]', "(0.9, 0.999)"],
        ['obj["groups"][0]["params"]', "[0, 1, 2, 3, 4, 5, 6, 7, … 140 more]"],
        ['obj["epoch"]', "3"],
        ['obj["mood"]', f"{__name__}.Mood.GOOD"],
        ['obj["at"]', "Point of 2"],
        ['obj["at"].x', "1"],
        ['obj["at"].y', "'two'"],
        ['obj["note"]', f"'{'x' * 40}'… (500 characters)"],
        ['obj["half"]', "numpy.float16(0.5)"],
        ['obj["big"]', "0x400000000000000000"],
        ['obj["raw"]', f"{bytes(40)!r}… (99 bytes)"],
        ["obj[7]", "None"],
        ['obj["7"]', "{1}"],
    ]


def test_show_all_of_it(training: Path) -> None:
    found = dict(rows(run("show", training, "--full")))
    assert found['obj["note"]'] == repr("x" * 500)
    assert found['obj["groups"][0]["params"][147]'] == "147"
    assert found['obj["model"]._metadata[""]["version"]'] == "1"
    assert "shown by" not in "".join(found.values())


def test_show_json_is_the_record(training: Path) -> None:
    found = document("show", training)
    assert [*found] == ["path", "nested", "object", "tensors", "totals"]
    assert found["nested"]
    assert found["object"]["dict"][2] == ["epoch", 3]
    assert found["totals"] == {"tensors": 2, "elements": 7, "bytes": 32}


def test_show_a_flat_one(model: Path) -> None:
    assert rows(run("show", model)) == [
        ["wte", "float32[5, 4]"],
        ["h.0.w", "float16[3, 2, 1]"],
        ["h.0.b", "int64[]"],
        ["head", "float32[5, 4], tied to wte"],
        ["none", "float64[0, 3]"],
    ]
    found = document("show", model)
    assert (found["nested"], found["object"], len(found["tensors"])) == (False, None, 5)


@pytest.mark.parametrize(("obj", "shown"), [(None, "None"), ([], "[]"), (np.ones(2), "float64[2]"), ((1,), "(1,)")])
def test_show_whatever_was_saved(tmp_path: Path, obj: Any, shown: str) -> None:
    fastckpt.save(obj, tmp_path / "x")
    assert run("show", tmp_path / "x").stdout == f"obj\t{shown}\n"


def test_show_names_with_endless_dots(tmp_path: Path) -> None:
    name = "." * 5000
    fastckpt.save({name: np.ones(1), "a..b": np.ones(1), "a.": np.ones(1), "a": np.ones(1)}, tmp_path / "x")
    assert [row[0] for row in rows(run("show", tmp_path / "x"))] == [name, "a..b", "a.", "a"]


def test_show_names_that_branch_at_every_dot(tmp_path: Path) -> None:
    names = [".".join("a" * parts) for parts in range(1, 601)]
    one = np.ones(1)
    fastckpt.save(dict.fromkeys(names, one), tmp_path / "x")
    assert [row[0] for row in rows(run("show", tmp_path / "x"))] == names


def test_show_enums_as_keys_and_in_sets(tmp_path: Path) -> None:
    fastckpt.save({Mood.GOOD: 1, "set": {Mood.GOOD}}, tmp_path / "x")
    name = f"{__name__}.Mood.GOOD"
    assert rows(run("show", tmp_path / "x"))[1:] == [[f'obj["{name}"]', "1"], ['obj["set"]', f"{{'{name}'}}"]]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("w", "w"),
        ("0", "'0'"),
        (0, "0"),
        ("True", "'True'"),
        (True, "True"),
        (0.5, "0.5"),
        ("", "''"),
        ((1, "a"), "(1, 'a')"),
    ],
)
def test_label(key: Any, shown: str) -> None:
    assert label(key) == shown


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (9999 << 40, "9999.0 TiB")],
)
def test_human(nbytes: int, shown: str) -> None:
    assert human(nbytes) == shown


# ---- verify ----


def write(folder: Path, data: bytes, digest: str | None = None) -> Path:
    (folder / "w").mkdir(parents=True)
    meta = Meta((len(data),), BY_NAME["uint8"], place=0, count=1, digest=digest)
    (folder / "w" / "meta").write_bytes(format_meta(meta))
    (folder / "w" / "out").write_bytes(data)
    (folder / "snapshot_done").touch()
    return folder


def test_verify_what_is_sound(model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", b"abc", f"crc32:{zlib.crc32(b'abc'):08x}")
    result = run("verify", model, other)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{model}: OK (5 tensors, 4 with a digest, 100 bytes read)",
        f"{other}: OK (1 tensor, 1 with a digest, 3 bytes read)",
    ]


def test_verify_what_is_not(model: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad", b"abd", f"crc32:{zlib.crc32(b'abc'):08x}")
    os.truncate(model / "h.0.w" / "out", 11)
    good = write(tmp_path / "good", b"")
    result = run("verify", bad, good, model)
    assert result.exit_code == 1
    assert result.stdout == f"{good}: OK (1 tensor, 0 with a digest, 0 bytes read)\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"fastckpt: {bad}/w/out: its bytes have changed")
    assert second.startswith(f"fastckpt: {model}/h.0.w/out: meta wants 12 bytes, file has 11")
    found = document("verify", bad, good, model, status=1)
    assert [snapshot["ok"] for snapshot in found["snapshots"]] == [False, True, False]
    assert [len(snapshot["problems"]) for snapshot in found["snapshots"]] == [1, 0, 1]
    assert found["snapshots"][1] == {
        "path": str(good),
        "ok": True,
        "tensors": 1,
        "bytes": 0,
        "digests": 0,
        "problems": [],
    }


def test_verify_goes_on_after_what_cannot_be_read(model: Path, tmp_path: Path) -> None:
    result = run("verify", tmp_path / "nothing", model)
    assert result.exit_code == 2
    assert result.stderr == f"fastckpt: {tmp_path}/nothing: No such file or directory\n"
    assert result.stdout.startswith(f"{model}: OK")
    document("verify", tmp_path / "nothing", model, status=2)


# ---- diff ----


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Path:
    wte = np.zeros((5, 4), "f4")
    wte[1, 2], wte[0, 0] = -2, np.nan
    state = {
        "wte": wte,
        "h.0.w": np.ones((3, 2), "f2"),
        "h.0.b": np.array(7, "i4"),
        "head": wte.copy(),
        EVIL: np.ones(1),
    }
    fastckpt.save({"model": state, "epoch": 3}, tmp_path / "nested")
    fastckpt.save(state, tmp_path / "changed")
    return tmp_path / "changed"


def test_diff_in_a_pipe(model: Path, changed: Path) -> None:
    result = run("diff", model, changed)
    assert (result.exit_code, result.stderr) == (1, "")
    assert rows(result) == [
        ["changed", "wte", "float32[5, 4]", "float32[5, 4]", "2", "2.0", "1.0", "1", "0", "0"],
        ["reshaped", "h.0.w", "float16[3, 2, 1]", "float16[3, 2]"],
        ["dtype", "h.0.b", "int64[]", "int32[]", "0", "", "", "0", "0", "0"],
        ["changed", "head", "float32[5, 4], tied to wte", "float32[5, 4]", "2", "2.0", "1.0", "1", "0", "0"],
        ["added", r"'evil\x1b[31m\r\n\tname'", "", "float64[1]"],
        ["removed", "none", "float64[0, 3]", ""],
    ]


def test_diff_of_the_same_says_nothing(model: Path) -> None:
    result = run("diff", model, model)
    assert (result.exit_code, result.output) == (0, "")
    assert document("diff", model, model) == {
        "a": str(model),
        "b": str(model),
        "same": True,
        "equal": 5,
        "tensors": [],
        "values": [],
    }


def test_diff_json(model: Path, changed: Path) -> None:
    found = document("diff", model, changed, status=1)
    assert (found["same"], found["equal"]) == (False, 0)
    changes = {tensor["name"]: tensor for tensor in found["tensors"]}
    numbers = ("differing", "max_abs", "max_rel", "nan_appeared", "nan_vanished", "nan_rewritten")
    assert [changes["wte"][number] for number in numbers] == [2, 2.0, 1.0, 1, 0, 0]
    assert [changes["none"][number] for number in numbers] == [None] * 6
    assert changes[EVIL]["before"] is None
    assert changes[EVIL]["after"]["shape"] == [1]
    assert changes["none"]["change"] == "removed"


def test_diff_json_has_no_bare_infinity(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", np.inf)):
        fastckpt.save({"w": np.array(value), "v": value}, tmp_path / name)
    found = document("diff", tmp_path / "a", tmp_path / "b", status=1)
    assert (found["tensors"][0]["max_abs"], found["tensors"][0]["max_rel"]) == ("Infinity", "Infinity")
    assert found["values"] == [{"path": 'obj["v"]', "change": "changed", "before": "1.0", "after": "inf"}]


def test_diff_of_other_values(training: Path, tmp_path: Path) -> None:
    fastckpt.save({"epoch": 4, "more": [1]}, tmp_path / "other")
    found = rows(run("diff", training, tmp_path / "other"))
    assert ["value", 'obj["epoch"]', "3", "4"] in found
    assert ["value", 'obj["more"]', "", "list of 1"] in found
    assert ["value", 'obj["note"]', repr("x" * 500), ""] in found  # nothing is shortened in a pipe


def test_diff_trouble(model: Path, tmp_path: Path) -> None:
    result = run("diff", model, tmp_path / "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"fastckpt: {tmp_path}/nothing: No such file or directory\n"


# ---- how it ends ----


@pytest.mark.parametrize("command", ["ls", "show"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_errors_are_one_line(tmp_path: Path, command: str, options: list[str]) -> None:
    (tmp_path / "un\nfinished").mkdir()
    result = run(command, tmp_path / "un\nfinished", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"fastckpt: {tmp_path}/un\\nfinished: no snapshot_done")
    assert result.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    assert "file: a file" in run(command, tmp_path / "file", *options).stderr


def test_what_was_passed_over_is_noted(model: Path) -> None:
    (model / "stray\x1b").touch()
    for command in ("ls", "show", "verify"):
        result = run(command, model)
        assert result.exit_code == 0
        assert result.stderr == f"fastckpt: {model}/stray\\x1b: a file that belongs to no snapshot, passed over\n"


def test_every_snapshot_of_others_ends_well(oneflow_fixtures: Path) -> None:
    folders = sorted(path.parent for path in oneflow_fixtures.rglob("snapshot_done"))
    assert len(folders) > 20
    statuses = set()
    for folder in folders:
        for command in ("ls", "show", "verify"):
            result = run(command, folder)
            statuses.add(result.exit_code)
            assert bool(result.exit_code) == bool(result.stderr and not result.stdout)
            assert all(line.startswith("fastckpt: ") for line in result.stderr.splitlines())
    assert statuses == {0, 1, 2}


def test_version_and_help() -> None:
    assert run("--version").stdout == f"fastckpt {fastckpt.__version__}\n"
    assert "Exit status: 0" in run("--help").stdout
    for command in ("ls", "show", "verify", "diff"):
        text = run(command, "--help").stdout
        assert "--json: {" in text
        assert max(map(len, text.splitlines())) <= 80
    assert run("diff", "only-one").exit_code == 2


# ---- as a process ----


def process(*arguments: Any, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    how = ["-c", f"import sys; {code}; from fastckpt.__main__ import main; main()"] if code else ["-m", "fastckpt"]
    command = [sys.executable, "-W", "error", *how, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, **options)


def test_as_a_module(model: Path) -> None:
    done = process("ls", model, "--sort", "size")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "wte\t[5,4]\tfloat32\t80\t"
    done = process("ls", model / "wte")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fastckpt: {model}/wte: no snapshot_done")
    assert "Traceback" not in done.stderr


def test_torch_is_neither_needed_nor_imported(training: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"w": torch.ones(2, dtype=torch.bfloat16), "d": torch.float32, "s": torch.Size([1, 2])}
    fastckpt.save(state, tmp_path / "a")
    fastckpt.save({**state, "w": torch.ones(2, dtype=torch.bfloat16) * 3}, tmp_path / "b")
    without = "sys.modules['torch'] = None"
    done = process("show", tmp_path / "a", code=without)
    assert done.stdout.splitlines()[1:] == [
        'obj["w"]\tbfloat16[2]',
        'obj["d"]\ttorch.dtype("float32")',
        'obj["s"]\ttorch.Size([1, 2])',
    ]
    done = process("diff", tmp_path / "a", tmp_path / "b", code=without)
    assert done.stdout.split("\t")[:7] == [
        "changed",
        "w",
        "bfloat16[2]",
        "bfloat16[2]",
        "2",
        "2.0",
        "0.6666666666666666",
    ]
    assert process("verify", tmp_path / "a", code=without).returncode == 0
    exited = "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    assert process("show", tmp_path / "a", code=exited).stderr == "False\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_told(missing: str) -> None:
    done = process("--version", code=f"sys.modules[{missing!r}] = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"fastckpt: the command line needs {missing}; run: pip install 'fastckpt[cli]'\n"


def test_a_reader_may_leave_early(tmp_path: Path) -> None:
    fastckpt.save({"long": ["y" * 1000] * 500}, tmp_path / "x")
    command = [sys.executable, "-m", "fastckpt", "show", str(tmp_path / "x"), "--full"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"obj\tdict of 1\n"
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == -13


def test_names_in_an_encoding_that_lacks_them(tmp_path: Path) -> None:
    fastckpt.save({"cheap€": np.ones(1)}, tmp_path / "x")
    done = process("ls", tmp_path / "x", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stdout) == (0, "cheap\\u20ac\t[1]\tfloat64\t8\t\n")


# ---- on a terminal ----


def terminal(width: int, *arguments: Any, code: str = "") -> tuple[int, str]:
    """Exit status and what a terminal of this width gets."""
    how = ["-c", code] if code else ["-m", "fastckpt"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        env.pop(name, None)
    command = [sys.executable, *how, *map(str, arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as running:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError as end:
            assert end.errno == errno.EIO
        os.close(ours)
    return running.returncode, seen.decode().replace("\r\n", "\n")


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    shared = np.ones((4096, 2), "f8")
    state = {LONG: shared, "[red]m[/red]": np.ones(3), EVIL: np.ones(1), "tied": shared}
    fastckpt.save(state, tmp_path / "wide")
    return tmp_path / "wide"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_table_fits_and_loses_nothing(wide: Path, width: int) -> None:
    status, seen = terminal(width, "ls", wide)
    assert status == 0
    lines = bare(seen).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["name", "shape", "dtype", "bytes", "tied", "to"]
    assert any(line.split()[1:7] == ["[4096,", "2]", "float64", "65,536"] for line in lines)
    names = "".join(line[: lines[0].index("shape")].strip() for line in lines[2:-1])
    assert names == LONG + "[red]m[/red]" + r"'evil\x1b[31m\r\n\tname'" + "tied"
    assert lines[-1] == "4 tensors, 8,196 elements, 65,568 bytes (64.0 KiB)"


def test_a_table_has_no_empty_columns(wide: Path) -> None:
    assert "tied to" not in terminal(80, "ls", wide, "--filter", "tied", "--dtype", "int8")[1]
    assert terminal(80, "ls", wide, "--filter", "nothing")[1] == "0 tensors, 0 elements, 0 bytes\n"
    assert "tied to" not in terminal(80, "ls", wide, "--filter", "*red*")[1]


def test_a_tree(training: Path, model: Path) -> None:
    _, seen = terminal(80, "show", training)
    lines = bare(seen).splitlines()
    assert max(map(len, lines)) <= 80
    assert "│   ├── l1.w  float32[2, 3]" in lines
    assert "│       └── params  [0, 1, 2, 3, 4, 5, 6, 7, … 140 more]" in lines
    assert r"│   ├── 'evil\x1b[31m\r\n\tname'  float64[1]" in lines
    assert "├── 7  None" in lines
    assert "└── '7'  {1}" in lines
    _, seen = terminal(80, "show", model)
    assert bare(seen).splitlines()[-6:] == [
        "├── wte  float32[5, 4]",
        "├── h.0.  2 tensors, 20 bytes",
        "│   ├── w  float16[3, 2, 1]",
        "│   └── b  int64[]",
        "├── head  float32[5, 4], tied to wte",
        "└── none  float64[0, 3]",
    ]


def test_a_difference(model: Path, changed: Path) -> None:
    status, seen = terminal(140, "diff", model, changed)
    assert status == 1
    lines = [re.split(r" {2,}", line.strip()) for line in bare(seen).splitlines()]
    assert lines[0] == ["change", "name", "what", "max |b-a|", "relative", "NaNs"]
    assert lines[2:] == [
        ["changed", "wte", "2 of 20", "2", "1", "1 appeared"],
        ["reshaped", "h.0.w", "[3, 2, 1] → [3, 2]"],
        ["dtype", "h.0.b", "int64 → int32"],
        ["changed", "head", "2 of 20, tied to wte → none", "2", "1", "1 appeared"],
        ["added", r"'evil\x1b[31m\r\n\tname'", "float64[1]"],
        ["removed", "none", "float64[0, 3]"],
        ["different: 6 tensors; the same: 0 tensors"],
    ]
    assert terminal(140, "diff", model, model) == (0, "the same: 5 tensors and all else\n")
    status, seen = terminal(80, "diff", changed.parent / "nested", changed)
    assert status == 1
    assert max(map(len, bare(seen).splitlines())) <= 80


SLOW = """
import time
from fastckpt.rendering import watched
with watched("[red]work") as watch:
    for done in range(8):
        watch(done << 20, 8 << 20)
        time.sleep({pause})
print("done")
"""


def test_progress_is_shown_for_long_work_on_a_terminal_only() -> None:
    _, seen = terminal(80, code=SLOW.format(pause=0.15))
    assert "[red]work" in seen
    assert "MB" in seen
    assert bare(seen).endswith("done\n")
    assert terminal(80, code=SLOW.format(pause=0)) == (0, "done\n")
    assert terminal(80, code=f"import os, sys; sys.stdout = open(os.devnull, 'w'){SLOW.format(pause=0.15)}") == (0, "")
    done = subprocess.run([sys.executable, "-c", SLOW.format(pause=0.15)], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_printable() -> None:
    assert printable("a\x1b[0m\nb\udcffü") == r"a\x1b[0m\nb\udcffü"


def test_rows_of_a_pipe_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    rendering.print_table((), [("a", 12345678, 0.1, None, [1, 2])], "unseen")
    assert capsys.readouterr().out == "a\t12345678\t0.1\t\t[1,2]\n"
