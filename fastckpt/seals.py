"""The seal: the last field of a JSON line of ours, the CRC-32 of every byte before it.

It stands in the comment of a ``meta`` and in the first line of ``snapshot_done``, and covers the file from its first
byte on. A bit that flips within the field itself is noticed by its spelling, of which there is only one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from zlib_ng.zlib_ng import crc32

from fastckpt.errors import CorruptError

__all__ = ["has_intact_seal", "refuse_unsealed", "sealed"]

_FIELD = b',"self":"'  # no text of ours can hold it: there, a quote is escaped
_SEAL = re.compile(rb'crc32:([0-9a-f]{8})"\}\n')


def sealed(text: bytes) -> bytes:
    """Put the seal on a text that ends with a JSON object and a line feed."""
    body = text[:-2]
    return b'%b%bcrc32:%08x"}\n' % (body, _FIELD, crc32(body))


def has_intact_seal(text: bytes, where: str) -> bool:
    """Tell whether a text has a seal.

    Raises
    ------
    CorruptError
        It has one, which is not that of the text.
    """
    body, field, rest = text.rpartition(_FIELD)
    if not field:
        return False
    seal = _SEAL.fullmatch(rest)
    if seal is None or int(seal[1], 16) != crc32(body):
        raise CorruptError(
            f"{where}: its text has changed since it was saved; restore it from a copy, or load an earlier snapshot"
        )
    return True


def refuse_unsealed(unknown: Collection[str], where: str) -> None:
    """Refuse fields that nobody knows in a line without a seal: whoever adds fields seals them, so that one of them is
    the seal, whose name has changed."""
    if unknown:
        raise CorruptError(
            f"{where}: a field {min(unknown)!r:.80}, which cannot be there without a seal; restore it from a copy, or "
            "load an earlier snapshot"
        )
