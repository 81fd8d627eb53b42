"""`freeze`: processes of workers or controllers stand still (SIGSTOP) and go on at the heal (SIGCONT).

A machine that sleeps or swaps looks like this: connections stay open, nothing is answered, and what was sent meanwhile
waits to be read. It is proved when the system calls the process stopped, the node answers nobody, and nothing more
comes in over its connection although the broker still lists it; the heal, when the same incarnation answers again and
every controller calls it ready.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.hurting import HurtProcesses
from chaos.faults.processes import DURATION_S_MIN, Members, inspect, told, worked
from chaos.faults.roles import HOSTED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Life, ProcessState, World

_WATCH_S = 1.1
"""More than two heartbeats: a node that lives is heard in this time."""


class Freeze(HurtProcesses):
    """Freezes every target."""

    KIND: ClassVar[str] = "freeze"
    COLOUR: ClassVar[str] = "#33bbee"
    TERMS: ClassVar[Terms[Options]] = Terms(roles=HOSTED, duration_s_min=DURATION_S_MIN, options=Options)
    RENEWED: ClassVar[bool] = False

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        early = await inspect(world, self._targets)
        await world.sleep(_WATCH_S)
        late = await inspect(world, self._targets)
        facts: dict[str, object] = {}
        proved = True
        for target in self._targets:
            bites, why = stands_still(self._before.get(target), early[target], late[target])
            proved = proved and bites
            facts[target] = {"bites": bites, "because": why, "early": told(early[target]), "late": told(late[target])}
        return Evidence(proved, facts)

    async def _strike(self, world: World, target: str) -> None:
        await world.process(target).freeze(self._ttl_s)

    async def _mend(self, world: World, target: str) -> None:
        await world.process(target).thaw()

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        return _silent(state)


def stands_still(before: ProcessState | None, early: ProcessState, late: ProcessState) -> tuple[bool, str]:
    """Whether the process of `before` stands still. early and late: two looks, more than a heartbeat apart."""
    if before is None or not worked(before):
        return False, "the node did not work before"
    for state in (early, late):
        silent, why = _silent(state)
        if not silent:
            return False, why
    held = {cid: count for cid, count in (early.connections or {}).items() if cid in (before.connections or {})}
    if not held:
        return False, "the broker does not list its connection, so its silence there proves nothing"
    if any((late.connections or {}).get(cid, count) > count for cid, count in held.items()):
        return False, "the broker still hears the node"
    return True, "the process is stopped and answers nobody, and the broker hears nothing over its open connection"


def _silent(state: ProcessState) -> tuple[bool, str]:
    if state.life is not Life.STANDS_STILL:
        return False, f"the system says that its process {state.life}"
    if state.answers or state.incarnation is not None:
        return False, "the node answers"
    return True, "the process is stopped and answers nobody"
