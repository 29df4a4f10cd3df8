"""Snapshots that were made to harm: how each is made, and what every way of reading it must say.

As a program it reads them all in a process that may have little memory and no openat2, and tells as JSON what came of
each:
``python hostile_cases.py FOLDER BYTES-OF-MEMORY``. Nothing but numpy is imported.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastckpt

HUGE = 8 << 40  # bytes


class Case(NamedTuple):
    """One hostile snapshot.

    `wanted` is the error's class, or the keys that load; `words` stand in the error, or in the one warning.
    """

    group: str
    name: str
    base: str
    harm: Callable[[Path], object]
    wanted: tuple[type[Exception], ...] | set[str]
    words: str


CORRUPT = (fastckpt.CorruptError,)
FORMAT = (fastckpt.FormatError,)
UNDONE = (fastckpt.NotCommittedError,)
CASES: list[Case] = []

# ---- what is harmed ----

FLAT = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(2, dtype=np.float32)}
NESTED = {"model": {"a": FLAT["a"], "b": FLAT["b"], "big": np.arange(5000.0)}, "epoch": 3}


def _oneflow(path: Path) -> None:
    """As OneFlow writes it: no comments, so nothing says how many tensors there are."""
    for key, array in FLAT.items():
        folder(path, key, array.shape, data=array.tobytes())
    (path / "snapshot_done").touch()


def folder(path: Path, name: str, shape: tuple[int, ...], kind: str = "kFloat", data: bytes = b"") -> None:
    (path / name).mkdir(parents=True)
    (path / name / "meta").write_bytes(meta_text(shape, kind))
    (path / name / "out").write_bytes(data)


def meta_text(shape: tuple[int, ...], kind: str = "kFloat") -> bytes:
    dims = "".join(f"  dim: {dim}\n" for dim in shape)
    return f"shape {{\n{dims}}}\ndata_type: {kind}\n".encode()


BASES: dict[str, Callable[[Path], None]] = {
    "oneflow": _oneflow,
    "flat": lambda path: fastckpt.save(FLAT, path),
    "indexed": lambda path: fastckpt.save({**FLAT, "big": NESTED["model"]["big"]}, path, index=True),
    "nested": lambda path: fastckpt.save(NESTED, path),
}

TARGETS: dict[str, Callable[[], Any]] = {
    "oneflow": lambda: {key: np.zeros_like(array) for key, array in FLAT.items()},
    "flat": lambda: {key: np.zeros_like(array) for key, array in FLAT.items()},
    "indexed": lambda: {**{key: np.zeros_like(array) for key, array in FLAT.items()}, "big": np.zeros(5000)},
    "nested": lambda: {"model": {key: np.zeros_like(array) for key, array in NESTED["model"].items()}, "epoch": 3},
}

WAYS: dict[str, Callable[[Path, str], Any]] = {
    "load": lambda path, base: fastckpt.load(path, as_="numpy"),
    "load mapped": lambda path, base: fastckpt.load(path, as_="numpy", mode="mmap"),
    "load read": lambda path, base: fastckpt.load(path, as_="numpy", mode="read"),
    "load checked": lambda path, base: fastckpt.load(path, as_="numpy", mode="direct", verify=True),
    "open": lambda path, base: fastckpt.open(path, as_="numpy").tree,
    "load_into": lambda path, base: fastckpt.load_into(TARGETS[base](), path, verify=True),
}
RECORDS = {"record", "deep nesting"}  # groups that load_into does not notice: it fills tensors and nothing else
CHECKING = {"load checked", "load_into"}  # ways that look at digests


def case(
    group: str, wanted: tuple[type[Exception], ...] | set[str], words: str, base: str = "oneflow"
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def note(harm: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES.append(Case(group, harm.__name__.strip("_"), base, harm, wanted, words))
        return harm

    return note


def cases(group: str, wanted: Any, words: str, base: str = "oneflow", **harms: Callable[[Path], object]) -> None:
    CASES.extend(Case(group, name, base, harm, wanted, words) for name, harm in harms.items())


def text(data: bytes | str) -> Callable[[Path], object]:
    """The meta of `b` becomes this."""
    return lambda path: (path / "b/meta").write_bytes(data if isinstance(data, bytes) else data.encode())


def dims(*shape: int, kind: str = "kFloat") -> Callable[[Path], object]:
    return text(meta_text(shape, kind))


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else stands under a name."""

    def harm(path: Path) -> None:
        at = path / name
        shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()
        make(at)

    return harm


def link_to(goal: str) -> Callable[[Path], object]:
    return lambda at: at.symlink_to(goal)


def link_to_victim(at: Path) -> None:
    """By its full path."""
    at.symlink_to(Path(*at.parts[: at.parts.index("snapshot")]) / "victim/out")


def plug(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(at.parent, os.O_RDONLY)  # its path may be longer than a socket's name
        try:
            server.bind(f"/proc/self/fd/{here}/{at.name}")
        finally:
            os.close(here)


def device(number: tuple[int, int]) -> Callable[[Path], object]:
    return lambda at: os.mknod(at, 0o600 | 0o020000, os.makedev(*number))


# ---- a blob of the wrong size ----

cases(
    "size of out",
    CORRUPT,
    r"b/out: meta wants 8 bytes, file has \d+",
    short=lambda path: os.truncate(path / "b/out", 7),
    long=lambda path: os.truncate(path / "b/out", 9),
    empty=lambda path: os.truncate(path / "b/out", 0),
    sparse_and_huge=lambda path: os.truncate(path / "b/out", HUGE),
)
cases(
    "size of out", CORRUPT, r"big/out: ", "indexed", short_beside_an_index=lambda p: os.truncate(p / "big/out", 39999)
)
cases("size of out", CORRUPT, r"big/out: ", "nested", short_in_a_nested=lambda p: os.truncate(p / "model.big/out", 1))
cases("size of out", CORRUPT, r"big/out: ", "nested", huge_in_a_nested=lambda p: os.truncate(p / "model.big/out", HUGE))
cases(
    "item size",
    CORRUPT,
    r"b/out: meta wants \d+ bytes, file has 8",
    double=dims(2, kind="kDouble"),
    half=dims(2, kind="kFloat16"),
    complex128=dims(2, kind="kComplex128"),
    empty_meta_full_out=dims(0, 2),
)
cases(
    "out missing",
    CORRUPT,
    r"b/out: No such file",
    gone=lambda path: (path / "b/out").unlink(),
)
cases("out missing", CORRUPT, r"1 of 2 tensor folders", "flat", folder=lambda path: shutil.rmtree(path / "b"))
cases(
    "out missing", CORRUPT, r"(tensor folders are missing|tensor 'b')", "indexed", of=lambda p: shutil.rmtree(p / "b")
)
cases("out missing", CORRUPT, r"big/out: No such file", "nested", gone_beside=lambda p: (p / "model.big/out").unlink())

# ---- metas ----

cases("meta missing", {"a"}, "b/meta: missing", gone=lambda path: (path / "b/meta").unlink())
cases("meta missing", CORRUPT, "1 of 2 tensor folders", "flat", of_ours=lambda path: (path / "b/meta").unlink())
cases(
    "meta missing",
    CORRUPT,
    "tensor folders come|b/meta: No such|1 of 3 tensor folders",
    "indexed",
    both=lambda path: [(path / "b" / name).unlink() for name in ("meta", "out")] and shutil.rmtree(path / "b"),
)
cases(
    "meta empty or huge",
    FORMAT,
    "b/meta: ",
    empty=text(""),
    blank=text(" \n"),
    comment_of_10_MiB=text(b"# " + b"x" * (10 << 20) + b"\n" + meta_text((2,))),
    million_dims=text(b"shape {\n" + b"  dim: 1\n" * (1 << 20) + b"}\ndata_type: kFloat\n"),
    one_number=text(b"shape { dim: " + b"1" * (10 << 20) + b" } data_type: kFloat\n"),
    number_that_fits=text(b"shape { dim: " + b"1" * 65000 + b" } data_type: kFloat\n"),
    commas=text(b"shape { dim: [" + b"," * 65000 + b"] } data_type: kFloat\n"),
    sparse=lambda path: os.truncate(path / "b/meta", HUGE),
    one_byte_too_many=text(meta_text((2,)).ljust(65537)),
)
cases("meta empty or huge", {"a", "b"}, "", just_fits=text(meta_text((2,)).ljust(65536)))
cases(
    "bytes of a meta",
    FORMAT,
    "b/meta: ",
    latin1=text(meta_text((2,)) + b"# \xe9\n"),
    half_a_character=text(meta_text((2,)) + b"# \xe2\x82"),
    surrogate=text(meta_text((2,)) + b"# \xed\xa0\x80\n"),
    nul=text(meta_text((2,)) + b"\0"),
    nul_in_a_name=text("sha\0pe { dim: 2 } data_type: kFloat"),
    nul_in_a_comment=text(meta_text((2,)) + b"# \0\n"),
    bom=text(b"\xef\xbb\xbf" + meta_text((2,))),
    utf16=text(meta_text((2,)).decode().encode("utf-16")),
    elf=text(b"\x7fELF" + bytes(range(256))),
    cr_in_a_name=text("shape { dim: 2 } data_\rtype: kFloat"),
)
cases("bytes of a meta", {"a", "b"}, "", cr_ends_lines=text(meta_text((2,)).replace(b"\n", b"\r")))
cases(
    "fields of a meta",
    FORMAT,
    "b/meta: ",
    unknown=text(meta_text((2,)) + b"stride: 1\n"),
    by_number=text(meta_text((2,)) + b"7: 1\n"),
    enum_name=dims(2, kind="kFoo"),
    enum_number=dims(2, kind="99"),
    enum_that_is_never_on_disk=dims(2, kind="kOFRecord"),
    enum_overflow=dims(2, kind="18446744073709551618"),
    no_type=text("shape { dim: 2 }"),
    shape_twice=text(meta_text((2,)) + b"shape { dim: 2 }\n"),
    type_twice=text(meta_text((2,)) + b"data_type: kFloat\n"),
    both_in_one_line=text("shape { dim: 2 } data_type: kFloat data_type: kFloat"),
    unclosed=text("shape { dim: 2 data_type: kFloat"),
    deep=text("shape " + "{ shape " * 8000),
)
cases(
    "dims",
    FORMAT,
    "b/meta: ",
    negative=dims(-2),
    negative_pair=dims(-1, -2),
    beyond_int64=dims(2**63),
    largest=dims(2**63 - 1, 2),
    wraps_to_0=dims(2**32, 2**32),
    wraps_to_8=dims(2**62 + 1, 8),
    zero_hides_it=dims(0, 2**62, 2**62),
    item_size_overflows=dims(2**62, kind="kDouble"),
    a_float=text("shape { dim: 2.0 } data_type: kFloat"),
    too_many=dims(*[1] * 65),
    too_many_in_a_list=text(f"shape {{ dim: [{'1,' * 99}1] }} data_type: kFloat"),
)
cases("dims", CORRUPT, "b/out: meta wants 9223372036854775804 bytes", just_below=dims(2**61 - 1))


def note(**fields: Any) -> Callable[[Path], object]:
    """The comment line of `b` says this."""

    def harm(path: Path) -> None:
        kept = (path / "b/meta").read_bytes().partition(b"# fastckpt: ")[0]
        (path / "b/meta").write_bytes(kept + b"# fastckpt: " + json.dumps(fields).encode() + b"\n")

    return harm


cases(
    "comment line",
    FORMAT,
    "b/meta: ",
    "flat",
    no_json=text(meta_text((2,)) + b"# fastckpt: {\n"),
    list=text(meta_text((2,)) + b"# fastckpt: []\n"),
    twice=text(meta_text((2,)) + b"# fastckpt: {}\n# fastckpt: {}\n"),
    deep=text(meta_text((2,)) + b"# fastckpt: " + b"[" * 65000 + b"\n"),
    deep_and_closed=text(meta_text((2,)) + b'# fastckpt: {"x":' + b"[" * 30000 + b"]" * 30000 + b"}\n"),
    nan=text(meta_text((2,)) + b'# fastckpt: {"place":NaN,"count":2}\n'),
    place_alone=note(place=0),
    place_behind_count=note(place=2, count=2),
    negative_place=note(place=-1, count=2),
    place_is_true=note(place=True, count=2),
    place_beyond_int64=note(place=2**63, count=2**64),
    long_number=text(meta_text((2,)) + b'# fastckpt: {"place":' + b"1" * 5000 + b',"count":2}\n'),
    digest_is_no_text=note(digest=5),
    digest_is_no_digest=note(digest="crc32:xyz"),
    dtype_unknown=note(place=1, count=2, dtype="float7"),
    dtype_of_other_size=note(place=1, count=2, dtype="float8_e5m2"),
    shape_of_other_size=note(place=1, count=2, shape=[3]),
    name_is_no_text=note(place=1, count=2, name=["b"]),
)
cases(
    "comment line",
    CORRUPT,
    "",
    "flat",
    count_of_others=note(place=1, count=3),
    place_twice=note(place=0, count=2),
    count_enormous=note(place=1, count=2**62),
    tie_to_nothing=note(place=1, count=2, same_as="c"),
    tie_to_itself=note(place=1, count=2, same_as="b"),
    tie_to_another_shape=note(place=1, count=2, same_as="a"),
    key_twice=note(place=1, count=2, name="a"),
    container_lost_its_record=lambda p: (p / "a/meta").write_bytes(
        meta_text((2, 3)) + b'# fastckpt: {"place":0,"count":2,"container":"snapshot_done"}\n'
    ),
)

for _key in ("", ".", "..", "/", "/etc/passwd", "../../victim/out", "nul\0", "x" * 256, "\ud800", "snapshot_done", "A"):
    # A key is a word in a dict and never a path, so none can do harm.
    CASES.append(Case("keys", repr(_key)[:20], "flat", note(place=1, count=2, name=_key), {"a", _key}, ""))

# ---- the marker ----

cases(
    "marker",
    UNDONE,
    "no snapshot_done",
    missing=lambda path: (path / "snapshot_done").unlink(),
    missing_and_empty=lambda path: [shutil.rmtree(path), path.mkdir()],
    other_case=lambda path: (path / "snapshot_done").rename(path / "Snapshot_Done"),
)
cases(
    "marker",
    CORRUPT,
    "/snapshot_done: ",
    directory=instead("snapshot_done", Path.mkdir),
    link=instead("snapshot_done", link_to_victim),
    link_inside=instead("snapshot_done", link_to("a/out")),
    link_to_itself=instead("snapshot_done", link_to("snapshot_done")),
    dangling=instead("snapshot_done", link_to("nowhere")),
    fifo=instead("snapshot_done", os.mkfifo),
    socket=instead("snapshot_done", plug),
    device=instead("snapshot_done", device((1, 5))),
)


def marker(head: bytes) -> Callable[[Path], object]:
    return lambda path: (path / "snapshot_done").write_bytes(head)


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The first line of the marker says something else, and has no index."""

    def harm(path: Path) -> None:
        head = json.loads((path / "snapshot_done").read_bytes().splitlines()[0])
        for field in ("index", "table", "self"):
            head.pop(field)
        change(head)
        (path / "snapshot_done").write_bytes(json.dumps(head, separators=(",", ":")).encode() + b"\n")

    return harm


def record(value: Any) -> Callable[[Path], object]:
    return rewritten(lambda head: head.update(object=value))


PREFIX = b'{"format":"fastckpt",'
cases(
    "marker that lies",
    (*CORRUPT, *FORMAT),
    "/snapshot_done",
    cut_off=marker(PREFIX),
    cut_off_in_the_middle=marker(PREFIX + b'"version":1,"count":2'),
    no_json=marker(PREFIX + b"}\n"),
    not_utf8=marker(PREFIX + b'"x":"\xff"}\n'),
    version=marker(PREFIX + b'"version":2,"count":2}\n'),
    version_is_long=marker(PREFIX + b'"version":"' + b"9" * 100_000 + b'","count":2}\n'),
    no_count=marker(PREFIX + b'"version":1}\n'),
    count_is_a_list=marker(PREFIX + b'"version":1,"count":[' + b"0," * 50_000 + b"0]}\n"),
    count_is_a_long_number=marker(PREFIX + b'"version":1,"count":' + b"1" * 100_000 + b"}\n"),
    negative=marker(PREFIX + b'"version":1,"count":-2}\n'),
    more_behind_it=marker(PREFIX + b'"version":1,"count":2}\nmore'),
    index_of_two=marker(PREFIX + b'"version":1,"count":2,"index":[1,2]}\n'),
    index_of_another_size=marker(PREFIX + b'"version":1,"count":2,"index":[1,2,3]}\n'),
    deep=marker(PREFIX + b'"version":1,"count":2,"object":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    sparse=lambda path: [marker(PREFIX)(path), os.truncate(path / "snapshot_done", HUGE)],
)
cases(
    "marker that lies",
    CORRUPT,
    "wants 3|of 3 tensor|different saves",
    "flat",
    count=marker(PREFIX + b'"version":1,"count":3}\n'),
)
cases("marker that lies", {"a", "b"}, "", of_others=marker(b"\x80\x02pickle?"), others_json=marker(b'{"fastckpt":1}'))
cases(
    "record",
    (*FORMAT, *CORRUPT),
    "a/meta: ",
    "flat",
    container_is_a_list=lambda p: (p / "a/meta").write_bytes(
        meta_text((2, 3)) + b'# fastckpt: {"place":0,"count":2,"container":[]}\n'
    ),
)
cases(
    "record",
    (*FORMAT, *CORRUPT),
    "/snapshot_done|: the object",
    "nested",
    tensor_that_is_not_there=record({"tensor": "nowhere"}),
    tensor_outside=record({"tensor": "../../etc/passwd"}),
    unknown_tag=record({"pickle": "Y29zCnN5c3RlbQo="}),
    two_tags=record({"dict": [], "list": []}),
    no_tag=record({}),
    a_class=record({"enum": ["os", "system", "ls"]}),
    a_module_that_is_not_loaded=record({"enum": ["antigravity", "A", "B"]}),
    named_tuple_of_odd_names=record({"namedtuple": ["m", "x);import os;(("], "fields": ["a"], "values": [1]}),
    named_tuple_fields=record({"namedtuple": ["m", "T"], "fields": ["a b"], "values": [1]}),
    named_tuple_of_other_length=record({"namedtuple": ["m", "T"], "fields": ["a"], "values": []}),
    zone_outside=record({"datetime": "2020-01-01T00:00:00", "tz": {"zoneinfo": "../../../etc/passwd"}}),
    dtype_of_objects=record({"numpy.scalar": ["object", "00" * 8]}),
    dtype_of_a_structure=record({"numpy.dtype": "f4,f4"}),
    two_scalars=record({"numpy.scalar": ["float32", "00" * 8]}),
    key_twice=record({"dict": [[1, 1], [1, 2]]}),
    key_that_is_a_list=record({"dict": [[[1], 1]]}),
    no_pairs=record({"dict": [1]}),
    long_number=record({"int": "1" * 100_000}),
    base64=record({"bytes": "====not base64"}),
    numbers_of_one_hash=record({"dict": [[{"int": hex(i * (2**61 - 1))}, 0] for i in range(40_000)]}),
    set_of_one_hash=record({"set": [{"int": hex(i * (2**61 - 1))} for i in range(40_000)]}),
)


def _nested(levels: int, opening: str, closing: str) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        head = PREFIX + b'"version":1,"count":3,"object":' + (opening * levels + closing * levels).encode() + b"}\n"
        (path / "snapshot_done").write_bytes(head)

    return harm


for _levels in (201, 900, 960, 980, 990, 995, 5000):  # around what is allowed, and what Python's own stack allows
    cases(
        "deep nesting",
        FORMAT,
        "/snapshot_done: ",
        "nested",
        **{
            f"lists_{_levels}": _nested(_levels, "[", "]"),
            f"tuples_{_levels}": _nested(_levels, '{"tuple":[', "]}"),
            f"unknown_{_levels}": _nested(_levels, '{"numpy.dtype":', "}"),
        },
    )


# ---- the index ----


def index(*entries: tuple[Any, ...], copies: bytes = b"") -> Callable[[Path], object]:
    """An index that says this, in a marker that is sound else."""

    def harm(path: Path) -> None:
        table = json.dumps([*entries]).encode() + b"\n"
        at = 0
        for _ in range(3):
            head = {"format": "fastckpt", "version": 1, "count": 3, "index": [len(table), at, at + len(copies)]}
            line = json.dumps(head, separators=(",", ":")).encode() + b"\n"
            at = -(-(len(line) + len(table)) // 64) * 64
        (path / "snapshot_done").write_bytes((line + table).ljust(at, b"\0") + copies)

    return harm


def entry(key: str, shape: tuple[int, ...], nbytes: int, at: Any, place: int, kind: str = "kFloat") -> tuple[Any, ...]:
    comment = f'# fastckpt: {{"place":{place},"count":3}}\n'
    return key, meta_text(shape, kind).decode() + comment, nbytes, at


_A = entry("a", (2, 3), 24, 0, 0)
_B = entry("b", (2,), 8, 64, 1)
_BIG = entry("big", (5000,), 40000, None, 2, "kDouble")
INDEX_GROUP = "index that lies"
#: All of these are passed over with a warning, since the folders are the truth.
cases(
    INDEX_GROUP,
    {"a", "b", "big"},
    "snapshot_done: .*the folders were read instead",
    "indexed",
    no_list=index(1, 2, 3),
    deep=index(json.loads("[" * 500 + "]" * 500)),
    copy_behind_the_end=index(_A, (*_B[:3], 2**40), _BIG, copies=bytes(128)),
    copy_that_never_ends=index(_A, (*_B[:3], 2**64), _BIG, copies=bytes(128)),
    copy_negative=index(_A, (*_B[:3], -64), _BIG, copies=bytes(128)),
    copy_not_aligned=index(_A, (*_B[:3], 33), _BIG, copies=bytes(128)),
    copies_that_overlap=index(_A, (*_B[:3], 0), _BIG, copies=bytes(128)),
    number_is_true=index(_A, (*_B[:2], True, 64), _BIG, copies=bytes(128)),
    size_differs=index(_A, (*_B[:2], 9, 64), _BIG, copies=bytes(128)),
    meta_is_none=index(_A, ("b", None, 8, 64), _BIG, copies=bytes(128)),
    meta_is_nothing=index(_A, ("b", "", 8, 64), _BIG, copies=bytes(128)),
    meta_of_megabytes=index(_A, ("b", "#" * (2 << 20), 8, 64), _BIG, copies=bytes(128)),
    folder_is_a_number=index(_A, (5, *_B[1:]), _BIG, copies=bytes(128)),
    folder_twice=index(_A, _B, _BIG, entry("b", (1,), 4, None, 1), copies=bytes(128)),
)
#: These name folders that are not those that are there.
cases(
    INDEX_GROUP,
    {"a", "b", "big"},
    "",
    "indexed",
    path_that_leads_out=index(_A, ("../../victim", *_B[1:]), _BIG, copies=bytes(128)),
    folder_that_is_not_there=index(_A, ("c", *_B[1:]), _BIG, copies=bytes(128)),
    nothing=index(),
)
cases(
    INDEX_GROUP,
    CORRUPT,
    "big/out: meta wants",
    "indexed",
    blob_of_another_size=index(_A, _B, entry("big", (5001,), 40008, None, 2, "kDouble"), copies=bytes(128)),
    blob_of_a_terabyte=index(_A, _B, entry("big", (2**37,), 2**40, None, 2, "kDouble"), copies=bytes(128)),
    blob_of_all_there_is=index(_A, _B, entry("big", (2**59,), 2**62, None, 2, "kDouble"), copies=bytes(128)),
)

# ---- what is no file, or leads out ----

for _name in ("meta", "out"):
    cases(
        "no plain file",
        CORRUPT,
        f"b/{_name}: ",
        **{
            f"{_name}_link_out": instead(f"b/{_name}", link_to("../../victim/out")),
            f"{_name}_link_absolute": instead(f"b/{_name}", link_to_victim),
            f"{_name}_link_inside": instead(f"b/{_name}", link_to(f"../a/{_name}")),
            f"{_name}_link_dangling": instead(f"b/{_name}", link_to("nowhere")),
            f"{_name}_link_to_itself": instead(f"b/{_name}", link_to(_name)),
            f"{_name}_link_magic": instead(f"b/{_name}", link_to("/proc/self/fd/0")),
            f"{_name}_folder": instead(f"b/{_name}", Path.mkdir),
            f"{_name}_fifo": instead(f"b/{_name}", os.mkfifo),
            f"{_name}_socket": instead(f"b/{_name}", plug),
            f"{_name}_device_zero": instead(f"b/{_name}", device((1, 5))),
            f"{_name}_device_terminal": instead(f"b/{_name}", device((5, 0))),
            f"{_name}_device_that_is_not_there": instead(f"b/{_name}", device((240, 77))),
        },
    )
cases(
    "no plain file",
    CORRUPT,
    "b/meta: ",
    folder_link_out=instead("b", link_to("../victim")),
    folder_link_absolute=instead("b", link_to("/etc")),
    folder_link_inside=instead("b", link_to("a")),
    folder_link_up=instead("b", link_to("..")),
    folder_link_to_itself=instead("b", link_to("b")),
    folder_link_dangling=instead("b", link_to("nowhere")),
)
cases(
    "no plain file",
    {"a"},
    "b: a file that belongs to no snapshot, passed over",
    folder_fifo=instead("b", os.mkfifo),
    folder_device=instead("b", device((1, 5))),
    folder_file=instead("b", Path.touch),
)
cases(
    "no plain file",
    CORRUPT,
    "big/out: ",
    "indexed",
    beside_an_index_link=instead("big/out", link_to("../../victim/out")),
    beside_an_index_fifo=instead("big/out", os.mkfifo),
    beside_an_index_socket=instead("big/out", plug),
)

# ---- digests ----


def flipped(name: str) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        raw = bytearray((path / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (path / name).write_bytes(raw)

    return harm


DIGEST_GROUP = "digest"
cases(
    DIGEST_GROUP,
    (*CORRUPT, *FORMAT),
    "/out: ",
    "flat",
    first=flipped("a/out"),
    last=flipped("b/out"),
    of_other_bytes=note(place=1, count=2, digest=f"crc32:{zlib.crc32(b'else'):08x}"),
    by_an_unknown_algorithm=note(place=1, count=2, digest="md7:00"),
    swapped_blobs=lambda path: (path / "b/out").write_bytes(FLAT["a"].tobytes()[-8:]),
)
cases(DIGEST_GROUP, CORRUPT, "big/out: ", "indexed", large=flipped("big/out"))
cases(
    DIGEST_GROUP,
    CORRUPT,
    "b/meta: (its text has changed|a field)",
    "flat",
    seal_of_nothing=text(meta_text((2,)) + b'# fastckpt: {"place":1,"count":2,"self":"crc32:00000000"}\n'),
    seal_by_an_unknown_algorithm=text(meta_text((2,)) + b'# fastckpt: {"place":1,"count":2,"self":"md7:00"}\n'),
    no_seal_under_an_unknown_field=note(place=1, count=2, sealed="crc32:00000000"),
)
cases(
    "marker that lies",
    CORRUPT,
    "/snapshot_done: its text has changed",
    "flat",
    seal_of_nothing=marker(PREFIX + b'"version":1,"count":2,"self":"crc32:00000000"}\n'),
    seal_is_no_text=marker(PREFIX + b'"version":1,"count":2,"self":"' + b"9" * 100_000 + b'"}\n'),
)

# ---- zero-sized ----

cases(
    "no elements",
    CORRUPT,
    "b/out: meta wants 0 bytes, file has 8",
    one=dims(0),
    among_large=dims(0, 2**40),
    largest=dims(0, 2**60),
    sixty_four=dims(*[0] * 64),
)


def emptied(*shape: int) -> Callable[[Path], object]:
    return lambda path: [dims(*shape)(path), os.truncate(path / "b/out", 0)]


WELL = "no elements that load"
cases(WELL, {"a", "b"}, "", one=emptied(0), among_large=emptied(0, 2**40), two=emptied(3, 0, 0), first=emptied(0, 7))


def read_case(folder: Path, case: Case, way: str) -> tuple[list[str] | None, str, str, list[str]]:
    """Give the keys that load, or the error's class and text; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys, kind, said = None, "", ""
        try:
            found = WAYS[way](folder, case.base)
            keys = None if way == "load_into" else [*found]
        except Exception as problem:  # noqa: BLE001  # whatever it is, it is what is asked for
            kind, said = type(problem).__name__, str(problem)
    return keys, kind, said, [str(warning.message) for warning in caught]


def build(folder: Path, case: Case) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "snapshot"
    BASES[case.base](path)
    case.harm(path)
    return path


def main(folder: Path, memory: int) -> None:
    paths = [build(folder / str(at), case) for at, case in enumerate(CASES) if runnable(case)]
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    told = {}
    for path, case in zip(paths, filter(runnable, CASES), strict=True):
        told[f"{case.group}/{case.name}"] = {way: read_case(path, case, way) for way in WAYS}
    json.dump(told, sys.stdout)


def runnable(case: Case) -> bool:
    """Devices are made by root alone."""
    return "device" not in case.name or os.geteuid() == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
