"""A little of what `make fuzz` does at length, and what it has found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.verdict import Skip
from fuzz import canon, folders, model
from fuzz.limits import Limit, explored


def test_c_and_python_read_metas_and_tables_alike() -> None:
    assert canon.differences(canon.samples()) == []


@pytest.mark.slow
@pytest.mark.no_asan  # it brings its own
def test_no_input_breaks_the_c_parser() -> None:
    try:
        verdict = canon.run(Limit(runs=200_000))
    except Skip as reason:
        pytest.skip(str(reason))
    assert verdict.violations == []
    assert verdict.figures["executions"] == 200_000


@pytest.mark.parametrize(("module", "parser"), [(canon.meta, "parse_text"), (canon, "parse_index")])
def test_a_fuzzer_sees_a_parser_that_is_wrong(module: Any, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(module, parser)
    monkeypatch.setattr(module, parser, lambda data, where: right(data, where)[1:])
    assert canon.differences(canon.samples())


def test_a_limit_is_kept_in_batches() -> None:
    assert [*Limit(runs=7).batches(3)] == [3, 3, 1]
    assert [*Limit(seconds=1e-9).batches(3)] == []
    assert explored(Limit(runs=7), 3, lambda batch, seed: []) == (7, [])
    assert explored(Limit(runs=7), 3, lambda batch, seed: ["found"]) == (3, ["found"])


@pytest.mark.slow
def test_harmed_snapshots(memory_path: Path) -> None:
    snapshots = folders.Snapshots(memory_path)
    assert folders.explore(folders.check(snapshots), 300, 20_000) == []
    assert snapshots.loads >= 900


@pytest.mark.slow
def test_any_sequence_leaves_what_a_dict_would() -> None:
    assert model.explore(15, 20, 20_000) == []
