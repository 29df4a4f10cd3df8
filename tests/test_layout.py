"""Folder names: safe on every file system, never two the same, and the key itself wherever that will do."""

from __future__ import annotations

import random
import unicodedata
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastckpt.layout import DONE, NAME_LIMIT, PICKLE, folders_for

RESERVED = {DONE, PICKLE, "model.mlir", "one_embedding_options.json"}
ODD = "aAbBkKsS%~/.\\ \0\n\x7f\x85_-0123éÉßẞſKÅ€％﹪．․‥／ﬁﬀİıΣςσ\u0301\u0327"
ODD += "\u00ad\u200b\u200d\ufeff\ud800\udc80\udfff🙂𝐀"
WORDS = [*RESERVED, ".", "..", "%", "%2F", "%~", "a", "A", "ss", "\u200b", "℅", "c/o", "x" * 256, "é" * 128, "层" * 90]

any_char = st.characters(exclude_categories=())
odd_key = st.text(st.sampled_from(ODD), max_size=6)
key = st.one_of(
    odd_key, st.sampled_from(WORDS), st.text(any_char, max_size=400), st.tuples(odd_key, odd_key).map("".join)
)
keys = st.lists(key, unique=True, max_size=40)


def fold(name: str) -> str:
    """What the most forgetful file system keeps of a name."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())


def without_invisible(name: str) -> str:
    return name.translate(dict.fromkeys([0xAD, 0x200B, 0x200D, 0xFEFF]))


def check_safe(folder: str) -> None:
    assert 0 < len(folder.encode("utf-8")) <= NAME_LIMIT  # strict: no lone surrogates
    for seen in (folder, fold(folder), fold(without_invisible(folder))):
        assert seen not in RESERVED | {"", ".", ".."}
    assert not any(char == "/" or unicodedata.category(char) in ("Cc", "Cs") for char in folder)


def check_all(names: list[str]) -> None:
    folders = folders_for(names)
    assert len(folders) == len(names)
    for folder in folders:
        check_safe(folder)
    for view in (str, str.lower, str.casefold, fold, lambda name: fold(without_invisible(name))):
        assert len({view(folder) for folder in folders}) == len(names), view


@given(keys)
@settings(max_examples=400)
def test_folders_are_safe_and_distinct(names: list[str]) -> None:
    check_all(names)


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_keys(seed: int) -> None:
    pick = random.Random(seed)
    blocks = (0x80, 0x250, 0x3000, 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF)
    names: set[str] = set()
    while len(names) < 10_000:
        limit = pick.choice(blocks)
        chars = [
            chr(pick.randrange(limit)) if pick.random() < 0.7 else pick.choice(ODD) for _ in range(pick.randrange(9))
        ]
        names.add("".join(chars) * (60 if pick.random() < 0.02 else 1))
    check_all(sorted(names))


@given(keys, st.randoms(use_true_random=False))
def test_order_does_not_matter(names: list[str], pick: random.Random) -> None:
    expected = dict(zip(names, folders_for(names), strict=True))
    assert folders_for(names) == list(expected.values())
    pick.shuffle(names)
    assert folders_for(names) == [expected[name] for name in names]


@given(keys)
def test_what_is_not_shortened_can_be_decoded(names: list[str]) -> None:
    for name, folder in zip(names, folders_for(names), strict=True):
        if "%~" not in folder:
            decoded = "" if folder == "%" else unquote_to_bytes(folder).decode("utf-8", "surrogatepass")
            assert decoded == name


@pytest.mark.parametrize(
    "name",
    [
        "l1.weight",
        "model.layers.0.q_proj",
        "meta",
        "out",
        ".hidden",
        "dot.",
        "with space",
        "a\\b",
        "CON",
        "层.重",
        "é",
        "👩‍💻",
    ],
)
def test_safe_keys_keep_their_name(name: str) -> None:
    assert folders_for([name, "other"]) == [name, "other"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("․.", "%E2%80%A4%2E"),
        ("...", "..."),
        ("a/b", "a%2Fb"),
        ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
        ("nul\0", "nul%00"),
        ("line\n", "line%0A"),
        ("\x85", "%C2%85"),
        ("\udcff", "%ED%B3%BF"),
        ("%", "%25"),
        ("%2F", "%252F"),
        ("100％", "100%EF%BC%85"),
        ("snapshot_done", "%73napshot_done"),
        ("Snapshot_Done", "%53napshot_Done"),
        ("snapshot\u200b_done", "%73napshot\u200b_done"),
        ("pickled_data", "%70ickled_data"),
        ("model.mlir", "%6Dodel.mlir"),
        ("snapshot_done.x", "snapshot_done.x"),
    ],
)
def test_unsafe_keys_are_encoded(name: str, folder: str) -> None:
    assert folders_for([name]) == [folder]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["weight", "Weight"], ["weight", "%57eight"]),
        (["é", "e\u0301"], ["%C3%A9", "e%CC%81"]),
        (["ß", "ss"], ["%C3%9F", "ss"]),
        (["..", "‥"], ["%2E%2E", "%E2%80%A5"]),
        (["", "\u200b"], ["%", "%E2%80%8B"]),
        (["snapshot_done", "SNAPSHOT_done"], ["%73napshot_done", "%53%4E%41%50%53%48%4F%54_done"]),
        (["K", "k", "％4B"], ["%4B", "k", "%EF%BC%854B"]),  # the last one, raw, would look like the first
        (["a", "a\u00ad"], ["a", "a%C2%AD"]),
    ],
)
def test_twins_are_told_apart(names: list[str], folders: list[str]) -> None:
    assert folders_for(names) == folders


def test_a_twin_changes_no_other_key() -> None:
    names = ["a", "b", "C"]
    assert folders_for([*names, "B"]) == ["a", "b", "C", "%42"]


@pytest.mark.parametrize("char", ["x", "é", "层", "🙂", "/", "\ud800"])
def test_long_keys(char: str) -> None:
    names = [char * length for length in (84, 85, 127, 128, 255, 256, 10_000, 100_000)]
    check_all(names)
    assert folders_for(["x" * 255]) == ["x" * 255]
    shortened = folders_for(["x" * 256])[0]
    assert shortened.startswith("x" * 180 + "%~")
    assert len(shortened) == 222


def test_long_twins() -> None:
    check_all(["x" * 300, "X" * 300, "x" * 299 + "X"])
