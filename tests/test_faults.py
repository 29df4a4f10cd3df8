"""The long checks of `make faults`, a few seconds of each."""

from __future__ import annotations

from typing import Any

import pytest
from faults import fault_sweep, fsyncgate, full_disk, kill_soak, memory, seccomp_matrix
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
