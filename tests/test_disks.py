"""Power cuts on a real file system, a few of each kind; at length by ``make faults``. They need root."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import commit_rig as rig
import pytest
from faults import disks, power_cuts, volumes
from faults.verdict import Skip, need_programs, need_root

import fastckpt
from fastckpt import commit

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]


@pytest.fixture(autouse=True)
def privileges() -> None:
    try:
        need_root()
        need_programs("losetup", "mount", "umount", "mkfs.ext4")
    except Skip as reason:
        pytest.skip(str(reason))


def look(count: int, mutant: str = "") -> disks.Found:
    try:
        return disks.look(disks.Kind("ext4"), count, mutant=mutant, enough=1 if mutant else 20)
    except (Skip, OSError) as reason:  # a container may be root and still have none of it
        pytest.skip(str(reason))


def test_a_cut_among_the_writes_of_a_disk() -> None:
    found = look(20)
    assert (found.disks, found.violations) == (20, [])
    assert {"old", "new"} == set(found.outcomes)


def test_a_commit_without_syncs_is_noticed_on_a_disk() -> None:
    assert look(40, "no file is synced").violations


def test_the_power_is_cut_while_saves_go_on() -> None:
    try:
        found = power_cuts.soak("ext4", 1.5)
    except (Skip, OSError) as reason:
        pytest.skip(str(reason))
    assert found.cuts
    assert found.violations == []


@pytest.mark.parametrize("system", ["ext4", "xfs"])
def test_a_journal_that_is_lost_behind_the_exchange(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On xfs the sync of a folder says then that all is well."""
    real = commit._exchange

    def exchange_and_cut(target: Any, stage: Any) -> str:
        old = real(target, stage)
        power_cuts.cut(Path(target.path).parent, "no log flush")
        return old

    old, new = power_cuts.version(1), power_cuts.version(2)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(volumes.work_folder())
            image, there = stack.enter_context(volumes.fresh(system, folder))
        except Skip as reason:
            pytest.skip(str(reason))
        fastckpt.save(old, there / "s")
        with monkeypatch.context() as patch:
            patch.setattr(commit, "_exchange", exchange_and_cut)
            with pytest.raises(fastckpt.CommitUncertain):
                fastckpt.save(new, there / "s")
        volumes.run("umount", there)
        volumes.run("mount", "-o", "loop", image, there)
        assert rig.equal(rig.loaded(there / "s"), old)
