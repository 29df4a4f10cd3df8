"""Train a small net on handwritten digits and keep it with fastckpt.

    python examples/mnist.py                   the whole demo, in a temporary folder
    python examples/mnist.py train FOLDER      train; save everything after each epoch; resume what FOLDER holds
    python examples/mnist.py evaluate FOLDER   test a saved model

The demo saves a model and loads it in another process. Then it kills a training in the middle of a save, resumes it,
and checks that it ends with the very bits of a training that nobody killed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import Digits, load_digits
from killing import kill_in_save, leftovers, step_of
from looking import differences, tree
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastckpt as flow

EPOCHS = 6
BATCH = 50
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Net(nn.Module):
    """Three layers; their names become the folders' names."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Linear(784, 128)
        self.l2 = nn.Linear(128, 64)
        self.l3 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.l1(x))
        x = torch.relu(self.l2(x))
        return self.l3(x)  # type: ignore[no-any-return]


# Saving and loading a model: two lines.


def train_and_save(train: Digits, test: Digits) -> float:
    """Train a model, save it as ./mnist_model, and give its accuracy."""
    model = Net().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(1, EPOCHS + 1):
        loss = train_epoch(model, optimizer, train)
        shares = f"train {accuracy(model, train):.2%}   test {accuracy(model, test):.2%}"
        print(f"  epoch {epoch}   loss {loss:.3f}   {shares}")
    flow.save(model.state_dict(), "./mnist_model")
    return accuracy(model, test)


def load_and_test(path: str, test: Digits) -> float:
    """Load a model that was saved, and give its accuracy."""
    test_net = Net().to(DEVICE)
    test_net.load_state_dict(flow.load(path))
    return accuracy(test_net, test)


# Saving and resuming a training: everything that it consists of, as one nested object.


class Training:
    """A training that can be put away after any epoch and taken up again."""

    def __init__(self) -> None:
        self.model = Net().to(DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=EPOCHS)
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        """What the next epoch depends on, and what we want to keep."""
        return {
            "epoch": len(self.history),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "numpy": np.random.get_state(),
                "python": random.getstate(),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.history = state["history"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"]["torch"])
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        np.random.set_state(state["rng"]["numpy"])
        random.setstate(state["rng"]["python"])

    def run(self, path: str, train: Digits, test: Digits) -> None:
        """Train what is left, and save after each epoch: the new snapshot replaces the old one in one step."""
        with suppress(FileNotFoundError):  # there is nothing to resume the first time
            self.restore(flow.load(path))
        for epoch in range(len(self.history) + 1, EPOCHS + 1):
            loss = train_epoch(self.model, self.optimizer, train)
            self.scheduler.step()
            self.history.append({"loss": loss, "accuracy": accuracy(self.model, test)})
            flow.save(self.state(), path)
            print(f"epoch {epoch} saved", flush=True)


# Training itself: nothing below knows of fastckpt.


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits) -> float:
    """Go through all digits once, in an order that torch's generator gives; give the mean loss."""
    total = 0.0
    for batch in torch.split(torch.randperm(len(digits.labels)), BATCH):
        loss = cross_entropy(model(varied(digits.images[batch]).to(DEVICE)), digits.labels[batch].to(DEVICE))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(digits.labels)


def varied(images: Tensor) -> Tensor:
    """Move the images by up to a pixel (Python's random numbers) and change their brightness (numpy's)."""
    by = (random.randint(-1, 1), random.randint(-1, 1))
    brightness = torch.from_numpy(np.random.uniform(0.8, 1.2, (len(images), 1)).astype(np.float32))
    return torch.roll(images.view(-1, 28, 28), by, (1, 2)).reshape(-1, 784) * brightness


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of the digits that the model recognises."""
    found = model(digits.images.to(DEVICE)).argmax(1).cpu()
    return float((found == digits.labels).double().mean())


def make_deterministic() -> None:
    """The same numbers on each run: what is compared bit for bit must not depend on chance."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


# The demo.


def demo(train: Digits, test: Digits) -> None:
    """Tell the whole story, in the current folder."""
    print(f"fastckpt {flow.__version__}, torch {torch.__version__}, on {DEVICE}")
    print(f"\n1. Train on {len(train.labels)} digits, test with {len(test.labels)}, save the model\n")
    trained = train_and_save(train, test)
    print('\n  flow.save(model.state_dict(), "./mnist_model") wrote:\n')
    print("\n".join(f"  {line}" for line in tree(Path("mnist_model"))))

    print("\n2. Load it in a fresh process\n")
    loaded = float(run("evaluate", "./mnist_model"))
    print('  test_net.load_state_dict(flow.load("./mnist_model"))')
    print(f"  test accuracy: {trained!r} there, {loaded!r} here")
    check(trained == loaded, "the loaded model is not the one that was saved")

    print("\n3. Train a model twice, saving everything after each epoch; kill -9 the second training in a save\n")
    run("train", "run_a")
    print(f"  run A: {EPOCHS} epochs, test accuracy {flow.load('run_a')['history'][-1]['accuracy']:.2%}")
    interrupt(Path("run_b"), command("train", "run_b"))

    print("\n4. Resume it in a fresh process\n")
    print(f"  run B: {', '.join(run('train', 'run_b').splitlines())}")
    check(not leftovers(Path("run_b")), "a leftover of the killed save is still there")
    print("  the next save swept the leftover")
    differ = differences("run_a", "run_b")
    check(not differ, f"run A and run B ended differently: {differ}")
    print(f"  run A and run B ended with the same bits: all {len(flow.open('run_a'))} tensors, and everything else")


def interrupt(path: Path, training: list[str]) -> None:
    """Kill a training in a save that has begun and is not committed; show that the snapshot before it is whole."""
    saves = saved = 2
    for _ in range(EPOCHS):
        leftover = kill_in_save(training, path, saves=saves)
        if leftover and flow.load(path)["epoch"] == saved:
            break
        saves, saved = 0, flow.load(path)["epoch"]  # that save was faster than the signal: once more, from here
    else:
        sys.exit("FAILED: no save could be caught in the middle")
    report = flow.verify(path)
    check(report.ok, f"the snapshot of epoch {saved} is damaged: {report.problems}")
    print(f"  run B: killed while it saved epoch {saved + 1}: {step_of(leftover, report.tensors)}")
    print(f"  left behind: {leftover.name}")
    print(f"  {path} still holds epoch {saved}: {report.tensors} tensors, nothing wrong with them")


def command(*arguments: str) -> list[str]:
    """Give the command line that runs a part of this file."""
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def run(*arguments: str) -> str:
    """Run a part of this file in a fresh process and give what it printed; exit when it fails."""
    done = subprocess.run(command(*arguments), check=False, stdout=subprocess.PIPE, text=True)
    check(done.returncode == 0, f"{' '.join(arguments)} ended with status {done.returncode}")
    return done.stdout


def check(right: bool, problem: str) -> None:
    """Exit when something is not as it must be."""
    if not right:
        sys.exit(f"FAILED: {problem}")


def main(arguments: list[str]) -> None:
    """Run the demo, or the part of it that the command line names."""
    make_deterministic()
    train, test = load_digits()
    match arguments:
        case []:
            with tempfile.TemporaryDirectory(prefix="fastckpt-demo-") as folder:
                os.chdir(folder)
                demo(train, test)
        case ["train", path]:
            Training().run(path, train, test)
        case ["evaluate", path]:
            print(repr(load_and_test(path, test)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
