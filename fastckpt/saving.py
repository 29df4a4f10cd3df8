"""save(): an object becomes a snapshot."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Any

from fastckpt import parallel, tree
from fastckpt.codec import KINDS
from fastckpt.commit import staging
from fastckpt.errors import UnsupportedError
from fastckpt.plan import WriteItem, WritePlan
from fastckpt.staging import Stage

__all__ = ["save"]

_SYNC_EACH = 1024  # tensors; above, one sync of the whole file system beats three a tensor
_WRITERS = 8  # threads: most of their time is waiting for the device


def save(
    obj: Any,
    path: str | os.PathLike[str],
    global_dst_rank: int | None = None,
    save_as_external_data: bool | None = None,  # noqa: ARG001
    *,
    threads: int | None = None,
    index: bool = False,
    overwrite: bool = True,
    **foreign: Any,
) -> None:
    """Save a model or a whole training state as the folder `path`, durably and all or nothing.

    Parameters
    ----------
    obj : dict, torch.nn.Module or nested object
        A flat dict of tensors or arrays; a module (its ``state_dict()`` is saved); or any nesting of dict, OrderedDict,
        list, tuple, NamedTuple and set with tensors, arrays and plain values (None, bool, int, float, complex, str,
        bytes, numpy scalars, torch dtypes, devices and sizes, paths, dates, enum members).
    path : str or os.PathLike
        Folder to create in an existing folder. A snapshot that is there is replaced in one step.
    global_dst_rank : int, optional
        OneFlow's argument; this process writes everything, so only None and 0 are allowed.
    save_as_external_data : bool, optional
        OneFlow's argument; either way every tensor gets its own folder.
    threads : int, optional
        Threads that write; 8 by default, since they mostly wait for the device.
    index : bool
        Put copies of the metas and of small tensors into ``snapshot_done``. A nested object always gets them.
    overwrite : bool
        False: refuse when `path` exists.

    Raises
    ------
    UnsupportedError
        Something in `obj` cannot be stored; the message says where it sits. Nothing was written.
    NotCommittedError, FormatError
        `path` exists and is no snapshot; it is left as it is.
    CommitUncertain
        The new snapshot is in place, but the system failed to confirm that it is durable.
    OSError
        What the system refused, with errno and path. The snapshot that was there is untouched.

    Notes
    -----
    The layout is OneFlow's (``oneflow.save`` up to 0.5); the order of the commit stands in ``fastckpt.commit``.
    """
    _check_arguments(path, global_dst_rank, foreign)
    plan = _plan(KINDS.state_of(obj), index)
    sync_each = len(plan.items) <= _SYNC_EACH
    with staging(os.fspath(path), overwrite=overwrite) as stage:
        _write(plan, stage, threads or _WRITERS, sync_each)
        stage.seal(itertools.chain([plan.marker], plan.small_blobs()), sync_all=not sync_each)


def _plan(obj: Any, index: bool) -> WritePlan:
    leaves, record = tree.flatten(obj, KINDS)
    return WritePlan.of(leaves, record, flat=tree.is_flat(obj, KINDS), index=index)


def _write(plan: WritePlan, stage: Stage, threads: int, sync: bool) -> None:
    """Write every tensor, the largest first, so that no thread is left alone with one at the end; then the ties."""
    own = [item for item in plan.items if item.twin is None]
    own.sort(key=lambda item: item.blob.nbytes, reverse=True)
    parallel.run(lambda item: _write_one(item, stage, sync), own, threads)
    for item in plan.items:
        if item.twin is not None and not stage.link_tensor(item.folder, item.meta, item.twin, sync=sync):
            _write_one(item, stage, sync)


def _write_one(item: WriteItem, stage: Stage, sync: bool) -> None:
    stage.write_tensor(item.folder, item.meta, item.pieces(), item.blob.nbytes, sync=sync)


def _check_arguments(path: object, rank: int | None, foreign: dict[str, Any]) -> None:
    if hasattr(path, "write"):
        raise UnsupportedError("a snapshot is a folder, not a file-like object: pass the path of a folder")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or os.PathLike, not {type(path).__name__}")
    if not os.fspath(path):  # which would be the current folder
        raise FileNotFoundError(errno.ENOENT, "an empty path", path)
    if rank not in (None, 0):
        raise UnsupportedError(f"global_dst_rank={rank}: one process writes the whole snapshot; call save on it alone")
    for name in foreign:
        if name in ("pickle_module", "pickle_protocol", "_use_new_zipfile_serialization"):
            raise UnsupportedError(f"{name}: nothing is pickled here; leave it out")
        raise TypeError(f"save() has no argument {name!r}")
