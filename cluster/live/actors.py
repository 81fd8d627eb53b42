"""Ray actors around the processes of a live cluster. The only file of this package that imports ray."""

import sys
from collections.abc import Mapping
from typing import Any

import ray

from cluster.live.host import HostAgent, NodeHost, NodeLook, NodeSpec
from cluster.live.nats import LinkFacts

_CPUS = 0.01
"""Of Ray's bookkeeping, not of the machine: a small machine must be able to host every actor."""


class NodeActor:
    """Hosts a controller or a worker."""

    def __init__(self, spec: NodeSpec) -> None:
        self.host = NodeHost(spec)

    async def start(self, limit_s: float) -> int:
        """See NodeHost."""
        return await self.host.start(limit_s)

    async def link(self) -> tuple[LinkFacts, bool]:
        """See NodeHost."""
        return await self.host.link()

    async def look(self) -> NodeLook:
        """See NodeHost."""
        return await self.host.look()

    async def stance(self) -> dict[str, float]:
        """See NodeHost."""
        return self.host.stance()

    async def drain(self, limit_s: float) -> bool:
        """See NodeHost."""
        return await self.host.drain(limit_s)

    async def stop(self) -> None:
        """See NodeHost."""
        await self.host.stop()


def node_actor(spec: NodeSpec, environment: Mapping[str, str], kind: type[NodeActor] = NodeActor) -> Any:
    """A handle of a new actor that hosts the node of `spec`, with these variables set before its process starts."""
    return _remote(kind, environment).remote(spec)


def agent_actor(name: str, raw: str) -> Any:
    """A handle of a new host agent."""
    return _remote(HostAgent, {}).remote(name, raw)


def _remote(kind: type, environment: Mapping[str, str]) -> Any:
    runtime = {"env_vars": {**environment, "PYTHONPATH": ":".join(path for path in sys.path if path)}}
    return ray.remote(num_cpus=_CPUS, max_restarts=0, max_concurrency=64, runtime_env=runtime)(kind)
