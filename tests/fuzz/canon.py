"""The C that parses metas and tables of indices, under libFuzzer with the address and undefined behaviour sanitizers.

Every input that libFuzzer kept is parsed in Python too: what C accepts, the tolerant parser must accept as the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from faults.verdict import Skip, Verdict, need_programs

from fastckpt import _core, meta
from fastckpt.dtypes import BY_NAME
from fastckpt.errors import FormatError

ABOUT = "no input makes the C parser fail, or accept what Python reads otherwise"

ROOT = Path(__file__).resolve().parents[2]
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
        ["a", text.decode(), found.nbytes, None if at % 3 else 64 * at]
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
    done = subprocess.run(
        ["clang", *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", target], check=False, capture_output=True, text=True
    )
    if "libclang_rt.fuzzer" in done.stderr:
        raise Skip("needs clang's fuzzer runtime (libclang-rt-14-dev or later)")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return target


def differences(inputs: Iterable[bytes]) -> list[str]:
    """Inputs that C accepts and Python does not, or as something else."""
    found = []
    for data in inputs:
        if _core.parse_meta(data) is None:
            continue
        told = []
        for parse in (meta.parse, meta.parse_text):
            try:
                told.append(repr(parse(data, "meta")))
            except FormatError:
                told.append("refused")
        if told[0] != told[1]:
            found.append(f"{data!r}: {told[0]} by C, {told[1]} by Python")
    return found


def run(seconds: float) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-canon-"))
    try:
        target, corpus = build(folder), folder / "corpus"
        corpus.mkdir()
        for at, text in enumerate(samples()):
            (corpus / str(at)).write_bytes(text)
        (folder / "dictionary").write_text(DICTIONARY)
        limits = [
            "-timeout=1",
            "-rss_limit_mb=2048",
            "-malloc_limit_mb=64",
            "-max_len=1024",
            f"-max_total_time={max(1, round(seconds))}",
        ]
        environment = {
            name: value for name, value in os.environ.items() if name != "LD_PRELOAD"
        }  # it has its own runtime
        done = subprocess.run(
            [target, *limits, f"-dict={folder / 'dictionary'}", "-print_final_stats=1", corpus],
            cwd=folder,
            env={**environment, "ASAN_OPTIONS": "quarantine_size_mb=16"},
            check=False,
            capture_output=True,
            text=True,
        )
        executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        violations = [] if done.returncode == 0 else [done.stderr[-2000:]]
        inputs = [path.read_bytes() for path in corpus.iterdir()]
        violations += differences(inputs)
        return Verdict({"executions": int(executed[1]) if executed else 0, "inputs kept": len(inputs)}, violations)
    finally:
        shutil.rmtree(folder)
