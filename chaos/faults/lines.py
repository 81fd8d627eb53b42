"""What the kinds that hurt a node's line share: whom they hit, what that explains, and how a heal is waited for."""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.codes import LOST, explained
from chaos.faults.fault import Evidence
from chaos.faults.roles import role_of
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import World
from cluster.errors import Code

_POLL_S = 0.1

Look = Callable[[str], Awaitable[tuple[bool, dict[str, object]]]]
"""Whether a target is healed now, and what was seen of it."""


class HurtLines:
    """Hurts the line of every target, and restores it at the heal."""

    TERMS: ClassVar[Terms[Options]]
    DEAFENS: ClassVar[bool] = False
    """Whether a controller with such a line may still answer, and hear of its workers too late to believe in them."""

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._nodes = nodes

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. A line can be so bad that it is as good as cut."""
        deaf = self.DEAFENS and any(role_of(target) == "controller" for target in self._targets)
        return explained(self._targets, self._nodes, *LOST, *([Code.NO_WORKERS_AVAILABLE] if deaf else []))

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.link(target).restore()


async def until_healed(world: World, targets: Sequence[str], look: Look, limit_s: float) -> Evidence:
    """Look at one target after the other until each is healed, for at most `limit_s` together; ends at the first that
    is not."""
    began_s = world.now()
    facts: dict[str, object] = {}
    for target in targets:
        while True:
            healed, seen = await look(target)
            after_s = round(world.now() - began_s, 3)
            facts[target] = {"answers_after_s": after_s if healed else None, **seen}
            if healed:
                break
            if after_s > limit_s:
                return Evidence(False, facts)
            await world.sleep(_POLL_S)
    return Evidence(True, facts)
