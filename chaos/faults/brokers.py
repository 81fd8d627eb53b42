"""What the kinds that hurt the broker share: evidence from the system, the broker, and the nodes that hang on it."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.codes import LOST
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import DURATION_S_MIN, PROOF_S, inspect, told
from chaos.faults.roles import HOSTED, role_of
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import BrokerState, HandleError, Life, World
from cluster.errors import Code

_POLL_S = 0.2

# While the nodes come back one by one, a request may meet a controller that has only some workers, or none.
EXPLAINS: tuple[str, ...] = (*LOST, Code.CONTROLLER_UNREACHABLE, Code.NO_WORKERS_AVAILABLE)
"""Error codes that callers may see when nobody hears anybody."""

Judge = Callable[[BrokerState], tuple[bool, str]]
"""Whether the broker is as it should be now, and why one may say so."""


def worked(before: BrokerState | None) -> bool:
    """Whether the broker did its part before it was hurt."""
    return before is not None and before.life is Life.RUNS and bool(before.identity) and before.greets


async def watch(world: World, judge: Judge, nodes: Sequence[str] = (), *, limit_s: float = PROOF_S) -> Evidence:
    """Look until `judge` says yes of the broker, and none of `nodes` gets an answer over its link any more.

    For at most `limit_s`; the last look is told.
    """
    end_s = world.now() + limit_s
    while True:
        state = await world.broker().inspect()
        bites, why = judge(state)
        facts: dict[str, object] = {"broker": {"bites": bites, "because": why, "state": told(state)}}
        for node, seen in (await inspect(world, nodes if bites else ())).items():
            cut_off = not seen.answers
            said = "nothing that it sends comes back" if cut_off else "its own message came back over its link"
            facts[node] = {"bites": cut_off, "because": said, "state": told(seen)}
            bites = bites and cut_off
        if bites or world.now() >= end_s:
            return Evidence(bites, facts)
        await world.sleep(_POLL_S)


def hosted(nodes: Sequence[str]) -> list[str]:
    """Those whose processes can be asked while the broker is away."""
    return [node for node in nodes if role_of(node) in HOSTED]


async def everybody_back(
    world: World, nodes: Sequence[str], before: BrokerState | None, limit_s: float, *, renewed: bool
) -> Evidence:
    """Wait until the broker greets and every node gets answers over a link that it lists, for at most `limit_s`.

    renewed: whether it must be another process of the broker than `before`, or the same.
    """
    began_s = world.now()
    facts: dict[str, object] = {}
    missing = list(nodes)
    while True:
        state = await world.broker().inspect()
        same = before is not None and state.identity == before.identity
        there = state.greets and same is not renewed
        facts["broker"] = {"back": there, "state": told(state)}
        for node in list(missing) if there else ():
            back, why = await _is_back(world, node)
            facts[node] = {"back_after_s": round(world.now() - began_s, 3) if back else None, "because": why}
            if back:
                missing.remove(node)
        if (there and not missing) or world.now() - began_s > limit_s:
            return Evidence(there and not missing, facts)
        await world.sleep(_POLL_S)


async def _is_back(world: World, node: str) -> tuple[bool, str]:
    try:
        link = await world.link(node).inspect()
    except HandleError as error:
        return False, str(error)
    if link.answered and link.broker_in is not None:
        return True, "what it sends comes back, and the broker lists its connection"
    return False, "it has no link that answers"


class HurtBroker(Lasting):
    """The frame of the kinds that hurt the broker: how it is struck and mended, and what proves it, they say."""

    TERMS: ClassVar[Terms[Options]] = Terms(roles=("broker",), duration_s_min=DURATION_S_MIN, options=Options)
    CUTS_OFF: ClassVar[bool] = False
    """Whether the proof takes that no node gets an answer over its link any more."""
    RENEWED: ClassVar[bool] = True
    """Whether another process of the broker is there after the heal, or the same."""

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        self._nodes = nodes
        self._ttl_s = spec.ttl_s
        self._before: BrokerState | None = None
        self._struck = False

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return EXPLAINS

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await world.broker().inspect()
        self._struck = True
        await self._strike(world)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        if self._struck:
            await self._mend(world)
            self._struck = False

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await everybody_back(world, self._nodes, self._before, limit_s, renewed=self.RENEWED)

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        nodes = hosted(self._nodes) if self.CUTS_OFF else ()
        return await watch(world, self._judge, nodes, limit_s=limit_s)

    async def _strike(self, world: World) -> None:
        raise NotImplementedError

    async def _mend(self, world: World) -> None:
        await world.broker().restart()

    def _judge(self, now: BrokerState) -> tuple[bool, str]:
        raise NotImplementedError
