"""What a lane is: the way between host memory and a device whose copies are begun now and done some time later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = ["Copy", "Far", "Lane", "Ticket"]

Ticket: TypeAlias = Any  # of a lane: says when its copies are done


class Far(NamedTuple):
    """The elements of a tensor on a device that has a lane: `flat` is its own memory there, as bytes in C order."""

    device: str
    flat: Any


class Copy(NamedTuple):
    """From host memory to `offset` in the bytes of a tensor on the device."""

    source: Any
    flat: Any
    offset: int


class Lane(Protocol):
    """Copies between rooms (`fastckpt.rooms`) and one device. `send`, `fetch` and `wait` may be called by any thread.

    What a copy reads or writes must be left alone until its ticket was waited for, or `finish` has returned.
    """

    def take(self, count: int) -> list[Any]:
        """Give rooms that this device copies from and to at full speed."""

    def give_back(self, rooms: list[Any]) -> None:
        """Let others have them."""

    def begin(self) -> None:
        """Have every copy from now on wait for what the calling thread has asked of the device before."""

    def send(self, copies: Sequence[Copy]) -> Ticket:
        """Begin to copy to the device."""

    def fetch(self, flat: Any, offset: int, room: Any) -> Ticket:
        """Begin to copy bytes of a tensor from the device, as many as the room has."""

    def wait(self, ticket: Ticket) -> None:
        """Return when the copies of a ticket are done."""

    def finish(self) -> None:
        """Return when all copies are done; what the calling thread asks of the device from now on sees them."""
