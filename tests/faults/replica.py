"""A folder in memory that becomes one crash state after the other, by as few changes as it takes.

Contents are kept as files of their own, and a state's files are hard links to them: a link costs less than a file, and
thousands of states fit into little memory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["Replica"]


class Replica:
    """The folder `path`, made anew, and a folder of contents beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state"
        self._pool = folder / "contents"
        self._pool.mkdir()
        self._kept: dict[bytes, str] = {}
        self._tree: dict[str, bytes | None] = {}
        self.forget()

    def forget(self) -> None:
        """Begin again with an empty folder: somebody else has changed it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        self._tree = {}

    def become(self, tree: dict[str, bytes | None]) -> None:
        """Make the folder what the tree says: path to content, None for a folder."""
        base, old = f"{self.path}/", self._tree
        for path in sorted(old, reverse=True):
            if path not in tree or tree[path] is not old[path]:
                (os.rmdir if old[path] is None else os.unlink)(base + path)
        for path in sorted(tree):
            if path not in old or tree[path] is not old[path]:
                content = tree[path]
                if content is None:
                    os.mkdir(base + path)
                else:
                    os.link(self._file(content), base + path)
        self._tree = tree

    def _file(self, content: bytes) -> str:
        """Path of a file with this content."""
        if content not in self._kept:
            self._kept[content] = f"{self._pool}/{len(self._kept)}"
            with open(self._kept[content], "xb") as file:
                file.write(content)
        return self._kept[content]
