"""`wrong_token`: workers deliver some tokens that their model has not made, as a miscompiled kernel does.

A seeded `share` of the tokens is replaced on the way from the engine to its worker; `seed` draws
which. Nothing in the cluster can notice: a run with this fault has to fail by invariant 3, which is
what the fault is for. It is proved by tokens that the worker was told and its engine had not made; the heal, by fresh
tokens that are all as made.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.engines import DURATION_S_MIN, ROLES, ImpairedEngines
from chaos.faults.terms import Options, Seed, Terms
from chaos.worlds.world import EngineState, Impairment

_FRESH_MIN = 20


class WrongTokenOptions(Options, frozen=True):
    """See the module."""

    share: Annotated[float, msgspec.Meta(ge=0.001, le=1)] = 0.05
    seed: Seed = 0


class WrongToken(ImpairedEngines):
    """Spoils the tokens of every target."""

    KIND: ClassVar[str] = "wrong_token"
    COLOUR: ClassVar[str] = "#000000"
    TERMS: ClassVar[Terms[WrongTokenOptions]] = Terms(
        roles=ROLES, duration_s_min=DURATION_S_MIN, options=WrongTokenOptions
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        impairment = Impairment(wrong_token_share=options.share, seed=options.seed)
        super().__init__(spec, nodes, dict.fromkeys(spec.targets, impairment))

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. It is no excuse for anything, however many workers it hits."""
        return ()

    def _fresh(self, target: str, state: EngineState) -> tuple[int, int]:
        """Tokens since then, and how many of them are wrong."""
        since = self._since.get(target)
        if since is None:
            return 0, 0
        return state.tokens - since.tokens, state.tokens_changed - since.tokens_changed

    def _bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, wrong = self._fresh(target, state)
        return wrong > 0, f"{wrong} of {fresh} tokens are not those that its engine made"

    def _is_well(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, wrong = self._fresh(target, state)
        return fresh >= _FRESH_MIN and not wrong, f"{wrong} of {fresh} tokens are not those that its engine made"
