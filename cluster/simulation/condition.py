"""What a link is like, and how it looks from both of its ends."""

import math
from enum import StrEnum

import msgspec


class Flow(StrEnum):
    """What happens to bytes in one direction."""

    PASS = "pass"
    DROP = "drop"
    HOLD = "hold"


class Condition(msgspec.Struct, frozen=True):
    """A link's condition. upstream: node to broker. refused: connections are closed and none can be made.

    close_passes: whether the broker learns that the node has closed its end (a cut cable would not tell it).
    """

    upstream: Flow = Flow.PASS
    downstream: Flow = Flow.PASS
    refused: bool = False
    close_passes: bool = True

    @property
    def clear(self) -> bool:
        """Whether bytes pass both ways."""
        return self.upstream is Flow.PASS and self.downstream is Flow.PASS and not self.refused


class NetworkCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One-way travel between a node and the broker: `latency_s` plus up to `jitter_s`, uniform, plus a tail that is
    `tail_s` in the mean, exponential. Seconds. Raises ValueError naming the field.
    """

    latency_s: float = 0.0003
    jitter_s: float = 0.0002
    tail_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more seconds, got {getattr(self, name)}")


class Counters(msgspec.Struct, frozen=True):
    """Both ends of a link. cid: the connection that broker_* are about, 0 for none; None: the broker lists no such one.

    node_in, node_out: messages over all connections of the node. undecoded: those of node_in that were no messages.
    pending_bytes: what waits for the node at the broker. reason: why the broker closed the connection, where it was its
    own will.
    """

    connected: bool
    cid: int
    node_in: int
    node_out: int
    broker_in: int | None
    broker_out: int | None
    reconnects: int
    undecoded: int
    pending_bytes: int = 0
    reason: str = ""
