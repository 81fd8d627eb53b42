"""`host_kill`: whole hosts vanish at once, with every node on them, and are started again at the heal.

Every process of a host gets SIGKILL in the same instant, live the Ray node (raylet) and all that runs below it, so that
all its nodes fall silent together, as in a power cut. It is proved when the system knows none of these processes any
more and the broker lists no connection of any node there; that Ray calls the host dead is told beside it, for Ray takes
its time. The heal is proved when new incarnations of all its nodes answer and every controller calls the workers ready.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.hurting import HurtProcesses
from chaos.faults.processes import DURATION_S_MIN, told
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import HostState, Life, World


class HostKill(HurtProcesses):
    """Kills every target and whatever runs there."""

    KIND: ClassVar[str] = "host_kill"
    COLOUR: ClassVar[str] = "#7f1d1d"
    TERMS: ClassVar[Terms[Options]] = Terms(roles=("host",), duration_s_min=DURATION_S_MIN, options=Options)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)
        # Which nodes are hit is known from the injection on.
        self._targets = ()

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._targets = tuple(node for host in self._struck for node in world.host(host).nodes)
        await super().inject(world)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        proof = await super().verify_healed(world, limit_s)
        hosts = {host: {"state": told(await world.host(host).inspect())} for host in self._struck}
        return Evidence(proof.proved, proof.facts | hosts)

    async def _strike(self, world: World, target: str) -> None:
        await world.host(target).kill()

    async def _mend(self, world: World, target: str) -> None:
        await world.host(target).restart()

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        nodes = await super()._proof(world, limit_s)
        facts, proved = dict(nodes.facts), nodes.proved and bool(self._targets)
        for host in self._struck:
            state = await world.host(host).inspect()
            empty, why = is_empty(state)
            proved = proved and empty
            facts[host] = {"bites": empty, "because": why, "state": told(state)}
        return Evidence(proved, facts)


def is_empty(state: HostState) -> tuple[bool, str]:
    """Whether nothing of a host runs any more, and why one may say so."""
    if state.life is not Life.IS_GONE or state.processes:
        return False, f"{state.processes} of its processes are still there"
    return True, "none of its processes is there any more"
