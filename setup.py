"""The one extension and its switches; everything else about the package is in pyproject.toml.

Environment: FASTCKPT_SANITIZE=address,undefined  FASTCKPT_WERROR=1  FASTCKPT_DEBUG=1  FASTCKPT_COVERAGE=1
"""

from __future__ import annotations

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("FASTCKPT_SANITIZE", "")
COVERAGE = os.environ.get("FASTCKPT_COVERAGE") == "1"


def switches() -> tuple[list[str], list[str]]:
    """Flags of the compiler and of the linker."""
    compile_args = ["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden"]
    link_args: list[str] = []
    if os.environ.get("FASTCKPT_WERROR") == "1":
        compile_args.append("-Werror")
    if SANITIZE:
        link_args = [f"-fsanitize={SANITIZE}"]
        compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", *link_args]
    elif COVERAGE or os.environ.get("FASTCKPT_DEBUG") == "1":
        compile_args += ["-O0", "-g"]
    else:
        compile_args.append("-O2")
    if COVERAGE:
        compile_args.append("--coverage")
        link_args.append("--coverage")
    return compile_args, link_args


compile_args, link_args = switches()
core = Extension(
    "fastckpt._core",
    ["fastckpt/_core.pyx", *sorted(glob("csrc/*.c"))],
    include_dirs=["csrc"],
    depends=sorted([*glob("csrc/*.h"), *glob("fastckpt/*.pxi")]),
    define_macros=[
        ("_GNU_SOURCE", None),
        ("_FILE_OFFSET_BITS", "64"),
        *([("CYTHON_TRACE_NOGIL", "1")] if COVERAGE else []),
    ],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
# Traced C is made anew: its date alone would not tell Cython that the switch was turned.
setup(ext_modules=cythonize([core], compiler_directives={"linetrace": COVERAGE}, force=COVERAGE))
