"""The simulated world: the same nodes, director and faults on a virtual clock, deterministic by seed."""

import math
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from analysis.recorder import MetricsCollector
from analysis.schema import PROBE_PREFIX, Row
from chaos.experiment import Experiment
from chaos.progress import Snapshot
from chaos.worlds.simulated_broker import SimulatedBroker
from chaos.worlds.simulated_engines import SimulatedClock, SimulatedEngine
from chaos.worlds.simulated_hosts import SimulatedHost
from chaos.worlds.simulated_links import SimulatedLink
from chaos.worlds.simulated_messages import SimulatedMessages
from chaos.worlds.world import (
    HandleError,
    InfrastructureError,
    Life,
    Member,
    ProcessState,
    snapshot,
)
from cluster.birth import Birth
from cluster.caller import Observer, Source
from cluster.engine.timed import completion
from cluster.protocol import Token
from cluster.record import Recorder
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.kernel import Task
from cluster.stance import stance
from workloads.capacity import Completion, ProbePlan
from workloads.load import ClosedLoop, PlannedLoad
from workloads.plan import LoadPlan, closed_ids, divide
from workloads.vocabulary import ByteVocabulary
from workloads.watch import LoadWatch, ProbeWatch, total

_LEAD_S = 0.5
_TRAVEL_S = 0.001
_DRAIN_POLL_S = 0.02
_LINK_S = 10.0
_FLUSH_ROWS = 1024
_FLUSH_S = 60.0
"""No node of this world can lose the rows that wait, so they are written in fewer and larger parts."""
_START_S = 2.0
"""How long a new process takes to its first word."""


class SimulatedProcess:
    """See World's Process. A freeze ends by itself after its TTL, as it does in a live world."""

    def __init__(self, cluster: SimulatedCluster, node: str) -> None:
        self._cluster = cluster
        self._node = node
        self._freezes = 0

    async def kill(self) -> None:
        """See Process."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGKILL")
        self._cluster.crash(self._node)

    async def freeze(self, ttl_s: float) -> None:
        """See Process."""
        kernel = self._cluster.kernel
        await kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGSTOP")
        self._cluster.freeze(self._node)
        self._freezes += 1
        freezes = self._freezes
        kernel.at(kernel.now + ttl_s, lambda: self._expire(freezes))

    async def thaw(self) -> None:
        """See Process."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGCONT")
        self._freezes += 1
        self._cluster.thaw(self._node)

    async def drain(self, limit_s: float) -> bool:
        """See Process."""
        kernel, node = self._cluster.kernel, self._cluster.nodes[self._node]
        if not self._cluster.running(self._node):
            raise HandleError(f"{self._node}: its process is gone or stands still, and hears of no drain")
        self._cluster.drain(self._node)
        end_s = kernel.now + limit_s
        while node.node.gauges().open_requests:
            if kernel.now >= end_s:
                return False
            await kernel.sleep(_DRAIN_POLL_S)
        return True

    async def stop(self) -> None:
        """See Process."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        self._cluster.stop(self._node)

    async def restart(self) -> None:
        """See Process."""
        self._freezes += 1
        kernel = self._cluster.kernel
        self._cluster.stop(self._node)
        await kernel.sleep(_START_S)
        self._cluster.restart(self._node)
        link = self._cluster.nodes[self._node].link
        end_s = kernel.now + _LINK_S
        while not link.counters().connected:
            if kernel.now >= end_s:
                raise HandleError(f"{self._node}: no link within {_LINK_S:g} s")
            await kernel.sleep(_DRAIN_POLL_S)

    async def alive(self) -> bool:
        """See Process."""
        return self._cluster.running(self._node)

    async def inspect(self) -> ProcessState:
        """See Process. A node's incarnation serves as its pid."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        node, network = self._cluster.nodes[self._node], self._cluster.network
        life = Life.IS_GONE if node.ended else Life.STANDS_STILL if node.frozen else Life.RUNS
        incarnation = node.node.incarnation
        return ProcessState(
            life=life,
            pid=incarnation,
            incarnation=incarnation if life is Life.RUNS else None,
            answers=life is Life.RUNS and node.link.echo(),
            connections=network.connections(self._node) if network.broker.running else None,
        )

    def _refuse_gone(self, signal: str) -> None:
        if self._cluster.nodes[self._node].ended:
            raise HandleError(f"{self._node}: its process is gone, {signal} reaches nobody")

    def _expire(self, freezes: int) -> None:
        if freezes == self._freezes:
            self._cluster.thaw(self._node)


class SimulatedWorld:
    """See World."""

    kind = "simulated"
    invariants: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    exact_tokens = True

    def __init__(self, experiment: Experiment, seed: int, raw: Path, record_policy: bool = False) -> None:
        """raw: folder for the raw rows of all nodes. record_policy: what the nodes decide is recorded beside them."""
        self._experiment = experiment
        self._seed = seed
        self._collectors: dict[str, MetricsCollector] = {}
        self._recorders: list[Recorder] = []
        self._raw = raw
        self._origin_s = 0.0
        self._watches: dict[str, LoadWatch] = {}
        self._loads: dict[str, PlannedLoad | ClosedLoop] = {}
        self._cluster = SimulatedCluster(
            experiment.policy,
            experiment.cluster.workers,
            experiment.workload.generators,
            seed,
            self._collector,
            controllers=experiment.cluster.controllers,
            model=experiment.cluster.model,
            costs=experiment.cluster.costs,
            network=experiment.cluster.bus,
            host_of=experiment.host_of,
            policy_of=experiment.policy_of,
            recorders=self._recorder if record_policy else None,
        )
        self._processes: dict[str, SimulatedProcess] = {}
        self._messages: dict[str, SimulatedMessages] = {}
        self._engines: dict[str, SimulatedEngine] = {}
        self._kernel = self._cluster.kernel
        self._director = self._collector("director", 1)

    @property
    def origin_s(self) -> float:
        """The world's time zero on the nodes' clocks."""
        return self._origin_s

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the director on the virtual clock until it ends."""
        self._kernel.run(coroutine)

    @property
    def token_gap_max_nats(self) -> float:
        """See World."""
        return 0.0

    def now(self) -> float:
        """See World."""
        return self._kernel.now - self._origin_s

    def clock(self) -> float:
        """See World."""
        return self._kernel.now

    async def sleep(self, seconds: float) -> None:
        """See World."""
        await self._kernel.sleep(seconds)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Task[None]:
        """See World."""
        return self._kernel.spawn(coroutine)

    async def start(self) -> None:
        """See World."""
        self._cluster.start()
        limit_s = self._kernel.now + self._experiment.cluster.start_limit_s
        while not self._ready():
            if self._kernel.now > limit_s:
                raise InfrastructureError("the simulated workers did not become ready")
            await self.sleep(0.1)

    def link(self, node: str) -> SimulatedLink:
        """See World."""
        return SimulatedLink(self._cluster, node)

    def messages(self, node: str) -> SimulatedMessages:
        """See World."""
        if node not in self._messages:
            self._messages[node] = SimulatedMessages(self._cluster, node, self._seed)
        return self._messages[node]

    def process(self, node: str) -> SimulatedProcess:
        """See World. Raises HandleError for a client: the load is not to be hurt, it judges."""
        if node.startswith("client-"):
            raise HandleError(f"{node}: a client's process has no handle")
        if node not in self._processes:
            self._processes[node] = SimulatedProcess(self._cluster, node)
        return self._processes[node]

    def host(self, name: str) -> SimulatedHost:
        """See World."""
        nodes = self._experiment.nodes_on(name)
        return SimulatedHost(name, nodes, self, self._cluster, {node: self.process(node) for node in nodes})

    def engine(self, node: str) -> SimulatedEngine:
        """See World."""
        if node not in self._engines:
            self._engines[node] = SimulatedEngine(self._cluster, node)
        return self._engines[node]

    def node_clock(self, node: str) -> SimulatedClock:
        """See World."""
        return SimulatedClock(self._cluster, node, self.process(node).restart)

    def broker(self) -> SimulatedBroker:
        """See World."""
        return SimulatedBroker(self._cluster)

    async def members(self) -> dict[str, dict[str, Member]]:
        """See World."""
        await self.sleep(_TRAVEL_S)
        found: dict[str, dict[str, Member]] = {}
        for node in self._cluster.controllers:
            if self._cluster.running(node.name):
                liveness, heard = node.workers(), node.incarnations()
                found[node.name] = {worker: Member(liveness[worker][0], heard[worker]) for worker in liveness}
        return found

    async def stance(self, node: str) -> dict[str, float]:
        """See World."""
        await self.sleep(_TRAVEL_S)
        if not self._cluster.running(node):
            raise HandleError(f"{node}: its process is gone or stands still, and says nothing of itself")
        return stance(self._cluster.nodes[node].node)

    async def vocabulary(self) -> ByteVocabulary:
        """See World."""
        return ByteVocabulary()

    async def probe(self, plan: ProbePlan, prompts: Sequence[tuple[tuple[Token, ...], int]]) -> list[Completion]:
        """See World."""
        began_s = self._kernel.now
        completions: list[Completion] = []
        clients = self._clients()
        for number, (client, in_flight) in enumerate(zip(clients, plan.shares(len(clients)), strict=True)):
            if in_flight == 0:
                continue
            load = ClosedLoop(
                prompts[number :: len(clients)],
                in_flight,
                began_s,
                began_s + plan.duration_s,
                self._cluster.model,
                self._experiment.policy.client.deadline_s,
                f"{PROBE_PREFIX}{number}-",
            )
            self._drive(client, load, ProbeWatch(completions, began_s))
        await self.finish_load(plan.duration_s + 2 * self._experiment.policy.client.deadline_s)
        return completions

    async def begin_load(self, plan: LoadPlan) -> None:
        """See World."""
        self._origin_s = self._kernel.now + _LEAD_S
        timeout_s = self._experiment.policy.client.deadline_s
        clients = self._clients()
        for client, part in zip(clients, divide(plan, len(clients)), strict=True):
            record, window_s = self._cluster.nodes[client].record, self._experiment.guard.window_s
            watch = self._watches[client] = LoadWatch(closed_ids(part), record, client, window_s)
            load = PlannedLoad(part, self._origin_s, self._cluster.model, timeout_s, watch.ran_dry)
            self._drive(client, load, watch)

    async def finish_load(self, limit_s: float) -> bool:
        """See World."""
        end_s = self._kernel.now + limit_s
        while not self._idle():
            if self._kernel.now >= end_s:
                return False
            await self.sleep(0.05)
        return True

    async def look(self) -> Snapshot:
        """See World."""
        now = self._kernel.now
        standing = total([watch.standing(now, self._loads[client].finished) for client, watch in self._watches.items()])
        running = [node for node in self._cluster.controllers if self._cluster.running(node.name)]
        return snapshot(self.now(), standing, running[0].workers() if running else {})

    def record(self, row: Row) -> None:
        """See World."""
        self._director.append(row, self._kernel.now)

    def environment(self) -> dict[str, object]:
        """See World."""
        costs = self._cluster.costs
        return {
            "engine": "timed",
            "engine_costs": {name: getattr(costs, name) for name in costs.__struct_fields__},
            "toxiproxy": "none: links are simulated",
            "blas": "none: no tokens are computed",
        }

    async def stop(self) -> None:
        """See World."""
        for node in self._cluster.nodes.values():
            node.stop()
        for recorder in self._recorders:
            recorder.close()
        for collector in self._collectors.values():
            collector.close()

    async def references(self, prompts: dict[str, tuple[tuple[Token, ...], int]]) -> dict[str, list[Token]]:
        """See World."""
        vocabulary = self._cluster.costs.vocabulary
        return {name: completion(prompt, most, vocabulary) for name, (prompt, most) in prompts.items()}

    async def token_gaps(self, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]]) -> list[list[float]]:
        """See World. The timed engine has no probabilities: a token is right or infinitely wrong."""
        return [[math.inf] * len(delivered) for _, delivered in cases]

    def _collector(self, node: str, incarnation: int) -> MetricsCollector:
        collector = MetricsCollector(self._raw, node, incarnation, flush_rows=_FLUSH_ROWS, flush_s=_FLUSH_S)
        self._collectors[f"{node}.{incarnation}"] = collector
        return collector

    def _recorder(self, birth: Birth, clock_ahead_s: float) -> Recorder:
        recorder = Recorder(self._raw, birth, clock_ahead_s)
        self._recorders.append(recorder)
        return recorder

    def _clients(self) -> list[str]:
        return [f"client-{number}" for number in range(self._experiment.workload.generators)]

    def _drive(self, client: str, load: PlannedLoad | ClosedLoop, observer: Observer) -> None:
        source: Source = load
        self._loads[client] = load
        self._cluster.nodes[client].drive(source, observer)

    def _idle(self) -> bool:
        nodes = self._cluster.nodes
        return all(
            load.finished and not nodes[client].node.gauges().open_requests for client, load in self._loads.items()
        )

    def _ready(self) -> bool:
        """Whether every controller knows every worker, and has those warm that load their model beforehand."""
        wanted, warmed = self._experiment.cluster.workers, len(self._experiment.prewarmed_names())
        return all(
            len(controller.workers()) >= wanted and controller.warm_workers(self._cluster.model) >= warmed
            for controller in self._cluster.controllers
        )
