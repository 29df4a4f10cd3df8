"""What is wrong with a snapshot, said so that people can read it and programs can sort it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastckpt.errors import CheckpointError, printable
from fastckpt.layout import DONE
from fastckpt.meta import Meta

__all__ = ["OUT_OF", "RESTORE", "Damage", "Findings", "Problem", "Unsound"]

OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # which is no fault of a snapshot

RESTORE = "restore it from a copy, load an earlier snapshot, or take out what is intact (salvage)"


class Problem(str):
    """One thing that is wrong with a snapshot: a sentence, and its parts. Names in it are escaped, but for the file's.

    Attributes
    ----------
    file : str
        Path of the file or folder.
    what : str
        What is wrong with it.
    remedy : str
        What to do.
    """

    __slots__ = ("file", "remedy", "what")
    file: str
    what: str
    remedy: str

    def __new__(cls, file: str, what: str, remedy: str = RESTORE) -> Problem:
        """Say what is wrong with a file, and what to do."""
        return cls.said(f"{file}: {what}; {remedy}", file, what, remedy)

    @classmethod
    def of(cls, error: Exception, file: str) -> Problem:
        """Take an error apart that names the file, or one within it, and perhaps what to do, behind a semicolon."""
        text, shown = str(error), printable(file)
        if isinstance(error, OSError) and error.strerror is not None:
            return cls(error.filename or file, error.strerror)
        head, colon, rest = text[len(shown) :].partition(": ")
        named = bool(colon) and text.startswith(shown)
        what, semicolon, remedy = (rest if named else text).rpartition("; ")
        place = file + head if named else file
        return cls.said(text, place, what, remedy) if semicolon else cls.said(text, place, remedy, RESTORE)

    @classmethod
    def said(cls, text: str, file: str, what: str, remedy: str) -> Problem:
        """Give what is said already, and its parts."""
        self = super().__new__(cls, printable(text))
        self.file, self.what, self.remedy = file, printable(what), remedy
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Problem.said, (str(self), self.file, self.what, self.remedy)


class Unsound(CheckpointError):
    """Problems were found: if a save replaced the snapshot meanwhile, they mean nothing, and it is looked at again."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Damage(NamedTuple):
    """What is wrong with a folder of a snapshot (or with its marker; with itself: ""), and its meta if that is not."""

    folder: str
    problem: Exception
    meta: Meta | None = None


class Findings:
    """What is wrong with a snapshot: raised at once, or listed, and then the look at it goes on.

    Attributes
    ----------
    listing : bool
        Whether it is listed.
    damage : list of Damage
        The list.
    """

    def __init__(self, listing: bool) -> None:
        self.listing = listing
        self.damage: list[Damage] = []

    def refuse(self, folder: str, problem: Exception, meta: Meta | None = None) -> None:
        """Raise it, or list it."""
        if not self.listing or (isinstance(problem, OSError) and problem.errno in OUT_OF):
            raise problem
        if folder != DONE or all(found.folder != DONE for found in self.damage):  # of one file, the first is enough
            self.damage.append(Damage(folder, problem, meta))

    @contextmanager
    def about(self, folder: str = "") -> Iterator[None]:
        """Refuse what is raised inside."""
        try:
            yield
        except (CheckpointError, OSError) as problem:
            self.refuse(folder, problem)
