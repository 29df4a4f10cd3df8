"""Digests ``crc32:<hex>`` of tensors: zlib's CRC-32, which any tool can check, by zlib-ng at the speed of memory.

A CRC tells that bytes have changed; it proves nothing about who changed them. Those of neighbouring pieces combine into
that of the whole, so that threads, and later ranks, each take their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zlib_ng.zlib_ng import crc32, crc32_combine

from fastckpt.errors import CheckpointError, CorruptError, FormatError
from fastckpt.layout import OUT

__all__ = ["Crcs", "combined", "compare", "crc32", "difference", "digest_text"]

_NAMED = 10  # blobs

Crcs = dict[str, list[tuple[int, int]]]  # by blob, the CRC and the length of each of its pieces, in order


def combined(pieces: Iterable[tuple[int, int]]) -> int:
    """Give the CRC of a whole from the CRC and the length in bytes of each of its pieces, in order."""
    whole = 0
    for crc, length in pieces:
        whole = crc32_combine(whole, crc, length)
    return whole


def digest_text(crc: int) -> str:
    """Spell a CRC as a meta does."""
    return f"crc32:{crc:08x}"


def difference(digest: str, crc: int, where: str) -> CheckpointError | None:
    """Say that bytes of this CRC are not those of a digest, or that this version cannot tell; None if they are."""
    algorithm, _, wanted = digest.partition(":")
    if algorithm != "crc32":
        return FormatError(
            f"{where}: digest by {algorithm!r}, which this version cannot compute; install a newer fastckpt"
        )
    if f"{crc:08x}" == wanted:
        return None
    return CorruptError(
        f"{where}: its bytes have changed since they were saved (crc32 {crc:08x}, wants {wanted}); "
        "restore it from a copy, or load an earlier snapshot"
    )


def compare(path: str, found: Crcs, digests: Mapping[str, str | None]) -> None:
    """Refuse the blobs of the snapshot at `path` unless they have the digests of their metas.

    Raises
    ------
    CorruptError, FormatError
        What is wrong with the first, and the names of the others.
    """
    wrong = {}
    for blob, crcs in found.items():
        digest = digests[blob]
        problem = None if digest is None else difference(digest, combined(crcs), f"{path}/{blob}/{OUT}")
        if problem is not None:
            wrong[blob] = problem
    if wrong:
        (_, first), *others = wrong.items()
        names = ", ".join(repr(name) for name, _ in others[:_NAMED]) + ", …" * (len(others) > _NAMED)
        raise type(first)(f"{first} (the same is true of {len(others)} more: {names})" if others else str(first))
