"""`slicer`: what a node and the broker send to each other is cut into small pieces, with a pause after each.

Cuts whatever passes over a node's link into pieces of about `average_bytes` (give or take `variation_bytes`) with a
pause of `delay_us` microseconds after each, in both directions or in the one that `direction` names. Every message
arrives in fragments, as over a line with a tiny MTU and a slow host: it shows whether readers put parts together, and
what they make of a slow beginning. Proof: a message to itself, cut into so many pieces that their pauses take 0.3 s in
each direction, takes longer than before by 80 % of that, or does not come back within 2 s.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.roles import LINKED
from chaos.faults.shaped import DURATION_S_MIN, LineOptions, Probe, ShapedLine
from chaos.faults.terms import Terms
from chaos.worlds.world import PAYLOAD_BYTES_MAX, Shape

_PROBE_S = 0.3
"""How long the pauses for the probe take at least. Pieces may be half as large, so it takes twice as long at most."""
_MOST_BYTES = 32_768


class SlicerOptions(LineOptions, frozen=True, kw_only=True):
    """See the module. Shorter pauses are as long as the proxy's timers make them, and nobody can say how long."""

    average_bytes: Annotated[int, msgspec.Meta(ge=1, le=_MOST_BYTES)]
    variation_bytes: Annotated[int, msgspec.Meta(ge=0, le=_MOST_BYTES, description="at most average_bytes")] = 0
    delay_us: Annotated[int, msgspec.Meta(ge=1_000, le=1_000_000, description="longer for large pieces")]


class Slicer(ShapedLine):
    """Cuts up everything on the targets' links."""

    KIND: ClassVar[str] = "slicer"
    COLOUR: ClassVar[str] = "#ee99aa"
    DEAFENS: ClassVar[bool] = True
    TERMS: ClassVar[Terms[SlicerOptions]] = Terms(roles=LINKED, duration_s_min=DURATION_S_MIN, options=SlicerOptions)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        average, variation, delay_us = options.average_bytes, options.variation_bytes, options.delay_us
        if variation > average:
            raise ValueError(f"options.variation_bytes: expected at most average_bytes = {average}, got {variation}")
        largest = average + variation
        pieces = max(2, math.ceil(_PROBE_S / (delay_us / 1_000_000)))
        payload_bytes = pieces * largest
        if payload_bytes > PAYLOAD_BYTES_MAX:
            least_us = math.ceil(_PROBE_S * 1_000_000 * largest / PAYLOAD_BYTES_MAX)
            raise ValueError(f"options.delay_us: expected at least {least_us} for such large pieces, got {delay_us}")
        shape = Shape(
            slice_bytes=average,
            slice_variation_bytes=variation,
            slice_delay_s=delay_us / 1_000_000,
            directions=options.directions,
        )
        # With pauses of a second two pieces are enough, and what takes longer than an echo may is not waited for.
        least_s = min(len(options.directions) * _PROBE_S, 1.0)
        super().__init__(spec, nodes, shape, Probe(payload_bytes, least_s))
