"""fastckpt: a memory-mapped tensor store. Saves a model, or a whole training state, as one folder a tensor.

>>> import fastckpt as flow
>>> flow.save(model.state_dict(), "./mnist_model")
>>> model.load_state_dict(flow.load("./mnist_model"))
"""

import sys

from fastckpt.background import SaveHandle, release_memory, save_async
from fastckpt.codec import codec_for
from fastckpt.errors import (
    BusyError,
    CheckpointError,
    CommitUncertain,
    CorruptError,
    FormatError,
    LimitError,
    MismatchError,
    NotCommittedError,
    UnsupportedError,
)
from fastckpt.filling import load_into
from fastckpt.loading import load
from fastckpt.problems import Problem
from fastckpt.salvaged import Salvage
from fastckpt.salvaging import salvage
from fastckpt.saving import save
from fastckpt.snapshot import Snapshot, open
from fastckpt.verifying import Report, verify

__version__ = "0.1.0"

if sys.modules.get("torch"):
    codec_for("torch")  # now, so that the first load need not wait for it

__all__ = [
    "BusyError",
    "CheckpointError",
    "CommitUncertain",
    "CorruptError",
    "FormatError",
    "LimitError",
    "MismatchError",
    "NotCommittedError",
    "Problem",
    "Report",
    "Salvage",
    "SaveHandle",
    "Snapshot",
    "UnsupportedError",
    "load",
    "load_into",
    "open",
    "release_memory",
    "salvage",
    "save",
    "save_async",
    "verify",
]
