"""`latency`: everything between a node and the broker takes longer.

Delays whatever passes over a node's link by `latency_ms`, give or take `jitter_ms` (uniform, order kept), in both
directions or in the one that `direction` names. A round trip takes twice as long as one way. It stands for a distant or
overloaded network; nothing is lost. Proof: a message that the node sends to itself over its existing connection takes
longer than before by at least 80 % of what the delays add to it.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.roles import LINKED
from chaos.faults.shaped import DURATION_S_MIN, LineOptions, Probe, ShapedLine
from chaos.faults.terms import Terms
from chaos.worlds.world import Shape

_MOST_MS = 800
"""With more no new connection is made within `policy.link.connect_s`."""


class LatencyOptions(LineOptions, frozen=True, kw_only=True):
    """See the module. Less than the least is within the noise of a busy host."""

    latency_ms: Annotated[float, msgspec.Meta(ge=20, le=_MOST_MS)]
    jitter_ms: Annotated[float, msgspec.Meta(ge=0, le=_MOST_MS / 2, description="at most half of latency_ms")] = 0.0


class Latency(ShapedLine):
    """Delays everything on the targets' links."""

    KIND: ClassVar[str] = "latency"
    COLOUR: ClassVar[str] = "#0072b2"
    TERMS: ClassVar[Terms[LatencyOptions]] = Terms(roles=LINKED, duration_s_min=DURATION_S_MIN, options=LatencyOptions)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        # With more, the least that it adds is too little to be told from chance.
        if options.jitter_ms > options.latency_ms / 2:
            most_ms = options.latency_ms / 2
            raise ValueError(
                f"options.jitter_ms: expected at most {most_ms:g}, half of latency_ms, got {options.jitter_ms:g}"
            )
        latency_s, jitter_s = options.latency_ms / 1_000, options.jitter_ms / 1_000
        shape = Shape(latency_s=latency_s, jitter_s=jitter_s, directions=options.directions)
        super().__init__(spec, nodes, shape, Probe(0, len(options.directions) * (latency_s - jitter_s)))
