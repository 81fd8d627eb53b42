"""The broker's process in virtual time: it runs, stands still, leaves as a lame duck, or is gone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from cluster.simulation.kernel import Kernel

LAME_DUCK_GRACE_S = 2.0
LAME_DUCK_STEP_S = 0.75
"""As nats-server does: after the grace it closes its clients one by one, half a second to a second apart."""


class Wire(Protocol):
    """A node's link, as the broker's process is felt on it."""

    def broker_closed(self) -> None:
        """The broker's end of the connection is gone."""

    def broker_froze(self) -> None:
        """Nobody answers at the broker's end from now on, and nothing is closed."""

    def broker_thawed(self) -> None:
        """The broker's end works again."""


class Broker:
    """What has arrived while it stands still it handles when it goes on, in order.

    life: counts its processes, from 1. freezes: counts how often it has stood still.
    """

    def __init__(self, kernel: Kernel, wires: Mapping[str, Wire]) -> None:
        self.life = 1
        self.running = True
        self.frozen = False
        self.freezes = 0
        self._lame = False
        self._kernel = kernel
        self._wires = wires
        self._waiting: list[Callable[[], None]] = []

    @property
    def accepts(self) -> bool:
        """Whether a new connection is taken; one that stands still takes it and says nothing."""
        return self.running and not self._lame

    def arrived(self, act: Callable[[], None]) -> None:
        """Something reaches the broker: it acts on it now, or once it goes on, or never if it is gone."""
        if self.frozen:
            self._waiting.append(act)
        elif self.running:
            act()

    def kill(self) -> None:
        """It is gone from one instant to the next, and every connection with it; nothing if it was gone."""
        self.running = self.frozen = self._lame = False
        self._waiting.clear()
        for wire in list(self._wires.values()):
            wire.broker_closed()

    def restart(self) -> None:
        """A new process, which knows of no connection."""
        self.kill()
        self.life += 1
        self.running = True

    def freeze(self) -> None:
        """It stands still; nothing if it does already or is gone."""
        if self.running and not self.frozen:
            self.frozen = True
            self.freezes += 1
            for wire in list(self._wires.values()):
                wire.broker_froze()

    def thaw(self) -> None:
        """It goes on with what waits for it; nothing if it was not frozen."""
        if not self.frozen:
            return
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for act in waiting:
            act()
        for wire in list(self._wires.values()):
            wire.broker_thawed()

    def lame_duck(self) -> None:
        """It takes nobody new, closes its connections one after the other, and ends."""
        if not self.running or self._lame:
            return
        self._lame = True
        life, leaves_s = self.life, self._kernel.now + LAME_DUCK_GRACE_S
        for number, node in enumerate(self._wires):
            self._kernel.at(leaves_s + number * LAME_DUCK_STEP_S, partial(self._dismiss, life, node))
        self._kernel.at(leaves_s + len(self._wires) * LAME_DUCK_STEP_S, lambda: self._leave(life))

    def _dismiss(self, life: int, node: str) -> None:
        if self._leaving(life):
            self._wires[node].broker_closed()

    def _leave(self, life: int) -> None:
        if self._leaving(life):
            self.kill()

    def _leaving(self, life: int) -> bool:
        return self._lame and self.life == life
