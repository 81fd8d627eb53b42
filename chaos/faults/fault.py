"""What a fault kind is: it bites, proves that it bites, and is undone."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec

from chaos.experiment import FaultSpec
from chaos.worlds.world import World


class Evidence(msgspec.Struct, frozen=True):
    """Whether something is so, and the observations that say it: a JSON object."""

    proved: bool
    facts: dict[str, object]


class Fault(Protocol):
    """One fault of an experiment. Its coroutines await only the world.

    A kind may declare two things more: `TERMS` (chaos.faults.terms), what a spec may say to it, which is then told to
    users; and `AT_ONCE`, how many of its targets it hits at a time, where that is not all of them.
    """

    KIND: ClassVar[str]
    COLOUR: ClassVar[str]

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        """nodes: every node of the cluster.

        Raises ValueError (field, then what was expected) for parameters that the kind does not allow.
        """

    @property
    def explains(self) -> tuple[str, ...]:
        """Error codes that callers may see because of this fault."""

    async def inject(self, world: World) -> None:
        """Make it happen."""

    async def verify(self, world: World) -> Evidence:
        """Evidence that it bites, within about two seconds."""

    async def sustain(self, world: World, until_s: float) -> None:
        """Keep it up until the world's time `until_s`."""

    async def verify_end(self, world: World) -> Evidence:
        """Evidence, just before the heal, that it was in force until now."""

    async def heal(self, world: World) -> None:
        """Undo it. Safe to call at any time, and again."""

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """Evidence that it is gone, waiting for that at most `limit_s`."""


class Lasting:
    """A kind that stays in force by itself once it is injected."""

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        await world.sleep(until_s - world.now())
