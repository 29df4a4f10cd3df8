"""Power cuts on a real file system, a few of each kind; at length by ``make faults``. They need root."""

from __future__ import annotations

import pytest
from faults import disks, power_cuts
from faults.verdict import Skip, need_programs, need_root

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
