"""What runs in each process of a live cluster: one node with its shell, or the agent of a host. Knows no Ray."""

import asyncio
import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
from msgspec.structs import replace

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow, Gauges, NodeRow
from cluster.birth import AnyNode, Birth
from cluster.caller import Observer, Source
from cluster.controller.controller import ControllerNode
from cluster.engine.timed import StepCosts
from cluster.live.nats import LinkFacts
from cluster.live.node import Engine, LiveNode, LoadDriver, Sink
from cluster.node import Event, MemoryLimit, Received
from cluster.policy import Policy
from cluster.protocol import Drain, Evict, Prewarm
from cluster.record import Recorder
from cluster.stance import stance
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode

if TYPE_CHECKING:
    from cluster.engine.mlx import MlxEngine

_ECHO_S = 0.4
_DRAIN_POLL_S = 0.05
_STATE_POLL_S = 0.005
_MEMORY_SHARE = 0.75
"""Of the host's memory for its workers. The rest is the system's, the engine's scratch memory and the other nodes'."""
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_AGENT_TICK_S = 0.1
_STALL_S = 0.5
_PROCESSES_MAX = 4_096


class NodeSpec(msgspec.Struct, frozen=True):
    """What a process needs to become a node. url: NATS with the node's own credentials, through its own proxy.

    models: those that a worker offers, a client asks for, a controller is looked at for. workers_on_host: with how many
    workers, itself included, a worker shares its host's memory where the policy leaves that open. clock_ahead_s: how
    far its clocks, monotonic and wall, are ahead of the host's. incarnation_min: above that of its last life, by the
    word of whoever has started that: a wall clock that was set back must not make it a ghost of itself. costs: of a
    worker that only takes the time of computing, see cluster.live.paced; None: it computes. record_policy: whether what
    the node decides is recorded beside its rows, see cluster.record.
    """

    role: str
    name: str
    url: str
    policy: Policy
    raw: str
    models: tuple[ModelOffer, ...]
    seed: int
    workers_on_host: int = 1
    clock_ahead_s: float = 0.0
    incarnation_min: int = 0
    costs: StepCosts | None = None
    record_policy: bool = False


class NodeLook(msgspec.Struct, frozen=True):
    """How a node stands. failure: why it is of no use any more, one line, empty while it is.

    crashed: it is our shell that has failed, and not the node that gave up as its policy says. open_requests: see
    Gauges. For a controller, warm: how many workers could start a request for each model at once, and workers and
    incarnations as in ControllerNode. models: of a worker.
    """

    failure: str
    pid: int
    crashed: bool = False
    open_requests: int = 0
    warm: dict[str, int] = {}
    workers: dict[str, tuple[str, str]] = {}
    models: dict[str, str] = {}
    incarnation: int = 0
    incarnations: dict[str, int] = {}


EngineMaker = Callable[[Policy, Callable[[Event], None], Callable[[], float]], Engine]
"""An engine by its policy, whom it tells its events, and its node's clock. May be slow: MLX has to be imported."""


def mlx_engine(policy: Policy, emit: Callable[[Event], None], clock: Callable[[], float], **more: Any) -> "MlxEngine":
    """The real engine as a policy wants it. more: see MlxEngine."""
    # Imported here: MLX costs seconds, and only workers need it.
    from cluster.engine.mlx import MlxEngine

    return MlxEngine(
        emit,
        clock,
        batch_max=policy.worker.batch_max,
        prefill_batch_max=policy.worker.prefill_batch_max,
        prefill_step=policy.worker.prefill_step_tokens,
        flush_s=policy.stream.flush_s,
        **more,
    )


class NodeHost:
    """One node in this process."""

    def __init__(self, spec: NodeSpec, sink: Sink | None = None, make_engine: EngineMaker = mlx_engine) -> None:
        """sink: where the node's rows go; None: into files in `spec.raw`."""
        self.spec = spec
        self._sink = sink
        self._make_engine = make_engine
        # Incarnations are compared, so they grow from one life of a node to the next on the same host.
        self.incarnation = max(time.time_ns() + round(spec.clock_ahead_s * 1e9), spec.incarnation_min)
        self._process_s = max(0.0, time.time() - psutil.Process().create_time())
        self._shell: LiveNode | None = None
        self._driver: LoadDriver | None = None
        self._controller: ControllerNode | None = None
        self._worker: WorkerNode | None = None
        self._limited: asyncio.TimerHandle | None = None

    async def start(self, limit_s: float) -> int:
        """Start the node and its link; the pid. Raises LinkUnavailable, or what the engine's import raises."""
        spec = self.spec
        birth = self._birth()
        node = self._made(birth)
        sink = self._sink or MetricsCollector(Path(spec.raw), spec.name, self.incarnation)
        controller = self._controller is not None
        shell = self._shell = LiveNode(
            node,
            spec.url,
            spec.policy.link,
            sink,
            controller=controller,
            clock_ahead_s=spec.clock_ahead_s,
            recorder=Recorder(Path(spec.raw), birth, spec.clock_ahead_s) if spec.record_policy else None,
        )
        if spec.role == "worker":
            self._add_engine(shell)
        if spec.role == "client":
            self._driver = LoadDriver(shell)
        await shell.start(limit_s)
        return os.getpid()

    async def link(self) -> tuple[LinkFacts, bool]:
        """The node's link, and whether a message to itself came back over it."""
        shell = self._running()
        answered = await shell.link.echo(_ECHO_S)
        return shell.link.facts(), answered

    async def echo(self, payload_bytes: int, limit_s: float) -> float | None:
        """See NatsLink.round_trip."""
        return await self._running().link.round_trip(limit_s, payload_bytes)

    def gauges(self) -> Gauges:
        """The node's present levels."""
        return self._running().node.gauges()

    async def look(self) -> NodeLook:
        """How the node stands."""
        shell, controller = self._running(), self._controller
        return NodeLook(
            failure=shell.crash or shell.link.failure,
            crashed=bool(shell.crash),
            pid=os.getpid(),
            open_requests=shell.node.gauges().open_requests,
            warm={offer.model: controller.warm_workers(offer.model) for offer in self.spec.models}
            if controller is not None
            else {},
            workers=controller.workers() if controller is not None else {},
            models=self._worker.models() if self._worker is not None else {},
            incarnation=self.incarnation,
            incarnations=controller.incarnations() if controller is not None else {},
        )

    def stance(self) -> dict[str, float]:
        """See cluster.stance."""
        return stance(self._running().node)

    def clock(self) -> float:
        """The node's clock, seconds."""
        return self._running().now()

    def limit_memory(self, bytes_max: int | None, for_s: float = math.inf) -> None:
        """For a worker: hold no more than so many bytes for so many seconds; None: as many as it was started with."""
        assert self._worker is not None, f"{self.spec.name} is not a worker"
        if self._limited is not None:
            self._limited.cancel()
            self._limited = None
        if bytes_max is None:
            bytes_max = with_memory(self.spec.policy, self.spec.workers_on_host).memory.bytes_max
        elif math.isfinite(for_s):
            self._limited = asyncio.get_running_loop().call_later(for_s, self.limit_memory, None)
        self._running().feed(MemoryLimit(bytes_max))

    @property
    def worker(self) -> WorkerNode:
        """The node, if it is a worker."""
        assert self._worker is not None, f"{self.spec.name} is not a worker"
        return self._worker

    def drive(self, source: Source, observer: Observer) -> None:
        """For a client: ask what `source` asks, and tell `observer`."""
        assert self._driver is not None, f"{self.spec.name} is not a client"
        self._driver.drive(source, observer)

    def record(self, row: EventRow) -> None:
        """Append a row about what happens beside the node; times are on the host's clock."""
        self._running().record(row)

    def idle(self) -> bool:
        """For a client: whether its source is exhausted and every request has ended."""
        assert self._driver is not None
        return self._driver.finished and self._running().node.gauges().open_requests == 0

    async def drain(self, limit_s: float) -> bool:
        """For a worker: take nothing new and finish what is there; whether all was finished within `limit_s`."""
        assert self._worker is not None, f"{self.spec.name} is not a worker"
        shell = self._running()
        shell.feed(Received(Drain()))
        end_s = time.monotonic() + limit_s
        while shell.behind or shell.node.gauges().open_requests:
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(_DRAIN_POLL_S)
        return True

    async def evict(self, model: str, limit_s: float) -> bool:
        """For a worker: drop a model from memory; whether it was gone within `limit_s`."""
        return await self._until(Evict(model), "cold", limit_s)

    async def prewarm(self, model: str, limit_s: float) -> bool:
        """For a worker: load a model and run a token; whether it was warm within `limit_s`."""
        return await self._until(Prewarm(model), "warm", limit_s)

    async def _until(self, message: Evict | Prewarm, state: str, limit_s: float) -> bool:
        shell, worker = self._running(), self.worker
        shell.feed(Received(message))
        end_s = time.monotonic() + limit_s
        while shell.behind or worker.models().get(message.model) != state:
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(_STATE_POLL_S)
        return True

    async def stop(self) -> None:
        """End the node in an orderly way; its rows are on disk afterwards."""
        if self._driver is not None:
            self._driver.stop()
        if self._shell is not None:
            await self._shell.stop()

    def _running(self) -> LiveNode:
        assert self._shell is not None, f"{self.spec.name} was not started"
        return self._shell

    def _birth(self) -> Birth:
        """All that the node is made from."""
        spec = self.spec
        match spec.role:
            case "controller":
                return Birth(
                    spec.role, spec.name, self.incarnation, spec.policy, random_seed=f"{spec.seed}/{spec.name}"
                )
            case "worker":
                policy = with_memory(spec.policy, spec.workers_on_host)
                return Birth(spec.role, spec.name, self.incarnation, policy, spec.models)
        return Birth(spec.role, spec.name, self.incarnation, spec.policy)

    def _made(self, birth: Birth) -> AnyNode:
        match node := birth.node():
            case ControllerNode():
                self._controller = node
            case WorkerNode():
                self._worker = node
        return node

    def _add_engine(self, shell: LiveNode) -> None:
        """Also says what a cold start has cost so far; the loads tell the rest."""
        began_s = time.monotonic()
        shell.engine = self._make_engine(self.spec.policy, shell.feed_from_thread, shell.now)
        imports_s = time.monotonic() - began_s
        detail = json.dumps({"process_s": round(self._process_s, 3), "imports_s": round(imports_s, 3)})
        shell.record(EventRow(time.monotonic(), "model_timing", self.spec.name, detail=detail))


def with_memory(policy: Policy, workers_on_host: int) -> Policy:
    """The policy with a worker's memory limit in bytes: its own, else its share of three quarters of this host's."""
    if policy.memory.bytes_max is not None:
        return policy
    total = psutil.virtual_memory().total
    # A container's limit is lower than its host's memory, and ends the process without a word. "max" means none.
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(_CONTAINER_LIMIT.read_text()))
    bytes_max = int(total * _MEMORY_SHARE) // workers_on_host
    return replace(policy, memory=replace(policy.memory, bytes_max=bytes_max))


class HostAgent:
    """One per host: signals to its processes, samples of the host, and whether the host itself stalls."""

    def __init__(self, name: str, raw: str) -> None:
        self._name = name
        self._collector = MetricsCollector(Path(raw), name, time.time_ns())
        self._task: asyncio.Task[None] | None = None
        self._pids: tuple[int, ...] = ()

    async def start(self) -> int:
        """Begin to watch; the pid."""
        psutil.cpu_percent()
        self._task = asyncio.create_task(self._watch())
        return os.getpid()

    def watch(self, pids: Sequence[int]) -> None:
        """Whose memory to add up."""
        self._pids = tuple(pids)[:_PROCESSES_MAX]

    def send_signal(self, pid: int, name: str) -> bool:
        """Send a signal such as SIGSTOP; whether the process was there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[name])
            return True
        return False

    async def stop(self) -> None:
        """End; the rows are on disk afterwards."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._collector.close()

    async def _watch(self) -> None:
        """A process that does nothing else runs late only when its host does not run it."""
        sampled_s = time.monotonic()
        while True:
            planned_s = time.monotonic() + _AGENT_TICK_S
            await asyncio.sleep(_AGENT_TICK_S)
            now = time.monotonic()
            if now - planned_s > _STALL_S:
                detail = f"{now - planned_s:.2f} s"
                self._collector.append(EventRow(now, "host_stall", self._name, detail=detail), now)
            if now - sampled_s >= 1.0:
                sampled_s = now
                self._collector.append(self._sample(now - planned_s), now)
                self._collector.flush()

    def _sample(self, lag_s: float) -> NodeRow:
        resident = 0
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):
                resident += psutil.Process(pid).memory_info().rss
        return NodeRow.of(
            time.monotonic(),
            Gauges(role="host"),
            link_up=True,
            messages_in=0,
            messages_out=0,
            subscriptions=0,
            loop_lag_s=lag_s,
            cpu_share=psutil.cpu_percent() / 100,
            resident_bytes=resident,
            gpu_busy_reason="sampled per node, where there is a counter",
        )
