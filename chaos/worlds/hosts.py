"""The hosts of a live world beyond the runner's own: on one machine each is a Ray node of its own.

A second raylet joins the run's Ray cluster, and the nodes of the host are placed there by a resource that is its name.
It is a child of the keeper: so its end is the keeper's business like that of every server, also when the runner dies.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray

from chaos.experiment import Experiment
from chaos.keeper import KeeperError
from chaos.worlds.processes import Processes
from chaos.worlds.servers import Servers
from chaos.worlds.trees import kill_tree, runs
from chaos.worlds.world import HandleError, HostState, InfrastructureError, Life
from cluster.live.actors import Place

InThread = Callable[..., Awaitable[Any]]
"""Runs a function in a thread that a world waits for before it ends things."""

HEAD = "host-0"
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
_JOIN_S = 30.0
_GONE_S = 5.0
_POLL_S = 0.05
PLACES = 10_000
"""How many actors fit on a host by its own resource; not what limits them."""


class RayHost:
    """See chaos.worlds.world.Host."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[str],
        servers: Servers,
        processes: Processes,
        restart_node: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        """restart_node: a new incarnation of a node, placed by `place`."""
        self.nodes = tuple(nodes)
        self._name = name
        self._servers = servers
        self._processes = processes
        self._restart_node = restart_node
        self._life = 0
        self._root: psutil.Process | None = None
        self._killed: list[psutil.Process] = []
        self._id = ""
        # A thread that begins or ends it goes on when whoever waits for it is cancelled.
        self._busy = threading.Lock()
        self._stopped = False

    @property
    def place(self) -> Place:
        """What puts an actor here.

        Each life of the host has a resource of its own: Ray believes for many seconds that a killed host is there.
        """
        return Place({self._resource: 1})

    @property
    def _resource(self) -> str:
        return f"{self._name}.{self._life}"

    def start(self) -> None:
        """Start it and wait until it has joined. Blocks. Raises InfrastructureError."""
        with self._busy:
            self._start()

    def _start(self) -> None:
        assert self._servers.keeper is not None
        where = f"Ray node {self._name}"
        if self._stopped:
            raise InfrastructureError(f"{where}: the run is over")
        self._life += 1
        try:
            pid = self._servers.keeper.spawn(self._name, self._command(), _chosen_by_ray(), group=True)
            self._root, self._killed, self._id = psutil.Process(pid), [], ""
            ends_s = time.monotonic() + _JOIN_S
            while not self._id:
                if self._servers.keeper.children().get(self._name, 0) is not None:
                    raise InfrastructureError(f"{where}: has ended at once; see {self._name}.log of the run")
                if time.monotonic() > ends_s:
                    raise InfrastructureError(f"{where}: has not joined within {_JOIN_S:g} s; see {self._name}.log")
                time.sleep(_POLL_S)
                self._id = _node_id(self._resource)
        except (KeeperError, psutil.Error) as error:
            raise InfrastructureError(f"{where}: {error}") from error
        self._servers.ended_by_fault.discard(self._name)

    async def kill(self) -> None:
        """See Host."""
        if self._root is None or not runs(self._root):
            raise HandleError(f"{self._name}: its Ray node is gone, SIGKILL reaches nobody")
        self._servers.ended_by_fault.add(self._name)
        for node in self.nodes:
            self._processes.took_away(node)
        await asyncio.to_thread(self._end)

    async def restart(self) -> None:
        """See Host."""
        self._servers.ended_by_fault.add(self._name)
        for node in self.nodes:
            self._processes.took_away(node)
        await asyncio.to_thread(self._end)
        try:
            await asyncio.to_thread(self.start)
        except InfrastructureError as error:
            raise HandleError(str(error)) from error
        found = await asyncio.gather(*(self._restart_node(node) for node in self.nodes), return_exceptions=True)
        for problem in found:
            if problem is not None:
                raise problem

    async def inspect(self) -> HostState:
        """See Host."""
        assert self._root is not None
        running = runs(self._root)
        left = [process for process in (self._tree() if running else self._killed) if runs(process)]
        scheduler = await asyncio.to_thread(_told_by_ray, self._id)
        return HostState(
            life=Life.RUNS if running else Life.IS_GONE, pid=self._root.pid, processes=len(left), scheduler=scheduler
        )

    def stop(self) -> None:
        """End it for good, whatever state it is in. Blocks for bounded times."""
        self._servers.ended_by_fault.add(self._name)
        self._stopped = True
        with contextlib.suppress(HandleError):
            self._end()

    def _command(self) -> list[str]:
        address = ray.get_runtime_context().gcs_address
        return [sys.executable, "-m", "chaos.worlds.raylet", address, self._resource, str(PLACES)]

    def _end(self) -> None:
        """SIGKILL to the whole tree. Raises HandleError when something of it is still there after `_GONE_S`."""
        with self._busy:
            if self._root is None:
                return
            self._killed += kill_tree(self._root)
            ends_s = time.monotonic() + _GONE_S
            while still := [process.pid for process in self._killed if runs(process)]:
                if time.monotonic() > ends_s:
                    raise HandleError(f"{self._name}: processes {still} survived SIGKILL for {_GONE_S:g} s")
                time.sleep(_POLL_S)

    def _tree(self) -> list[psutil.Process]:
        assert self._root is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []


class RayHosts:
    """The hosts of a run: the runner's own, which is Ray's head, and those that are started beside it."""

    def __init__(
        self,
        experiment: Experiment,
        servers: Servers,
        processes: Processes,
        restart_node: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._experiment = experiment
        self._hosts = {
            name: RayHost(name, experiment.nodes_on(name), servers, processes, restart_node)
            for name in experiment.host_names()[1:]
        }

    def __getitem__(self, name: str) -> RayHost:
        return self._hosts[name]

    def place(self, node: str) -> Place:
        """What puts a node's actor where it belongs."""
        host = self._experiment.host_of(node)
        return self._hosts[host].place if host in self._hosts else Place(head_resources(self._experiment))

    def choose(self) -> None:
        """Nobody is to be chosen: all of them are started."""

    async def start(self, in_thread: InThread) -> None:
        """Start all but the head, side by side. Raises InfrastructureError."""
        await in_thread(self._each, RayHost.start)

    async def stop(self) -> list[str]:
        """End all but the head for good; what is left of them is looked for where we are."""
        await asyncio.to_thread(self._each, RayHost.stop)
        return []

    def workers_beside(self, node: str) -> int:
        """How many workers share the memory of a node's machine."""
        return self._experiment.cluster.workers

    def agent_place(self) -> Place:
        """Where the agent of this machine is."""
        return Place(head_resources(self._experiment))

    def elsewhere(self, node: str) -> None:
        """Everybody is on this machine."""

    def rows(self, node: str) -> None:
        """Nobody has rows where we have none."""

    def variables(self, node: str) -> None:
        """Nobody needs others than here."""

    def clock_ahead_s(self, node: str) -> float:
        """A machine has one clock."""
        return 0.0

    def clocks_ahead_s(self) -> dict[str, float]:
        """A machine has one clock."""
        return {}

    def check(self) -> None:
        """Their keeper is asked by others."""

    async def fetch(self, raw: Path) -> list[str]:
        """All rows are here."""
        return []

    def describe(self) -> dict[str, object]:
        """For `environment.json`."""
        return {"hosts": 1, "ray_nodes": self._experiment.cluster.hosts}

    def _each(self, work: Callable[[RayHost], None]) -> None:
        if self._hosts:
            with ThreadPoolExecutor(len(self._hosts), thread_name_prefix="host") as pool:
                list(pool.map(work, self._hosts.values()))


def head_resources(experiment: Experiment, amount: float = 1.0) -> dict[str, float]:
    """What keeps an actor on the runner's own host, or how much of it there is; nothing where there is no other."""
    return {HEAD: amount} if experiment.cluster.hosts > 1 else {}


def _chosen_by_ray() -> dict[str, str]:
    """What Ray has set in our environment, after the keeper has been started, for those that shall join."""
    return {name: os.environ[name] for name in _AUTHENTICATION if name in os.environ}


def _node_id(resource: str) -> str:
    """Ray's name of the living host with this resource; empty when there is none."""
    return next((node["NodeID"] for node in _ray_nodes() if node["Alive"] and resource in node["Resources"]), "")


def _told_by_ray(node_id: str) -> str:
    found = [node["Alive"] for node in _ray_nodes() if node["NodeID"] == node_id]
    return "unknown" if not found else "alive" if found[0] else "dead"


def _ray_nodes() -> Sequence[Mapping[str, Any]]:
    nodes: Sequence[Mapping[str, Any]] = ray.nodes()
    return nodes
