"""Shells on the virtual clock: they drive the same nodes that the live shells drive."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from analysis.schema import EventRow, NodeRow, Row
from cluster.caller import Observer, Source
from cluster.client import ClientNode
from cluster.controller.controller import ControllerNode
from cluster.engine.timed import StepCosts, TimedEngine
from cluster.node import (
    Ask,
    Command,
    Deliver,
    DropCache,
    Event,
    Insert,
    Load,
    Node,
    Record,
    Remove,
    Send,
    Unload,
    Wake,
)
from cluster.policy import Policy
from cluster.simulation.kernel import Kernel
from cluster.simulation.network import Network, NetworkCosts
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode

SAMPLE_S = 0.5


class Sink(Protocol):
    """Where a node's rows go; analysis.recorder.MetricsCollector is one."""

    def append(self, row: Row, now: float) -> None:
        """Take a row written at `now`, the node's clock."""


class SimulatedNode:
    """Drives one node: its link, its wake-ups, its rows, and its engine if it has one."""

    def __init__(self, kernel: Kernel, network: Network, node: Node, sink: Sink, engine: TimedEngine | None = None):
        self.node = node
        self.link = network.link(node.name, self.feed, controller=isinstance(node, ControllerNode))
        self._kernel = kernel
        self._sink = sink
        self._engine = engine
        self._wake_s: float | None = None
        self._engine_s: float | None = None
        self._source: Source | None = None
        self._observer: Observer | None = None
        self._asks: dict[str, Ask] = {}
        self._source_s: float | None = None

    def start(self) -> None:
        """Open the link and begin to wake the node."""
        self._sink.append(EventRow(self._kernel.now, "node_started", self.node.name), self._kernel.now)
        self.link.open()
        self._arrange_wake()
        self._keep_sampling()

    def stop(self) -> None:
        """The process ends in an orderly way; its last sample shows what is still open."""
        self._sample()
        self._sink.append(EventRow(self._kernel.now, "node_stopped", self.node.name), self._kernel.now)
        self.link.close()

    def drive(self, source: Source, observer: Observer) -> None:
        """Ask what `source` asks, from now on instead of an earlier one; `observer` is told of each ask and end."""
        self._source = source
        self._observer = observer
        self._arrange_source()

    def feed(self, event: Event) -> None:
        """Give the node an event now and carry out what it wants done."""
        if self.link.closed:
            return
        self._execute(self.node.handle(event, self._kernel.now))
        self._arrange_wake()

    def _execute(self, commands: Sequence[Command]) -> None:
        now = self._kernel.now
        for command in commands:
            match command:
                case Send(to, message, needs_responder):
                    self.link.send(to, message, needs_responder)
                case Record(row):
                    self._sink.append(row, now)
                case Deliver():
                    self._delivered(command)
                case _:
                    self._command_engine(command)

    def _command_engine(self, command: Command) -> None:
        assert self._engine is not None, f"{self.node.name} has no engine for {command}"
        now = self._kernel.now
        match command:
            case Insert():
                self._engine.insert(command, now)
            case Remove(sequence):
                self._engine.remove(sequence, now)
            case DropCache(cache):
                self._engine.drop_cache(cache, now)
            case Load(model):
                self._engine.load(model, now)
            case Unload(model):
                self._engine.unload(model, now)
        self._arrange_engine()

    def _arrange_wake(self) -> None:
        wake_s = self.node.next_wake()
        if wake_s is not None and (self._wake_s is None or wake_s < self._wake_s):
            self._wake_s = wake_s
            self._kernel.at(wake_s, lambda: self._wake(wake_s))

    def _wake(self, planned_s: float) -> None:
        if planned_s != self._wake_s or self.link.closed:
            return
        self._wake_s = None
        wake_s = self.node.next_wake()
        if wake_s is not None and wake_s <= self._kernel.now:
            self.feed(Wake())
        else:
            self._arrange_wake()

    def _arrange_engine(self) -> None:
        assert self._engine is not None
        engine_s = self._engine.next_time()
        if engine_s is not None and engine_s != self._engine_s:
            self._engine_s = engine_s
            self._kernel.at(engine_s, lambda: self._advance(engine_s))

    def _advance(self, planned_s: float) -> None:
        if planned_s != self._engine_s or self.link.closed:
            return
        assert self._engine is not None
        self._engine_s = None
        for event in self._engine.advance(self._kernel.now):
            self.feed(event)
        self._arrange_engine()

    def _arrange_source(self) -> None:
        assert self._source is not None
        source_s = self._source.next_time()
        if source_s is not None and source_s != self._source_s:
            self._source_s = source_s
            self._kernel.at(source_s, self._ask_due)

    def _ask_due(self) -> None:
        assert self._source is not None
        self._source_s = None
        self._ask(self._source.due(self._kernel.now))
        self._arrange_source()

    def _ask(self, asks: list[Ask]) -> None:
        assert self._observer is not None
        for ask in asks:
            self._asks[ask.request_id] = ask
            self._observer.asked(ask)
            self.feed(ask)

    def _delivered(self, delivery: Deliver) -> None:
        if delivery.finish is None and delivery.code is None:
            return
        ask = self._asks.pop(delivery.request_id)
        if self._source is not None and self._observer is not None:
            self._observer.ended(ask, delivery, self._kernel.now)
            asks = self._source.ended(delivery.request_id, self._kernel.now)
            if asks:
                # In its own turn: this delivery is part of a list of commands that is still being carried out.
                self._kernel.at(self._kernel.now, lambda: self._ask(asks))

    def _keep_sampling(self) -> None:
        if not self.link.closed:
            self._sample()
            self._kernel.at(self._kernel.now + SAMPLE_S, self._keep_sampling)

    def _sample(self) -> None:
        now, counters = self._kernel.now, self.link.counters()
        row = NodeRow.of(
            now,
            self.node.gauges(),
            link_up=counters.connected,
            messages_in=counters.node_in,
            messages_out=counters.node_out,
            subscriptions=1,
            loop_lag_s=0.0,
            gpu_busy_reason="simulated",
        )
        self._sink.append(row, now)


class SimulatedCluster:
    """One controller, some workers, some clients, and the network between them."""

    def __init__(
        self,
        policy: Policy,
        workers: int,
        clients: int,
        seed: int,
        sinks: Callable[[str, int], Sink],
        *,
        model: str = "timed",
        costs: StepCosts | None = None,
        network: NetworkCosts | None = None,
    ) -> None:
        """sinks: from node name and incarnation to where its rows go."""
        self.kernel = Kernel()
        self.model = model
        self.costs = costs or StepCosts()
        self.network = Network(self.kernel, policy.link, network or NetworkCosts(), Random(f"{seed}/network"))
        self.nodes: dict[str, SimulatedNode] = {}
        self.controller = ControllerNode("controller", 1, policy, Random(f"{seed}/controller"))
        self._add(self.controller, sinks)
        for number in range(workers):
            engine = TimedEngine(self.costs, policy.worker, policy.stream.flush_s)
            self._add(WorkerNode(f"worker-{number}", 1, policy, (ModelOffer(model),)), sinks, engine)
        for number in range(clients):
            self._add(ClientNode(f"client-{number}", 1, policy), sinks)

    def start(self) -> None:
        """Start every node at the present instant."""
        for node in self.nodes.values():
            node.start()

    def _add(self, node: Node, sinks: Callable[[str, int], Sink], engine: TimedEngine | None = None) -> None:
        sink = sinks(node.name, node.incarnation)
        self.nodes[node.name] = SimulatedNode(self.kernel, self.network, node, sink, engine)


class RowList:
    """A sink that keeps its rows in memory."""

    def __init__(self, rows: list[tuple[str, Row]] | None = None, node: str = "", rows_max: int = 10_000_000) -> None:
        self.rows: deque[tuple[str, Row]] | list[tuple[str, Row]] = rows if rows is not None else deque(maxlen=rows_max)
        self._node = node

    def append(self, row: Row, now: float) -> None:
        """See Sink."""
        self.rows.append((self._node, row))
