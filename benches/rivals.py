"""Paired timing against safetensors: GPT-2's shapes (148 tensors, 498 MB), the two taking turns in the same hour.

    python benches/rivals.py [--rounds 20] [--dir DIR]

Each side runs in its own process; the two take turns, and the ratio is taken round by round. First the saves, then the
loads. Saves are durable: safetensors' file and folder are fsynced after ``save_file``, as its users must do by hand.
Every round has fresh random values and a new target, and nothing is deleted before the end (1 GB a round), because ext4
steps over inodes that were just freed and whoever came after a deletion would pay for it; but what was written leaves
the page cache, so that there is room. Loads are warm (read once before the first) and lazy: to a dict of torch tensors,
untouched.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastckpt.bench.measuring import evict, warm
from fastckpt.bench.workloads import find


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    kept = work()
    end = time.perf_counter()
    del kept
    return end - begin


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def serve(side: str, folder: Path) -> None:
    """Child: obey "save N" and "load N" from standard input, and answer with seconds."""
    import safetensors.torch
    import torch

    import fastckpt

    torch.set_num_threads(1)
    shapes = find("gpt2", "full").shapes
    state: dict[str, torch.Tensor] = {}
    warmed: set[Path] = set()
    target = folder

    def save() -> None:
        if side == "fastckpt":
            fastckpt.save(state, target)
        else:
            safetensors.torch.save_file(state, target)
            _sync(target)
            _sync(folder)

    def load() -> object:
        return fastckpt.load(target) if side == "fastckpt" else safetensors.torch.load_file(target)

    for line in sys.stdin:
        if line.strip() == "save":
            evict(target)
            state = {name: torch.randn(shape) for name, shape in shapes.items()}
            target = folder / f"{side}-{len(list(folder.iterdir()))}"
            os.sync()
            time.sleep(0.5)
            print(_timed(save), flush=True)
        else:
            if target not in warmed:
                warm(target)
            warmed.add(target)
            print(_timed(load), flush=True)


def measure(rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by what was done and by whom."""
    sides = ("fastckpt", "safetensors")
    children = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", side, "--dir", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in sides
    }
    seconds: dict[str, dict[str, list[float]]] = {"save": {s: [] for s in sides}, "load": {s: [] for s in sides}}
    for what in ("save", "load"):
        for round_ in range(rounds + 1):
            for side in sides if round_ % 2 else reversed(sides):
                took = _ask(children[side], what)
                if round_:  # the first round warms memory and imports
                    seconds[what][side].append(took)
    for child in children.values():
        child.communicate()
    return seconds


def _ask(child: subprocess.Popen[str], what: str) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(what + "\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def main() -> None:
    """Print medians and the median of the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dir", type=Path, default=None, help="where to write")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.dir)
        return
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="fastckpt-bench-") as folder:
        seconds = measure(options.rounds, Path(folder))
    if options.json:
        print(json.dumps(seconds))
        return
    for what, sides in seconds.items():
        ours, theirs = sides["fastckpt"], sides["safetensors"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        spread = [f"{min(s) * 1e3:.1f}..{max(s) * 1e3:.1f}" for s in (ours, theirs)]
        print(
            f"{what}: fastckpt {statistics.median(ours) * 1e3:.1f} ms ({spread[0]}), "
            f"safetensors {statistics.median(theirs) * 1e3:.1f} ms ({spread[1]}), ratio {ratio:.2f} "
            f"(median of {len(ours)} pairs; below 1 is faster)"
        )


if __name__ == "__main__":
    main()
