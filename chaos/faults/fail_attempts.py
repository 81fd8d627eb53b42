"""`fail_attempts`: a share of what workers are given fails at once with an error, as with a flaky driver.

A seeded `share` of the attempts ends with ENGINE_ERROR before their first token; `seed` draws
which. The worker itself is well, and so are all other attempts. It is proved by attempts that fail at
the target's engine and did not before; the heal, by fresh ones of which none does.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.codes import LATE
from chaos.faults.engines import DURATION_S_MIN, ROLES, ImpairedEngines
from chaos.faults.terms import Options, Seed, Terms
from chaos.worlds.world import EngineState, Impairment
from cluster.errors import Code

_FRESH_MIN = 3
_CHANCE = 0.001
"""How likely it may be that the share hits nobody for as long as the proof is waited for."""


class FailAttemptsOptions(Options, frozen=True):
    """See the module."""

    share: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = 0.05
    seed: Seed = 0


class FailAttempts(ImpairedEngines):
    """Makes a share of every target's attempts fail."""

    KIND: ClassVar[str] = "fail_attempts"
    COLOUR: ClassVar[str] = "#882255"
    TERMS: ClassVar[Terms[FailAttemptsOptions]] = Terms(
        roles=ROLES, duration_s_min=DURATION_S_MIN, options=FailAttemptsOptions
    )
    CODES: ClassVar[tuple[Code, ...]] = (Code.ENGINE_ERROR, *LATE)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        # Each target draws for itself, or equal loads would fail together.
        impairments = {
            target: Impairment(fail_share=options.share, seed=options.seed + place)
            for place, target in enumerate(spec.targets)
        }
        # Rare failures take a while to show, so up to half of the fault is waited for.
        super().__init__(spec, nodes, impairments, proof_s=spec.duration_s / 2)

    def _fresh(self, target: str, state: EngineState) -> tuple[int, int]:
        """Attempts since then, and how many of them failed."""
        since = self._since.get(target)
        if since is None or state.inserted < since.inserted:
            return 0, 0
        return state.inserted - since.inserted, state.insertions_failed - since.insertions_failed

    def _bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, failed = self._fresh(target, state)
        return failed > 0, f"{failed} of {fresh} attempts failed at its engine"

    def _still_bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        """With few attempts none need have failed: then that proves nothing against it."""
        fresh, failed = self._fresh(target, state)
        unlikely = (1 - self._impairments[target].fail_share) ** fresh < _CHANCE
        return failed > 0 or not unlikely, f"{failed} of {fresh} attempts failed at its engine since the first proof"

    def _is_well(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, failed = self._fresh(target, state)
        return fresh >= _FRESH_MIN and not failed, f"{failed} of {fresh} attempts failed at its engine"
