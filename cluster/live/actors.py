"""Ray actors around the processes of a live cluster. The only file of this package that imports ray."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import ray

from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState
from cluster.live.host import HostAgent, NodeHost, NodeLook, NodeSpec
from cluster.live.impaired import ImpairedEngine
from cluster.live.nats import LinkFacts
from cluster.live.paced import PacedEngine
from cluster.node import Event
from cluster.policy import Policy

_CPUS = 0.01
"""Of Ray's bookkeeping, not of the machine: a small machine must be able to host every actor."""


class NodeActor:
    """Hosts a controller or a worker."""

    def __init__(self, spec: NodeSpec) -> None:
        self._engine: ImpairedEngine | PacedEngine | None = None
        self._impairment: tuple[Impairment, float] | None = None
        self.host = NodeHost(spec, make_engine=self._make_engine)

    async def start(self, limit_s: float) -> int:
        """See NodeHost."""
        return await self.host.start(limit_s)

    async def link(self) -> tuple[LinkFacts, bool]:
        """See NodeHost."""
        return await self.host.link()

    async def echo(self, payload_bytes: int, limit_s: float) -> float | None:
        """See NodeHost."""
        return await self.host.echo(payload_bytes, limit_s)

    async def look(self) -> NodeLook:
        """See NodeHost."""
        return await self.host.look()

    async def stance(self) -> dict[str, float]:
        """See NodeHost."""
        return self.host.stance()

    async def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """For a worker: hurt its engine, from its birth if it has none yet. See ImpairedEngine."""
        self._impairment = (impairment, ttl_s)
        if self._engine is not None:
            self._engine.impair(impairment, ttl_s)

    async def restore(self) -> None:
        """See ImpairedEngine."""
        self._impairment = None
        if self._engine is not None:
            self._engine.restore()

    async def engine_state(self) -> EngineState:
        """See ImpairedEngine."""
        assert self._engine is not None, f"{self.host.spec.name} has no engine"
        return self._engine.state(self.host.worker, self.host.clock())

    async def limit_memory(self, bytes_max: int | None, for_s: float) -> None:
        """See NodeHost."""
        self.host.limit_memory(bytes_max, for_s)

    async def clock(self) -> float:
        """See NodeHost."""
        return self.host.clock()

    async def drain(self, limit_s: float) -> bool:
        """See NodeHost."""
        return await self.host.drain(limit_s)

    async def evict(self, model: str, limit_s: float) -> bool:
        """See NodeHost."""
        return await self.host.evict(model, limit_s)

    async def prewarm(self, model: str, limit_s: float) -> bool:
        """See NodeHost."""
        return await self.host.prewarm(model, limit_s)

    async def stop(self) -> None:
        """See NodeHost."""
        await self.host.stop()

    def _make_engine(
        self, policy: Policy, emit: Callable[[Event], None], clock: Callable[[], float]
    ) -> ImpairedEngine | PacedEngine:
        costs = self.host.spec.costs
        if costs is None:
            self._engine = ImpairedEngine(policy, emit, clock)
        else:
            self._engine = PacedEngine(costs, policy, emit, clock)
        if self._impairment is not None:
            self._engine.impair(*self._impairment)
        return self._engine


def node_actor(
    spec: NodeSpec,
    environment: Mapping[str, str],
    kind: type[NodeActor] = NodeActor,
    place: Mapping[str, float] | None = None,
) -> Any:
    """A handle of a new actor that hosts the node of `spec`, with these variables set before its process starts.

    place: Ray resources that only the host has on which it has to be; None: wherever Ray likes.
    """
    return _remote(kind, environment, place).remote(spec)


def agent_actor(name: str, raw: str, place: Mapping[str, float] | None = None) -> Any:
    """A handle of a new host agent. place: as for node_actor."""
    return _remote(HostAgent, {}, place).remote(name, raw)


def _remote(kind: type, environment: Mapping[str, str], place: Mapping[str, float] | None) -> Any:
    runtime = {"env_vars": {**environment, "PYTHONPATH": ":".join(path for path in sys.path if path)}}
    options = {"num_cpus": _CPUS, "max_restarts": 0, "max_concurrency": 64, "resources": dict(place or {})}
    return ray.remote(runtime_env=runtime, **options)(kind)
