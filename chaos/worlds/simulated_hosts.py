"""The hosts of the simulated world: nodes that fall and rise together."""

from collections.abc import Mapping, Sequence

from chaos.faults.processes import side_by_side
from chaos.worlds.world import HandleError, HostState, Life, Process, World
from cluster.simulation.cluster import SimulatedCluster

_TRAVEL_S = 0.001
_START_S = 3.0
"""How long a new host takes until it can start nodes; a Ray node takes about so long."""


class SimulatedHost:
    """See World's Host."""

    def __init__(
        self, name: str, nodes: Sequence[str], world: World, cluster: SimulatedCluster, processes: Mapping[str, Process]
    ) -> None:
        """processes: the handle of each of its nodes."""
        self.nodes = tuple(nodes)
        self._name = name
        self._world = world
        self._cluster = cluster
        self._processes = processes

    async def kill(self) -> None:
        """See Host."""
        await self._world.sleep(_TRAVEL_S)
        if not self._running():
            raise HandleError(f"{self._name}: none of its processes is there, SIGKILL reaches nobody")
        for node in self._running():
            self._cluster.crash(node)

    async def restart(self) -> None:
        """See Host."""
        for node in self._running():
            self._cluster.crash(node)
        await self._world.sleep(_START_S)
        await side_by_side(self._world, [self._processes[node].restart() for node in self.nodes])

    async def inspect(self) -> HostState:
        """See Host. A host is what runs on it here, and has no pid."""
        await self._world.sleep(_TRAVEL_S)
        processes = len(self._running())
        life = Life.RUNS if processes else Life.IS_GONE
        return HostState(life=life, pid=0, processes=processes, scheduler="none: hosts are simulated")

    def _running(self) -> list[str]:
        return [node for node in self.nodes if not self._cluster.nodes[node].ended]
