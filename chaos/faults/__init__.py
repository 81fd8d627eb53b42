"""Fault kinds by name."""

from collections.abc import Sequence
from importlib.metadata import entry_points

from chaos.experiment import FaultSpec
from chaos.faults.bandwidth import Bandwidth
from chaos.faults.broker_freeze import BrokerFreeze
from chaos.faults.broker_kill import BrokerKill
from chaos.faults.broker_restart import BrokerRestart
from chaos.faults.clock_skew import ClockSkew
from chaos.faults.engine_dies import EngineDies
from chaos.faults.fail_attempts import FailAttempts
from chaos.faults.fault import Evidence, Fault
from chaos.faults.flap import Flap
from chaos.faults.freeze import Freeze
from chaos.faults.host_cut import HostCut
from chaos.faults.host_freeze import HostFreeze
from chaos.faults.host_kill import HostKill
from chaos.faults.kill import Kill
from chaos.faults.lame_duck import LameDuck
from chaos.faults.latency import Latency
from chaos.faults.load_fails import LoadFails
from chaos.faults.memory_pressure import MemoryPressure
from chaos.faults.messages import CorruptMessages, DelayMessages, DropMessages, DuplicateMessages, ReorderMessages
from chaos.faults.partition import Partition
from chaos.faults.restart import Restart
from chaos.faults.slicer import Slicer
from chaos.faults.slow_consumer import SlowConsumer
from chaos.faults.slow_down import SlowDown
from chaos.faults.stop import Stop
from chaos.faults.wrong_token import WrongToken

_ALL: tuple[type[Fault], ...] = (
    Partition,
    Latency,
    Bandwidth,
    Slicer,
    Flap,
    SlowConsumer,
    Kill,
    HostKill,
    HostCut,
    HostFreeze,
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
"""Those that ship with the project."""

ENTRY_POINTS = "mlx_chaos.faults"
"""The group in which an installed package names kinds of its own: `unplug = "my_package.unplug:Unplug"`."""


def kinds() -> dict[str, type[Fault]]:
    """Every kind by name, also those of installed packages. Raises ValueError (kind, then what is wrong with one)."""
    found = dict(KINDS)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found:
            raise ValueError(f"kind: {point.value} wants to be {point.name}, and there is one of that name already")
        try:
            loaded = point.load()
        except Exception as error:  # what a stranger's module raises can be anything
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"kind: {point.name} of {point.value} cannot be loaded: {what}") from error
        lacking = [name for name in _MEMBERS if not hasattr(loaded, name)]
        if lacking or point.name != loaded.KIND:
            what = f"lacks {', '.join(lacking)}" if lacking else f"calls itself {loaded.KIND!r}"
            raise ValueError(f"kind: {point.name} of {point.value} is no fault kind, it {what}")
        found[point.name] = loaded
    return found


def make(spec: FaultSpec, nodes: Sequence[str]) -> Fault:
    """The fault of a spec, in a cluster of these nodes. Raises ValueError (field, then what was expected)."""
    kind = KINDS.get(spec.kind)
    if kind is not None:
        return kind(spec, nodes)
    known = kinds()
    if spec.kind not in known:
        raise ValueError(f"kind: expected one of {', '.join(known)}, got {spec.kind!r}")
    try:
        return known[spec.kind](spec, nodes)
    except ValueError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"kind: {spec.kind} cannot be made: {type(error).__name__}: {error}") from error


_MEMBERS = (
    "KIND",
    "COLOUR",
    "explains",
    "inject",
    "verify",
    "sustain",
    "verify_end",
    "heal",
    "verify_healed",
)

__all__ = ["ENTRY_POINTS", "KINDS", "Evidence", "Fault", "kinds", "make"]
