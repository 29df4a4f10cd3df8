"""A little of what `make fuzz` does at length, and what it has found."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.verdict import Skip
from fuzz import canon, folders, model


def test_c_and_python_read_metas_alike() -> None:
    assert canon.differences(canon.samples()) == []


@pytest.mark.slow
@pytest.mark.no_asan  # it brings its own
def test_no_input_breaks_the_c_parser() -> None:
    try:
        verdict = canon.run(2)
    except Skip as reason:
        pytest.skip(str(reason))
    assert verdict.violations == []
    assert verdict.figures["executions"] > 1000


def test_a_fuzzer_sees_a_parser_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canon.meta, "parse_text", lambda data, where: None)
    assert canon.differences(canon.samples())


@pytest.mark.slow
def test_harmed_snapshots(memory_path: Path) -> None:
    snapshots = folders.Snapshots(memory_path)
    assert folders.explore(folders.check(snapshots), 300, 20_000) == []
    assert snapshots.loads >= 900


@pytest.mark.slow
def test_any_sequence_leaves_what_a_dict_would() -> None:
    assert model.explore(15, 20, 20_000) == []
