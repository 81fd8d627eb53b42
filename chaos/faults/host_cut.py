"""`host_cut`: whole hosts lose the network: the links of all nodes there are cut, in one of the ways of `partition`.

It is done in the proxies of these nodes, so it works on hosts whose packet filter nobody may touch, such as Macs, and
Ray's own connections to them go on. It is proved, and its heal, for every node of the host as by `partition`.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.partition import DURATION_S_MIN, Partition
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Cut, World


class HostCut(Partition):
    """Cuts the link of every node of every target for as long as the fault lasts."""

    KIND: ClassVar[str] = "host_cut"
    COLOUR: ClassVar[str] = "#b3541e"
    TERMS: ClassVar[Terms[Options]] = Terms(
        roles=("host",), duration_s_min=DURATION_S_MIN, options=Options, modes=tuple(cut.value for cut in Cut)
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        super().__init__(spec, nodes)
        self._hosts = spec.targets
        # Which nodes are hit is known from the injection on.
        self._targets = ()

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._targets = tuple(node for host in self._hosts for node in world.host(host).nodes)
        await super().inject(world)
