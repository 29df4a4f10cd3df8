"""Which software is there, for `fastckpt doctor`: the only command that imports torch, and only when it runs."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from fastckpt.doctor import Software
from fastckpt.probing import Answer, Refused

__all__ = ["installed"]

_PACKAGES = ("numpy", "torch", "ml_dtypes", "zlib_ng", "click", "rich")


def installed(*, torch: bool = True) -> Software:
    """Look what is installed.

    Parameters
    ----------
    torch : bool
        Whether to import torch, which takes seconds.

    Returns
    -------
    Software
        Versions, and CUDA's devices.
    """
    found, devices = _torch() if torch else (Refused("not imported: --no-torch"),) * 2
    gil = bool(getattr(sys, "_is_gil_enabled", lambda: True)())
    packages = {name: _version(name) for name in _PACKAGES}
    return Software(platform.python_version(), gil, found, devices, packages)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> tuple[Answer[str], Answer[tuple[str, ...]]]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as problem:  # OSError: a library of its own that cannot be loaded
        return (Refused(str(problem)),) * 2
    try:
        devices = tuple(torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count()))
    except (AssertionError, RuntimeError) as problem:
        return str(torch.__version__), Refused(str(problem))
    return str(torch.__version__), devices
