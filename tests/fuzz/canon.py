"""The C that parses metas and tables of indices, under libFuzzer with the address and undefined behaviour sanitizers.

Every input that libFuzzer kept is parsed in Python too: what C accepts, the tolerant parser must accept as the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from faults.verdict import Skip, Verdict, need_programs

from fastckpt import _core, meta
from fastckpt.dtypes import BY_NAME, BY_NUMBER
from fastckpt.errors import FormatError
from fastckpt.marker import parse_index
from fuzz.limits import Limit, scratch

ABOUT = "no input makes the C parsers fail, or accept what Python reads otherwise"
USUAL = Limit(seconds=60)

ROOT = Path(__file__).resolve().parents[2]
ASAN_OPTIONS = "quarantine_size_mb=1:thread_local_quarantine_size_kb=64:malloc_context_size=0"  # small, so fast
#: The longest inputs, and the share of those; short ones are tried twice as fast, and 64 dims need 600 bytes.
LENGTHS = {256: 0.6, 768: 0.4}
DICTIONARY = r"""
"shape {\x0a"
"  dim: "
"}\x0adata_type: "
"# fastckpt: "
"{\"place\":"
",\"count\":"
",\"digest\":\"crc32:"
"9223372036854775807"
"576460752303423487"
",\"self\":\"crc32:"
"[[\""
"\",\""
"\\\\n"
",null],[\""
"]]\x0a"
"kFloat\x0a"
"kComplex128\x0a"
"""


def samples() -> list[bytes]:
    """Metas as we write them, and what is hard to tell from them."""
    made = [meta.Meta(tuple(range(ndim)), dtype, 0, 3) for dtype in BY_NAME.values() for ndim in (0, 1, 3)]
    made += [found._replace(digest="crc32:0123abcd") for found in made]
    made += [meta.Meta((2,), BY_NAME["bool"], 1, 2, name="a/b", same_as="c"), meta.Meta((1,) * 64, BY_NAME["int8"])]
    texts = [meta.format_meta(found) for found in made]
    rows = [
        [f"a{at}", text.decode(), found.nbytes, None if at % 3 else 64 * at]
        for at, (text, found) in enumerate(zip(texts, made, strict=True))
    ]
    tables = [json.dumps(rows[at : at + 3], separators=(",", ":")).encode() + b"\n" for at in range(0, len(rows), 9)]
    return tables + texts + [text[:-1] for text in texts] + [text.replace(b"\n", b"\r\n") for text in texts]


def build(folder: Path) -> Path:
    """Make the fuzzer."""
    need_programs("clang")
    target = folder / "canon"
    sources = [ROOT / "tests/fuzz/canon.c", ROOT / "csrc/canon.c", ROOT / "csrc/table.c"]
    flags = ["-std=gnu11", "-O2", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-fno-sanitize-coverage=trace-cmp"]  # the dictionary has what is compared, at half the time
    done = subprocess.run(
        ["clang", *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", target], check=False, capture_output=True, text=True
    )
    if "libclang_rt.fuzzer" in done.stderr:
        raise Skip("needs clang's fuzzer runtime (libclang-rt-14-dev or later)")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return target


def fuzz(target: Path, corpus: Path, longest: int, limit: Limit) -> tuple[int, list[str]]:
    """Let libFuzzer add to the corpus; give how many inputs were tried, and what it said when one failed."""
    dictionary = target.with_name("dictionary")
    dictionary.write_text(DICTIONARY)
    options = [f"-dict={dictionary}", "-print_final_stats=1", "-rss_limit_mb=2048", "-malloc_limit_mb=64"]
    options += [f"-max_len={longest}"]
    options += [] if limit.runs is None else [f"-runs={limit.runs}"]
    options += [] if limit.seconds is None else [f"-max_total_time={max(1, round(limit.seconds))}"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # it has its own runtime
    done = subprocess.run(
        [target, *options, corpus],
        cwd=target.parent,
        env={**environment, "ASAN_OPTIONS": ASAN_OPTIONS},
        check=False,
        capture_output=True,
        text=True,
    )
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    return int(executed[1]) if executed else 0, [] if done.returncode == 0 else [done.stderr[-2000:]]


def differences(inputs: Iterable[bytes]) -> list[str]:
    """Inputs that C accepts and Python does not, or as something else."""
    found = []
    for data in inputs:
        for by_c, by_python in ((meta_by_c, meta_by_python), (table_by_c, table_by_python)):
            fast = told(by_c, data)
            if fast != "None" and fast != (slow := told(by_python, data)):
                found.append(f"{data!r}: {fast} by C, {slow} by Python")
    return found


def told(parse: Callable[[bytes], object], data: bytes) -> str:
    try:
        return repr(parse(data))
    except FormatError:
        return "refused"


def meta_by_c(data: bytes) -> object:
    return None if _core.parse_meta(data) is None else meta.parse(data, "meta")


def meta_by_python(data: bytes) -> object:
    return meta.parse_text(data, "meta")


def table_by_c(data: bytes) -> object:
    return _core.parse_table(data, meta.Meta, BY_NUMBER)


def table_by_python(data: bytes) -> object:
    """The same, with a text where C gave one."""
    rows = {entry.folder: entry for entry in parse_index(data, "index")}
    _, _, _, odd = _core.parse_table(data, meta.Meta, BY_NUMBER) or ((), (), (), [])
    metas = {f: row.meta if f in odd else meta.parse_text(row.meta, "meta") for f, row in rows.items()}
    copies = {f: row.copy_at for f, row in rows.items() if row.copy_at is not None}
    return metas, {f: row.nbytes for f, row in rows.items()}, copies, odd


def run(limit: Limit) -> Verdict:
    with scratch("fuzz-canon-") as folder:
        corpus = folder / "corpus"
        corpus.mkdir()
        for at, text in enumerate(samples()):
            (corpus / str(at)).write_bytes(text)
        target, executions, violations = build(folder), 0, []
        for longest, share in LENGTHS.items():
            tried, found = fuzz(target, corpus, longest, limit.part(share))
            executions, violations = executions + tried, violations + found
        inputs = [path.read_bytes() for path in corpus.iterdir()]
        violations += differences(inputs)
        return Verdict({"executions": executions, "inputs kept": len(inputs)}, violations)
