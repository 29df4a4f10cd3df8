"""The long checks of `make faults`, a few seconds of each."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from faults import fault_sweep, fsyncgate, full_disk, kill_soak, memory, seccomp_matrix
from faults.__main__ import all_checks
from faults.verdict import Skip

pytestmark = [pytest.mark.slow, pytest.mark.no_asan]


@pytest.mark.parametrize(
    ("check", "scale"),
    [
        (fault_sweep, 0.008),
        (fsyncgate, 0.02),
        (full_disk, 0.1),
        (kill_soak, 0.02),
        (memory, 0.01),
        (seccomp_matrix, 0.2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_little_of(check: Any, scale: float) -> None:
    try:
        verdict = check.run(scale)
    except Skip as reason:
        pytest.skip(str(reason))
    assert not verdict.violations, "\n".join(verdict.violations)


NO_MEMORY = """
    import _testcapi, numpy as np
    from fastckpt.arrays import NUMPY

    array, at = np.zeros((5, 7)), 0
    for at in range(60):
        _testcapi.set_nomemory(at, at + 1)
        try:
            NUMPY.describe(array)
        except (MemoryError, SystemError):
            pass
        finally:
            _testcapi.remove_mem_hooks()
"""


def test_an_array_is_described_without_memory() -> None:
    """numpy's ``__array_interface__`` is a null pointer then, and the process dead."""
    pytest.importorskip("_testcapi")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_MEMORY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or done.returncode


def test_every_check_can_be_run_by_name() -> None:
    checks = all_checks()
    assert {"crash_states", "disks", "fault_sweep", "flipped_bits", "kill_soak", "mutants", "pickles"} <= checks.keys()
    assert "volumes" not in checks
    assert all(callable(check.run) and check.ABOUT for check in checks.values())
