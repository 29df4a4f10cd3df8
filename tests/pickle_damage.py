"""Pickles as OneFlow's releases write them, and damaged ones."""

from __future__ import annotations

import pickletools
import random
from collections import OrderedDict

import numpy as np
from oneflow_rig import Saver, conv, dumped, oneflow

from fastckpt.pickles import _ACTIONS
from fastckpt.pickletext import REFUSED


def genuine() -> list[bytes]:
    """Pickles as OneFlow's releases write them."""
    found = []
    with oneflow() as flow:
        for protocol in (2, 3, 4, 5):
            save = Saver(flow, None)
            tied = flow.Parameter({"path": "tensor_3"})
            state = OrderedDict({"l.weight": tied, "l.bias": flow.Tensor({"path": "tensor_4"})})
            state._metadata = OrderedDict()
            group = {"_options": {"lr": 0.1, "betas": (0.9, 0.999)}, "params": [0, 1]}
            rest = {"set": {1, 2}, "bytes": b"\0\xff", "note": "模型", "none": None, "np": np.float32(2), "big": 2**70}
            obj = {"model": state, "optimizer": {"state": {0: {"m": tied}}, "param_groups": [group]}, "rest": rest}
            inside = {"inside": save(np.arange(4.0)), "array": np.ones((2, 2))} if protocol > 2 else {}
            found.append(dumped(obj | inside, protocol))
            found.append(
                dumped([conv(flow, tied), flow.dtype(2), flow.placement({"type": "cpu", "ranks": [0]})], protocol)
            )
    return found


GENUINE = genuine()
FRAMELESS = GENUINE[:4]  # of protocols 2 and 3: a value may have another length


def damaged(data: bytes, random_: random.Random) -> bytes:
    """Cut, flip, drop, double, or put opcodes in between."""
    raw = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(raw))
        kind = random_.randrange(6)
        if kind == 0:
            del raw[at:]
        elif kind == 1:
            raw[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            raw[at] = random_.randrange(256)
        elif kind == 3:
            del raw[at : at + random_.randint(1, 9)]
        elif kind == 4:
            raw[at:at] = raw[at : at + random_.randint(1, 40)]
        else:
            raw[at:at] = random_.choice([*_ACTIONS, *REFUSED]) + random_.randbytes(random_.randrange(5))
        if not raw:
            raw += b"."
    return bytes(raw)


_VALUES = [
    b"N",
    b"\x88",
    b"K\x01",
    b"]",
    b"}",
    b")",
    b"C\x00",
    b"C\x02ab",
    b"X\x01\x00\x00\x00a",
    b"G" + bytes(8),
    b"\x8a\x01\x05",
]
_VALUES += [
    b"cnumpy\nndarray\n",
    b"coneflow\nTensor\n)\x81",
    b"cbuiltins\nset\nN\x85R",
    b"(Nt",
    b"]q\xfah\xfaa",
    b"h\x01",
    b"h\x05",
]


def swapped(data: bytes, random_: random.Random) -> bytes:
    """Put other values in the place of some, so that what is read stays a pickle, of things that nobody pickles."""
    pieces, begin = [], 0
    values = ("N", "I", "J", "K", "M", "C", "X", "G", "\x88", "\x89", ")", "]", "}", "h", "c")
    ops = [(op.code, at) for op, _, at in pickletools.genops(data)]
    ends = [at for _, at in ops[1:]] + [len(data)]
    places = [(at, end) for (code, at), end in zip(ops, ends, strict=True) if code in values]
    for at, end in sorted(random_.sample(places, random_.choice((1, 1, 2, 3)))):
        pieces += [data[begin:at], random_.choice(_VALUES)]
        begin = end
    return b"".join([*pieces, data[begin:]])
