"""`wrong_token`: workers deliver some tokens that their model has not made, as a miscompiled kernel does.

A seeded `share` of the tokens (0.001 to 1, default 0.05) is replaced on the way from the engine to its worker; `seed`
(default 0) draws which. Nothing in the cluster can notice: a run with this fault has to fail by invariant 3, which is
what the fault is for. It is proved by tokens that the worker was told and its engine had not made; the heal, by fresh
tokens that are all as made.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.engines import PROOF_S, demand_engine, inspect, watch
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.roles import number
from chaos.worlds.world import EngineState, Impairment, World

_FRESH_MIN = 20
_SEED_MAX = 2**31


class WrongToken(Lasting):
    """Spoils the tokens of every target."""

    KIND: ClassVar[str] = "wrong_token"
    COLOUR: ClassVar[str] = "#000000"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_engine(spec, ("share", "seed"))
        share = number(spec, "share", 0.05, 0.001, 1.0)
        seed = int(number(spec, "seed", 0, 0, _SEED_MAX))
        self._impairment = Impairment(wrong_token_share=share, seed=seed)
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._since: dict[str, EngineState] = {}

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. It is no excuse for anything."""
        return ()

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._since = await inspect(world, self._targets)
        for target in self._targets:
            await world.engine(target).impair(self._impairment, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        evidence = await watch(world, self._targets, self._is_wrong, PROOF_S)
        self._since = await inspect(world, self._targets)
        return evidence

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. By the tokens since the first proof."""
        return await watch(world, self._targets, self._is_wrong, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.engine(target).restore()
        self._since = await inspect(world, self._targets)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_right, limit_s)

    def _fresh(self, target: str, state: EngineState) -> tuple[int, int]:
        """Tokens since then, and how many of them are wrong."""
        since = self._since.get(target)
        if since is None:
            return 0, 0
        return state.tokens - since.tokens, state.tokens_changed - since.tokens_changed

    def _is_wrong(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, wrong = self._fresh(target, state)
        return wrong > 0, f"{wrong} of {fresh} tokens are not those that its engine made"

    def _is_right(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, wrong = self._fresh(target, state)
        return fresh >= _FRESH_MIN and not wrong, f"{wrong} of {fresh} tokens are not those that its engine made"
