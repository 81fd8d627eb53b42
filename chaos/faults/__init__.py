"""Fault kinds by name."""

from collections.abc import Sequence

from chaos.experiment import FaultSpec
from chaos.faults.broker_freeze import BrokerFreeze
from chaos.faults.broker_kill import BrokerKill
from chaos.faults.broker_restart import BrokerRestart
from chaos.faults.clock_skew import ClockSkew
from chaos.faults.engine_dies import EngineDies
from chaos.faults.fail_attempts import FailAttempts
from chaos.faults.fault import Evidence, Fault
from chaos.faults.freeze import Freeze
from chaos.faults.kill import Kill
from chaos.faults.lame_duck import LameDuck
from chaos.faults.load_fails import LoadFails
from chaos.faults.memory_pressure import MemoryPressure
from chaos.faults.messages import CorruptMessages, DelayMessages, DropMessages, DuplicateMessages, ReorderMessages
from chaos.faults.partition import Partition
from chaos.faults.restart import Restart
from chaos.faults.slow_down import SlowDown
from chaos.faults.stop import Stop
from chaos.faults.wrong_token import WrongToken

_ALL: tuple[type[Fault], ...] = (
    Partition,
    Kill,
    Freeze,
    Stop,
    Restart,
    BrokerKill,
    BrokerRestart,
    BrokerFreeze,
    LameDuck,
    SlowDown,
    EngineDies,
    LoadFails,
    MemoryPressure,
    WrongToken,
    FailAttempts,
    ClockSkew,
    DropMessages,
    DelayMessages,
    DuplicateMessages,
    ReorderMessages,
    CorruptMessages,
)
KINDS: dict[str, type[Fault]] = {kind.KIND: kind for kind in _ALL}


def make(spec: FaultSpec, nodes: Sequence[str]) -> Fault:
    """The fault of a spec, in a cluster of these nodes. Raises ValueError (field, then what was expected)."""
    kind = KINDS.get(spec.kind)
    if kind is None:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {spec.kind!r}")
    return kind(spec, nodes)


__all__ = ["KINDS", "Evidence", "Fault", "make"]
