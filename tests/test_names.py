"""Any text is a key: it comes back as it is, in a folder of its own, whatever stands beside it."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import fastckpt

ODD = [
    "",
    ".",
    "..",
    "...",
    "/",
    "a/b",
    "a",
    "/etc/passwd",
    "../../x",
    "a\0b",
    "\0",
    "line\nfeed\r",
    "tab\t",
    "\x7f\x80\x9f",
    "%",
    "%2F",
    "%%",
    "%~",
    "a%2Fb",
    "\uff05",
    "snapshot_done",
    "SNAPSHOT_DONE",
    "pickled_data",
    "Pickled_Data",
    "model.mlir",
    "one_embedding_options.json",
    "meta",
    "out",
    "Weight",
    "weight",
    "WEIGHT",
    "weıght",
    "stra\u00dfe",
    "STRASSE",
    "\u00e9",
    "e\u0301",
    "\u212b",
    "\u00c5",
    "A\u030a",
    "\ufb01",
    "fi",
    "\u200b",
    "zero\u200bwidth",
    "zerowidth",
    "\U0001f600",
    "\ud800",
    "\udcff",
    "\udfff\ud800",
    "x" * 255,
    "x" * 256,
    "x" * 300,
    "x" * 299 + "y",
    "\u6a21" * 85,
    "\u6a21" * 86,
    "/" * 100,
    " ",
    "trailing ",
    "trailing.",
    "-rf",
    "~",
    "$HOME `ls` \"'\\",
    "\u202eabc",
    "None",
    "0",
]


def check(keys: list[str], path: Path) -> None:
    """Save and load: the same keys in the same order with their own values, and nothing outside the folder."""
    values = np.arange(len(keys), dtype=np.int32)
    fastckpt.save(dict(zip(keys, values.reshape(-1, 1), strict=True)), path)
    found = fastckpt.load(path, as_="numpy")
    assert list(found) == keys
    assert [int(array[0]) for array in found.values()] == values.tolist()
    folders = os.listdir(os.fsencode(path))
    assert len(folders) == len(keys) + 1
    assert max(map(len, folders)) <= 255
    for folder in folders:
        folder.decode("utf-8")


@pytest.mark.parametrize("key", ODD, ids=ascii)
def test_one_odd_key(key: str, tmp_path: Path) -> None:
    check([key], tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]
    assert os.stat(tmp_path / "s" / "snapshot_done").st_size == 0


def test_all_odd_keys_together(tmp_path: Path) -> None:
    check(ODD, tmp_path / "s")
    check(ODD[::-1], tmp_path / "s")
    snapshot = fastckpt.open(tmp_path / "s", as_="numpy")
    assert [int(snapshot[key][0]) for key in ODD] == list(range(len(ODD)))[::-1]
    assert list(fastckpt.load(tmp_path / "s", keys=[ODD[3], ODD[7]])) == [ODD[7], ODD[3]]
    assert fastckpt.verify(tmp_path / "s")


def test_odd_keys_in_a_nested_object(tmp_path: Path) -> None:
    saved = {"a": {key: torch.tensor(at) for at, key in enumerate(ODD)}, "a.b": 1, "a.a": torch.tensor(-1)}
    fastckpt.save(saved, tmp_path / "s")
    found = fastckpt.load(tmp_path / "s")
    assert list(found["a"]) == ODD
    assert [int(tensor) for tensor in found["a"].values()] == list(range(len(ODD)))
    assert int(found["a.a"]) == -1
    assert fastckpt.verify(tmp_path / "s")


@pytest.mark.parametrize("pair", [("\ud83d\ude00", "\U0001f600"), ("a\ud800\udc00", "a\U00010000")], ids=ascii)
def test_two_surrogates_are_not_the_character_they_spell(pair: tuple[str, str], tmp_path: Path) -> None:
    saved = dict(zip(pair, (torch.tensor(0), torch.tensor(1)), strict=True))
    fastckpt.save(saved, tmp_path / "s")
    assert {key: int(tensor) for key, tensor in fastckpt.load(tmp_path / "s").items()} == {pair[0]: 0, pair[1]: 1}
    assert fastckpt.verify(tmp_path / "s")


def test_a_key_of_any_length_that_a_meta_can_hold(tmp_path: Path) -> None:
    check(["k" * 4000, "\u6a21" * 4000, "\0" * 4000], tmp_path / "s")
    with pytest.raises(fastckpt.UnsupportedError, match=r"^tensor 'kkk.*cannot be stored: .* at most 65536 bytes"):
        fastckpt.save({"k" * 70_000: torch.ones(1)}, tmp_path / "t")
    assert os.listdir(tmp_path) == ["s"]


def test_numbers_and_texts_are_different_keys(tmp_path: Path) -> None:
    saved = {0: torch.tensor(2), "0": torch.tensor(1), (0,): torch.tensor(3), None: torch.tensor(4)}
    fastckpt.save(saved, tmp_path / "s")
    found = fastckpt.load(tmp_path / "s")
    assert [(type(key), key) for key in found] == [(int, 0), (str, "0"), (tuple, (0,)), (type(None), None)]
    assert [int(value) for value in found.values()] == [2, 1, 3, 4]


#: Any text, and texts that are likely to meet: a few letters in both cases, accents, what is escaped and reserved.
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(codec=None), max_size=8),
    st.text("aA/%.\0 \u00e9e\u0301\u200b\u00dfS", max_size=6),
    st.sampled_from(ODD),
    st.builds("{}{}".format, st.text("xX\u6a21", min_size=80, max_size=300), st.text("ab", max_size=2)),
)


def random_keys(count: int) -> list[str]:
    """Many texts, and what is close to each: keys that meet in one folder are rarely far apart."""
    keys: dict[str, None] = {}

    @settings(max_examples=count // 20, phases=[Phase.generate], database=None)
    @given(st.lists(TEXTS, min_size=10, max_size=30))
    def gather(texts: list[str]) -> None:
        for text in texts:
            close = (text, text.swapcase(), text.lower(), text + "\u200b", unicodedata.normalize("NFKD", text))
            keys.update(dict.fromkeys(close))

    while len(keys) < count:
        gather()
    return list(keys)


@pytest.mark.slow
def test_ten_thousand_random_keys(memory_path: Path) -> None:
    keys = random_keys(10_000)
    for at in range(0, 10_000, 2500):
        check(keys[at : at + 2500], memory_path / "s")


def test_the_name_of_a_snapshot_may_be_odd_too(tmp_path: Path) -> None:
    for name in ("ünï", "with space", "x" * 255, "%2F", "-rf", "new\nline"):
        fastckpt.save({"a": torch.ones(1)}, tmp_path / name)
        assert fastckpt.load(tmp_path / name)["a"] == 1
    assert len(os.listdir(tmp_path)) == 6
    assert sys.getfilesystemencoding() == "utf-8"
