"""The commit with one step of it left out, moved or done wrongly: the look at crash states must find each of them out.

A check that never fails shows nothing. The equivalent ones, which must not be found out, say why they are safe.
"""

from __future__ import annotations

from fastckpt import opening
from faults import crash_states
from faults.mutations import MUTANTS
from faults.shapes import SHAPES
from faults.verdict import Verdict, need_programs

ABOUT = "every step of the commit that is left out, moved or done wrongly is noticed by crash_states"

__all__ = ["first_violation", "run"]

_SAMPLES = 30


def run(scale: float) -> Verdict:
    need_programs("strace")
    violations, counts = [], {"caught": 0, "equivalent, not caught": 0}
    tried = [*MUTANTS.items()][:: max(1, int(0.25 / scale))]
    for name, mutant in tried:
        seen = first_violation(name)
        print(f"  {name}: {seen or 'nothing'}"[:230], flush=True)
        if mutant.equivalent and seen:
            violations.append(f"{name}: is said to be safe ({mutant.equivalent}), and is not: {seen}")
        elif not mutant.equivalent and not seen:
            violations.append(f"{name}: was not noticed")
        else:
            counts["caught" if seen else "equivalent, not caught"] += 1
    return Verdict({"mutants": len(tried), **counts}, violations)


def first_violation(name: str) -> str:
    """Try a mutant with its shapes until it is noticed."""
    mutant = MUTANTS[name]
    real = opening.previous_of
    for shape in mutant.shapes:
        with crash_states.modelled(shape, "" if mutant.in_reader else name) as (model, folder):
            try:
                if mutant.in_reader:
                    mutant.apply()
                found = crash_states.examine(SHAPES[shape], model, folder, samples=_SAMPLES, enough=1)
            finally:
                opening.previous_of = real
        if found.violations:
            return f"{shape}: {found.violations[0]}"
    return ""
