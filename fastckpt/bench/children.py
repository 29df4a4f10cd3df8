"""The parent's side of a child: start it, ask it, notice when it dies."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Child"]

_PATIENCE = 1200.0  # seconds that one answer may take


class Child:
    """A process that holds one rival."""

    def __init__(self, name: str, log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "fastckpt.bench.worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._greeted = False

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for the answer; a child that ends instead gives an error as answer."""
        if not self._greeted:
            self._greeted = True
            hello = self._answer()
            if "error" in hello:
                return hello
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        return self._answer()

    def dismiss(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> None:
        """End it, and wait for that."""
        self.dismiss()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            self._process.kill()
            self._process.wait()
            return {"error": f"no answer within {_PATIENCE:.0f} seconds"}
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else self._ended()
        return answer

    def _ended(self) -> dict[str, Any]:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1][:200]}" if lines else ""
        return {"error": f"the process ended with {self._process.wait()}{said}"}
