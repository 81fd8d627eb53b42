"""The hosts of a Ray cluster that was there before the run, and is there after it.

The runner's own host is host-0; the broker, Toxiproxy and all who judge are there. The others are the cluster's, in the
order of their addresses. Each has an agent (see chaos.worlds.host_agent), pinned to it, that does there what is done on
the runner's host by the runner itself.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from chaos.experiment import Experiment
from chaos.undo import RUN_MARK
from chaos.worlds.host_agent import LEASE_S, left_there
from chaos.worlds.hosts import InThread
from chaos.worlds.inspection import inspect_hosts
from chaos.worlds.joined_host import MLX, JoinedHost
from chaos.worlds.processes import Processes
from chaos.worlds.servers import Servers
from chaos.worlds.world import HandleError, InfrastructureError
from cluster.live.actors import CPUS, Place, RayHost, own_ray_node, ray_hosts, run_on

_JOIN_S = 20.0
_RESERVE_S = 20.0
_RENEW_S = 2.0
_GONE_S = 10.0
_POLL_S = 0.5
_PART = 0.001
"""Of the resource that each host of Ray has under its own address: enough to be there."""


class JoinedHosts:
    """See chaos.worlds.hosts.RayHosts, which is the same for hosts that the run starts by itself."""

    def __init__(
        self,
        experiment: Experiment,
        servers: Servers,
        processes: Processes,
        restart_node: Callable[[str], Coroutine[Any, Any, None]],
        run_id: str,
    ) -> None:
        """restart_node: a new incarnation of a node, placed by `place`."""
        self._experiment = experiment
        self._servers = servers
        self._run_id = run_id
        self._own: RayHost | None = None
        self._hosts: dict[str, JoinedHost] = {}
        self._processes = processes
        self._restart_node = restart_node
        self._group: PlacementGroup | None = None
        self._share = 0.0
        self._cluster_hosts = 0
        self._renewals: asyncio.Task[None] | None = None

    def __getitem__(self, name: str) -> JoinedHost:
        return self._hosts[name]

    def choose(self) -> None:
        """Find the hosts, wait for those that join late, and let their nodes' proxies be reached.

        Blocks. Raises InfrastructureError.
        """
        wanted = self._experiment.cluster.hosts
        ends_s = time.monotonic() + _JOIN_S
        while len(found := ray_hosts()) < wanted and time.monotonic() < ends_s:
            time.sleep(_POLL_S)
        own = next((host for host in found if host.ray_node == own_ray_node()), None)
        if own is None:
            raise InfrastructureError("--address: no Ray node runs on this host; start the run on one of the cluster's")
        if len(found) < wanted:
            there = ", ".join(host.address for host in found)
            how = "start Ray on the others with `ray start --address=...`, see ray_config.yaml"
            raise InfrastructureError(
                f"cluster.hosts is {wanted}, and {len(found)} have joined within {_JOIN_S:g} s ({there}): {how}"
            )
        others = [host for host in found if host is not own][: wanted - 1]
        if others and own.address.startswith("127."):
            how = "start its Ray with --node-ip-address, naming an address that the others reach"
            raise InfrastructureError(f"host-0: Ray knows this host by {own.address}: {how}")
        if others and self._experiment.cluster.toxiproxy_url is not None:
            how = "leave it out, so that the run starts a Toxiproxy on its own host, whose proxies the others reach"
            raise InfrastructureError(f"cluster.toxiproxy_url: not with cluster.hosts above 1 and --address; {how}")
        self._own, self._cluster_hosts = own, len(found)
        names = self._experiment.host_names()[1:]
        self._hosts = {
            name: JoinedHost(
                name, host, self._experiment.nodes_on(name), self._processes, self._restart_node, self._run_id
            )
            for name, host in zip(names, others, strict=True)
        }
        self._servers.reach(own.address, [node for host in self._hosts.values() for node in host.nodes])

    async def start(self, in_thread: InThread) -> None:
        """Look at the hosts, reserve what their nodes need, and begin an agent on each. Raises InfrastructureError."""
        assert self._own is not None
        hosts = list(self._hosts.values())
        if not hosts:
            return
        model = self._experiment.cluster.model if self._experiment.cluster.engine == "mlx" else "tiny"
        await inspect_hosts(self._own, hosts, model)
        await in_thread(self._reserve)
        computes = self._experiment.cluster.engine == "mlx"
        limit_s = self._experiment.cluster.start_limit_s
        ready = [host.begin(self._own.address, model if computes else None, limit_s) for host in hosts]
        problems = [said for said in await asyncio.gather(*ready, return_exceptions=True) if said is not None]
        if problems:
            raise InfrastructureError("; ".join(str(problem) for problem in problems[:3]))
        self._renewals = asyncio.create_task(self._renew())

    def place(self, node: str) -> Place:
        """What puts a node's actor where it belongs."""
        assert self._own is not None
        name = self._experiment.host_of(node)
        share = {MLX: self._share} if self._share and node.startswith("worker-") else {}
        if name in self._hosts:
            return self._hosts[name].place(share, self._group, self._experiment.host_names().index(name))
        mark = {RUN_MARK: self._run_id}
        if self._group is not None:
            return Place(share, group=self._group, bundle=0, environment=mark)
        return Place(ray_node=self._own.ray_node, environment=mark)

    def agent_place(self) -> Place:
        """Where the agent of the runner's own host is."""
        assert self._own is not None
        return Place(ray_node=self._own.ray_node, environment={RUN_MARK: self._run_id})

    def workers_beside(self, node: str) -> int:
        """How many workers share the memory of a node's host."""
        return max(1, self._workers_on(self._experiment.host_of(node)))

    def elsewhere(self, node: str) -> JoinedHost | None:
        """Who sees a node's process; None for one on the runner's own host."""
        return self._hosts.get(self._experiment.host_of(node))

    def rows(self, node: str) -> str | None:
        """Where a node writes its rows; None: where the runner has them."""
        host = self.elsewhere(node)
        return host.rows if host is not None else None

    def variables(self, node: str) -> Mapping[str, str] | None:
        """What preloads an optimised BLAS there; None: what does so here."""
        host = self.elsewhere(node)
        return host.preload if host is not None else None

    def clock_ahead_s(self, node: str) -> float:
        """How far the monotonic clock of a node's host is ahead of ours."""
        host = self.elsewhere(node)
        return host.clock.estimate().ahead_s if host is not None else 0.0

    def clocks_ahead_s(self) -> dict[str, float]:
        """By node, and by host for its agent, for those on other hosts."""
        asked = [(name, host) for name, host in self._hosts.items() if host.rows]
        return {each: host.clock.estimate().ahead_s for name, host in asked for each in (name, *host.nodes)}

    def check(self) -> None:
        """Raises InfrastructureError when a host has not been heard of for the lease: nothing of us runs there now."""
        try:
            for host in self._hosts.values():
                host.check(LEASE_S)
        except HandleError as error:
            raise InfrastructureError(str(error)) from error

    async def fetch(self, raw: Path) -> list[str]:
        """Bring all rows here; a line for each host where that fails."""
        if self._renewals is not None:
            self._renewals.cancel()
        found = await asyncio.gather(*(host.fetch(raw) for host in self._hosts.values()))
        return [line for line in found if line]

    async def stop(self) -> list[str]:
        """End everything of ours on the other hosts, and say what is left there."""
        if self._renewals is not None:
            self._renewals.cancel()
        left = await asyncio.gather(*(self._left(host) for host in self._hosts.values()))
        if self._group is not None:
            with contextlib.suppress(RayError, ValueError):
                remove_placement_group(self._group)
        return [line for lines in left for line in lines]

    def describe(self) -> dict[str, object]:
        """For `environment.json`."""
        if self._own is None:
            return {"hosts": "none was chosen"}
        described: dict[str, object] = {"host-0": {"address": self._own.address, "is": "the runner's own"}}
        for name, host in self._hosts.items():
            described[name] = host.describe()
        placement = self._experiment.cluster.placement
        return {"hosts": 1 + len(self._hosts), "hosts_of_the_cluster": self._cluster_hosts} | (
            {"placement": placement, "each_host": described} if self._hosts else {}
        )

    def _reserve(self) -> None:
        """One bundle for each host, all or nothing: other work on the cluster may have what ours needs."""
        assert self._own is not None
        chosen = [self._own, *(host.ray_host for host in self._hosts.values())]
        workers = [self._workers_on(name) for name in self._experiment.host_names()]
        # Ray does not know Apple GPUs: who has brought `mlx` on every host wants it asked for.
        if all(host.resources.get(MLX, 0.0) > 0 for host in chosen):
            most = max(workers)
            self._share = min(1.0, min(host.resources[MLX] for host in chosen) / most) if most else 0.0
        bundles = []
        for host, count in zip(chosen, workers, strict=True):
            cpus = round(CPUS * (len(self._experiment.node_names()) + 2), 2)
            bundle = {"CPU": cpus, f"node:{host.address}": _PART}
            bundles.append(bundle | ({MLX: round(self._share * count, 4)} if self._share and count else {}))
        self._group = placement_group(bundles, strategy="STRICT_SPREAD")
        if not self._group.wait(_RESERVE_S):
            wanted = "; ".join(f"{host.address} {count} workers" for host, count in zip(chosen, workers, strict=True))
            raise InfrastructureError(
                f"Ray has not reserved what the nodes need within {_RESERVE_S:g} s ({wanted}; {self._share:g} mlx and "
                f"{CPUS} CPU each): other work on the cluster has it, see `ray status`"
            )

    def _workers_on(self, host: str) -> int:
        return sum(node.startswith("worker-") for node in self._experiment.nodes_on(host))

    async def _renew(self) -> None:
        while True:
            await asyncio.gather(*(host.renew() for host in self._hosts.values()))
            await asyncio.sleep(_RENEW_S)

    async def _left(self, host: JoinedHost) -> Sequence[str]:
        where = f"{host.name} ({host.address})"
        if host.end():
            return [f"{where}: its Ray node is being started again only now; see `ray status`"]
        if not host.marks or not ray.is_initialized():
            return []
        try:
            asked = run_on(host.ray_host.ray_node, left_there, host.marks, _GONE_S, bool(host.rows))
            found: list[str] = await asyncio.wait_for(asked, 3 * _GONE_S)
        except (RayError, TimeoutError) as error:
            return [f"{where}: it does not say whether anything is left: {type(error).__name__}"]
        return [f"{where}: {line}" for line in found]
