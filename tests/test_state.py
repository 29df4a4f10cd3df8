"""A whole training state comes back as it was: types, order, ties, and a training that goes on to the same bits."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import enum
import math
import os
import random
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import fastckpt


class Metrics(NamedTuple):
    loss: float
    accuracy: float


class Moments(NamedTuple):
    mean: torch.Tensor
    history: list[Metrics]


class Phase(enum.Enum):
    WARM = "warm"
    COLD = 2


class Level(enum.IntEnum):
    LOW = 1


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, of the same types, in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(same(x, y) for pair in pairs for x, y in zip(*pair, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or (math.isnan(a) and math.isnan(b)))
    return bool(a == b)


def round_trip(obj: Any, path: Path, **options: Any) -> Any:
    fastckpt.save(obj, path)
    return fastckpt.load(path, **options)


class Net(nn.Module):
    """The network of OneFlow's manual, and what makes a state dict interesting: a norm's buffers and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.l2 = nn.Linear(8, 12, bias=False)
        self.l2.weight = nn.Parameter(torch.zeros(12, 8))
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.l2.weight
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.norm(self.l1(x))))
        result: torch.Tensor = self.l2(x) + self.out(x)
        return result


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01), betas=(0.8, 0.99)),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "multi step": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5], gamma=0.5),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "sequence": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[3],
    ),
}


class Training:
    """A training whose every source of chance and state is in `state`."""

    def __init__(self, optimizer: str, scheduler: str) -> None:
        self.model = Net()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        self.scaler.scale(torch.ones(1))  # it has no state before its first use
        self.history: list[Any] = [math.nan, math.inf, -math.inf, -0.0]

    def loss(self) -> torch.Tensor:
        x = torch.randn(16, 12) + torch.from_numpy(np.random.rand(16, 12).astype(np.float32)) + random.random()
        return nn.functional.mse_loss(self.model(x), x)

    def step(self) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        loss = float(self.optimizer.step(closure).detach())
        self.history.append(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own epochs
            if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(loss)
            else:
                self.scheduler.step()
        self.scaler.update(8.0)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": len(self.history),
            "history": self.history,
            "random": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        torch.set_rng_state(state["random"]["torch"])
        np.random.set_state(state["random"]["numpy"])
        random.setstate(state["random"]["python"])


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("optimizer", "scheduler"), [*zip(OPTIMIZERS, SCHEDULERS, strict=True)])
def test_training_goes_on_to_the_same_bits(optimizer: str, scheduler: str, tmp_path: Path) -> None:
    straight = Training(optimizer, scheduler)
    for _ in range(4):
        straight.step()
    saved = straight.state()
    fastckpt.save(saved, tmp_path / "s")
    kept = copy.deepcopy(saved)
    for _ in range(4):
        straight.step()

    resumed = Training(optimizer, scheduler)
    loaded = fastckpt.load(tmp_path / "s")
    assert same(loaded, kept)
    resumed.resume(loaded)
    for _ in range(4):
        resumed.step()
    assert same(resumed.state(), straight.state())
    assert same(fastckpt.load(tmp_path / "s"), kept), "training in place has changed the snapshot"


VALUES: dict[str, Any] = {
    "nothing": None,
    "truth": [True, False, 1, 0, 1.0, 0.0, -0.0],
    "int": [0, -1, 2**53, 2**53 + 1, -(2**64), 7**2000],
    "float": [1e-323, 1.7976931348623157e308, 0.1, math.inf, -math.inf, math.nan],
    "complex": [1j, complex(-0.0, math.inf)],
    "text": ["", "ünï", "\ud800", "\0", '"\\', "\U0001f600"],
    "bytes": [b"", bytes(range(256)), bytearray(b"\0\xff")],
    "path": [Path("/a/b"), PurePosixPath("c"), Path("ünï code")],
    "time": [
        dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.timezone.utc),
        dt.date(1, 1, 1),
        dt.time(1, 2),
        dt.timedelta(-1, 5, 7),
    ],
    "enum": [Phase.WARM, Phase.COLD, Level.LOW],
    "torch": [torch.float8_e5m2, torch.device("cuda", 3), torch.device("cpu"), torch.Size([2, 0, 3]), torch.Size([])],
    "numpy": [np.float32(0.1), np.int64(-5), np.bool_(True), np.complex64(1j), np.dtype("float16"), np.float64("nan")],
    "nested": {"tuple": ((), (1,), ((),)), "list": [[], [[]]], "set": {1, "a", (2, None)}, "frozen": frozenset({b"x"})},
    "keys": {0: "int", "0": "str", None: 1, 2.5: 2, (1, ("a", None)): 3, Phase.WARM: 4, True: 5},
    "ordered": OrderedDict([("z", 1), ("a", OrderedDict())]),
    "counter": Counter({2: 2, 5: 1}),
    "named": Metrics(0.5, math.nan),
}


@pytest.mark.parametrize("kind", VALUES)
def test_plain_values(kind: str, tmp_path: Path) -> None:
    value = VALUES[kind]
    assert same(round_trip(value, tmp_path / "s"), value)
    assert same(round_trip([value, torch.ones(1)], tmp_path / "s"), [value, torch.ones(1)])
    assert fastckpt.verify(tmp_path / "s")


def test_everything_at_once(tmp_path: Path) -> None:
    state = {
        **VALUES,
        "moments": Moments(torch.arange(3.0), [Metrics(1.0, 2.0)] * 3),
        "tensors": {0: torch.ones(2), (1, 2): [torch.zeros(0, 3), np.arange(4, dtype=np.int16)]},
        "big": [float(n) / 7 for n in range(2000)],
    }
    found = round_trip(state, tmp_path / "s")
    assert same(found, state)
    assert list(found) == list(state)
    assert found["tensors"][1, 2][1].flags.writeable


@pytest.mark.parametrize(
    "value", [None, 5, "text", [], {}, (), torch.arange(3), np.arange(3), Metrics(1.0, 2.0)], ids=repr
)
def test_what_stands_alone(value: Any, tmp_path: Path) -> None:
    assert same(round_trip(value, tmp_path / "s", as_=None), value) or isinstance(value, np.ndarray)
    if isinstance(value, np.ndarray):
        assert same(fastckpt.load(tmp_path / "s"), value)


def test_state_dict_with_its_metadata(tmp_path: Path) -> None:
    saved = Net().state_dict()
    found = round_trip(saved, tmp_path / "s")
    assert type(found) is OrderedDict
    assert list(found) == list(saved)
    assert same(found._metadata, saved._metadata)
    assert os.path.getsize(tmp_path / "s" / "snapshot_done") == 0


def test_metadata_of_a_thousand_modules(tmp_path: Path) -> None:
    saved = nn.Sequential(*(nn.ReLU() for _ in range(1000)), nn.Linear(1, 1)).state_dict()
    found = round_trip(saved, tmp_path / "s")
    assert type(found) is OrderedDict
    assert same(found, saved)
    assert same(found._metadata, saved._metadata)


def test_a_module_is_saved_as_its_state_dict(tmp_path: Path) -> None:
    net = Net()
    found = round_trip(net, tmp_path / "s")
    assert same(found, net.state_dict())
    other = Net()
    assert not same(other.state_dict(), net.state_dict())
    other.load_state_dict(found)
    assert same(other.state_dict(), net.state_dict())


def test_the_tree_of_the_manual(tmp_path: Path) -> None:
    net = nn.ModuleDict({"l1": nn.Linear(784, 128), "l2": nn.Linear(128, 64), "l3": nn.Linear(64, 10)})
    fastckpt.save(net.state_dict(), tmp_path / "mnist_model")
    found = sorted(str(path.relative_to(tmp_path / "mnist_model")) for path in (tmp_path / "mnist_model").rglob("*"))
    folders = [f"{layer}.{kind}" for layer in ("l1", "l2", "l3") for kind in ("bias", "weight")]
    assert found == sorted(["snapshot_done", *folders, *(f"{f}/{name}" for f in folders for name in ("meta", "out"))])
    assert os.path.getsize(tmp_path / "mnist_model" / "snapshot_done") == 0
    weight = np.fromfile(tmp_path / "mnist_model" / "l1.weight" / "out", np.float32).reshape(128, 784)
    assert (weight == net["l1"].weight.detach().numpy()).all()


# ---- ties ----


def inode(path: Path) -> int:
    return (path / "out").stat().st_ino


def test_tied_parameters_come_back_tied(tmp_path: Path) -> None:
    found = round_trip(Net(), tmp_path / "s")
    assert found["l2.weight"] is found["out.weight"]
    assert found["l2.weight"] is not found["l1.weight"]
    assert inode(tmp_path / "s" / "l2.weight") == inode(tmp_path / "s" / "out.weight")
    assert fastckpt.load(tmp_path / "s", keys=["out.weight"]).keys() == {"out.weight"}
    assert fastckpt.open(tmp_path / "s")["out.weight"].tied_to == "l2.weight"
    assert fastckpt.verify(tmp_path / "s").nbytes == sum(t.nbytes for k, t in found.items() if k != "out.weight")


def test_what_is_tied_and_what_is_not(tmp_path: Path) -> None:
    base, empty = torch.arange(12.0).reshape(3, 4), torch.zeros(0, 3)
    saved = {
        "base": base,
        "same": base,
        "view": base.view(3, 4),
        "detached": nn.Parameter(base),
        "array": base.numpy(),
        "equal": base.clone(),
        "deep": [{"a": base}],
        "empty": empty,
        "empty again": empty,
        "other empty": torch.zeros(0, 3),
    }
    for options in ({}, {"mmap": False}, {"device": "cpu"}, {"as_": "torch"}):
        found = round_trip(saved, tmp_path / "s", **options)
        assert found["base"] is found["same"] is found["view"] is found["detached"] is found["deep"][0]["a"]
        assert found["equal"] is not found["base"]
        assert found["empty"] is found["empty again"] is not found["other empty"]
        assert (found["array"] is found["base"]) is ("as_" in options)
    found = fastckpt.load(tmp_path / "s")
    assert type(found["array"]) is np.ndarray
    found["array"][0, 0] = 99
    assert found["base"][0, 0] == 99
    assert found["equal"][0, 0] == 0
    assert (
        len({inode(tmp_path / "s" / name) for name in ("base", "same", "view", "detached", "array", "deep.0.a")}) == 1
    )
    assert inode(tmp_path / "s" / "equal") != inode(tmp_path / "s" / "base")


def test_views_of_one_element_are_tied_too(tmp_path: Path) -> None:
    one, array = torch.ones(1), np.ones(1)
    saved = {
        "a": one,
        "b": one.view(1),
        "c": one.expand(1),
        "x": array,
        "y": array[:],
        "none": array[:0],
        "no": array[1:],
    }
    found = round_trip(saved, tmp_path / "s")
    assert found["a"] is found["b"] is found["c"]
    assert found["x"] is found["y"]
    assert found["none"] is not found["no"]


def test_equal_memory_read_differently_is_no_tie(tmp_path: Path) -> None:
    base = torch.randn(4, dtype=torch.complex64)
    with pytest.warns(UserWarning, match="overlap"):
        found = round_trip({"plain": base, "conj": base.conj(), "real": torch.view_as_real(base)}, tmp_path / "s")
    assert torch.equal(found["conj"], base.conj().resolve_conj())
    assert torch.equal(found["plain"], base)
    assert found["real"].shape == (4, 2)


def test_a_tie_torn_by_a_copy_is_still_one_tensor(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    fastckpt.save({"a": base, "b": base}, tmp_path / "s")
    out = tmp_path / "s" / "b" / "out"
    data = out.read_bytes()
    out.unlink()
    out.write_bytes(data)
    found = fastckpt.load(tmp_path / "s")
    assert found["a"] is found["b"]
    assert fastckpt.verify(tmp_path / "s")
    out.write_bytes(data[:-1] + b"\7")
    assert "b/out: differs from 'a'/out" in fastckpt.verify(tmp_path / "s").problems[0]


def overlapping(saved: Any, path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastckpt.save(saved, path)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_partly_overlapping_tensors_are_stored_apart_with_a_warning(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    saved = {"head": base[:6], "inner": {"tail": base[4:]}, "apart": torch.ones(3)}
    (warning,) = overlapping(saved, tmp_path / "s")
    assert 'obj["head"]' in warning
    assert 'obj["inner"]["tail"]' in warning
    assert "will not be tied" in warning
    assert "more pairs" not in warning
    found = fastckpt.load(tmp_path / "s")
    assert same(found, saved)
    found["head"][5] = 100
    assert found["inner"]["tail"][1] == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda base: {"base": base, "part": base[1]},
        lambda base: {"base": base, "turned": base.T},
        lambda base: {"base": base, "bits": base.view(torch.int32)},
        lambda base: {"odd": base[:, 1::2], "third": base[:, ::3]},
        lambda base: {"base": base, "array": base.numpy()[::-1]},
    ],
    ids=["part", "turned", "other dtype", "common elements", "flipped array"],
)
def test_overlaps(make: Callable[[torch.Tensor], dict[str, Any]], tmp_path: Path) -> None:
    saved = make(torch.arange(36.0).reshape(6, 6))
    (warning,) = overlapping(saved, tmp_path / "s")
    assert all(f'obj["{key}"]' in warning for key in saved)


@pytest.mark.parametrize(
    "make",
    [
        lambda base: {"even": base[:, ::2], "odd": base[:, 1::2]},
        lambda base: {str(n): base[:, n] for n in range(6)},
        lambda base: {str(n): base[n] for n in range(6)},
        lambda base: {"upper": base[:3], "lower": base[3:]},
        lambda base: {"upper": base[:3], "lower": base[3:].numpy()[::-1]},
        lambda base: {"none": base[:, :0], "all": base},
    ],
    ids=["even and odd", "columns", "rows", "halves", "halves of two kinds", "no elements"],
)
def test_no_overlap(make: Callable[[torch.Tensor], dict[str, Any]], tmp_path: Path) -> None:
    assert overlapping(make(torch.arange(36.0).reshape(6, 6)), tmp_path / "s") == []


def test_what_reaches_far_overlaps_also_behind_what_does_not(tmp_path: Path) -> None:
    base = torch.arange(36.0)
    (warning,) = overlapping({"all": base, "early": base[2:4], "late": base[20:30]}, tmp_path / "s")
    assert "1 more pairs" in warning


@pytest.mark.parametrize("as_numpy", [False, True])
def test_views_that_begin_together_and_step_differently_are_not_tied(as_numpy: bool, tmp_path: Path) -> None:
    base = torch.arange(9.0)
    saved = {"one": base[:3], "two": base[:6:2], "three": base[::3]}
    saved = {key: view.numpy() for key, view in saved.items()} if as_numpy else saved
    assert overlapping(saved, tmp_path / "s")
    assert same(fastckpt.load(tmp_path / "s", as_="numpy" if as_numpy else "torch"), saved)


def test_where_it_is_hard_to_say_the_warning_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.overlaps._EFFORT", 1)
    base = torch.zeros(7, 11, 13)
    (warning,) = overlapping({"a": base[::2, ::3, ::2], "b": base[::3, 1::2, 1::4]}, tmp_path / "s")
    assert "overlap in memory" in warning


@pytest.mark.slow
def test_many_views_of_one_tensor_cost_little(memory_path: Path) -> None:
    base = torch.zeros(300, 1200)
    begin = os.times().user
    assert overlapping({str(n): base[:, n] for n in range(1200)}, memory_path / "s") == []
    (warning,) = overlapping({str(n): base.view(-1)[n : n + 300] for n in range(1200)}, memory_path / "s")
    assert "more pairs" in warning
    assert os.times().user - begin < 10


# ---- refused ----


class Mine:
    pass


class Loader(torch.utils.data.Dataset[int]):
    pass


def cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "object": (lambda: {"callbacks": [1, 2, Mine()]}, r'obj\["callbacks"\]\[2\]: Mine cannot be stored; '),
    "class": (lambda: [Mine], r"obj\[0\]: "),
    "function": (lambda: {"f": print}, r'obj\["f"\]: '),
    "module": (lambda: {"model": nn.Linear(1, 1)}, r'obj\["model"\]: Linear cannot be stored; .*state_dict'),
    "optimizer": (lambda: {"o": torch.optim.SGD([torch.ones(1)])}, r'obj\["o"\]: SGD cannot be stored; .*state_dict'),
    "generator": (lambda: [torch.Generator()], r"obj\[0\]: Generator cannot be stored"),
    "dict subclass": (lambda: [type("D", (dict,), {})()], r"obj\[0\]: D cannot be stored"),
    "int subclass": (lambda: [type("I", (int,), {})()], r"obj\[0\]: I cannot be stored"),
    "key": (lambda: {"a": {b"x": 1}}, r'obj\["a"\]'),
    "tensor key": (lambda: {torch.ones(1): 1}, "obj"),
    "tensor in a set": (lambda: [{torch.ones(1)}], r"obj\[0\]"),
    "cycle": (cycle, r'obj\[0\]\["again"\]: .*contains itself'),
    "local enum": (lambda: [enum.Enum("Here", "A").A], r"obj\[0\]: "),
    "storage": (lambda: {"s": torch.ones(1).untyped_storage()}, r'obj\["s"\]: UntypedStorage'),
    "long scalar": (lambda: [np.longdouble(1)], r"obj\[0\]: longdouble cannot be stored"),
    "date scalar": (lambda: [np.datetime64("2024-01-01")], r"obj\[0\]: datetime64 cannot be stored"),
    "layout": (lambda: [torch.strided], r"obj\[0\]: layout cannot be stored"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_a_byte_is_written(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(fastckpt.UnsupportedError, match=f"^{words}"):
        fastckpt.save(make(), tmp_path / "s")
    assert os.listdir(tmp_path) == []


def test_too_much_beside_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("marker", "plan"):
        monkeypatch.setattr(f"fastckpt.{module}.LINE_LIMIT", 1 << 20)
    monkeypatch.setattr("fastckpt.saving.staging", None)  # refused before it is asked for
    with pytest.raises(fastckpt.UnsupportedError, match=r"1 MiB as JSON.*keep long histories and bytes as tensors"):
        fastckpt.save({"history": [0.1] * 500_000}, tmp_path / "s")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"global_dst_rank": 1}, fastckpt.UnsupportedError, "global_dst_rank=1"),
        ({"pickle_protocol": 2}, fastckpt.UnsupportedError, "pickle_protocol: nothing is pickled"),
        ({"pickle_module": None}, fastckpt.UnsupportedError, "pickle_module"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_arguments_that_mean_nothing_here(options: Any, kind: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        fastckpt.save({}, tmp_path / "s", **options)
    assert os.listdir(tmp_path) == []


def test_arguments_of_oneflow_and_torch(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(1)}, str(tmp_path / "s"), global_dst_rank=0, save_as_external_data=True)
    assert fastckpt.load(os.fspath(tmp_path / "s"), "cpu")["a"] == 1
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(fastckpt.UnsupportedError, match="pass the path of a folder"),
    ):
        fastckpt.save({}, file)
    for path in (3, b"bytes", None):
        with pytest.raises(TypeError, match=r"path must be a str or os.PathLike"):
            fastckpt.save({}, path)


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"a": torch.ones(1)}, tmp_path / "s")
    monkeypatch.chdir(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        fastckpt.save({"b": torch.ones(1)}, "")
    assert list(fastckpt.load(".")) == ["a"]


# ---- frameworks ----


def test_what_numpy_saved_torch_loads_and_the_reverse(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(True)}
    found = round_trip(arrays, tmp_path / "s")
    assert all(type(tensor) is torch.Tensor for tensor in found.values())
    assert found["a"].tolist() == arrays["a"].tolist()
    found = round_trip(found, tmp_path / "s", as_="numpy")
    assert same(found, arrays)


def test_nested_arrays_stay_arrays(tmp_path: Path) -> None:
    saved = {"t": torch.ones(2), "n": [np.ones(2)]}
    assert same(round_trip(saved, tmp_path / "s"), saved)
    assert type(fastckpt.load(tmp_path / "s", as_="torch")["n"][0]) is torch.Tensor
    assert type(fastckpt.load(tmp_path / "s", as_="numpy")["t"]) is np.ndarray
    assert type(fastckpt.load(tmp_path / "s", device="meta")["n"][0]) is np.ndarray
    assert fastckpt.load(tmp_path / "s", device="meta")["t"].is_meta


WITHOUT_TORCH = """
import sys
if sys.argv[2] == "blocked":
    sys.modules["torch"] = None
else:
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Blocker())
    import importlib.util
    importlib.util.find_spec = lambda name, package=None, original=importlib.util.find_spec: (
        None if name == "torch" else original(name, package)
    )
import numpy as np
import fastckpt
root = sys.argv[1]
flat = fastckpt.load(root + "/flat")
assert type(flat["w"]) is np.ndarray and flat["w"].tolist() == [[0.0, 1.0], [2.0, 3.0]], flat
nested = fastckpt.load(root + "/nested")
assert type(nested["model"]["w"]) is np.ndarray and nested["epoch"] == 3
assert fastckpt.open(root + "/nested")["model"]["w"][1].tolist() == [2.0, 3.0]
for call in (lambda: fastckpt.load(root + "/flat", as_="torch"), lambda: fastckpt.open(root + "/flat", as_="torch")):
    try:
        call()
    except fastckpt.UnsupportedError as refused:
        assert "pip install 'fastckpt[torch]'" in str(refused), refused
    else:
        raise AssertionError("not refused")
try:
    fastckpt.load(root + "/values")
except fastckpt.UnsupportedError as refused:
    assert "torch" in str(refused) and 'obj["dtype"]' in str(refused), refused
else:
    raise AssertionError("not refused")
assert fastckpt.verify(root + "/values")
fastckpt.save({"x": np.arange(3), "rest": [np.float32(1)]}, root + "/ours")
target = {"w": np.zeros((2, 2), np.float64)}
fastckpt.load_into(target, root + "/flat")
assert target["w"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
try:
    fastckpt.load(root + "/flat", device="cuda")
except fastckpt.UnsupportedError as refused:
    assert "cuda" in str(refused)
else:
    raise AssertionError("not refused")
assert not any(name.partition(".")[0] == "torch" for name, module in sys.modules.items() if module is not None)
"""


@pytest.mark.parametrize("how", ["blocked", "missing"])
def test_without_torch(how: str, tmp_path: Path) -> None:
    weight = torch.arange(4.0).reshape(2, 2)
    fastckpt.save({"w": weight}, tmp_path / "flat")
    fastckpt.save({"model": {"w": weight}, "epoch": 3}, tmp_path / "nested")
    fastckpt.save({"model": {"w": weight}, "dtype": torch.float32}, tmp_path / "values")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), how], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert fastckpt.load(tmp_path / "ours")["x"].tolist() == [0, 1, 2]


def test_importing_and_loading_numpy_leaves_torch_alone(tmp_path: Path) -> None:
    fastckpt.save({"x": np.arange(3)}, tmp_path / "s")
    code = "import sys, fastckpt; fastckpt.load(sys.argv[1], as_='numpy'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


# ---- what a marker may say ----


def test_a_marker_that_lost_the_object_is_noticed(tmp_path: Path) -> None:
    fastckpt.save({"model": {"w": torch.ones(3)}, "epoch": 3}, tmp_path / "s")
    marker = tmp_path / "s" / "snapshot_done"
    text = marker.read_bytes()
    for damaged in (b"", b"# something else\n", b'{"format":"other"}\n', text[:50], text[:-1], text + b"\0"):
        marker.write_bytes(damaged)
        with pytest.raises((fastckpt.CorruptError, fastckpt.FormatError), match="snapshot_done: "):
            fastckpt.load(tmp_path / "s")
        assert not fastckpt.verify(tmp_path / "s")
    marker.write_bytes(text)
    assert fastckpt.load(tmp_path / "s")["epoch"] == 3


@pytest.mark.parametrize(
    "line",
    [
        b'{"format":"fastckpt","version":2,"count":1}\n',
        b'{"format":"fastckpt","version":1}\n',
        b'{"format":"fastckpt","version":1,"count":-1}\n',
        b'{"format":"fastckpt","version":1,"count":true}\n',
        b'{"format":"fastckpt","version":1,"count":1,"index":[1,2]}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"tensor":"elsewhere"}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"tensor":5}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"nonsense":5}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"torch.nonsense":5}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"torch.dtype":"nn"}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"torch.dtype":["float32"]}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"torch.Size":["3"]}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"torch.device":"nowhere"}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"numpy.dtype":"object"}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"numpy.scalar":["float32","00"]}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"numpy.scalar":["float32","0000000000000000"]}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":{"numpy.scalar":["float32","zz"]}}\n',
        b'{"format":"fastckpt","version":1,"count":1,"object":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'{"format":"fastckpt","version":1,"count":1,"object":' + b"1" * 5000 + b"}\n",
        b'{"format":"fastckpt","version":1,"count":1,"object":\n',
        b'{"format":"fastckpt",' + b"\xff" * 9 + b"\n",
    ],
)
def test_markers_that_are_wrong(line: bytes, tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(3)}, tmp_path / "s")
    (tmp_path / "s" / "snapshot_done").write_bytes(line)
    with pytest.raises(fastckpt.CheckpointError) as refused:
        fastckpt.load(tmp_path / "s")
    assert str(tmp_path / "s") in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(tmp_path))
    report = fastckpt.verify(tmp_path / "s")
    assert not report or b"torch." in line or b"numpy." in line


def test_a_record_that_names_other_tensors(tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(3), "n": [torch.ones(3)]}, tmp_path / "s", digest=False)
    marker = tmp_path / "s" / "snapshot_done"
    text = marker.read_bytes()
    marker.write_bytes(text.replace(b'{"tensor":"n.0"}', b'{"tensor":"w"}  '))
    assert "differ in the tensor 'n.0'" in fastckpt.verify(tmp_path / "s").problems[0]
    marker.write_bytes(text.replace(b'{"tensor":"n.0"}', b'{"tensor":"n.1"}'))
    with pytest.raises(fastckpt.CorruptError, match=r"a tensor 'n.1' that no folder has"):
        fastckpt.load(tmp_path / "s")


@pytest.mark.parametrize("container", ['{"tensor":"x"}', '{"dict":[["a",1]]}', "[]", "5", '{"Nonsense":[]}', '"text"'])
def test_containers_that_are_wrong(container: str, tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(3)}, tmp_path / "s")
    meta = tmp_path / "s" / "w" / "meta"
    meta.write_bytes(meta.read_bytes()[:-2] + b',"container":' + container.encode() + b"}\n")
    with pytest.raises((fastckpt.CorruptError, fastckpt.FormatError), match="w/meta: "):
        fastckpt.load(tmp_path / "s")
    with contextlib.suppress(fastckpt.CheckpointError):
        fastckpt.open(tmp_path / "s")
    assert not fastckpt.verify(tmp_path / "s")
