"""`host_kill`: whole hosts vanish at once, with every node on them, and are started again at the heal.

Every process of a host gets SIGKILL in the same instant, live the Ray node (raylet) and all that runs below it, so that
all its nodes fall silent together, as in a power cut. It is proved when the system knows none of these processes any
more and the broker lists no connection of any node there; that Ray calls the host dead is told beside it, for Ray takes
its time. The heal is proved when new incarnations of all its nodes answer and every controller calls the workers ready.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import (
    PROOF_S,
    Members,
    Return,
    demand_process,
    explained,
    inspect,
    is_gone,
    side_by_side,
    told,
    watch,
)
from chaos.worlds.world import HostState, Life, ProcessState, World


class HostKill(Lasting):
    """Kills every target and whatever runs there."""

    KIND: ClassVar[str] = "host_kill"
    COLOUR: ClassVar[str] = "#7f1d1d"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_process(spec, (), ("host",))
        self._hosts = spec.targets
        self._everybody = nodes
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._down: list[str] = []

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. Which nodes are hit is known from the injection on."""
        return explained(tuple(self._before), self._everybody)

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, [node for host in self._hosts for node in world.host(host).nodes])
        self._members = await world.members()
        self._down = list(self._hosts)
        await side_by_side(world, [world.host(host).kill() for host in self._hosts])

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._bring_back(world, host) for host in self._down])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        proof = await Return(self._before, self._members, tuple(self._before)).proof(world, limit_s)
        hosts = {host: {"state": told(await world.host(host).inspect())} for host in self._hosts}
        return Evidence(proof.proved, proof.facts | hosts)

    async def _bring_back(self, world: World, host: str) -> None:
        await world.host(host).restart()
        self._down.remove(host)

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        def judge(target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
            return is_gone(self._before.get(target), state, replaced=False)

        nodes = await watch(world, tuple(self._before), judge, limit_s)
        facts, proved = dict(nodes.facts), nodes.proved and bool(self._before)
        for host in self._hosts:
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
