"""Every file name of the format, and which folder a key gets."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

__all__ = ["DONE", "META", "NAME_LIMIT", "OUT", "PICKLE", "folders_for"]

META = "meta"
OUT = "out"
DONE = "snapshot_done"
PICKLE = "pickled_data"
NAME_LIMIT = 255  # bytes in one name, on every file system we know

_RESERVED = frozenset({DONE, PICKLE, "model.mlir", "one_embedding_options.json"})
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
_LONG_PREFIX = 180


def folders_for(keys: Sequence[str]) -> list[str]:
    """Folder name of each key: the key itself where that is safe, else percent-encoded.

    The result depends on the set of keys only, and no two folders are the same even on a file system that ignores
    case or composes accents: where keys differ in no more than that, everything but ``a-z 0-9 . _ -`` is encoded.

    Parameters
    ----------
    keys : sequence of str
        All keys of one snapshot, each once.

    Returns
    -------
    list of str
        One folder name a key, in the same order, each at most 255 bytes of UTF-8.
    """
    twins = Counter(_fold(key) for key in keys)
    return [_shorten(key, _encode_all(key) if twins[_fold(key)] > 1 else _encode_unsafe(key)) for key in keys]


def _fold(key: str) -> str:
    """Two keys with the same fold may meet in one folder on some file system."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", key).casefold())


def _encode_unsafe(key: str) -> str:
    if key == "":
        return "%"
    if key.casefold() in _RESERVED:
        return _escape(key[0]) + _encode_unsafe(key[1:])
    if key in (".", ".."):
        return _escape(key)
    if key.isascii() and key.isprintable() and "/" not in key and "%" not in key:
        return key
    return "".join(char if _is_safe(char) else _escape(char) for char in key)


def _is_safe(char: str) -> bool:
    return char not in "/%" and unicodedata.category(char) not in ("Cc", "Cs")


def _encode_all(key: str) -> str:
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in _bytes(key))
    if encoded in (".", "..") or encoded in _RESERVED:
        return _escape(encoded[0]) + encoded[1:]
    return encoded


def _escape(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _bytes(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _shorten(key: str, folder: str) -> str:
    """A name that is too long keeps its beginning; "%~" cannot occur in an encoded name, so nothing else equals it."""
    if len(_bytes(folder)) <= NAME_LIMIT:
        return folder
    kept = _bytes(folder)[:_LONG_PREFIX].decode("utf-8", "ignore")
    return f"{kept}%~{hashlib.sha256(_bytes(key)).hexdigest()[:40]}"
