"""The live shell: drives any node on asyncio, with NATS as its link, real time as its clock, a file for its rows."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import psutil

from analysis.recorder import RecorderError
from analysis.schema import EventRow, NodeRow, Row
from cluster.caller import Observer, Source
from cluster.host_clock import host_time, in_host_clock
from cluster.live.nats import NatsLink
from cluster.node import (
    Ask,
    Command,
    Deliver,
    DropCache,
    Event,
    Insert,
    Load,
    Node,
    ProbeEngine,
    Record,
    Remove,
    Send,
    Stopping,
    Unload,
    Wake,
)
from cluster.policy import LinkPolicy
from cluster.record import Recorder

_log = logging.getLogger(__name__)
SAMPLE_S = 0.5
EVENTS_MAX = 100_000


class Engine(Protocol):
    """What a worker computes with; cluster.engine.mlx has the real one. Methods return at once."""

    def load(self, model: str) -> None:
        """Load a model; an event follows."""

    def unload(self, model: str) -> None:
        """Drop a model."""

    def insert(self, command: Insert) -> None:
        """Start a sequence at the next step boundary."""

    def remove(self, sequence: int) -> None:
        """Drop a sequence at the next step boundary."""

    def drop_cache(self, cache: int) -> None:
        """Free a kept cache."""

    def probe(self) -> None:
        """Say EngineAnswered at the next step boundary."""

    def memory(self) -> dict[str, int]:
        """active_bytes, peak_bytes."""

    def close(self, timeout_s: float) -> bool:
        """End the engine's thread."""


class Sink(Protocol):
    """Where the rows go. analysis.recorder.MetricsCollector keeps them all, which suits a run that ends."""

    def append(self, row: Row, now: float) -> None:
        """Take a row; `now` is the node's clock in seconds."""

    def flush(self) -> None:
        """Hand on what waits."""

    def close(self) -> None:
        """Nothing more will come."""


class Overrun(Exception):
    """More events wait for the node than may: it does not keep up."""


class LiveNode:
    """Feeds events to the node one at a time, in order, and carries out its commands in order.

    delivered: for clients, told of each Deliver (on the loop's thread).
    """

    def __init__(
        self,
        node: Node,
        url: str,
        policy: LinkPolicy,
        sink: Sink,
        *,
        controller: bool = False,
        clock_ahead_s: float = 0.0,
        recorder: Recorder | None = None,
    ) -> None:
        """controller: whether the node is one, which also hears what is for all controllers, or for any.

        clock_ahead_s: how far the node's clock is ahead of the host's. Its rows are in the host's clock all the same.
        recorder: of what the node decides; None: nobody asks.
        """
        self._ahead_s = clock_ahead_s
        self.node = node
        self.link = NatsLink(node.name, url, policy, self.feed, controller=controller)
        self.engine: Engine | None = None
        self.delivered: Callable[[Deliver], None] | None = None
        self.failure: BaseException | None = None
        self._sink = sink
        self._recorder = recorder
        if recorder is not None:
            recorder.told = self._record_ended
        self._events: asyncio.Queue[Event] = asyncio.Queue(EVENTS_MAX)
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.TimerHandle | None = None
        self._wake_s: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loop_lag_s = 0.0
        self._process = psutil.Process()
        self._process.cpu_percent()

    def now(self) -> float:
        """The node's clock, seconds."""
        return time.monotonic() + self._ahead_s

    async def start(self, limit_s: float) -> None:
        """Begin to drive the node, then open its link. Raises cluster.live.nats.LinkUnavailable."""
        self.record(EventRow(time.monotonic(), "node_started", self.node.name))
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._sample())]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        self._arrange_wake()
        await self.link.open(limit_s)

    async def stop(self) -> None:
        """End everything that was started; the rows are on disk afterwards."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The last sample shows what is still open when the node ends.
        self._sink.append(self._row(), time.monotonic())
        if self.failure is None:
            for command in self._handle(Stopping(), self.now()):
                if isinstance(command, Record):
                    self._sink.append(in_host_clock(command.row, self._ahead_s), time.monotonic())
        if self._wake is not None:
            self._wake.cancel()
        await self.link.close()
        if self.engine is not None:
            await asyncio.to_thread(self.engine.close, 2.0)
        if self._recorder is not None:
            self._recorder.close()
        self.record(EventRow(time.monotonic(), "node_stopped", self.node.name))
        self._sink.close()

    @property
    def crash(self) -> str:
        """Why the shell itself cannot go on, empty while it can."""
        return "" if self.failure is None else f"{type(self.failure).__name__}: {self.failure}"

    def feed(self, event: Event) -> None:
        """Queue an event. On the loop's thread only."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            raise Overrun(f"{self.node.name}: {EVENTS_MAX} events wait") from None

    def feed_from_thread(self, event: Event) -> None:
        """Queue an event from any thread."""
        self._loop.call_soon_threadsafe(self.feed, event)

    @property
    def behind(self) -> bool:
        """Whether events wait that the node has not seen."""
        return not self._events.empty()

    def record(self, row: EventRow) -> None:
        """Append a row of the shell's own."""
        self._sink.append(row, time.monotonic())

    async def _run(self) -> None:
        while True:
            event = await self._events.get()
            now = self.now()
            await self._carry_out(self._handle(event, now), now)
            self._arrange_wake()

    def _handle(self, event: Event, now: float) -> Sequence[Command]:
        if self._recorder is None:
            return self.node.handle(event, now)
        return self._recorder.handle(self.node, event, now)

    def _record_ended(self, why: str) -> None:
        self.record(EventRow(time.monotonic(), "record_ended", self.node.name, detail=why))

    async def _carry_out(self, commands: Sequence[Command], now: float) -> None:
        for command in commands:
            match command:
                case Send():
                    await self.link.send(command)
                case Record(row):
                    self._sink.append(in_host_clock(row, self._ahead_s), now - self._ahead_s)
                case Deliver():
                    if self.delivered is not None:
                        self.delivered(command)
                case _:
                    self._command_engine(command)

    def _command_engine(self, command: Command) -> None:
        assert self.engine is not None, f"{self.node.name} has no engine for {command}"
        match command:
            case Insert():
                self.engine.insert(command)
            case DropCache(cache):
                self.engine.drop_cache(cache)
            case Remove(sequence):
                self.engine.remove(sequence)
            case Load(model):
                self.engine.load(model)
            case Unload(model):
                self.engine.unload(model)
            case ProbeEngine():
                self.engine.probe()

    def _arrange_wake(self) -> None:
        wake_s = self.node.next_wake()
        if wake_s == self._wake_s:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_s = wake_s
        # The loop's clock is time.monotonic, the host's clock.
        self._wake = None if wake_s is None else self._loop.call_at(host_time(wake_s, self._ahead_s), self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._wake_s = None
        self.feed(Wake())

    async def _sample(self) -> None:
        while True:
            planned_s = self._loop.time() + SAMPLE_S
            await asyncio.sleep(SAMPLE_S)
            self._loop_lag_s = self._loop.time() - planned_s
            self._sink.append(self._row(), time.monotonic())
            self._sink.flush()
            if self._recorder is not None:
                self._recorder.flush()

    def _row(self) -> NodeRow:
        facts = self.link.facts()
        memory = self.engine.memory() if self.engine is not None else {}
        return NodeRow.of(
            time.monotonic(),
            self.node.gauges(),
            link_up=facts.connected,
            messages_in=facts.messages_in,
            messages_out=facts.messages_out,
            subscriptions=facts.subscriptions,
            loop_lag_s=self._loop_lag_s,
            cpu_share=self._process.cpu_percent() / 100,
            resident_bytes=self._process.memory_info().rss,
            mlx_active_bytes=memory.get("active_bytes"),
            mlx_peak_bytes=memory.get("peak_bytes"),
            gpu_busy_reason="no counter that a process may read without privileges",
        )

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A shell that cannot go on must not look alive: the first failure is kept for whoever asks."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self.failure is None:
            self.failure = error
            if not isinstance(error, RecorderError):
                _log.error("%s: the shell ended", self.node.name, exc_info=error)


class LoadDriver:
    """Asks a client node what a load asks, at the right times, and tells an observer."""

    def __init__(self, shell: LiveNode) -> None:
        self._shell = shell
        self._loop = asyncio.get_running_loop()
        self._source: Source | None = None
        self._observer: Observer | None = None
        self._asks: dict[str, Ask] = {}
        self._timer: asyncio.TimerHandle | None = None
        shell.delivered = self._delivered

    def drive(self, source: Source, observer: Observer) -> None:
        """From now on ask what `source` asks."""
        self._source, self._observer = source, observer
        self._arrange()

    def stop(self) -> None:
        """Ask nothing more."""
        self._source = None
        if self._timer is not None:
            self._timer.cancel()

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked."""
        return self._source is None or self._source.finished

    def _arrange(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        source_s = self._source.next_time() if self._source is not None else None
        self._timer = None if source_s is None else self._loop.call_at(source_s, self._due)

    def _due(self) -> None:
        if self._source is not None:
            self._ask(self._source.due(time.monotonic()))
            self._arrange()

    def _ask(self, asks: list[Ask]) -> None:
        assert self._observer is not None
        for ask in asks:
            self._asks[ask.request_id] = ask
            self._observer.asked(ask)
            self._shell.feed(ask)

    def _delivered(self, delivery: Deliver) -> None:
        if delivery.finish is None and delivery.code is None:
            return
        ask = self._asks.pop(delivery.request_id)
        if self._source is not None and self._observer is not None:
            now = time.monotonic()
            self._observer.ended(ask, delivery, now)
            self._ask(self._source.ended(delivery.request_id, now))
            # An end may bring the next ask forward.
            self._arrange()
