"""The commit with one step of it left out, moved or done wrongly; and changes of it that are safe, with the reason.

They are made in a process of their own, in place of what the modules of the library have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastckpt import _core, commit, opening, staging
from fastckpt.handles import Handle, sync_folder
from fastckpt.layout import DONE, META, OUT
from fastckpt.staging import Stage, remove_tree, retire
from fastckpt.target import Target

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A change of the commit.

    Attributes
    ----------
    apply : callable
        Makes it, in this process.
    shapes : tuple of str
        Kinds of save that it is tried with.
    equivalent : str, optional
        Why it is safe; such a one must not be noticed.
    in_reader : bool
        It is the reader that is changed, so it is made where states are loaded.
    """

    apply: Callable[[], None]
    shapes: tuple[str, ...] = ("overwrite",)
    equivalent: str = ""
    in_reader: bool = False


def _nothing(*_: Any, **__: Any) -> None: ...


# --- syncs of a stage -------------------------------------------------------------------------------------------------


def _not_synced(*ends: str) -> Callable[[], None]:
    """Files whose names end so are written without a sync, nor any hint to begin with it."""

    def apply() -> None:
        write = _core.write

        def unsynced(fd: int, name: str, pieces: Any, sync: bool, nbytes: int, writeback: bool) -> int:
            other = not name.endswith(ends)
            return write(fd, name, pieces, sync and other, nbytes, writeback and other)

        _core.write = unsynced

    return apply


def _folders_not_synced() -> None:
    def finish(self: Stage, folder: str, meta: bytes, sync: bool) -> None:
        self._write(f"{folder}/{META}", [meta], sync)

    Stage._finish_folder = finish


def _folders_synced_before_meta() -> None:
    def finish(self: Stage, folder: str, meta: bytes, sync: bool) -> None:
        with staging.opened(folder, self.fd) as fd:
            sync_folder(fd)
        self._write(f"{folder}/{META}", [meta], sync)

    Stage._finish_folder = finish


def _large_files(*, sync_before_tail: bool) -> Callable[[], None]:
    def apply() -> None:
        real = _core.File

        class Unsynced:
            def __init__(self, fd: int, name: str, *rest: Any) -> None:
                self.place, self.file = (fd, name), real(fd, name, *rest)
                self.direct, self.write, self.abandon = self.file.direct, self.file.write, self.file.abandon

            def finish(self, sync: bool) -> None:
                if sync_before_tail:
                    fd = os.open(self.place[1], os.O_RDONLY, dir_fd=self.place[0])
                    os.fsync(fd)
                    os.close(fd)
                self.file.finish(False)

        _core.File = Unsynced

    return apply


def _seal(*steps: str) -> Callable[[], None]:
    """These steps, in this order."""

    def apply() -> None:
        waiting = set[Stage]()  # for a sync of the whole file system

        def seal(self: Stage, marker: Any) -> None:
            for step in steps:
                if step == "syncfs" and self in waiting:
                    _core.syncfs(self.fd)
                elif step in ("marker", "unsynced marker"):
                    self._write(DONE, marker, step == "marker")
                elif step == "sync":
                    sync_folder(self.fd)

        Stage.sync = lambda self: waiting.add(self)  # noqa: PLW0108 (a method, which a builtin is not)
        Stage.seal = seal

    return apply


def _marker_first() -> None:
    create = Stage.create

    def created(self: Stage, parent_fd: int) -> bool:
        locked = create(self, parent_fd)
        _core.write(self.fd, DONE, [b""], False, 0, False)
        return locked

    Stage.create = created
    _seal("syncfs", "sync")()


def _errors_passed_over() -> None:
    write = _core.write

    def careless(fd: int, name: str, pieces: Any, sync: bool, nbytes: int, *rest: Any) -> int:
        try:
            return write(fd, name, pieces, sync, nbytes, *rest)
        except OSError:
            return nbytes

    _core.write = careless


def _sync_tried_again() -> None:
    write = _core.write

    def stubborn(fd: int, name: str, pieces: Any, sync: bool, nbytes: int, *rest: Any) -> int:
        try:
            return write(fd, name, pieces, sync, nbytes, *rest)
        except OSError:
            with suppress(OSError):
                file = os.open(name, os.O_RDONLY, dir_fd=fd)
                os.fsync(file)
                os.close(file)
            return nbytes

    _core.write = stubborn


def _syncfs_behind_the_exchange() -> None:
    _seal("marker", "sync")()
    confirm = commit._confirm

    def confirmed(target: Target, stage: Stage) -> None:
        confirm(target, stage)
        _core.syncfs(stage.fd)

    commit._confirm = confirmed


# --- publication ------------------------------------------------------------------------------------------------------


def _replace(*steps: str) -> Callable[[], None]:
    """The old one is replaced by these steps, in this order."""

    def apply() -> None:
        def replace(target: Target, stage: Stage, overwrite: bool) -> None:
            old, fd = stage.name, target.parent.fd
            for step in steps:
                if step == "exchange":
                    old = commit._exchange(target, stage)
                elif step == "confirm":
                    commit._confirm(target, stage)
                elif step == "retire":
                    retire(old, fd)
                elif step == "delete target":
                    remove_tree(target.name, fd)
                elif step == "retire target":
                    retire(target.name, fd)
                elif step == "place":
                    commit._place(target, stage)

        commit._replace = replace

    return apply


def _tensor_by_tensor() -> None:
    def replace(target: Target, stage: Stage, overwrite: bool) -> None:
        with staging.opened(target.name, target.parent.fd) as there:
            for name in os.listdir(stage.fd):
                _core.renameat2(stage.fd, name, there, name, _core.RENAME_EXCHANGE)
            sync_folder(there)
        remove_tree(stage.name, target.parent.fd)

    commit._replace = replace


def _written_in_place() -> None:
    def replace(target: Target, stage: Stage, overwrite: bool) -> None:
        with staging.opened(target.name, target.parent.fd) as there:
            for name in (
                f"{folder}/{file}" for folder in os.listdir(stage.fd) for file in (OUT, META) if folder != DONE
            ):
                source = os.open(name, os.O_RDONLY, dir_fd=stage.fd)
                copy = os.open(name, os.O_WRONLY | os.O_TRUNC, dir_fd=there)
                os.pwrite(copy, os.pread(source, 1 << 20, 0), 0)
                os.fsync(copy)
                os.close(copy)
                os.close(source)
        remove_tree(stage.name, target.parent.fd)

    commit._replace = replace


def _moved_where_nobody_looks() -> None:
    real = Target.__init__

    def elsewhere(self: Target, path: str) -> None:
        real(self, path)
        self.previous = ".elsewhere"

    Target.__init__ = elsewhere


def _reader_ignores_previous() -> None:
    opening.previous_of = lambda path: f"{path}.nowhere"


def _uncertain_but_old_one_deleted() -> None:
    confirm = commit._confirm

    def confirmed(target: Target, stage: Stage) -> None:
        try:
            confirm(target, stage)
        except commit.CommitUncertain:
            retire(stage.name, target.parent.fd)
            raise

    commit._confirm = confirmed


# --- the old one, and what others left --------------------------------------------------------------------------------


def _retire(change: Callable[[str, int], None]) -> Callable[[], None]:
    def apply() -> None:
        commit.retire = lambda name, fd, **_: change(name, fd)

    return apply


def _sweep(*, sync: bool, even_the_only_one: bool = False) -> Callable[[], None]:
    def apply() -> None:
        def sweep(target: Target, name: str) -> None:
            with target.dead(name) as dead:
                if dead and (even_the_only_one or name != target.previous or target.has(target.name)):
                    if sync:
                        sync_folder(target.parent.fd)
                    retire(name, target.parent.fd)

        commit._sweep_one = sweep
        if even_the_only_one:
            commit._recover = lambda target: False

    return apply


def _stage_not_locked() -> None:
    def ours(self: Stage, parent_fd: int) -> bool:
        self._lock = Handle(self.name, parent_fd)
        self._lock.locked = True
        return True

    Stage._is_ours = ours


def _sweeps_without_asking() -> None:
    def dead(self: Target, name: str) -> Any:
        return commit.suppress() if name == self.previous else _Dead()

    Target.dead = dead


class _Dead:
    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None: ...


def _without_syncs_in(step: str) -> Callable[[], None]:
    """One function of commit does its work, and syncs nothing."""

    def apply() -> None:
        real = getattr(commit, step)

        def unsynced(*arguments: Any) -> Any:
            sync, commit.sync_folder = commit.sync_folder, _nothing
            try:
                return real(*arguments)
            finally:
                commit.sync_folder = sync

        setattr(commit, step, unsynced)

    return apply


def _plain_rename() -> None:
    def place(target: Target, stage: Stage) -> None:
        commit._rename(target, stage.name, target.name)
        commit._confirm(target, stage)

    commit._place = place


_DIES = ("dies behind the exchange", "dies behind two renames")
_ASIDE = ("old one moved aside", "dies between two renames", "dies behind two renames", "old one still beside")
MUTANTS: dict[str, Mutant] = {
    "no file is synced": Mutant(_not_synced(OUT, META)),
    "out is not synced": Mutant(_not_synced(OUT)),
    "meta is not synced": Mutant(_not_synced(META)),
    "a large out is not synced": Mutant(_large_files(sync_before_tail=False), ("large, past the cache",)),
    "a large out is synced before its tail": Mutant(_large_files(sync_before_tail=True), ("large, past the cache",)),
    "the folders of tensors are not synced": Mutant(_folders_not_synced),
    "the folders of tensors are synced before meta is there": Mutant(_folders_synced_before_meta),
    "no syncfs": Mutant(_seal("marker", "sync"), ("syncfs",)),
    "syncfs behind the exchange": Mutant(_syncfs_behind_the_exchange, ("syncfs",)),
    "a marker with content is not synced": Mutant(_seal("syncfs", "unsynced marker", "sync"), ("nested",)),
    "the stage is not synced": Mutant(_seal("syncfs", "marker")),
    "the stage is synced before the marker is there": Mutant(_seal("syncfs", "sync", "marker")),
    "a refused write or sync is passed over": Mutant(_errors_passed_over, ("sync refused",)),
    "a refused sync is tried again": Mutant(_sync_tried_again, ("sync refused",)),
    "the parent is not synced": Mutant(_replace("exchange", "retire")),
    "the parent is not synced, first save": Mutant(_without_syncs_in("_confirm"), ("first",)),
    "the parent is not synced, two renames": Mutant(_without_syncs_in("_confirm"), ("two renames",)),
    "the old one is deleted, then the parent synced": Mutant(_replace("exchange", "retire", "confirm")),
    "the old one is deleted, then the new one placed": Mutant(_replace("delete target", "place")),
    "the old one is retired, then the new one placed": Mutant(_replace("retire target", "place")),
    "published tensor by tensor": Mutant(_tensor_by_tensor),
    "written in place": Mutant(_written_in_place),
    "two renames by a name that nobody looks at": Mutant(_moved_where_nobody_looks, ("two renames",)),
    "the reader does not look at that name": Mutant(_reader_ignores_previous, ("two renames",), in_reader=True),
    "the old one's marker is not deleted first": Mutant(_retire(remove_tree)),
    "the old one's marker is deleted first, not durably": Mutant(
        _retire(lambda name, fd: retire(name, fd, durable=False))
    ),
    "uncertain, and the old one is deleted": Mutant(_uncertain_but_old_one_deleted, ("last sync refused",)),
    "interrupted, and the old one deleted without a sync": Mutant(_without_syncs_in("_discard"), ("interrupted",)),
    "what a dead save left is deleted without a sync": Mutant(_sweep(sync=False), _DIES),
    "the only old one is taken for a dead save's": Mutant(_sweep(sync=True, even_the_only_one=True), _ASIDE),
    "the stage is not locked": Mutant(_stage_not_locked, ("one in the other",)),
    "stages are deleted without asking for their lock": Mutant(_sweeps_without_asking, ("one in the other",)),
    "the marker comes first": Mutant(
        _marker_first,
        ("overwrite", "first", "threads"),
        "nobody can see a stage as a snapshot, and it is synced as a whole before it becomes one",
    ),
    "an empty marker is not synced": Mutant(
        _seal("syncfs", "unsynced marker", "sync"),
        ("overwrite", "first", "syncfs"),
        "it has no bytes, and its name is made durable with the stage",
    ),
    "renamed where nothing stands without saying so": Mutant(
        _plain_rename,
        ("first", "first, lock file"),
        "what another save put there is a folder with something in it, which no rename replaces",
    ),
    "the old one is put back without a sync": Mutant(
        _without_syncs_in("_recover"), _ASIDE, "it stands under one of two names, and readers look at both"
    ),
    "what stands in the way of two renames is deleted without a sync": Mutant(
        _without_syncs_in("_make_way"), _ASIDE, "the sweep before it has synced and deleted the same"
    ),
    "the old one is not deleted": Mutant(
        _retire(_nothing), ("overwrite", "two renames"), "it takes space until the next save, which sweeps it"
    ),
}
