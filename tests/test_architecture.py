"""ARCHITECTURE.md's rules as tests: who may import whom, who may touch the disk, how long things may get."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastckpt"

#: Top to bottom. A module may import what stands on a lower line, or further right on its own.
LAYERS = (
    ("__main__",),
    ("cli", "cli_checking", "cli_doctor", "software"),
    (
        *("bench.command", "bench.plots", "bench.table", "bench.report", "bench.figures", "bench.bars"),
        *("bench.verdict", "bench.running", "bench.results", "bench.room", "bench.children", "bench.machine"),
        *("bench.worker", "bench.rivals", "bench.states", "bench.training", "bench.limits", "bench.floors"),
        *("bench.measuring", "bench.workloads", "bench.catalogue", "bench"),
    ),
    ("rendering", "documents", "nodetext"),
    ("torch", "torch.tensors", "torch.pinned"),
    ("__init__",),
    (
        *("salvaging", "salvaged", "background", "saving", "filling", "diffing", "outline", "snapshot", "loading"),
        *("making", "quick"),
        *("lazy", "warming", "verifying", "checking", "sending", "fetching", "mapping"),
        *("doctor", "measuring", "trials", "probing", "choosing", "contents"),
    ),
    (
        *("arena", "writing", "ways", "folders", "pickled", "opening", "indexed"),
        *("commit", "target", "staging", "handles", "plan", "overlaps"),
    ),
    ("ring", "parallel", "rooms", "garbage"),
    ("comparing", "codec", "arrays", "blobs", "lanes", "slicing", "entries", "marker", "problems", "digests"),
    ("oneflow", "picklevalues", "picklearrays", "pickles", "pickletext", "picklenodes"),
    ("tree", "decoding", "encoding", "places", "values", "moments", "texts", "classes"),
    ("meta", "seals", "metatext", "layout", "dtypes", "filesystems", "memory", "errors"),
    ("_core",),
)
ORDER = tuple(name for layer in LAYERS for name in layer)
BENCH_EDGES = {
    f"bench.{name}" for name in ("command", "plots", "table", "worker", "rivals", "states", "training", "limits")
}
EDGES = {
    "__main__",
    "cli",
    "cli_checking",
    "cli_doctor",
    "software",
    "rendering",
    "torch",
    "torch.tensors",
    "torch.pinned",
} | BENCH_EDGES
OPTIONAL = {"torch", "click", "rich", "matplotlib", "safetensors", "tensordict", "fastsafetensors"}
PURE = {"plan", "overlaps", "marker", "entries", "blobs", "lanes", "slicing", "layout", "metatext", "dtypes", "errors"}
PURE |= {f"bench.{name}" for name in ("bars", "catalogue", "figures", "report", "results", "verdict", "workloads")}
PURE |= {*LAYERS[-3], *LAYERS[-4]}
LOADS_BY_NAME = {"codec", "arrays", "bench.machine"}  # reaches others through importlib, when a program asks for them
DISK_WRITERS = {"commit", "staging"}
DISK_TRIALS = {"trials"}  # `fastckpt doctor` tries in a folder what it can do; test_doctor.py: nothing stays behind
BENCH_WRITERS = {f"bench.{name}" for name in ("command", "plots", "room", "limits", "floors", "rivals", "children")}
BENCH_WRITERS |= {"bench.measuring"}
OS_CHANGES = {
    *("rename", "renames", "replace", "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "mkfifo"),
    *("mknod", "link", "symlink", "truncate", "ftruncate"),
}
PATH_CHANGES = {
    *("unlink", "rmdir", "mkdir", "touch", "rename", "write_bytes", "write_text", "symlink_to", "hardlink_to"),
}
CORE_CHANGES = {"write", "write_tensors", "renameat2"}

MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/__init__", "").replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LONGEST = {".py": 300, ".pyx": 350, ".pxi": 350, ".c": 350, ".h": 350}
C_FILES = sorted((ROOT / "csrc").glob("*.[ch]"))


def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(), MODULES[name].name)


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere, `from package import name` as package.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(imported: str) -> str | None:
    """Our module that an import reaches: fastckpt.meta.Meta -> meta."""
    head, _, rest = imported.partition(".")
    if head != "fastckpt":
        return None
    parts = rest.split(".")
    longest = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in longest if name in ORDER), "__init__")


def changes_disk(node: ast.AST) -> bool:
    """Tell whether a piece of code creates, renames or deletes."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        module = getattr(node, "module", None)
        return any(name in ("shutil", "tempfile") for name in (module, *(alias.name for alias in node.names)))
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else None
        if owner in ("os", "_core"):
            return node.attr in (OS_CHANGES | {"O_CREAT"} if owner == "os" else CORE_CHANGES)
        return node.attr in PATH_CHANGES
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = next((k.value for k in node.keywords if k.arg == "mode"), node.args[1] if node.args[1:] else None)
            return mode is not None and not (isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rbt"))
        if ast.unparse(node.func) == "_core.File":  # as a type it is only named
            return True
        # str.replace takes two arguments, dataclasses.replace keywords: one alone is Path's
        return (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "replace"
            and len(node.args) == 1 > len(node.keywords)
        )
    return False


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    assert name in ORDER, f"give {name} a place in LAYERS"
    layer = next(layer for layer in LAYERS if name in layer)
    allowed = set(ORDER[ORDER.index(layer[-1]) + 1 :]) | set(layer[layer.index(name) + 1 :])
    assert {module for module in map(ours, imports_of(parsed(name))) if module} <= allowed


@pytest.mark.parametrize("name", sorted(set(MODULES) - EDGES))
def test_options_stay_at_the_edges(name: str) -> None:
    found = set(imports_of(parsed(name)))
    assert not {module for module in found if module.partition(".")[0] in OPTIONAL}
    assert name in LOADS_BY_NAME or not {module for module in found if module.startswith("importlib")}
    calls = {node.id for node in ast.walk(parsed(name)) if isinstance(node, ast.Name)}
    assert not calls & {"__import__", "eval", "exec"}


@pytest.mark.parametrize("name", sorted(PURE & set(MODULES)))
def test_decisions_have_no_door_to_the_disk(name: str) -> None:
    found = {
        module.partition(".")[0] if not module.startswith("fastckpt") else ours(module)
        for module in imports_of(parsed(name))
    }
    assert not found & {"os", "io", "_core", "commit", "staging"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - DISK_WRITERS - DISK_TRIALS - BENCH_WRITERS))
def test_only_commit_changes_the_disk(name: str) -> None:
    assert [ast.unparse(node) for node in ast.walk(parsed(name)) if changes_disk(node)] == []


def test_no_save_or_load_reaches_what_only_tries() -> None:
    reaching = set(DISK_TRIALS)
    for name in reversed([name for name in ORDER if name in MODULES]):
        if reaching & {*map(ours, imports_of(parsed(name)))}:
            reaching.add(name)
    assert {"doctor", "cli"} <= reaching
    assert not reaching & {"__init__", "saving", "loading", "filling", "snapshot", "verifying", "commit", "torch"}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("os.rename(a, b)", True),
        ("from os import path; import shutil", True),
        ("from shutil import rmtree", True),
        ("folder.unlink()", True),
        ("here.replace(there)", True),
        ("open(p, 'wb')", True),
        ("open(p, mode=how)", True),
        ("os.open(p, os.O_RDWR | os.O_CREAT)", True),
        ("_core.renameat2(a, b, c, d, 0)", True),
        ("return _core.File(fd, name, 3)", True),
        ("def finish(file: _core.File) -> None: file.finish()", False),
        ("open(p, 'rb').read(); open(p)", False),
        ("name.replace('a', 'b'); dataclasses.replace(meta, name='x')", False),
        ("_core.map_files(a, b, c); os.stat(a)", False),
    ],
)
def test_the_check_itself_sees_changes(code: str, changes: bool) -> None:
    assert any(map(changes_disk, ast.walk(ast.parse(code)))) is changes


IMPORT_EACH_ALONE = """
import importlib, os, sys, types
edges, names = sys.argv[2].split(","), sys.argv[3:]
bad = []
for name in names:
    pid = os.fork()
    if pid == 0:
        if names.index(name) > names.index("__init__"):  # without the package's own file, which imports all of them
            sys.modules["fastckpt"] = types.ModuleType("fastckpt")
            sys.modules["fastckpt"].__path__ = [sys.argv[1]]
        importlib.import_module("fastckpt" if name == "__init__" else "fastckpt." + name)
        extra = {"torch", "click", "rich", "ml_dtypes", "matplotlib", "safetensors"} & set(sys.modules)
        os._exit(len(extra) if name not in edges else 0)
    if os.waitpid(pid, 0)[1]:
        bad.append(name)
sys.exit(", ".join(bad) or 0)
"""


def test_each_module_imports_alone_without_warnings_and_options() -> None:
    names = [name for name in ORDER if name in MODULES or name == "_core"]
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH_ALONE, str(PACKAGE), ",".join(EDGES), *names]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_c_knows_nothing_of_python_or_torch() -> None:
    includes = {f"{path.name}: {line}" for path in C_FILES for line in re.findall(r"#\s*include.*", path.read_text())}
    assert includes
    assert not {line for line in includes if re.search(r"Python\.h|numpy|cuda|torch|c10|ATen", line, re.IGNORECASE)}


@pytest.mark.parametrize(
    "path",
    [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxi"), *C_FILES],
    ids=lambda path: path.name,
)
def test_files_stay_short(path: Path) -> None:
    text = path.read_text()
    if path.suffix in (".pyx", ".pxi"):  # its docstrings are to it what a header is to a C file
        text = re.sub(r'^ *""".*?"""\n', "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= LONGEST[path.suffix]


@pytest.mark.parametrize("path", [*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxi")], ids=lambda path: path.name)
def test_lists_of_cython_grow_by_append(path: Path) -> None:
    """Comprehensions of Cython 3.3 let go twice of an item, when there is no memory for the list to grow."""
    assert not re.findall(r"\[[^\[\]]*\bfor\b[^\[\]]*\bin\b", path.read_text())


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def python_functions() -> Iterator[tuple[str, int]]:
    """Name and lines of every function, its docstring not counted."""
    for name in MODULES:
        for node in ast.walk(parsed(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[0]
                doc = lines_of(first) if ast.get_docstring(node) is not None else 0
                yield f"{name}.{node.name}", lines_of(node) - doc


def c_functions() -> Iterator[tuple[str, int]]:
    """File and lines of every C function body: its braces stand alone in the first column."""
    for path in C_FILES:
        for body in re.findall(r"^\{\n.*?^\}$", path.read_text(), re.MULTILINE | re.DOTALL):
            yield path.name, body.count("\n") + 1


def test_functions_stay_short() -> None:
    lengths = [*python_functions(), *c_functions()]
    assert [function for function in lengths if function[1] > 40] == []
    assert statistics.median(length for _, length in python_functions()) <= 10
