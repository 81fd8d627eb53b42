"""NATS with a proxy in front of each node, in virtual time: at most once, no-responders, and links that go bad.

Each node has one link to the broker. The link's condition is what its proxy does to bytes; the connections over it
behave as nats-py and nats-server do under that condition (pings, reconnects, half-open connections).
"""

from collections.abc import Callable
from functools import partial
from random import Random

from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import CONTROLLERS, EVERY_CONTROLLER, Message
from cluster.simulation.broker import Broker
from cluster.simulation.condition import Condition, Counters, Flow, NetworkCosts
from cluster.simulation.connection import Connection, Echo, Patience, handshake_s, wire_bytes
from cluster.simulation.kernel import Kernel
from cluster.simulation.line import Shaping
from cluster.simulation.meddling import Garbled, Meddlers

__all__ = ["Condition", "Counters", "Flow", "Link", "Network", "NetworkCosts"]


class Link:
    """One node's way to the broker. controller: it also subscribes to what is for all controllers, or for any.

    up, down: what is done to single messages from the node, and to it.
    """

    def __init__(
        self, network: "Network", node: str, deliver: Callable[[Event], None], *, controller: bool = False
    ) -> None:
        self.controller = controller
        self._network = network
        self._kernel = network.kernel
        self._deliver = deliver
        self._connection: Connection | None = None
        self._half_open: list[Connection] = []
        self._epoch = 0
        self._connecting = False
        self.node = node
        self.condition = Condition()
        self._shapings: tuple[Shaping | None, Shaping | None] = (None, None)
        self._patience: Patience | None = None
        self.frozen = False
        self._freezes = 0
        self._overdue = False
        self._socket: list[Callable[[], None]] = []
        self.reconnects = -1
        self.messages_in = 0
        self.messages_out = 0
        self.undecoded = 0
        self.up = Meddlers(network.kernel)
        self.down = Meddlers(network.kernel)
        self.closed = False

    def open(self) -> None:
        """Connect, and keep connecting whenever the connection is lost."""
        self._connect()

    def close(self, *, flush: bool = False) -> None:
        """The node's process ends: its connection closes and is not made again.

        flush: what the node has sent arrives before the end of the connection. Otherwise both break off at once.
        """
        self.closed = True
        self._socket.clear()
        connection, self._connection = self._connection, None
        if connection is None or not connection.node_open:
            return
        if flush and self.condition.clear:
            connection.node_open = False
            self._close_after_held(connection)
        else:
            self._drop(connection)

    def succeed(self, former: "Link") -> None:
        """Stand behind the same proxy as the link of an earlier process of this node, with what the proxy holds."""
        self.condition = former.condition
        self._shapings = former._shapings
        self._half_open = former._half_open
        self.up, self.down = former.up, former.down

    def freeze(self) -> None:
        """The node's process stands still: what arrives waits at its socket, and nobody answers the broker's pings."""
        self.frozen = True
        self._freezes += 1
        if self._connection is not None:
            self._watch_frozen(self._connection)

    def thaw(self) -> None:
        """The process goes on. What waits at its socket is handled first, in order, the end of the connection last."""
        self.frozen = False
        self._freezes += 1
        waiting, self._socket = self._socket, []
        for arrived in waiting:
            arrived()
        if self._overdue:
            self._overdue = False
            self._connect()
        if self._connection is not None and (not self.condition.clear or self._network.broker.frozen):
            # Its own pings stood still too, and it counts the unanswered ones from here on.
            self._watch_from_node(self._connection)

    def hand(self, event: Event) -> None:
        """Something for the node from its own host, in line with what the broker sends it."""
        self._arrived(partial(self._deliver, event))

    def counters(self, cid: int | None = None) -> Counters:
        """The view from both ends, of connection `cid` at the broker's end (default: the present one)."""
        present = self._connection.cid if self._connection is not None else 0
        wanted = present if cid is None else cid
        listed = self._network.listed.get(wanted)
        return Counters(
            connected=self._connection is not None,
            cid=present,
            node_in=self.messages_in,
            node_out=self.messages_out,
            broker_in=listed.broker_in if listed is not None else None,
            broker_out=listed.broker_out if listed is not None else None,
            reconnects=self.reconnects,
            undecoded=self.undecoded,
            pending_bytes=self._patience.pending_bytes() if self._patience is not None and wanted == present else 0,
            reason=self._network.reasons.get(wanted, ""),
        )

    def set_condition(self, condition: Condition) -> None:
        """Change what the proxy does, to the existing connection too."""
        self.condition = condition
        self._epoch += 1
        connection = self._connection
        if condition.refused:
            if connection is not None:
                self._lose(connection, "connection closed by peer")
        elif condition.clear:
            for half_open in self._half_open:
                self._release(half_open)
                self._close_after_held(half_open)
            self._half_open.clear()
            if connection is not None and connection.broker_open:
                self._release(connection)
                if self._network.broker.frozen:
                    self._watch_from_node(connection)
            elif connection is not None:
                self._lose(connection, "connection closed by peer")
        elif connection is not None:
            self._watch(connection)

    def send(self, to: str, message: Message, needs_responder: bool) -> None:
        """Publish; without a connection the node learns at once that nothing was sent."""
        connection = self._connection
        if connection is None:
            self._kernel.at(self._kernel.now, lambda: self.hand(SendFailed(to, message)))
            return
        self.messages_out += 1
        if self.condition.upstream is Flow.PASS:
            self._travel_up(connection, to, message, needs_responder)
        elif self.condition.upstream is Flow.HOLD:
            connection.held_up.append((to, message, needs_responder))

    def receive(self, connection: Connection, event: Event) -> None:
        """The broker puts something on its end of a connection."""
        if not connection.broker_open:
            return
        connection.broker_out += 1
        if self.down and isinstance(event, Received):
            self.down.feed(self.node, event.message, partial(self._go_down, connection))
        else:
            self._go_down(connection, event)

    def _go_down(self, connection: Connection, event: Event) -> None:
        if self.condition.downstream is Flow.PASS:
            self._travel_down(connection, event)
        elif self.condition.downstream is Flow.HOLD:
            connection.held_down.append(event)

    def echo(self) -> bool:
        """Whether a message to oneself, sent now over the present connection, comes back; it counts at both ends."""
        connection = self._connection
        if connection is None or self.frozen:
            return False
        self.messages_out += 1
        if self.condition.upstream is not Flow.PASS or not connection.broker_open or self._network.broker.frozen:
            return False
        connection.broker_in += 1
        connection.broker_out += 1
        if self.condition.downstream is not Flow.PASS:
            return False
        self.messages_in += 1
        return True

    def round_trip(self, payload_bytes: int, came_back: Callable[[], None]) -> None:
        """Send so many bytes to oneself over the present connection; who is told when they are back."""
        connection = self._connection
        if connection is None or self.frozen:
            return
        self.messages_out += 1
        if self.condition.upstream is Flow.PASS:
            self._carry_up(connection, self.node, Echo(payload_bytes, came_back), None)

    def shape(self, up: Shaping | None, down: Shaping | None) -> None:
        """Change what the line does to bytes, on the existing connection too. None: nothing."""
        if (up, down) == self._shapings:
            return
        self._shapings = (up, down)
        if self._patience is not None and self._connection is not None:
            self._patience.shape(up, down)

    def _dropped(self, connection: Connection, reason: str) -> None:
        """The broker has had enough of a reader; the proxy passes the end on at once, and what waits is lost."""
        self._network.reasons[connection.cid] = reason
        self._network.unregister(self.node, connection)
        self._lose(connection, "connection closed by peer")

    def broker_closed(self) -> None:
        """See cluster.simulation.broker.Wire. Where the proxy lets nothing through, the node notices by its pings."""
        for half_open in self._half_open:
            self._network.unregister(self.node, half_open)
        connection = self._connection
        if connection is not None:
            self._network.unregister(self.node, connection)
            if self.condition.downstream is Flow.PASS:
                self._lose(connection, "connection closed by peer")

    def broker_froze(self) -> None:
        """See cluster.simulation.broker.Wire."""
        # On a link that is not clear the node counts its unanswered pings already.
        if self._connection is not None and self.condition.clear:
            self._epoch += 1
            self._watch_from_node(self._connection)

    def broker_thawed(self) -> None:
        """See cluster.simulation.broker.Wire. The broker's own pings begin anew: it could not count meanwhile."""
        connection = self._connection
        if self.condition.clear:
            self._epoch += 1
        else:
            for silent in [*self._half_open, *([connection] if connection is not None else [])]:
                self._watch_from_broker(silent)
        if self.frozen and connection is not None:
            self._watch_frozen(connection)

    def _travel_up(self, connection: Connection, to: str, message: Message, needs_responder: bool) -> None:
        unheard = NoResponders(to, message) if needs_responder else None
        if self.up:
            self.up.feed(to, message, lambda event: self._carry_up(connection, to, event, unheard))
        else:
            self._carry_up(connection, to, Received(message), unheard)

    def _carry_up(self, connection: Connection, to: str, event: Event, unheard: NoResponders | None) -> None:
        def heard() -> None:
            if connection.broker_open:
                connection.broker_in += 1
                self._network.route(self, connection, to, event, unheard)

        connection.up.carry(partial(self._network.broker.arrived, heard), partial(wire_bytes, event))

    def _travel_down(self, connection: Connection, event: Event) -> None:
        connection.down.carry(partial(self._arrived_over, connection, event), partial(wire_bytes, event))
        if not connection.down.good and self._patience is not None and connection is self._connection:
            self._patience.sent_down()

    def _arrived_over(self, connection: Connection, event: Event) -> None:
        if connection.node_open:
            self._arrived(partial(self._take, event))

    def _arrived(self, act: Callable[[], None]) -> None:
        """Something reaches the node's end: its process acts on it now, or once it has thawed."""
        if self.frozen:
            self._socket.append(act)
        elif not self.closed:
            act()

    def _take(self, event: Event) -> None:
        self.messages_in += 1
        if isinstance(event, Garbled):
            self.undecoded += 1
        elif isinstance(event, Echo):
            event.came_back()
        else:
            self._deliver(event)

    def _release(self, connection: Connection) -> None:
        """What was held goes on its way, in order."""
        held_up, connection.held_up = connection.held_up, []
        for to, message, needs_responder in held_up:
            self._travel_up(connection, to, message, needs_responder)
        held_down, connection.held_down = connection.held_down, []
        for event in held_down:
            self._travel_down(connection, event)

    def _watch(self, connection: Connection) -> None:
        """Both ends ping; each gives up when too many pings stay unanswered."""
        self._watch_from_node(connection)
        self._watch_from_broker(connection)

    def _watch_from_broker(self, connection: Connection) -> None:
        policy = self._network.policy
        epoch = self._epoch
        self._at_ping(
            connection,
            policy.broker_ping_s,
            policy.broker_pings_outstanding_max,
            lambda: self._broker_gives_up(connection, epoch),
        )

    def _watch_frozen(self, connection: Connection) -> None:
        policy = self._network.policy
        freezes = self._freezes
        self._at_ping(
            connection,
            policy.broker_ping_s,
            policy.broker_pings_outstanding_max,
            lambda: self._broker_gives_up_frozen(connection, freezes),
        )

    def _watch_from_node(self, connection: Connection) -> None:
        policy = self._network.policy
        epoch = self._epoch
        self._at_ping(connection, policy.ping_s, policy.pings_outstanding_max, lambda: self._node_gives_up(epoch))

    def _at_ping(self, connection: Connection, ping_s: float, outstanding: int, act: Callable[[], None]) -> None:
        age_s = self._kernel.now - connection.began_s
        sent = int(age_s / ping_s)
        self._kernel.at(connection.began_s + (sent + 1 + outstanding) * ping_s, act)

    def _node_gives_up(self, epoch: int) -> None:
        if epoch == self._epoch and self._connection is not None and not self.frozen:
            self._lose(self._connection, "pings were not answered")

    def _broker_gives_up(self, connection: Connection, epoch: int) -> None:
        if epoch == self._epoch and not self._network.broker.frozen:
            self._network.unregister(self.node, connection)

    def _broker_gives_up_frozen(self, connection: Connection, freezes: int) -> None:
        if freezes != self._freezes or self._network.broker.frozen:
            return
        self._network.unregister(self.node, connection)
        if self.condition.downstream is Flow.PASS and not self.closed:
            self._lose(connection, "connection closed by peer")

    def _lose(self, connection: Connection, reason: str) -> None:
        """The connection is at its end; a frozen node sees that when it has read what came before."""
        if connection.node_open:
            self._drop(connection)
            self._arrived(lambda: self._lost(reason))

    def _lost(self, reason: str) -> None:
        self._connection = None
        self._deliver(LinkDown(reason))
        self._retry()

    def _drop(self, connection: Connection) -> None:
        connection.node_open = False
        if self.condition.close_passes:
            self._told_closed(connection)
        else:
            self._half_open.append(connection)

    def _close_after_held(self, connection: Connection) -> None:
        self._kernel.at(connection.up.last_s, lambda: self._told_closed(connection))

    def _told_closed(self, connection: Connection) -> None:
        self._network.broker.arrived(lambda: self._network.unregister(self.node, connection))

    def _retry(self) -> None:
        if not self.closed:
            self._kernel.at(self._kernel.now + self._network.policy.reconnect_s, self._connect)

    def _connect(self) -> None:
        if self.closed or self._connection is not None or self._connecting:
            return
        if self.frozen:
            self._overdue = True
            return
        broker = self._network.broker
        if self.condition.refused or (self.condition.clear and not broker.accepts):
            self._retry()
            return
        if not self.condition.clear or broker.frozen:
            # The connection is made but the broker's greeting does not come through in time.
            self._connecting = True
            self._kernel.at(self._kernel.now + self._network.policy.connect_s, self._connect_timed_out)
            return
        if any(self._shapings):
            # Each word of the greeting takes its time, and must come within `connect_s`.
            self._connecting = True
            connect_s = self._network.policy.connect_s
            taken_s = handshake_s(*self._shapings, connect_s)
            ended = self._connect_timed_out if taken_s is None else self._shaken
            self._kernel.at(self._kernel.now + (connect_s if taken_s is None else taken_s), ended)
            return
        self._connected()
        assert self._connection is not None
        self._travel_down(self._connection, LinkUp())

    def _connected(self) -> None:
        self.reconnects += 1
        connection = self._connection = self._network.register(self)
        self._patience = Patience(
            self._kernel,
            self._network.policy,
            connection,
            suspended=lambda: not self.condition.clear or self.frozen or self._network.broker.frozen,
            node_gives_up=lambda: self._lose(connection, "pings were not answered"),
            broker_gives_up=lambda reason: self._dropped(connection, reason),
        )
        if any(self._shapings):
            self._patience.shape(*self._shapings)

    def _shaken(self) -> None:
        self._connecting = False
        if not self.condition.clear or self.closed or self.frozen or not self._network.broker.accepts:
            self._retry()
            return
        self._connected()
        assert self._connection is not None
        self._announce(self._connection)

    def _announce(self, connection: Connection) -> None:
        """The node believes in a new connection over a bad line when a message to itself has come back."""
        if connection is not self._connection or connection.announced:
            return

        def believe() -> None:
            if not connection.announced:
                connection.announced = True
                self._deliver(LinkUp())

        self.round_trip(0, believe)
        self._kernel.at(self._kernel.now + self._network.policy.connect_s, lambda: self._announce(connection))

    def _connect_timed_out(self) -> None:
        self._connecting = False
        self._retry()


class Network:
    """The broker and everybody's link to it."""

    def __init__(self, kernel: Kernel, policy: LinkPolicy, costs: NetworkCosts, random: Random) -> None:
        self.kernel = kernel
        self.policy = policy
        self.costs = costs
        self.links: dict[str, Link] = {}
        self.broker = Broker(kernel, self.links)
        self.listed: dict[int, Connection] = {}
        self.reasons: dict[int, str] = {}
        """Why the broker closed a connection, by its id, where it was the broker's own will."""
        self._subscribed: dict[str, Connection] = {}
        self._controllers: dict[str, None] = {}
        """Of those subscribed."""
        self._random = random
        self._cid = 0

    def link(self, node: str, deliver: Callable[[Event], None], *, controller: bool = False) -> Link:
        """A new link for a node; it replaces the one of an earlier incarnation."""
        link = Link(self, node, deliver, controller=controller)
        if node in self.links:
            link.succeed(self.links[node])
        self.links[node] = link
        return link

    def travel_s(self) -> float:
        """One-way travel time of one message."""
        costs = self.costs
        travel_s = costs.latency_s + self._random.random() * costs.jitter_s
        return travel_s + self._random.expovariate(1.0) * costs.tail_s if costs.tail_s else travel_s

    def register(self, link: Link) -> Connection:
        """A connection of the node whose subscription has reached the broker. An older one is forgotten."""
        self._cid += 1
        connection = Connection(self._cid, link.node, self.kernel, self._random, self.travel_s)
        self.listed[self._cid] = connection
        self._subscribed[link.node] = connection
        if link.controller:
            self._controllers[link.node] = None
        return connection

    def connections(self, node: str) -> dict[int, int]:
        """The connections of a node that the broker lists, with how many messages came in over each."""
        return {cid: connection.broker_in for cid, connection in self.listed.items() if connection.node == node}

    def unregister(self, node: str, connection: Connection) -> None:
        """The broker closes its end."""
        connection.broker_open = False
        self.listed.pop(connection.cid, None)
        if self._subscribed.get(node) is connection:
            del self._subscribed[node]
            self._controllers.pop(node, None)

    def route(
        self, sender: Link, origin: Connection, to: str, event: Event, unheard: NoResponders | None = None
    ) -> None:
        """A message has reached the broker. unheard: what the sender is told if nobody listens."""
        nodes = self._addressees(to)
        for node in nodes:
            self.links[node].receive(self._subscribed[node], event)
        if unheard is not None and not nodes:
            sender.receive(origin, unheard)

    def _addressees(self, to: str) -> list[str]:
        """The nodes whose subscriptions match: of a queue group one, chosen as the broker does, at random."""
        if to not in (CONTROLLERS, EVERY_CONTROLLER):
            return [to] if to in self._subscribed else []
        if to == CONTROLLERS and len(self._controllers) > 1:
            return [self._random.choice(list(self._controllers))]
        return list(self._controllers)
