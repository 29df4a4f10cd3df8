"""What others' files may look like after a crash: the same look at the same kind of save, new over old.

As a program it is the process that is traced: ``python -m faults.peers PEER PATH``. What is found here is no failure
of this check: none of them promises more, and the model is weaker than any file system.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import commit_rig as rig
import numpy as np

import fastckpt
from faults.crash_model import Trees, states
from faults.crash_states import Labels, allowed
from faults.disk_model import Model
from faults.replica import Replica
from faults.tracing import BEGIN, END, mark, record
from faults.verdict import Skip, Verdict, need_programs

ABOUT = "what torch.save, safetensors and torch's distributed checkpoint leave behind in the same crashes (no failure)"

__all__ = ["PEERS", "Peer", "run", "seen"]

_SAMPLES = 100
_WORST = ("loads, and is none of the versions", "refused", "the old one, though save had returned", "")


def tensors(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {f"t{at}": random.integers(0, 256, 20_000, np.uint8) for at in range(3)}


OLD, NEW = tensors(1), tensors(2)


@dataclass(frozen=True)
class Peer:
    """A library: how it saves numpy arrays at a path, and gives them back."""

    save: Callable[..., None]
    load: Callable[[Path], dict[str, Any]]


def _torch_save(arrays: dict[str, Any], path: Path) -> None:
    import torch

    torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, path)


def _torch_replace(arrays: dict[str, Any], path: Path, *, sync: bool = False) -> None:
    """As many programs do: to another name, then over the old one; `sync`: as few do."""
    new = path.with_name("new")
    _torch_save(arrays, new)
    if sync:
        _sync(new)
    os.replace(new, path)
    if sync:
        _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _torch_load(path: Path) -> dict[str, Any]:
    import torch

    return {key: tensor.numpy() for key, tensor in torch.load(path).items()}


def _safetensors_save(arrays: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _safetensors_load(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _dcp_save(arrays: dict[str, Any], path: Path) -> None:
    import torch
    from torch.distributed import checkpoint

    checkpoint.save({key: torch.from_numpy(array) for key, array in arrays.items()}, checkpoint_id=path, no_dist=True)


def _dcp_load(path: Path) -> dict[str, Any]:
    import torch
    from torch.distributed import checkpoint

    found = {key: torch.zeros(len(array), dtype=torch.uint8) for key, array in NEW.items()}
    try:
        with redirect_stderr(io.StringIO()):
            checkpoint.load(found, checkpoint_id=path, no_dist=True)
    except checkpoint.api.CheckpointException as problem:  # no Exception, but a BaseException
        raise OSError(str(problem)) from None
    return {key: tensor.numpy() for key, tensor in found.items()}


PEERS = {
    "fastckpt": Peer(fastckpt.save, rig.loaded),
    "torch.save": Peer(_torch_save, _torch_load),
    "torch.save, os.replace": Peer(_torch_replace, _torch_load),
    "torch.save, fsync, os.replace, fsync": Peer(partial(_torch_replace, sync=True), _torch_load),
    "safetensors": Peer(_safetensors_save, _safetensors_load),
    "torch.distributed.checkpoint": Peer(_dcp_save, _dcp_load),
}


def run(scale: float) -> Verdict:
    need_programs("strace")
    figures = {}
    for name in PEERS:
        try:
            outcomes = seen(name, max(5, int(_SAMPLES * scale)))
        except ImportError as missing:
            figures[name] = f"skipped: {missing}"
            continue
        bad = sum(count for what, count in outcomes.items() if what in _WORST)
        figures[name] = f"{sum(outcomes.values())} states, {bad} wrong {dict(outcomes)}"
        print(f"  {name}: {figures[name]}", flush=True)
    if not figures:
        raise Skip("none is installed")
    return Verdict(figures, ["fastckpt: see crash_states"] if "0 wrong" not in figures["fastckpt"] else [])


def seen(name: str, samples: int) -> Counter[str]:
    """Trace a save of NEW over OLD, and count what its states are to the library's own loader."""
    peer, outcomes, labels = PEERS[name], Counter[str](), dict[int, int | str]()
    with rig.fast_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = folder / "watched" / "s"
        path.parent.mkdir()
        peer.save(OLD, path)
        model = Model(path.parent)
        record(["faults.peers", name, str(path)], folder / "log")
        model.replay(folder / "log")
        replica, trees, say = Replica(folder), Trees(model), Labels((OLD, NEW), peer.load)
        looked: set[tuple[int, bool]] = set()
        for state in states(model, samples=samples):
            tree = trees.of(state)
            key = hash(frozenset(tree.items()))
            wanted = allowed(model.marks[: state.marks])
            if key not in labels:
                replica.become(tree)
                labels[key] = say.of(replica.path / "s")
            if (key, 0 in wanted) not in looked:
                looked.add((key, 0 in wanted))
                outcomes[_word(labels[key], wanted)] += 1
    return outcomes


def _word(label: int | str, wanted: set[int]) -> str:
    if isinstance(label, str):
        return label.partition(":")[0]
    if label not in wanted:
        return "the old one, though save had returned"
    return "new" if label else "old"


def main(name: str, path: str) -> None:
    with rig.fast_folder() as elsewhere:  # what is imported and started late is no part of it
        PEERS[name].save(OLD, elsewhere / "s")
    mark(BEGIN)
    mark("began", 1)
    PEERS[name].save(NEW, Path(path))
    mark("acked", 1)
    mark(END)


if __name__ == "__main__":
    main(*sys.argv[1:])
