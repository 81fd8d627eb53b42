"""One host of a joined Ray cluster, other than the runner's own."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from chaos.undo import RUN_MARK
from chaos.worlds.host_agent import OtherHostAgent
from chaos.worlds.host_clocks import ROUNDS, HostClock
from chaos.worlds.processes import CALL_S, Processes, cause
from chaos.worlds.reviver_line import ReviverLine
from chaos.worlds.world import HandleError, HostState, Life
from cluster.live.actors import Place, RayHost, agent_actor, ray_hosts

MLX = "mlx"
"""By convention the Ray resource that a Mac brings: its GPU."""
_JOIN_S = 30.0
_POLL_S = 0.2
_FILE_BYTES_MAX = 2**31


class JoinedHost:
    """See chaos.worlds.world.Host, and chaos.worlds.processes.Elsewhere for the processes on it."""

    def __init__(
        self,
        name: str,
        ray_host: RayHost,
        nodes: Sequence[str],
        processes: Processes,
        restart_node: Callable[[str], Coroutine[Any, Any, None]],
        run_id: str,
    ) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.address = ray_host.address
        self.ray_host = ray_host
        self.clock = HostClock()
        self.rows = ""
        """Where its nodes write their rows; empty until the agent has begun."""
        self.preload: dict[str, str] = {}
        self.about: dict[str, object] = {}
        """What is told of it in the report, beside what is known here."""
        self.marks: list[str] = []
        """What the run's processes carry there, by the host's lives."""
        self._processes = processes
        self._restart_node = restart_node
        self._run_id = run_id
        self._agent: Any = None
        self._heard_s = time.monotonic()
        self._own_address = ""
        self._model: str | None = None
        self._limit_s = CALL_S
        self._line: ReviverLine | None = None
        self._raylet = 0
        self._reserved = True

    async def begin(self, own_address: str, model: str | None, limit_s: float) -> str | None:
        """Start the agent, have the model there, and learn of the clock; what is wrong, None when nothing is.

        own_address: where the host reaches us. model: None where nothing is computed. limit_s: of each of these.
        """
        self._own_address, self._model, self._limit_s = own_address, model, limit_s
        mark = f"{self._run_id}.{self.name}.{len(self.marks)}"
        self.marks.append(mark)
        place = Place(ray_node=self.ray_host.ray_node, environment={RUN_MARK: mark}, shares_code=False)
        self._agent = agent_actor(self.name, "", place, OtherHostAgent)
        try:
            self.rows = await self._call("open", limit_s=limit_s)
            await self._call("start", limit_s=limit_s)
            for _ in range(ROUNDS):
                await self._ask_clock()
            if model is not None:
                lacking: str = await self._call("make_model", model, limit_s=limit_s)
                if lacking:
                    return f"{self.name} ({self.address}): {lacking}"
                self.preload = await self._call("preload", limit_s=limit_s)
        except HandleError as error:
            return str(error)
        self._heard_s = time.monotonic()
        return None

    def place(self, share: Mapping[str, float], group: PlacementGroup | None, bundle: int) -> Place:
        """What puts a node's actor here."""
        mark = {RUN_MARK: self.marks[-1]}
        if group is None or not self._reserved:
            # What was reserved on a host that has died is reserved again by Ray, when it likes: nothing is asked for.
            return Place(ray_node=self.ray_host.ray_node, environment=mark, shares_code=False)
        return Place(dict(share), group=group, bundle=bundle, environment=mark, shares_code=False)

    async def send(self, pid: int, name: str) -> bool:
        """See Elsewhere."""
        there: bool = await self._call("send_signal", pid, name)
        return there

    async def status(self, pid: int) -> str | None:
        """See Elsewhere. On a host whose Ray node was killed nothing of it runs, or somebody there would say so."""
        if self._line is None:
            said: str | None = await self._call("status", pid)
            return said
        told = await asyncio.to_thread(self._line.look)
        if told.left:
            raise HandleError(f"{self.name}: {told.left} processes of its Ray node are still there")
        return None

    async def note_frozen(self, pid: int, node: str, ttl_s: float) -> str:
        """See Elsewhere."""
        entry: str = await self._call("note_frozen", pid, node, ttl_s)
        if entry.startswith("!"):
            raise HandleError(f"{node} on {self.name}: {entry[1:]}")
        return entry

    async def note_thawed(self, entry: str) -> None:
        """See Elsewhere. With the host's processes the entry has gone as well."""
        if self._line is None and (problem := await self._call("note_thawed", entry)):
            raise HandleError(f"{self.name}: {problem}")

    async def watch(self, pids: Sequence[int]) -> None:
        """See Elsewhere."""
        if self._line is None:
            await self._call("watch", list(pids))

    async def kill(self) -> None:
        """See Host. A process of its own is left there, which starts Ray again at `restart`, or when we are gone."""
        if self._line is not None:
            raise HandleError(f"{self.name}: its Ray node is gone, SIGKILL reaches nobody")
        if self.ray_host.head:
            raise HandleError(f"{self.name}: it is the head of the Ray cluster, with which the whole cluster ends")
        line = await asyncio.to_thread(ReviverLine, self._own_address)
        for node in self.nodes:
            self._processes.took_away(node)
        try:
            await self._call("begin_reviver", line.plan)
            await asyncio.to_thread(line.accept)
            told = await asyncio.to_thread(line.kill)
        except HandleError:
            await asyncio.to_thread(line.close)
            raise
        self._line = line
        if told.left:
            raise HandleError(f"{self.name}: {told.left} of {told.killed} processes have survived SIGKILL")

    async def restart(self) -> None:
        """See Host. Ray is started there with the address, resources and memory that it had."""
        for node in self.nodes:
            self._processes.took_away(node)
        if self._line is not None:
            line, self._line = self._line, None
            try:
                await asyncio.to_thread(line.start)
            finally:
                await asyncio.to_thread(line.close)
            await self._rejoin()
        found = await asyncio.gather(*(self._restart_node(node) for node in self.nodes), return_exceptions=True)
        for problem in found:
            if problem is not None:
                raise problem

    async def inspect(self) -> HostState:
        """See Host."""
        if self._line is not None:
            told = await asyncio.to_thread(self._line.look)
            life, count = Life.IS_GONE, told.left
        else:
            self._raylet, count = await self._call("ray_processes")
            life = Life.RUNS
        hosts = await asyncio.to_thread(ray_hosts)
        alive = any(host.ray_node == self.ray_host.ray_node for host in hosts)
        return HostState(life=life, pid=self._raylet, processes=count, scheduler="alive" if alive else "dead")

    async def renew(self) -> None:
        """Say that we live, and learn of its clock."""
        with contextlib.suppress(HandleError):
            if self._line is not None:
                await asyncio.to_thread(self._line.look)
            else:
                await self._ask_clock()
            self._heard_s = time.monotonic()

    def check(self, limit_s: float) -> None:
        """Raises HandleError when it has not been heard of for so long."""
        if self.rows and time.monotonic() - self._heard_s > limit_s:
            raise HandleError(f"{self.name} ({self.address}): not heard of for {limit_s:g} s, its nodes have ended")

    async def fetch(self, raw: Path) -> str | None:
        """Copy the rows of its nodes into a folder of ours, and remove them there; why not, None when all is here."""
        if not self.rows:
            return None
        try:
            await self._call("stop")
            for name, size in await self._call("files"):
                await self._fetch_file(raw / Path(name).name, min(size, _FILE_BYTES_MAX))
            await self._call("clear")
        except (HandleError, OSError) as error:
            return f"{self.name} ({self.address}): its rows are not here, they are in {self.rows} there: {error}"
        return None

    def end(self) -> bool:
        """End the agent; its keeper ends the rest. Whether the Ray node comes back only now, after a fault."""
        away = self._line is not None
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._agent is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(self._agent)
        return away

    def describe(self) -> dict[str, object]:
        """For `environment.json`."""
        told: dict[str, object] = {"address": self.address, "nodes": list(self.nodes), **self.about}
        with contextlib.suppress(ValueError):
            clock = self.clock.estimate()
            told["clock_ahead_s"] = round(clock.ahead_s, 6)
            told["clock_error_s_max"] = round(clock.error_s, 6)
            told["clock_drift_s"] = round(clock.drift_s, 6)
            told["clock_questions"] = clock.questions
        return told

    async def _rejoin(self) -> None:
        """Wait until Ray knows the new node, and begin anew there."""
        ends_s = time.monotonic() + _JOIN_S
        old = self.ray_host.ray_node
        while True:
            hosts = await asyncio.to_thread(ray_hosts)
            new = [host for host in hosts if host.address == self.address and host.ray_node != old]
            if new:
                break
            if time.monotonic() > ends_s:
                raise HandleError(f"{self.name}: its Ray node has not joined again within {_JOIN_S:g} s")
            await asyncio.sleep(_POLL_S)
        self.ray_host, self._reserved = new[0], False
        problem = await self.begin(self._own_address, self._model, self._limit_s)
        if problem is not None:
            raise HandleError(problem)

    async def _ask_clock(self) -> None:
        asked_s = time.monotonic()
        told_s: float = await self._call("renew")
        self.clock.add(asked_s, told_s, time.monotonic())

    async def _fetch_file(self, path: Path, size: int) -> None:
        with path.open("wb") as file:
            while file.tell() < size:
                part: bytes = await self._call("read", path.name, file.tell())
                if not part:
                    break
                file.write(part)

    async def _call(self, method: str, *arguments: Any, limit_s: float = CALL_S) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._agent, method).remote(*arguments), limit_s)
        except TimeoutError:
            said = f"no answer to {method} within {limit_s:g} s"
            raise HandleError(f"{self.name} ({self.address}): {said}") from None
        except RayError as error:
            raise HandleError(f"{self.name} ({self.address}): {cause(error)}") from error
