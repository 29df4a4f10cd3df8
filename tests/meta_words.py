"""The words of a `meta`, and numerals that are hard to read: for texts made at random."""

from __future__ import annotations

WORDS = ("shape", "data_type", "dim", *":{}<>[],;", "kFloat")

ODD_NUMBERS = (
    *("-3", "+3", "1_0", "0b11", "0o7", "08", "0x", "3.0", ".5", "1e3", "-", "--1", "'3'", "٣"),
    *(str(2**63), str(-(2**63)), str(-(2**63) - 1), "9" * 30, "0x8000000000000000", "-010"),
)
