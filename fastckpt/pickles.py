"""A pickle read as what it is, a program for a small machine with a stack; but here the machine can only build data.

There is no way from it to a class or a function: a name in the pickle stays a name, a call stays a note of what would
be called with what. Who reads the result gives a meaning to the few names that it knows; any other is refused where it
stands. Only opcodes that Python's own pickler writes for data are read, those of protocols 0 to 5.

Before anything is made, everything that could ask for memory is held against the bytes that are there: lengths, memo
places, frames. An opcode makes one thing at most, and there is a limit to their number. The bytes of arrays and byte
strings are passed over, never read: of them a `Span` tells where they lie, so a file of many gigabytes is read as
quickly as its names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from fastckpt.errors import UnsupportedError
from fastckpt.picklenodes import Call, Name, Pairs, Unordered
from fastckpt.pickletext import REFUSED, Source, number_of

__all__ = ["OPCODES", "read_pickle"]

OPCODES = 1 << 22  # in one pickle: 20,000 tensors with all that an optimizer has of them take 1,000,000
_MARKS = 1000  # open at a time; a container within a container opens one
_GLOBAL = re.compile(r"[\w.<>]{1,255}", re.ASCII)


def read_pickle(source: Source, is_known: Callable[[str, str], bool]) -> Any:
    """Read a pickle.

    Parameters
    ----------
    source : Source
        Its bytes.
    is_known : callable
        Tells whether a module and a name in it may be named.

    Returns
    -------
    object
        None, a bool, int, float, str, list or tuple; a `Span` for bytes, `Pairs` for a dict, `Unordered` for a set, a
        `Call` for anything else, a `Name` for a class itself. What stands in it twice is one object; it may contain
        itself, to any depth.

    Raises
    ------
    FormatError
        It is malformed, cut off, or larger than it can be; the message tells the byte.
    UnsupportedError
        It names what is not known, or has an opcode that Python writes for what is no data.
    """
    machine = _Machine(source, is_known)
    for _ in range(OPCODES):
        if machine.step():
            return machine.result()
    raise UnsupportedError(f"{source.where}: more than {OPCODES:,} opcodes; save long lists of numbers as tensors")


class _Machine:
    def __init__(self, source: Source, is_known: Callable[[str, str], bool]) -> None:
        self.source = source
        self.is_known = is_known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self) -> bool:
        """Do what the next opcode says; True for the last one."""
        source = self.source
        source.op_at = source.at
        code = source.take(1)
        action = _ACTIONS.get(code)
        if action is not None:
            action(self)
            return False
        if code == b".":
            return True
        if code in REFUSED:
            name, reason = REFUSED[code]
            raise UnsupportedError(f"{source.place()}: the opcode {name} is not read here: {reason}")
        raise source.wrong(f"wanted an opcode, found {code!r}")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise self.source.wrong(f"the pickle ends with {len(self.stack)} objects, wants one")
        left = self.source.size - self.source.at
        if left:
            raise self.source.wrong(f"the pickle ends here, but {left:,} bytes follow")
        return self.stack[0]

    # ---- the stack ----

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.source.wrong("an object is wanted, and none is on the stack")
        return self.stack.pop()

    def top(self, *kinds: type) -> Any:
        made = self.pop()
        if type(made) not in kinds:
            wanted = " or ".join(_WORDS[kind] for kind in kinds)
            raise self.source.wrong(f"wanted {wanted} on the stack, found {_WORDS.get(type(made), 'a plain value')}")
        self.stack.append(made)
        return made

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise self.source.wrong("a mark is wanted, and none is on the stack")
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def mark(self) -> None:
        if len(self.marks) >= _MARKS:
            raise self.source.wrong(f"containers are nested more than {_MARKS} deep")
        self.marks.append(len(self.stack))

    def some(self, count: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(count)][::-1])

    # ---- the memo ----

    def put(self, place: int) -> None:
        """Python counts places from 0 on; whatever the number, nothing is allocated for the ones below."""
        if not 0 <= place < self.source.at:
            raise self.source.wrong(f"memo place {place} is further than a pickle of this length can get")
        made = self.pop()
        self.stack.append(made)
        self.memo[place] = made

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise self.source.wrong(f"memo place {place} is asked for, and was never filled")
        self.stack.append(self.memo[place])

    # ---- containers ----

    def append(self) -> None:
        item = self.pop()
        self.top(list).append(item)

    def appends(self) -> None:
        items = self.since_mark()
        self.top(list).extend(items)

    def set_item(self) -> None:
        key, value = self.some(2)
        self.top(Pairs, Call).pairs.append((key, value))

    def set_items(self) -> None:
        items = self.since_mark()
        self.top(Pairs, Call).pairs.extend(self.paired(items))

    def paired(self, items: list[Any]) -> list[tuple[Any, Any]]:
        if len(items) % 2:
            raise self.source.wrong("a key without a value")
        return list(zip(items[::2], items[1::2], strict=True))

    def dict_(self) -> None:
        made = Pairs()
        made.pairs = self.paired(self.since_mark())
        self.stack.append(made)

    def add_items(self) -> None:
        items = self.since_mark()
        into = self.top(Unordered)
        if into.frozen:
            raise self.source.wrong("a frozenset cannot be added to")
        into.items.extend(items)

    # ---- names, and what would be done with them ----

    def global_(self) -> None:
        module, name = self.source.line(255), self.source.line(255)
        self.push_name(module.decode("ascii", "replace"), name.decode("ascii", "replace"))

    def stack_global(self) -> None:
        module, name = self.some(2)
        if type(module) is not str or type(name) is not str:
            raise self.source.wrong("a name must be two texts")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        if not (_GLOBAL.fullmatch(module) and _GLOBAL.fullmatch(name)):
            raise self.source.wrong(f"no name of a class or function: {module[:80]!a}, {name[:80]!a}")
        if not self.is_known(module, name):
            raise UnsupportedError(
                f"{self.source.place()}: names {module}.{name}, which is none of the classes that are read here; "
                "nothing was imported or run. If you trust the file, load it in the program that wrote it and save its "
                "state dict and plain values"
            )
        self.stack.append(Name(module, name, self.source.op_at))

    def call(self) -> None:
        name, args = self.some(2)
        if type(name) is not Name or type(args) is not tuple:
            raise self.source.wrong("wanted a named class or function and a tuple of arguments")
        self.stack.append(Call(name, args))

    def build(self) -> None:
        state = self.pop()
        made = self.top(Call)
        if made.state is not None:
            raise self.source.wrong(f"{made.name.module}.{made.name.name} is given its state twice")
        made.state = state


_WORDS: dict[type, str] = {
    list: "a list",
    tuple: "a tuple",
    Pairs: "a dict",
    Unordered: "a set",
    Call: "an object of a class",
    Name: "a class",
}


def _push(make: Callable[[Source], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine.source))


def _push_tuple(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.some(count))


def _bytearray(source: Source) -> Call:
    return Call(Name("builtins", "bytearray", source.op_at), (source.skip(8),))


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: m.source.protocol(),
    b"\x95": lambda m: m.source.frame(),
    b"(": _Machine.mark,
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"J": _push(lambda s: s.little(4, signed=True)),
    b"K": _push(lambda s: s.little(1)),
    b"M": _push(lambda s: s.little(2)),
    b"\x8a": _push(lambda s: s.integer(1)),
    b"\x8b": _push(lambda s: s.integer(4)),
    b"I": _push(lambda s: number_of(s, booleans=True)),
    b"L": _push(number_of),
    b"F": _push(lambda s: s.decimal()),
    b"G": _push(lambda s: struct.unpack(">d", s.take(8))[0]),
    b"V": _push(lambda s: s.escaped()),
    b"\x8c": _push(lambda s: s.text(1)),
    b"X": _push(lambda s: s.text(4)),
    b"\x8d": _push(lambda s: s.text(8)),
    b"C": _push(lambda s: s.skip(1)),
    b"B": _push(lambda s: s.skip(4)),
    b"\x8e": _push(lambda s: s.skip(8)),
    b"\x96": _push(_bytearray),
    b")": _push(lambda _: ()),
    b"\x85": _push_tuple(1),
    b"\x86": _push_tuple(2),
    b"\x87": _push_tuple(3),
    b"t": lambda m: m.stack.append(tuple(m.since_mark())),
    b"]": _push(lambda _: []),
    b"l": lambda m: m.stack.append(m.since_mark()),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"}": _push(lambda _: Pairs()),
    b"d": _Machine.dict_,
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"\x8f": _push(lambda _: Unordered([], frozen=False)),
    b"\x90": _Machine.add_items,
    b"\x91": lambda m: m.stack.append(Unordered(m.since_mark(), frozen=True)),
    b"p": lambda m: m.put(number_of(m.source)),
    b"q": lambda m: m.put(m.source.little(1)),
    b"r": lambda m: m.put(m.source.little(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(number_of(m.source)),
    b"h": lambda m: m.get(m.source.little(1)),
    b"j": lambda m: m.get(m.source.little(4)),
    b"c": _Machine.global_,
    b"\x93": _Machine.stack_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"b": _Machine.build,
}
