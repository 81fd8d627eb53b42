"""What may be done to single messages on a simulated link: whoever does it is put in from outside."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cluster.node import Event, Received
from cluster.protocol import Message
from cluster.simulation.kernel import Kernel


class Garbled(Event, frozen=True):
    """Bytes have come that are no message."""


class Parcel(msgspec.Struct, frozen=True):
    """A message to `to` on its way over one link. message: as it will arrive; None: as bytes that nobody understands.

    go: sends what it is by then on its way.
    """

    to: str
    message: Message | None
    go: Callable[[Event], None]


class Meddler(Protocol):
    """Something at work on the messages of one direction of one link. It may hold them, within bounds of its own.

    Times are the kernel's, seconds.
    """

    def feed(self, parcel: Parcel, now_s: float) -> Sequence[Parcel]:
        """What goes on now, in order, when this one comes."""

    def due_s(self) -> float | None:
        """When `release` has something to give; None if nothing is held."""

    def release(self, now_s: float) -> Sequence[Parcel]:
        """What is due by now."""

    def flush(self) -> Sequence[Parcel]:
        """Everything held, in the order in which it came."""


class Meddlers:
    """All meddlers on one direction of one link, in the order in which they were added; none as a rule."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._meddlers: list[Meddler] = []

    def __len__(self) -> int:
        return len(self._meddlers)

    def add(self, meddler: Meddler) -> None:
        """From now on it sees what comes."""
        self._meddlers.append(meddler)

    def remove(self, meddler: Meddler) -> None:
        """It sees nothing more, and what it holds goes on. Nothing if it is not there."""
        if meddler in self._meddlers:
            place = self._meddlers.index(meddler)
            del self._meddlers[place]
            self._pass(meddler.flush(), place)

    def feed(self, to: str, message: Message, go: Callable[[Event], None]) -> None:
        """A message comes. go: sends on its way whatever is to go of it, now or later, once or more often."""
        if self._meddlers:
            self._pass([Parcel(to, message, go)], 0)
        else:
            go(Received(message))

    def _pass(self, parcels: Sequence[Parcel], place: int) -> None:
        now_s = self._kernel.now
        for meddler in self._meddlers[place:]:
            parcels = [passed for parcel in parcels for passed in meddler.feed(parcel, now_s)]
            due_s = meddler.due_s()
            if due_s is not None:
                self._kernel.at(due_s, self._release)
        for parcel in parcels:
            parcel.go(Received(parcel.message) if parcel.message is not None else Garbled())

    def _release(self) -> None:
        now_s = self._kernel.now
        for place, meddler in enumerate(list(self._meddlers)):
            due_s = meddler.due_s()
            if due_s is None or due_s > now_s:
                continue
            self._pass(meddler.release(now_s), place + 1)
            due_s = meddler.due_s()
            if due_s is not None:
                self._kernel.at(due_s, self._release)
