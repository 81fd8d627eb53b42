"""`host_freeze`: every node's process of whole hosts stands still (SIGSTOP) at once, and goes on at the heal (SIGCONT).

A Mac whose lid is closed looks like this. The hosts themselves and Ray's processes there go on, or nobody could wake
them. It is proved, and its heal, for every node of the host as by `freeze`.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.freeze import Freeze
from chaos.faults.processes import DURATION_S_MIN
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import World


class HostFreeze(Freeze):
    """Freezes every node of every target."""

    KIND: ClassVar[str] = "host_freeze"
    COLOUR: ClassVar[str] = "#1b7fa6"
    TERMS: ClassVar[Terms[Options]] = Terms(roles=("host",), duration_s_min=DURATION_S_MIN, options=Options)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        super().__init__(spec, nodes)
        self._hosts = spec.targets
        # Which nodes are hit is known from the injection on.
        self._targets = self._struck = ()

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._targets = self._struck = tuple(node for host in self._hosts for node in world.host(host).nodes)
        await super().inject(world)
