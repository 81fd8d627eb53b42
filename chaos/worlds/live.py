"""The live world: Ray actors, real NATS, real Toxiproxy, real MLX, real time."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from analysis.recorder import MetricsCollector
from analysis.schema import Row
from chaos.clean_slate import left_behind
from chaos.client_limits import CLIENTS, LIMITS, client_limits
from chaos.experiment import Experiment
from chaos.progress import Snapshot
from chaos.undo import RUN_MARK, ProcessEntry
from chaos.worlds.brokers import BrokerProcess
from chaos.worlds.clocks import LiveClock
from chaos.worlds.computing import computing
from chaos.worlds.engines import LiveEngine
from chaos.worlds.hosts import RayHost, RayHosts
from chaos.worlds.joined import JoinedHosts
from chaos.worlds.joined_host import JoinedHost
from chaos.worlds.messages import meddled_nodes
from chaos.worlds.processes import CALL_S, ActorProcess, Processes, cause
from chaos.worlds.proxied import ProxiedLink
from chaos.worlds.proxied_messages import ProxiedMessages
from chaos.worlds.ray_session import join_ray, start_ray
from chaos.worlds.real_time import RealTime
from chaos.worlds.servers import Servers
from chaos.worlds.world import ECHO_S, HandleError, InfrastructureError, Member, snapshot
from cluster.live.actors import NodeActor, node_actor
from cluster.live.host import NodeLook, NodeSpec
from cluster.live.nats import LinkFacts
from cluster.protocol import Token
from cluster.worker.prewarm import ModelOffer
from workloads.capacity import Completion, ProbePlan
from workloads.generator import GeneratorActor
from workloads.plan import LoadPlan, divide
from workloads.vocabulary import PromptVocabulary
from workloads.watch import Standing, total

_log = logging.getLogger(__name__)
_LEAD_S = 0.5
_LOOK_S = 1.0
"""How long whoever watches the run waits for nodes that do not answer: the guard has to judge every second."""
_GONE_S = 10.0
"""How long processes that were told to end may take."""


class LiveWorld(RealTime):
    """See World. Lives in one asyncio loop; whatever was started ends in `stop`, or in the keeper if we die."""

    kind = "live"
    invariants: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        run_id: str,
        raw: Path,
        logs: Path,
        address: str | None = None,
        record_policy: bool = True,
    ) -> None:
        """address: a running Ray cluster; None starts one here that ends with us.

        record_policy: what the nodes decide is recorded beside their rows.
        """
        super().__init__()
        self._experiment = experiment
        self._seed = seed
        os.environ[RUN_MARK] = run_id
        self._run_id = run_id
        self._raw = raw.resolve()
        self._address = address
        self._record_policy = record_policy
        self._nodes = experiment.node_names()
        self._controllers = experiment.controller_names()
        self._servers = Servers(
            run_id,
            logs.resolve(),
            self._nodes,
            self._controllers,
            experiment.policy.link,
            experiment.cluster.broker_port,
            meddled_nodes(experiment),
            seed,
        )
        self._director = MetricsCollector(self._raw, "director", time.time_ns())
        self._processes = Processes(
            self._new_actor, lambda: self._hosts.agent_place(), lambda node: self._hosts.elsewhere(node)
        )
        parts = (experiment, self._servers, self._processes, lambda node: self.process(node).restart())
        self._hosts: RayHosts | JoinedHosts = RayHosts(*parts) if address is None else JoinedHosts(*parts, run_id)
        self._handles: dict[str, ActorProcess] = {}
        self._broker: BrokerProcess | None = None
        self._links: dict[str, ProxiedLink] = {}
        self._messages: dict[str, ProxiedMessages] = {}
        self._engines: dict[str, LiveEngine] = {}
        self._clocks: dict[str, LiveClock] = {}
        self._computing = computing(experiment.cluster)
        self._client_limits: dict[str, object] = {}
        self._blockers: list[asyncio.Future[Any]] = []
        self._recorded: set[int] = set()
        self.exact_tokens = True

    async def start(self) -> None:
        """See World."""
        cluster = self._experiment.cluster
        await self._in_thread(self._computing.prepare)
        self._client_limits = await self._in_thread(client_limits)
        self.exact_tokens = self._computing.exact_tokens
        # Whatever makes a start impossible is better said before Ray has been started for nothing.
        await self._in_thread(self._servers.check, cluster.toxiproxy_url, cluster.toxiproxy_port)
        servers = (self._servers.start, cluster.toxiproxy_url, cluster.toxiproxy_port)
        if self._address is None:
            await asyncio.gather(self._in_thread(*servers), self._in_thread(start_ray, self._experiment))
        else:
            # What other hosts have to reach is known when it is known which they are.
            await self._in_thread(join_ray, self._address)
            await self._in_thread(self._hosts.choose)
            await self._in_thread(*servers)
        self._record_processes()
        await self._hosts.start(self._in_thread)
        self._record_processes()
        await self._start_actors()
        self._record_processes()
        await self._await_ready(time.monotonic() + cluster.start_limit_s)

    def link(self, node: str) -> ProxiedLink:
        """See World."""
        if node not in self._links:
            servers = self._servers
            assert servers.toxiproxy is not None
            assert servers.undo is not None

            async def ask() -> tuple[LinkFacts, bool]:
                found: tuple[LinkFacts, bool] = await self._processes.call(node, "link")
                return found

            async def echo(payload_bytes: int) -> float | None:
                found: float | None = await self._processes.call(node, "echo", payload_bytes, ECHO_S)
                return found

            self._links[node] = ProxiedLink(
                servers.toxiproxy, servers.proxies[node], servers.undo, servers.broker, node, ask, echo
            )
        return self._links[node]

    def messages(self, node: str) -> ProxiedMessages:
        """See World. Raises HandleError where nobody on the way knows what a message is."""
        servers = self._servers
        if node not in servers.message_proxies:
            raise HandleError(f"{node}: no message fault of the experiment names it, so nobody looks at its messages")
        if node not in self._messages:
            assert servers.messages is not None
            assert servers.undo is not None
            self._messages[node] = ProxiedMessages(servers.messages, servers.message_proxies[node], servers.undo, node)
        return self._messages[node]

    def process(self, node: str) -> ActorProcess:
        """See World. Raises HandleError for a client: the load is not to be hurt, it judges."""
        if node.startswith("client-"):
            raise HandleError(f"{node}: a client's process has no handle")
        if node not in self._handles:
            undo = self._servers.undo
            assert undo is not None
            self._handles[node] = ActorProcess(
                node, self._processes, undo, self._record_processes, self._servers.listed
            )
        return self._handles[node]

    def host(self, name: str) -> RayHost | JoinedHost:
        """See World."""
        return self._hosts[name]

    def engine(self, node: str) -> LiveEngine:
        """See World."""
        if node not in self._engines:
            self._engines[node] = LiveEngine(node, self._processes)
        return self._engines[node]

    def node_clock(self, node: str) -> LiveClock:
        """See World."""
        if node not in self._clocks:
            self._clocks[node] = LiveClock(node, self._processes, self.process(node), self._hosts.clock_ahead_s)
        return self._clocks[node]

    def broker(self) -> BrokerProcess:
        """See World."""
        if self._broker is None:
            self._broker = BrokerProcess(self._servers)
        return self._broker

    async def members(self) -> dict[str, dict[str, Member]]:
        """See World."""
        looks = await self._looks()
        return {
            name: {
                worker: Member(liveness, looks[name].incarnations[worker])
                for worker, (liveness, _) in looks[name].workers.items()
            }
            for name in self._controllers
            if name in looks
        }

    async def stance(self, node: str) -> dict[str, float]:
        """See World."""
        found: dict[str, float] = await self._processes.call(node, "stance")
        return found

    async def vocabulary(self) -> PromptVocabulary:
        """See World."""
        vocabulary: PromptVocabulary = await self._in_thread(self._computing.vocabulary)
        return vocabulary

    async def probe(self, plan: ProbePlan, prompts: Sequence[tuple[tuple[Token, ...], int]]) -> list[Completion]:
        """See World."""
        start_s = time.monotonic() + _LEAD_S
        clients = self._clients()
        shares = zip(clients, plan.shares(len(clients)), strict=True)
        active = [(client, share) for client, share in shares if share]
        for number, (client, share) in enumerate(active):
            part = prompts[number :: len(active)]
            await self._processes.call(client, "closed_loop", part, share, start_s, start_s + plan.duration_s)
        await asyncio.sleep(start_s + plan.duration_s - time.monotonic())
        await self.finish_load(2 * self._experiment.policy.client.deadline_s)
        found = await asyncio.gather(*(self._processes.call(client, "completions") for client, _ in active))
        return [completion for part in found for completion in part]

    async def begin_load(self, plan: LoadPlan) -> None:
        """See World."""
        clients = self._clients()
        for client, part in zip(clients, divide(plan, len(clients)), strict=True):
            await self._processes.call(client, "take_plan", part)
        self.origin_s = time.monotonic() + _LEAD_S
        window_s = self._experiment.guard.window_s
        await asyncio.gather(*(self._processes.call(client, "begin", self.origin_s, window_s) for client in clients))

    async def finish_load(self, limit_s: float) -> bool:
        """See World."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            if all(idle for _, idle in await self._standings()):
                return True
            await asyncio.sleep(0.1)
        return False

    async def look(self) -> Snapshot:
        """See World. Raises InfrastructureError when a node of ours has ended by itself."""
        await asyncio.to_thread(self._servers.check_alive)
        self._hosts.check()
        standings = await self._standings()
        standing = total([part for part, _ in standings])
        looks = await self._looks(_LOOK_S)
        for node, look in looks.items():
            if look.crashed:
                raise InfrastructureError(f"{node}: {look.failure}")
        asked = [looks[name].workers for name in self._controllers if name in looks]
        return snapshot(self.now(), standing, asked[0] if asked else {})

    def clocks_ahead_s(self) -> dict[str, float]:
        """How far the clock by which each node stamps its rows is ahead of ours, where it is not ours."""
        return self._hosts.clocks_ahead_s()

    def record(self, row: Row) -> None:
        """See World."""
        self._director.append(row, time.monotonic())
        self._director.flush()

    @property
    def token_gap_max_nats(self) -> float:
        """See World. Rounding moves log-probabilities by about 1e-5 in float32, by 1e-2 in half precision."""
        return 1e-4 if self.exact_tokens else 0.05

    def environment(self) -> dict[str, object]:
        """See World."""
        return {
            **self._computing.describe(),
            CLIENTS: len(self._clients()),
            **({LIMITS: self._client_limits} if self._client_limits else {}),
            "toxiproxy": self._servers.flavour,
            "ray": self._address or "started by the run on this host",
            **self._hosts.describe(),
        }

    async def references(self, prompts: dict[str, tuple[tuple[Token, ...], int]]) -> dict[str, list[Token]]:
        """See World."""
        return await asyncio.to_thread(self._computing.references, prompts)

    async def token_gaps(self, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]]) -> list[list[float]]:
        """See World."""
        return await asyncio.to_thread(self._computing.token_gaps, cases)

    async def stop(self) -> list[str]:
        """See World."""
        self._stopping = True
        # Work in threads cannot be cancelled: wait for it, or it would start things after we have ended them.
        await asyncio.gather(*self._blockers, return_exceptions=True)
        await self._processes.stop()
        left = await self._hosts.fetch(self._raw)
        left += await self._hosts.stop()
        if ray.is_initialized():
            await asyncio.to_thread(ray.shutdown)
        left += await asyncio.to_thread(self._servers.stop)
        self._director.close()
        return list(dict.fromkeys([*left, *await asyncio.to_thread(left_behind, self._run_id, _GONE_S)]))

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        future = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        self._blockers.append(future)
        try:
            return await asyncio.shield(future)
        finally:
            if future.done():
                self._blockers.remove(future)

    async def _start_actors(self) -> None:
        limit_s = self._experiment.cluster.start_limit_s
        try:
            await self._processes.start(self._nodes, str(self._raw), limit_s)
        except TimeoutError:
            raise InfrastructureError(f"the nodes did not start within cluster.start_limit_s = {limit_s:g} s") from None
        except RayError as error:
            raise InfrastructureError(f"a node did not start: {cause(error)}") from error

    def _new_actor(self, node: str) -> Any:
        role, cluster = node.split("-")[0], self._experiment.cluster
        spec = NodeSpec(
            role=role,
            name=node,
            url=self._servers.url(node),
            policy=self._experiment.policy_of(node),
            raw=self._hosts.rows(node) or str(self._raw),
            models=(ModelOffer(cluster.model),),
            seed=self._seed,
            workers_on_host=self._hosts.workers_beside(node),
            clock_ahead_s=self._clocks[node].ahead_s if node in self._clocks else 0.0,
            incarnation_min=self._processes.incarnation(node) + 1,
            costs=self._computing.costs,
            record_policy=self._record_policy,
        )
        variables = self._hosts.variables(node)
        environment = (self._computing.preload() if variables is None else variables) if role == "worker" else {}
        kind = GeneratorActor if role == "client" else NodeActor
        actor = node_actor(spec, environment, kind, self._hosts.place(node))
        if node in self._engines:
            self._engines[node].born(actor)
        return actor

    async def _await_ready(self, limit_s: float) -> None:
        """Every worker is known to every controller, and those that load their model beforehand have it."""
        wanted, warmed = self._experiment.cluster.workers, len(self._experiment.prewarmed_names())
        while True:
            looks = await self._looks()
            for node, look in looks.items():
                for model, state in look.models.items():
                    if state.startswith("failed"):
                        reason = state.removeprefix("failed: ")
                        raise InfrastructureError(f"{node}: model {model} does not load: {reason}")
                if look.failure:
                    raise InfrastructureError(f"{node}: {look.failure}")
            told = [looks[name].warm if name in looks else {} for name in self._controllers]
            warm = min(known.get(self._experiment.cluster.model, 0) for known in told)
            ready = min(len(looks[name].workers) if name in looks else 0 for name in self._controllers)
            if warm >= warmed and ready >= wanted:
                return
            if time.monotonic() > limit_s:
                start_limit_s = self._experiment.cluster.start_limit_s
                raise InfrastructureError(
                    f"{min(warm, ready) if warmed else ready} of {wanted} workers were ready within "
                    f"cluster.start_limit_s = {start_limit_s:g} s"
                )
            await asyncio.sleep(0.1)

    async def _looks(self, limit_s: float = CALL_S) -> dict[str, NodeLook]:
        """Every node that answers in time."""
        nodes = self._processes.present([node for node in self._nodes if not node.startswith("client-")])
        looks = (self._processes.call(node, "look", limit_s=limit_s) for node in nodes)
        found = await asyncio.gather(*looks, return_exceptions=True)
        return {node: look for node, look in zip(nodes, found, strict=True) if isinstance(look, NodeLook)}

    async def _standings(self) -> list[tuple[Standing, bool]]:
        now, call = time.monotonic(), self._processes.call
        return list(await asyncio.gather(*(call(client, "standing", now) for client in self._clients())))

    def _clients(self) -> list[str]:
        return [node for node in self._nodes if node.startswith("client-")]

    def _record_processes(self) -> None:
        """Everything that Ray has started under us goes into the undo log, so that the keeper can end it."""
        undo, keeper = self._servers.undo, self._servers.keeper
        if undo is None or keeper is None:
            return
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                # What the keeper has started it has written down by itself, but not what that started: a Ray node.
                by_keeper = keeper.pid in (process.pid, process.ppid())
                if process.pid not in self._recorded and not by_keeper:
                    undo.add(ProcessEntry(pid=process.pid, created_s=process.create_time(), name=process.name()))
                    self._recorded.add(process.pid)
