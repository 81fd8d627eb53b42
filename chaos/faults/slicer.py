"""`slicer`: what a node and the broker send to each other is cut into small pieces, with a pause after each.

Cuts whatever passes over a node's link into pieces of about `average_bytes` (give or take `variation_bytes`) with a
pause of `delay_us` microseconds after each, in both directions or in the one that `direction` names. Every message
arrives in fragments, as over a line with a tiny MTU and a slow host: it shows whether readers put parts together, and
what they make of a slow beginning. Proof: a message to itself, cut into so many pieces that their pauses take 0.3 s in
each direction, takes longer than before by 80 % of that, or does not come back within 2 s.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from chaos.experiment import FaultSpec
from chaos.faults.roles import demand_options
from chaos.faults.shaped import Probe, ShapedLine, direction_of, whole_number
from chaos.worlds.world import PAYLOAD_BYTES_MAX

_PROBE_S = 0.3
"""How long the pauses for the probe take at least. Pieces may be half as large, so it takes twice as long at most."""
_AVERAGE_BYTES = (1, 32_768)
_DELAY_US = (1_000, 1_000_000)
"""Shorter pauses are as long as the proxy's timers make them, and nobody can say how long."""


class Slicer(ShapedLine):
    """Cuts up everything on the targets' links."""

    KIND: ClassVar[str] = "slicer"
    COLOUR: ClassVar[str] = "#ee99aa"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_options(spec, ("average_bytes", "variation_bytes", "delay_us", "direction"))
        average = whole_number(spec, "average_bytes", None, *_AVERAGE_BYTES)
        variation = whole_number(spec, "variation_bytes", 0, 0, average)
        delay_us = whole_number(spec, "delay_us", None, *_DELAY_US)
        largest = average + variation
        pieces = max(2, math.ceil(_PROBE_S / (delay_us / 1_000_000)))
        payload_bytes = pieces * largest
        if payload_bytes > PAYLOAD_BYTES_MAX:
            least_us = math.ceil(_PROBE_S * 1_000_000 * largest / PAYLOAD_BYTES_MAX)
            raise ValueError(f"options.delay_us: expected at least {least_us} for such large pieces, got {delay_us}")
        blank, ways = direction_of(spec)
        shape = replace(
            blank,
            slice_bytes=average,
            slice_variation_bytes=variation,
            slice_delay_s=delay_us / 1_000_000,
        )
        # With pauses of a second two pieces are enough, and what takes longer than an echo may is not waited for.
        super().__init__(spec, nodes, shape, Probe(payload_bytes, min(ways * _PROBE_S, 1.0)))
