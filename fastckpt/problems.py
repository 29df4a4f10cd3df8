"""What is wrong with a snapshot, said so that people can read it and programs can sort it."""

from __future__ import annotations

from typing import Any

from fastckpt.errors import CheckpointError

__all__ = ["RESTORE", "Problem", "Unsound"]

RESTORE = "restore it from a copy, load an earlier snapshot, or take out what is intact (salvage)"


class Problem(str):
    """One thing that is wrong with a snapshot: a sentence, and its parts.

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
        text = str(error)
        if isinstance(error, OSError) and error.strerror is not None:
            return cls(error.filename or file, error.strerror)
        head, colon, rest = text[len(file) :].partition(": ")
        named = bool(colon) and text.startswith(file)
        what, semicolon, remedy = (rest if named else text).rpartition("; ")
        place = file + head if named else file
        return cls.said(text, place, what, remedy) if semicolon else cls.said(text, place, remedy, RESTORE)

    @classmethod
    def said(cls, text: str, file: str, what: str, remedy: str) -> Problem:
        """Give what is said already, and its parts."""
        self = super().__new__(cls, text)
        self.file, self.what, self.remedy = file, what, remedy
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Problem.said, (str(self), self.file, self.what, self.remedy)


class Unsound(CheckpointError):
    """Problems were found: if a save replaced the snapshot meanwhile, they mean nothing, and it is looked at again."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
