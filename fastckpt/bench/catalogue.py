"""Who takes part, and at what: the names that the parent plans with, without importing anybody."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEEPING", "KEPT", "LIMIT", "LIMITS", "QUICK", "RIVALS", "SAVES", "Rival", "takes_part"]
__all__ += ["BARE", "INDEXED", "OURS", "OWN", "VERIFIED"]

OURS, INDEXED, VERIFIED, BARE = "fastckpt", "fastckpt-index", "fastckpt-verify", "fastckpt-bare"
OWN = (OURS, INDEXED, VERIFIED, BARE)
LIMIT = "limit"  # the name under which limits stand among the rivals' results,
KEPT = "limit-kept"  # and what the bare work reaches where a limit is not that: see `KEEPING`
_PLAIN = frozenset({"save_durable", "save", "train_durable"})
SAVES = _PLAIN | {"save_async", "train_async"}
_LOADS = frozenset({"load", "touch", "cold", "into", "into_cold"})
_PARTS = frozenset({"one", "rows"})
_GPU = frozenset({"gpu", "gpu_cold"})

#: What is measured beside an operation, in the same rounds: the limit that it is compared with.
LIMITS = {
    "save_durable": "direct_write",
    "save": "cached_write",
    "save_async": "memcpy",
    "load": "opens",
    "cold": "direct_read",
    "into": "memcpy",
    "into_cold": "direct_read",
    "gpu": "pinned",
    "gpu_cold": "direct_read",
}


#: Operations that have a limit KEPT too: our folders and files made in C, durably or not; and the device's with memory
#: for all of it, where that uses the same few buffers again and again, but for many small files.
KEEPING = {"save_durable": "files", "save": "cached_files", "cold": "direct_read_kept"}


@dataclass(frozen=True)
class Rival:
    """One side of the comparison.

    Attributes
    ----------
    name, title : str
        What it is called in options and in tables.
    module, package : str
        What it needs, and who brings that.
    family : str
        Whose files it reads: those that the rival of that name saved.
    ops : frozenset of str
        What it can do.
    syncs : bool
        Whether its save is durable without help, so that it is measured with and without.
    many : bool
        Whether it makes files for each tensor.
    """

    name: str
    title: str
    module: str
    package: str
    family: str
    ops: frozenset[str]
    syncs: bool = False
    many: bool = False


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(
            "fastckpt",
            "fastckpt",
            "torch",
            "torch",
            "fastckpt",
            SAVES | _LOADS | _PARTS | _GPU,
            syncs=True,
            many=True,
        ),
        Rival(
            "fastckpt-index",
            "fastckpt, indexed",
            "torch",
            "torch",
            "fastckpt-index",
            frozenset({"save_durable", "load", "touch", "cold"}),
            syncs=True,
            many=True,
        ),
        Rival(
            "fastckpt-verify",
            "fastckpt, digests checked",
            "torch",
            "torch",
            "fastckpt",
            frozenset({"cold"}),
        ),
        Rival(
            "fastckpt-bare",
            "fastckpt, without digests",
            "torch",
            "torch",
            "fastckpt",
            frozenset({"save_durable"}),
            syncs=True,
            many=True,
        ),
        Rival(
            "safetensors",
            "safetensors",
            "safetensors",
            "safetensors",
            "safetensors",
            _PLAIN | _LOADS | _GPU,
        ),
        Rival("safe_open", "safetensors, safe_open", "safetensors", "safetensors", "safetensors", _LOADS | _PARTS),
        Rival("torch", "torch", "torch", "torch", "torch", _PLAIN | _LOADS | _GPU),
        Rival("torch-mmap", "torch, mmap", "torch", "torch", "torch", _LOADS | _PARTS),
        Rival("dcp", "torch DCP", "torch", "torch", "dcp", SAVES | _LOADS, syncs=True),
        Rival("dcp-kept", "torch DCP, its copy kept", "torch", "torch", "dcp", frozenset({"save_async"}), syncs=True),
        Rival(
            "tensordict",
            "tensordict memmap",
            "tensordict",
            "tensordict",
            "tensordict",
            _PLAIN | _LOADS | _PARTS,
            many=True,
        ),
        Rival("fastsafetensors", "fastsafetensors", "fastsafetensors", "fastsafetensors", "safetensors", _LOADS | _GPU),
        Rival("prefetch", "safetensors, prefetch", "safetensors", "safetensors", "safetensors", _GPU),
        Rival("instanttensor", "InstantTensor", "instanttensor", "instanttensor", "safetensors", _GPU),
        Rival(
            "numpy",
            "numpy, a .npy each",
            "numpy",
            "numpy",
            "numpy",
            _PLAIN | _LOADS | _PARTS,
            many=True,
        ),
    )
}


#: Who takes part in a quick run, where nobody is named.
QUICK = ("fastckpt", "fastckpt-index", "safetensors", "safe_open", "torch", "dcp")


def takes_part(rival: Rival, op: str, named: tuple[str, ...]) -> bool:
    """Say whether a rival is measured at an operation of a workload that names some rivals, or nobody for all."""
    return op in rival.ops and (not named or rival.name in named)
