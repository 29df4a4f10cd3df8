"""Digests ``crc32:<hex>`` of tensors: zlib's CRC-32, which any tool can check, by zlib-ng at the speed of memory.

A CRC tells that bytes have changed; it proves nothing about who changed them. Those of neighbouring pieces combine into
that of the whole, so that threads, and later ranks, each take their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zlib_ng.zlib_ng import crc32, crc32_combine

from fastckpt.errors import CorruptError, FormatError
from fastckpt.layout import OUT

__all__ = ["Crcs", "check", "combined", "compare", "crc32", "digest_text", "wanted_crc"]

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


def wanted_crc(digest: str, where: str) -> str:
    """Give the hexadecimal digits of a meta's digest.

    Raises
    ------
    FormatError
        It was taken by another algorithm.
    """
    algorithm, _, wanted = digest.partition(":")
    if algorithm != "crc32":
        raise FormatError(
            f"{where}: digest by {algorithm!r}, which this version cannot compute; install a newer fastckpt"
        )
    return wanted


def check(digest: str, pieces: Iterable[Any], where: str) -> None:
    """Compare bytes, in pieces, with a meta's digest.

    Raises
    ------
    CorruptError
        The bytes are not those that were saved.
    """
    wanted, found = wanted_crc(digest, where), 0
    for piece in pieces:
        found = crc32(piece, found)
    refuse_unless_same(found, wanted, where)


def refuse_unless_same(found: int, wanted: str, where: str) -> None:
    """Raise CorruptError unless the CRC is the one that is wanted."""
    if f"{found:08x}" != wanted:
        raise CorruptError(
            f"{where}: its bytes have changed since they were saved (crc32 {found:08x}, wants {wanted}); "
            "restore it from a copy, or load an earlier snapshot"
        )


def compare(path: str, found: Crcs, digests: dict[str, str | None]) -> None:
    """Raise CorruptError unless the blobs of the snapshot at `path` have the digests of their metas."""
    for blob, crcs in found.items():
        digest = digests[blob]
        if digest is not None:
            where = f"{path}/{blob}/{OUT}"
            refuse_unless_same(combined(crcs), wanted_crc(digest, where), where)
