"""`bandwidth`: no more than so much passes between a node and the broker.

Lets no more than `kb_per_s` (kilobytes of 1000 bytes) pass over a node's link, in each of both directions or in the one
that `direction` names. What is too much waits its turn, so a link that carries more than that falls behind further and
further, until pings stay unanswered. It stands for a saturated or badly negotiated line. Proof: a message to itself, so
large that the line needs 0.6 s for it in each direction, takes longer than before by 80 % of that, or does not come
back within 2 s because the line is full.
"""

from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from chaos.experiment import FaultSpec
from chaos.faults.roles import demand_options
from chaos.faults.shaped import Probe, ShapedLine, direction_of, whole_number

_KB = 1_000
_KB_PER_S = (1, 1_500)
"""Toxiproxy counts in whole kB/s. More cannot be proved with the largest message that the broker takes."""
_PROBE_S = 0.6
"""How long the probe keeps the line busy; both ways together, and with as much traffic again, it is back in time."""


class Bandwidth(ShapedLine):
    """Narrows the targets' links."""

    KIND: ClassVar[str] = "bandwidth"
    COLOUR: ClassVar[str] = "#56b4e9"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_options(spec, ("kb_per_s", "direction"))
        bytes_per_s = whole_number(spec, "kb_per_s", None, *_KB_PER_S) * _KB
        blank, ways = direction_of(spec)
        probe = Probe(int(bytes_per_s * _PROBE_S), ways * _PROBE_S)
        super().__init__(spec, nodes, replace(blank, bytes_per_s=bytes_per_s), probe)
