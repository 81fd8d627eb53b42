"""`bandwidth`: no more than so much passes between a node and the broker.

Lets no more than `kb_per_s` (kilobytes of 1000 bytes) pass over a node's link, in each of both directions or in the one
that `direction` names. What is too much waits its turn, so a link that carries more than that falls behind further and
further, until pings stay unanswered. It stands for a saturated or badly negotiated line. Proof: a message to itself, so
large that the line needs 0.6 s for it in each direction, takes longer than before by 80 % of that, or does not come
back within 2 s because the line is full.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.roles import LINKED
from chaos.faults.shaped import DURATION_S_MIN, LineOptions, Probe, ShapedLine
from chaos.faults.terms import Terms
from chaos.worlds.world import Shape

_KB = 1_000
_PROBE_S = 0.6
"""How long the probe keeps the line busy; both ways together, and with as much traffic again, it is back in time."""


class BandwidthOptions(LineOptions, frozen=True, kw_only=True):
    """See the module. More than the most cannot be proved with the largest message that the broker takes."""

    kb_per_s: Annotated[int, msgspec.Meta(ge=1, le=1_500)]


class Bandwidth(ShapedLine):
    """Narrows the targets' links."""

    KIND: ClassVar[str] = "bandwidth"
    COLOUR: ClassVar[str] = "#56b4e9"
    DEAFENS: ClassVar[bool] = True
    TERMS: ClassVar[Terms[BandwidthOptions]] = Terms(
        roles=LINKED, duration_s_min=DURATION_S_MIN, options=BandwidthOptions
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        bytes_per_s = options.kb_per_s * _KB
        shape = Shape(bytes_per_s=bytes_per_s, directions=options.directions)
        super().__init__(spec, nodes, shape, Probe(int(bytes_per_s * _PROBE_S), len(options.directions) * _PROBE_S))
