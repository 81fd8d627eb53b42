"""A shell on the virtual clock: it drives the same nodes that the live shells drive."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec

from analysis.schema import EventRow, NodeRow, Row
from cluster.caller import Observer, Source
from cluster.controller.controller import ControllerNode
from cluster.engine.costs import SharedHost
from cluster.engine.impairment import Impairment
from cluster.host_clock import host_time, in_host_clock
from cluster.node import (
    Ask,
    Command,
    Deliver,
    DropCache,
    EngineReport,
    Event,
    Insert,
    Load,
    Node,
    ProbeEngine,
    Received,
    Record,
    Remove,
    Send,
    Stopping,
    Unload,
    Wake,
)
from cluster.protocol import Message
from cluster.record import Recorder
from cluster.simulation.impaired import ImpairedEngine
from cluster.simulation.kernel import Kernel
from cluster.simulation.network import Network

SAMPLE_S = 0.5


class Sink(Protocol):
    """Where a node's rows go; analysis.recorder.MetricsCollector is one."""

    def append(self, row: Row, now: float) -> None:
        """Take a row written at `now`, the node's clock."""


class EngineClock:
    """The node's clock without the stretches in which its process stood still: an engine's step goes on after one."""

    def __init__(self) -> None:
        # For each stretch its beginning in the engine's clock, and the seconds lost up to its end.
        self._stops: list[tuple[float, float]] = []

    def stopped(self, from_s: float, to_s: float) -> None:
        """The process stood still between these times of the node's clock."""
        lost_s = self._stops[-1][1] if self._stops else 0.0
        self._stops.append((from_s - lost_s, lost_s + to_s - from_s))

    def engines(self, now: float) -> float:
        """The present time of the node's clock in the engine's."""
        return now - self._stops[-1][1] if self._stops else now

    def nodes(self, time_s: float) -> float:
        """A time of the engine's clock in the node's."""
        for began_s, lost_s in reversed(self._stops):
            if time_s > began_s:
                return time_s + lost_s
        return time_s

    def told(self, event: Event) -> Event:
        """What the engine says, with the times of its tokens in the node's clock."""
        if not self._stops or not isinstance(event, EngineReport):
            return event
        progress = tuple(
            msgspec.structs.replace(part, times_s=tuple(self.nodes(time_s) for time_s in part.times_s))
            for part in event.progress
        )
        return msgspec.structs.replace(event, progress=progress)


class SimulatedNode:
    """Drives one node: its link, its wake-ups, its rows, and its engine if it has one."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        node: Node,
        sink: Sink,
        engine: ImpairedEngine | None = None,
        clock_ahead_s: float = 0.0,
        recorder: Recorder | None = None,
        host: SharedHost | None = None,
    ):
        """clock_ahead_s: how far the node's clock, and its engine's, are ahead of the kernel's.

        recorder: of what the node decides; None: nobody asks. host: whose cores its engine shares with others.
        """
        self.node = node
        self.engine = engine
        self._ahead_s = clock_ahead_s
        self._host = host
        if host is not None:
            host.join(node.name, self._repace)
        self.link = network.link(node.name, self.feed, controller=isinstance(node, ControllerNode))
        self._kernel = kernel
        self._sink = sink
        self._recorder = recorder
        if recorder is not None:
            recorder.told = self._record_ended
        self._engine_clock = EngineClock()
        self._frozen_s: float | None = None
        self._wake_s: float | None = None
        self._engine_due_s: float | None = None
        self._source: Source | None = None
        self._observer: Observer | None = None
        self._asks: dict[str, Ask] = {}
        self._source_s: float | None = None
        self._late_asks: list[Ask] = []

    def now(self) -> float:
        """The node's clock, seconds."""
        return self._kernel.now + self._ahead_s

    def _at(self, time_s: float, callback: Callable[[], None]) -> None:
        """At a time of the node's clock."""
        self._kernel.at(host_time(time_s, self._ahead_s), callback)

    def _write(self, row: Row) -> None:
        """A row of the node."""
        self._sink.append(in_host_clock(row, self._ahead_s), self._kernel.now)

    @property
    def ended(self) -> bool:
        """Whether the process is gone, however it went."""
        return self.link.closed

    @property
    def frozen(self) -> bool:
        """Whether the process stands still."""
        return self._frozen_s is not None

    def start(self) -> None:
        """Open the link and begin to wake the node."""
        self._sink.append(EventRow(self._kernel.now, "node_started", self.node.name), self._kernel.now)
        self.link.open()
        self._arrange_wake()
        self._keep_sampling()

    def stop(self) -> None:
        """The process ends in an orderly way; its last sample shows what is still open. A frozen one cannot."""
        if self.ended or self.frozen:
            self.crash()
            return
        self._sample()
        for command in self._handle(Stopping(), self.now()):
            if isinstance(command, Record):
                self._write(command.row)
        self._sink.append(EventRow(self._kernel.now, "node_stopped", self.node.name), self._kernel.now)
        self.link.close(flush=True)
        self._tell_host()

    def crash(self) -> None:
        """The process is gone from one instant to the next; nothing if it was gone already."""
        self._frozen_s = None
        self.link.close()
        self._tell_host()

    def freeze(self) -> None:
        """The process stands still where it is, its engine with it; nothing if it stands still or is gone."""
        if not self.ended and not self.frozen:
            self._frozen_s = self.now()
            self.link.freeze()
            self._tell_host()

    def thaw(self) -> None:
        """The process goes on: what is at its socket first, then what is overdue; nothing if it was not frozen."""
        if self._frozen_s is None:
            return
        self._engine_clock.stopped(self._frozen_s, self.now())
        self._frozen_s = None
        self.link.thaw()
        self._wake_s = self._engine_due_s = self._source_s = None
        self._arrange_wake()
        if self.engine is not None:
            self._arrange_engine()
        if self._source is not None:
            late, self._late_asks = self._late_asks, []
            self._ask(late)
            self._arrange_source()

    def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """Hurt a worker's engine, see ImpairedEngine."""
        assert self.engine is not None, f"{self.node.name} has no engine"
        self.engine.impair(impairment, ttl_s)
        # It may have last words.
        self._arrange_engine()

    def drive(self, source: Source, observer: Observer) -> None:
        """Ask what `source` asks, from now on instead of an earlier one; `observer` is told of each ask and end."""
        self._source = source
        self._observer = observer
        self._arrange_source()

    def record(self, row: EventRow) -> None:
        """Append a row about what happens beside the node; times are on the host's clock."""
        self._sink.append(row, self._kernel.now)

    def hear(self, message: Message) -> None:
        """Hand the node a message that comes from its own host, not over the bus."""
        self.link.hand(Received(message))

    def feed(self, event: Event) -> None:
        """Give the node an event now and carry out what it wants done."""
        if self.link.closed:
            return
        assert self._frozen_s is None, f"{self.node.name} stands still and handles nothing"
        self._execute(self._handle(event, self._kernel.now + self._ahead_s))
        self._arrange_wake()

    def _handle(self, event: Event, now: float) -> Sequence[Command]:
        if self._recorder is None:
            return self.node.handle(event, now)
        return self._recorder.handle(self.node, event, now)

    def _record_ended(self, why: str) -> None:
        self._sink.append(EventRow(self._kernel.now, "record_ended", self.node.name, detail=why), self._kernel.now)

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send(to, message, needs_responder):
                    self.link.send(to, message, needs_responder)
                case Record(row):
                    self._write(row)
                case Deliver():
                    self._delivered(command)
                case _:
                    self._command_engine(command)

    def _command_engine(self, command: Command) -> None:
        assert self.engine is not None, f"{self.node.name} has no engine for {command}"
        now = self._engine_clock.engines(self.now())
        match command:
            case Insert():
                self.engine.insert(command, now)
            case Remove(sequence):
                self.engine.remove(sequence, now)
            case DropCache(cache):
                self.engine.drop_cache(cache, now)
            case Load(model):
                self.engine.load(model, now)
            case Unload(model):
                self.engine.unload(model, now)
            case ProbeEngine():
                self.engine.probe(now)
        self._arrange_engine()

    def _arrange_wake(self) -> None:
        wake_s = self.node.next_wake()
        if wake_s is not None and (self._wake_s is None or wake_s < self._wake_s):
            self._wake_s = wake_s
            self._at(wake_s, partial(self._wake, wake_s))

    def _wake(self, planned_s: float) -> None:
        if planned_s != self._wake_s or self.ended or self.frozen:
            return
        self._wake_s = None
        wake_s = self.node.next_wake()
        if wake_s is not None and wake_s <= self.now():
            self.feed(Wake())
        else:
            self._arrange_wake()

    def _arrange_engine(self) -> None:
        assert self.engine is not None
        engine_s = self.engine.next_time()
        due_s = None if engine_s is None else self._engine_clock.nodes(engine_s)
        if due_s is not None and due_s != self._engine_due_s:
            self._engine_due_s = due_s
            self._at(due_s, partial(self._advance, due_s))
        if self._host is not None:
            self._tell_host()

    def _tell_host(self) -> None:
        if self._host is not None and self.engine is not None:
            self._host.computes(self.node.name, self.engine.computes and not (self.frozen or self.ended))

    def _repace(self) -> None:
        """Others of the host have begun to compute, or ended."""
        assert self.engine is not None
        self.engine.repace(self._engine_clock.engines(self.now()))
        self._arrange_engine()

    def _advance(self, due_s: float) -> None:
        if due_s != self._engine_due_s or self.ended or self.frozen:
            return
        assert self.engine is not None
        self._engine_due_s = None
        engine_s = self.engine.next_time()
        # By the engine's own word: two clocks that are converted to and fro may round to just before it.
        events = self.engine.advance(engine_s) if engine_s is not None else []
        for event in events:
            self.feed(self._engine_clock.told(event))
        self._arrange_engine()

    def _arrange_source(self) -> None:
        assert self._source is not None
        source_s = self._source.next_time()
        if source_s is not None and source_s != self._source_s:
            self._source_s = source_s
            self._kernel.at(source_s, self._ask_due)

    def _ask_due(self) -> None:
        if self.frozen or self.ended:
            return
        assert self._source is not None
        self._source_s = None
        self._ask(self._source.due(self._kernel.now))
        self._arrange_source()

    def _ask(self, asks: list[Ask]) -> None:
        assert self._observer is not None
        if self.frozen:
            self._late_asks += asks
        if self.frozen or self.ended:
            return
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
            # An end may bring the next ask forward.
            self._arrange_source()

    def _keep_sampling(self) -> None:
        if not self.ended:
            if not self.frozen:
                self._sample()
                if self._recorder is not None:
                    self._recorder.flush()
            self._kernel.at(self._kernel.now + SAMPLE_S, self._keep_sampling)

    def _sample(self) -> None:
        now, counters = self._kernel.now, self.link.counters()
        row = NodeRow.of(
            now,
            self.node.gauges(),
            link_up=counters.connected,
            messages_in=counters.node_in,
            messages_out=counters.node_out,
            subscriptions=3 if self.link.controller else 1,
            loop_lag_s=0.0,
            gpu_busy_reason="simulated",
        )
        self._sink.append(row, now)
