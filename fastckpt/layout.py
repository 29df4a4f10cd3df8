"""Every file name of the format, and which folder a key gets."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

__all__ = ["DONE", "META", "NAME_LIMIT", "OUT", "PICKLE", "folders_for"]

META = "meta"
OUT = "out"
DONE = "snapshot_done"
PICKLE = "pickled_data"
NAME_LIMIT = 255  # bytes in one name, on every file system we know

_NO_NAMES = frozenset({"", ".", ".."})
_RESERVED = frozenset({DONE, PICKLE, "model.mlir", "one_embedding_options.json"})
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
_LONG_PREFIX = 180

# "/", controls, lone surrogates, and what is or may be taken for our "%".
_UNSAFE = re.compile(r"[/%\uFE6A\uFF05\x00-\x1F\x7F-\x9F\uD800-\uDFFF]")

# Unicode's Default_Ignorable_Code_Point: a Linux folder that ignores case (ext4, f2fs) ignores these too.
_IGNORED = re.compile(
    r"[\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U000E0FFF]"
)


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
    folds = [_fold(key) for key in keys]
    count = Counter(folds)
    return [
        _shorten(key, _encode_all(key) if count[fold] > 1 else _encode_unsafe(key, fold))
        for key, fold in zip(keys, folds, strict=True)
    ]


def _fold(key: str) -> str:
    """Two keys with the same fold may meet in one folder on some file system."""
    if key.isascii():
        return key.lower()
    seen = unicodedata.normalize("NFKD", _IGNORED.sub("", key))
    return unicodedata.normalize("NFKD", seen.casefold())


def _encode_unsafe(key: str, fold: str) -> str:
    if fold in _NO_NAMES:
        return _escape(key)
    if fold in _RESERVED:
        return _escape(key[0]) + _UNSAFE.sub(_escape_match, key[1:])
    return _UNSAFE.sub(_escape_match, key)


def _encode_all(key: str) -> str:
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in _bytes(key))
    if encoded in _NO_NAMES:
        return _escape(encoded)
    return _escape(encoded[0]) + encoded[1:] if encoded in _RESERVED else encoded


def _escape_match(match: re.Match[str]) -> str:
    return _escape(match[0])


def _escape(text: str) -> str:
    """Percent-encode; of nothing it is "%" alone, which nothing else is encoded as."""
    return "".join(f"%{byte:02X}" for byte in _bytes(text)) or "%"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _shorten(key: str, folder: str) -> str:
    """A name that is too long keeps its beginning; "%~" cannot occur in an encoded name, so nothing else equals it."""
    if len(_bytes(folder)) <= NAME_LIMIT:
        return folder
    kept = _bytes(folder)[:_LONG_PREFIX].decode("utf-8", "ignore")
    return f"{kept}%~{hashlib.sha256(_bytes(key)).hexdigest()[:40]}"
