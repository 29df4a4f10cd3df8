"""Pickles as OneFlow's releases write them, and damaged ones."""

from __future__ import annotations

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
