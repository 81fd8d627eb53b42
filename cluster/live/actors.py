"""Ray actors around the processes of a live cluster. The only file of this package that imports ray."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState
from cluster.live.host import HostAgent, NodeHost, NodeLook, NodeSpec
from cluster.live.impaired import ImpairedEngine
from cluster.live.nats import LinkFacts
from cluster.live.paced import PacedEngine
from cluster.node import Event
from cluster.policy import Policy

_HEAD = "node:__internal_head__"
T = TypeVar("T")
RAY_ERRORS = (RayError,)
"""What awaiting something of Ray's raises."""
CPUS = 0.01
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


class Place(msgspec.Struct, frozen=True):
    """Where an actor has to be.

    resources: what it asks for of Ray; it can only be where they are. ray_node: Ray's id of the host where it has to
    be, empty where the resources say it. group: of a reservation of resources, of which it takes from bundle `bundle`.
    environment: variables that its process needs there. shares_code: whether what we import from is there as well.
    """

    resources: dict[str, float] = {}
    ray_node: str = ""
    group: PlacementGroup | None = None
    bundle: int = 0
    environment: dict[str, str] = {}
    shares_code: bool = True


def node_actor(
    spec: NodeSpec, environment: Mapping[str, str], kind: type[NodeActor] = NodeActor, place: Place | None = None
) -> Any:
    """A handle of a new actor that hosts the node of `spec`, with these variables set before its process starts.

    place: None is wherever Ray likes.
    """
    return _remote(kind, environment, place or Place()).remote(spec)


def agent_actor(name: str, raw: str, place: Place | None = None, kind: type[HostAgent] = HostAgent) -> Any:
    """A handle of a new host agent. place: as for node_actor."""
    return _remote(kind, {}, place or Place()).remote(name, raw)


def _remote(kind: type, environment: Mapping[str, str], place: Place) -> Any:
    variables = {**environment, **place.environment}
    if place.shares_code:
        variables["PYTHONPATH"] = ":".join(path for path in sys.path if path)
    options: dict[str, Any] = {"num_cpus": CPUS, "max_restarts": 0, "max_concurrency": 64}
    options["resources"] = dict(place.resources)
    if place.group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(place.group, place.bundle)
    elif place.ray_node:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.ray_node, soft=False)
    return ray.remote(runtime_env={"env_vars": variables}, **options)(kind)


class RayUnavailable(Exception):
    """Ray cannot be had. One line."""


def connect(address: str | None, **options: Any) -> None:
    """Join the Ray cluster at an address, or start one here (None). Raises RayUnavailable."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its warnings are about our way of starting it, and nothing that a user can act on.
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        ray.init(address=address, **quiet, **options)
    except (ConnectionError, RayError, RuntimeError, TimeoutError, ValueError) as error:
        where = address or "on this host"
        raise RayUnavailable(f"Ray {where} cannot be had: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """One line. Ray hides the reason for which it cannot connect in what has caused its error."""
    cause: BaseException | None = error
    while cause is not None:
        if "InvalidAuthToken" in str(cause) or isinstance(cause, AuthenticationError):
            return "it has another token than we: copy ~/.ray/auth_token of its head to the same place on this host"
        cause = cause.__cause__
    return " ".join(str(error).split())[:300]


def gcs_port() -> int:
    """The port of the cluster's head that every host has to reach."""
    address: str = ray.get_runtime_context().gcs_address
    return int(address.rpartition(":")[2])


class RayHost(msgspec.Struct, frozen=True):
    """A host of a running Ray cluster. ray_node: Ray's id of it. address: as Ray knows it. head: Ray's own."""

    ray_node: str
    address: str
    resources: dict[str, float]
    head: bool


def ray_hosts() -> list[RayHost]:
    """The hosts of the cluster that live, by their addresses."""
    found = [
        RayHost(node["NodeID"], node["NodeManagerAddress"], node["Resources"], _HEAD in node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda host: ([int(part) if part.isdigit() else 0 for part in host.address.split(".")]))


def own_ray_node() -> str:
    """Ray's id of the host where we are."""
    identity: str = ray.get_runtime_context().get_node_id()
    return identity


def run_on(ray_node: str, function: Callable[..., T], *arguments: Any, by_value: ModuleType | None = None) -> Any:
    """A reference to what a function returns on a host. by_value: its module, sent there instead of being found there.

    The future of the reference raises RayError.
    """
    if by_value is not None:
        ray.cloudpickle.register_pickle_by_value(by_value)
    try:
        task = ray.remote(
            num_cpus=CPUS, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(ray_node, soft=False)
        )(function)
        return task.remote(*arguments)
    finally:
        if by_value is not None:
            ray.cloudpickle.unregister_pickle_by_value(by_value)
