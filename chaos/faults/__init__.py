"""Fault kinds by name."""

from collections.abc import Sequence

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence, Fault
from chaos.faults.partition import Partition

KINDS: dict[str, type[Fault]] = {kind.KIND: kind for kind in (Partition,)}


def make(spec: FaultSpec, nodes: Sequence[str]) -> Fault:
    """The fault of a spec, in a cluster of these nodes. Raises ValueError (field, then what was expected)."""
    kind = KINDS.get(spec.kind)
    if kind is None:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {spec.kind!r}")
    return kind(spec, nodes)


__all__ = ["KINDS", "Evidence", "Fault", "make"]
