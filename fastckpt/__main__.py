"""The ``fastckpt`` command and ``python -m fastckpt``: say which extra is missing, or hand over to the command line."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without click or rich, end with one line that says how to install them."""
    try:
        from fastckpt.cli import main as command
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"fastckpt: the command line needs {error.name}; run: pip install 'fastckpt[cli]'")
    command()


if __name__ == "__main__":
    main()
