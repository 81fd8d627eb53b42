"""What runs in each process of a live cluster: one node with its shell, or the agent of a host. Knows no Ray."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow, Gauges, NodeRow
from cluster.caller import Observer, Source
from cluster.client import ClientNode
from cluster.controller.controller import ControllerNode
from cluster.live.nats import LinkFacts
from cluster.live.node import LiveNode, LoadDriver
from cluster.node import Node
from cluster.policy import Policy
from cluster.worker.worker import WorkerNode

CONTROLLER = "controller"
_ECHO_S = 0.4
_AGENT_TICK_S = 0.1
_STALL_S = 0.5
_PROCESSES_MAX = 4_096


class NodeSpec(msgspec.Struct, frozen=True):
    """What a process needs to become a node. url: NATS with the node's own credentials, through its own proxy."""

    role: str
    name: str
    url: str
    policy: Policy
    raw: str
    model: str
    seed: int


class NodeLook(msgspec.Struct, frozen=True):
    """How a node stands. failure: why its shell has ended, empty while it runs. workers: see ControllerNode.workers."""

    failure: str
    pid: int
    warm: int = 0
    workers: dict[str, tuple[str, str]] = {}
    models: dict[str, str] = {}


class NodeHost:
    """One node in this process."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec = spec
        # Incarnations are compared, so they grow from one life of a node to the next on the same host.
        self.incarnation = time.time_ns()
        self._shell: LiveNode | None = None
        self._driver: LoadDriver | None = None
        self._controller: ControllerNode | None = None
        self._worker: WorkerNode | None = None

    async def start(self, limit_s: float) -> int:
        """Start the node and its link; the pid. Raises LinkUnavailable, or what the engine's import raises."""
        spec = self.spec
        node = self._make_node()
        collector = MetricsCollector(Path(spec.raw), spec.name, self.incarnation)
        shell = self._shell = LiveNode(node, spec.url, spec.policy.link, collector)
        if spec.role == "worker":
            # Imported here: MLX costs seconds, and only workers need it.
            from cluster.engine.mlx import MlxEngine

            worker = spec.policy.worker
            shell.engine = MlxEngine(
                shell.feed_from_thread,
                time.monotonic,
                batch_max=worker.batch_max,
                prefill_batch_max=worker.prefill_batch_max,
                prefill_step=worker.prefill_step_tokens,
                flush_s=spec.policy.stream.flush_s,
            )
        if spec.role == "client":
            self._driver = LoadDriver(shell)
        await shell.start(limit_s)
        return os.getpid()

    async def link(self) -> tuple[LinkFacts, bool]:
        """The node's link, and whether a message to itself came back over it."""
        shell = self._running()
        answered = await shell.link.echo(_ECHO_S)
        return shell.link.facts(), answered

    async def look(self) -> NodeLook:
        """How the node stands."""
        shell = self._running()
        return NodeLook(
            failure="" if shell.failure is None else f"{type(shell.failure).__name__}: {shell.failure}",
            pid=os.getpid(),
            warm=self._controller.warm_workers(self.spec.model) if self._controller is not None else 0,
            workers=self._controller.workers() if self._controller is not None else {},
            models=self._worker.models() if self._worker is not None else {},
        )

    def drive(self, source: Source, observer: Observer) -> None:
        """For a client: ask what `source` asks, and tell `observer`."""
        assert self._driver is not None, f"{self.spec.name} is not a client"
        self._driver.drive(source, observer)

    def idle(self) -> bool:
        """For a client: whether its source is exhausted and every request has ended."""
        assert self._driver is not None
        return self._driver.finished and self._running().node.gauges().open_requests == 0

    async def stop(self) -> None:
        """End the node in an orderly way; its rows are on disk afterwards."""
        if self._driver is not None:
            self._driver.stop()
        if self._shell is not None:
            await self._shell.stop()

    def _running(self) -> LiveNode:
        assert self._shell is not None, f"{self.spec.name} was not started"
        return self._shell

    def _make_node(self) -> Node:
        spec = self.spec
        match spec.role:
            case "controller":
                randomness = random.Random(f"{spec.seed}/{spec.name}")
                self._controller = ControllerNode(spec.name, self.incarnation, spec.policy, randomness)
                return self._controller
            case "worker":
                self._worker = WorkerNode(spec.name, self.incarnation, spec.policy, CONTROLLER, (spec.model,))
                return self._worker
            case "client":
                return ClientNode(spec.name, self.incarnation, spec.policy)
        raise ValueError(f"role: expected controller, worker or client, got {spec.role!r}")


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
