"""save(): an object becomes a snapshot."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fastckpt import parallel, tree
from fastckpt.codec import KINDS
from fastckpt.commit import staging
from fastckpt.errors import CheckpointError, UnsupportedError
from fastckpt.garbage import collector_at_rest
from fastckpt.handles import named
from fastckpt.plan import WritePlan
from fastckpt.staging import Stage
from fastckpt.ways import LARGE, way_for
from fastckpt.writing import Progress, write_items

__all__ = ["check_path", "plan_of", "save", "settle", "write_plan"]

_MANY_TENSORS = 100  # of whose metas a text is worth a thread
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPIES = 8  # MiB of copies of small tensors at most, which that thread makes as well


def save(
    obj: Any,
    path: str | os.PathLike[str],
    global_dst_rank: int | None = None,
    save_as_external_data: bool | None = None,  # noqa: ARG001
    *,
    threads: int | None = None,
    index: bool = False,
    overwrite: bool = True,
    durable: bool = True,
    digest: bool = True,
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
        Threads that write. By default as many as there are processors, and where there are large tensors up to 24, as
        they mostly wait for the device; without syncs 16 more for what the page cache cannot take without waiting.
    index : bool
        Put copies of the metas and of small tensors into ``snapshot_done``. A nested object always gets them.
    overwrite : bool
        False: refuse when `path` exists.
    durable : bool
        Return when the snapshot survives a power cut. False: when it is in the system's memory; it is still all or
        nothing for whoever looks, but a power cut within the next half a minute may leave a snapshot that is damaged
        or gone, the old one too.
    digest : bool
        Store CRC-32s of each tensor, each meta and the marker, which ``verify`` and ``load(verify=True)`` check.

    Raises
    ------
    UnsupportedError
        Something in `obj` cannot be stored; the message says where it sits. Nothing was written.
    NotCommittedError, FormatError
        `path` exists and is no snapshot; it is left as it is.
    BusyError
        This is a signal handler that has interrupted a save to the same path just when that replaces the old snapshot.
    CommitUncertain
        The new snapshot is in place, but the system failed to confirm that it is durable.
    OSError
        What the system refused, with errno and path. The snapshot that was there is untouched.

    Notes
    -----
    The layout is OneFlow's (``oneflow.save`` up to 0.5); the order of the commit stands in ``fastckpt.commit``. No
    other thread may change the object meanwhile: one that resizes a tensor takes the memory away that is being read.
    """
    check_path(path)
    parallel.check_threads(threads)
    _check_foreign(global_dst_rank, foreign)
    plan = plan_of(obj, index)
    settle(plan)
    write_plan(plan, path, threads=threads, overwrite=overwrite, durable=durable, digest=digest)


def plan_of(obj: Any, index: bool) -> WritePlan:
    """Decide what a save of `obj` writes; raises what `save` raises for it."""
    with collector_at_rest():
        obj = KINDS.state_of(obj)
        leaves, record = tree.flatten(obj, KINDS)
        return WritePlan.of(leaves, record, flat=tree.is_flat(obj, KINDS), index=index)


def settle(plan: WritePlan) -> None:
    """Wait until what the calling thread has asked of the tensors' devices is done: those that write do not wait."""
    for codec in {id(item.codec): item.codec for item in plan.items}.values():
        codec.settle([item.value for item in plan.items if item.codec is codec])


def write_plan(
    plan: WritePlan,
    path: str | os.PathLike[str],
    *,
    threads: int | None,
    overwrite: bool,
    durable: bool,
    digest: bool,
    progress: Progress | None = None,
) -> None:
    """Write it as `save` does, telling `progress` the bytes of each part when they are written."""
    path = os.fspath(path)
    with _room_told(path, plan.nbytes, len(plan.items)), staging(path, overwrite=overwrite, durable=durable) as stage:
        with named(stage.path):
            way = way_for(
                stage.fd,
                threads,
                durable=durable,
                digest=digest,
                tensors=len(plan.items),
                nbytes=plan.nbytes,
                large=plan.nbytes_above(LARGE),
            )
        texts = write_items(plan, stage, way, progress)
        make = partial(_marker, plan, stage.path, texts, seal=digest)
        waits = durable and not way.sync
        stage.seal(_while_synced(stage, make, long=plan.index and len(plan.items) > _MANY_TENSORS) if waits else make())


@contextmanager
def _room_told(path: str, nbytes: int, tensors: int) -> Iterator[None]:
    """Let the error of a full disk say how much is wanted, and is free when what was written is gone again."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _FULL and not isinstance(problem, CheckpointError):
            found = "more than is left of the quota" if problem.errno == errno.EDQUOT else f"found {_free(path)}"
            wanted = f"wanted {nbytes} bytes for {tensors} tensors, of three files or folders each, {found}"
            problem.strerror = f"{problem.strerror}: {wanted}; make room, or save to another disk"
        raise


def _free(path: str) -> str:
    """What a save to `path` may take; the old snapshot stays until the new one is there."""
    with suppress(OSError):
        status = os.statvfs(os.path.dirname(os.path.realpath(path)))
        files = f" and room for {status.f_favail} files" if status.f_files else ""  # else there is no end to them
        return f"{status.f_bavail * status.f_frsize} bytes free{files}"
    return "nobody knows how many"


def _marker(plan: WritePlan, path: str, texts: dict[str, bytes], *, seal: bool) -> Iterator[bytes]:
    """Give the marker in pieces, of which the first ones are made at once."""
    copies = plan.small_blobs(path)
    return itertools.chain([plan.marker(texts, seal=seal), *itertools.islice(copies, _COPIES)], copies)


def _while_synced(stage: Stage, make: Callable[[], Iterator[bytes]], *, long: bool) -> Iterator[bytes]:
    """Sync all that is written; a marker that is long is made meanwhile."""
    if long:
        return parallel.beside(make, stage.sync)
    stage.sync()
    return make()


def check_path(path: Any) -> None:
    """Refuse what cannot name a folder."""
    if hasattr(path, "write"):
        raise UnsupportedError("a snapshot is a folder, not a file-like object: pass the path of a folder")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or os.PathLike, not {type(path).__name__}")
    if not os.fspath(path):  # which would be the current folder
        raise FileNotFoundError(errno.ENOENT, "an empty path; name a folder to create", path)


def _check_foreign(rank: int | None, foreign: dict[str, Any]) -> None:
    if rank not in (None, 0):
        raise UnsupportedError(f"global_dst_rank={rank}: one process writes the whole snapshot; call save on it alone")
    for name in foreign:
        if name in ("pickle_module", "pickle_protocol", "_use_new_zipfile_serialization"):
            raise UnsupportedError(f"{name}: nothing is pickled here; leave it out")
        raise TypeError(f"save() has no argument {name!r}")
