"""One TCP connection through the proxy, and for how long its two ends put up with a bad line."""

from collections.abc import Callable
from random import Random

from cluster.node import Event, NoResponders, Received
from cluster.policy import LinkPolicy
from cluster.protocol import Message, encode
from cluster.simulation.kernel import Kernel
from cluster.simulation.line import FRAME_BYTES, Line, Shaping

SOCKETS_BYTES = 3_000_000
"""What the sockets between the broker and the proxy take of a receiver that does not read; measured on Linux."""
WRITE_DEADLINE_S = 2.0
PENDING_BYTES_MAX = 8 * 2**20
"""Both as in cluster.live.broker.BrokerSettings."""
_PING_BYTES = 6
_GREETING_BYTES = 512
_ANSWER_BYTES = 256


class Echo(Event, frozen=True):
    """What a node sends to itself: so many bytes, and who is told when they are back."""

    payload_bytes: int
    came_back: Callable[[], None]


def wire_bytes(event: Event) -> int:
    """How many bytes an event is on the wire."""
    match event:
        case Received(message):
            return len(encode(message)) + FRAME_BYTES
        case Echo(payload_bytes):
            return payload_bytes + FRAME_BYTES
        case NoResponders():
            return 2 * FRAME_BYTES
    return FRAME_BYTES


def handshake_s(up: Shaping | None, down: Shaping | None, limit_s: float) -> float | None:
    """How long a new connection takes over bad lines; None when one of its words does not come within `limit_s`."""
    up, down = up or Shaping(), down or Shaping()
    greeting_s, answer_s = down.one_way_s(_GREETING_BYTES), up.one_way_s(_ANSWER_BYTES)
    in_time = max(greeting_s, answer_s + down.one_way_s(_PING_BYTES)) <= limit_s
    return greeting_s + answer_s if in_time else None


class Connection:
    """Each end may be closed before the other knows. up: from the node to the broker."""

    def __init__(self, cid: int, node: str, kernel: Kernel, random: Random, travel_s: Callable[[], float]) -> None:
        self.cid = cid
        self.node = node
        self.began_s = kernel.now
        self.node_open = True
        self.broker_open = True
        self.announced = False
        self.broker_in = self.broker_out = 0
        self.held_up: list[tuple[str, Message, bool]] = []
        self.held_down: list[Event] = []
        self.up = Line(kernel, random, travel_s)
        self.down = Line(kernel, random, travel_s)


class Patience:
    """Of both ends of a connection with a bad line; over a good one nobody has to have any.

    The node gives up when too many of its pings are unanswered: they and their answers stand in line with everything
    else. The broker gives up a reader that takes nothing for its write deadline, or for whom too much waits.
    """

    def __init__(
        self,
        kernel: Kernel,
        policy: LinkPolicy,
        connection: Connection,
        *,
        suspended: Callable[[], bool],
        node_gives_up: Callable[[], None],
        broker_gives_up: Callable[[str], None],
    ) -> None:
        """suspended: whether something else than the line decides just now who hears whom."""
        self._kernel = kernel
        self._policy = policy
        self._connection = connection
        self._suspended = suspended
        self._node_gives_up = node_gives_up
        self._broker_gives_up = broker_gives_up
        self._turn = 0
        self._unanswered = 0
        self._blocked_s: float | None = None

    def shape(self, up: Shaping | None, down: Shaping | None) -> None:
        """The lines are such from now on."""
        self._connection.up.shape(up)
        self._connection.down.shape(down)
        self._turn += 1
        self._unanswered = 0
        self._blocked_s = None
        if up is not None or down is not None:
            self._await_ping(self._turn)

    def pending_bytes(self) -> int:
        """What waits at the broker, beyond what the sockets have taken."""
        return max(0, self._connection.down.waiting_bytes() - SOCKETS_BYTES)

    def sent_down(self) -> None:
        """The broker has put something on a bad line."""
        pending = self.pending_bytes()
        if pending > PENDING_BYTES_MAX:
            self._broker_gives_up("Slow Consumer (Pending Bytes)")
        elif pending and self._blocked_s is None:
            blocked_s = self._blocked_s = self._kernel.now
            self._kernel.at(blocked_s + WRITE_DEADLINE_S, lambda: self._write_deadline(blocked_s))

    def _write_deadline(self, blocked_s: float) -> None:
        if self._blocked_s != blocked_s or not self._connection.broker_open:
            return
        self._blocked_s = None
        if self.pending_bytes():
            self._broker_gives_up("Slow Consumer (Write Deadline)")

    def _await_ping(self, turn: int) -> None:
        age_s = self._kernel.now - self._connection.began_s
        next_s = (int(age_s / self._policy.ping_s) + 1) * self._policy.ping_s
        self._kernel.at(self._connection.began_s + next_s, lambda: self._ping(turn))

    def _ping(self, turn: int) -> None:
        connection = self._connection
        if turn != self._turn or not connection.node_open:
            return
        if self._suspended():
            self._unanswered = 0
        else:
            self._unanswered += 1
            if self._unanswered > self._policy.pings_outstanding_max:
                self._node_gives_up()
                return
            connection.up.carry(self._pong, lambda: _PING_BYTES)
        self._await_ping(turn)

    def _pong(self) -> None:
        if self._connection.broker_open:
            self._connection.down.carry(self._answered, lambda: _PING_BYTES)

    def _answered(self) -> None:
        self._unanswered = 0
