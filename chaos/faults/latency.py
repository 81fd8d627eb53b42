"""`latency`: everything between a node and the broker takes longer.

Delays whatever passes over a node's link by `latency_ms`, give or take `jitter_ms` (uniform, order kept), in both
directions or in the one that `direction` names. A round trip takes twice as long as one way. It stands for a distant or
overloaded network; nothing is lost. Proof: a message that the node sends to itself over its existing connection takes
longer than before by at least 80 % of what the delays add to it.
"""

from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from chaos.experiment import FaultSpec
from chaos.faults.roles import demand_options, number
from chaos.faults.shaped import Probe, ShapedLine, direction_of

_LATENCY_MS = (20, 800)
"""Less is within the noise of a busy host. With more no new connection is made within `policy.link.connect_s`."""


class Latency(ShapedLine):
    """Delays everything on the targets' links."""

    KIND: ClassVar[str] = "latency"
    COLOUR: ClassVar[str] = "#0072b2"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_options(spec, ("latency_ms", "jitter_ms", "direction"))
        latency_s = number(spec, "latency_ms", None, *_LATENCY_MS) / 1_000
        # Half of the latency at most, or the least that it adds is too little to be told from chance.
        jitter_s = number(spec, "jitter_ms", 0, 0, latency_s * 1_000 / 2) / 1_000
        blank, ways = direction_of(spec)
        shape = replace(blank, latency_s=latency_s, jitter_s=jitter_s)
        super().__init__(spec, nodes, shape, Probe(0, ways * (latency_s - jitter_s)))
