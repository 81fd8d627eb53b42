"""The nodes of a live world as Ray actors, each in a process of its own that can be killed, frozen and replaced."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psutil
import ray
from ray.exceptions import RayError

from chaos.undo import FrozenEntry, UndoError, UndoLog
from chaos.worlds.world import HandleError, Life, ProcessState
from cluster.live.actors import Place, agent_actor
from cluster.live.host import NodeLook
from cluster.live.nats import LinkFacts

CALL_S = 5.0
_LINK_S = 10.0
_STOP_S = 5.0
_SIGNAL_S = 2.0
_POLL_S = 0.02
_ANSWER_S = 2.0
_FROZEN_ANSWER_S = 0.5
"""What stands still gives no answer; it is asked all the same, because the system's word alone proves nothing."""
_AGENT = "host-0"


class Elsewhere(Protocol):
    """The processes of another host, which only somebody there can see and signal. Every method may raise HandleError.

    What is said of a process there is said by its pid on that host.
    """

    async def send(self, pid: int, name: str) -> bool:
        """Send a signal such as SIGSTOP; whether the process was there."""

    async def status(self, pid: int) -> str | None:
        """See `status`."""

    async def note_frozen(self, pid: int, node: str, ttl_s: float) -> str:
        """Write down there that a node is about to be frozen, so that it goes on after `ttl_s`; the entry's id."""

    async def note_thawed(self, entry: str) -> None:
        """Write down there that it goes on."""

    async def watch(self, pids: Sequence[int]) -> None:
        """Whose memory to add up there."""


class Processes:
    """The actors by node. What a fault has taken away is known here, so that nobody waits for its answer."""

    def __init__(
        self,
        make: Callable[[str], Any],
        agent_place: Callable[[], Place] = Place,
        elsewhere: Callable[[str], Elsewhere | None] = lambda node: None,
    ) -> None:
        """make: a new actor for a node's name, not started yet. agent_place: where the agent of this host is.

        elsewhere: who sees the processes of a node on another host; None for one on this host.
        """
        self._make = make
        self._agent_place = agent_place
        self.elsewhere = elsewhere
        self._actors: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self._incarnations: dict[str, int] = {}
        self._agent: Any = None
        self._away: set[str] = set()

    async def start(self, nodes: Sequence[str], raw: str, limit_s: float) -> None:
        """Make every actor, then start its node; their imports run side by side. Raises TimeoutError and RayError."""
        self._agent = agent_actor(_AGENT, raw, self._agent_place())
        for node in nodes:
            self._actors[node] = self._make(node)
        starts = [self._actors[node].start.remote(_LINK_S) for node in nodes]
        # In wait_for, a start that is called off leaves an error behind that nobody asks for, and asyncio prints it.
        async with asyncio.timeout(limit_s):
            _, *pids = await asyncio.gather(self._agent.start.remote(), *starts)
        self._pids = dict(zip(nodes, pids, strict=True))
        await asyncio.gather(*(self._learn_incarnation(node) for node in nodes))
        await self._watch()

    def present(self, nodes: Sequence[str]) -> list[str]:
        """Those that nobody has killed or frozen."""
        return [node for node in nodes if node not in self._away]

    def actor(self, node: str) -> Any:
        """The present actor of a node."""
        return self._actors[node]

    async def call(self, node: str, method: str, *arguments: Any, limit_s: float = CALL_S) -> Any:
        """What a method of the node's actor returns. Raises HandleError."""
        try:
            return await asyncio.wait_for(getattr(self._actors[node], method).remote(*arguments), limit_s)
        except TimeoutError:
            raise HandleError(f"{node}: no answer to {method} within {limit_s:g} s") from None
        except RayError as error:
            raise HandleError(f"{node}: {cause(error)}") from error

    async def signal(self, node: str, name: str, reached: Callable[[str | None], bool]) -> None:
        """Send a signal to the node's process and wait until `reached` says of its status that it has acted."""
        pid, elsewhere = self._pids[node], self.elsewhere(node)
        try:
            if elsewhere is None:
                there = await asyncio.wait_for(self._agent.send_signal.remote(pid, name), CALL_S)
            else:
                there = await elsewhere.send(pid, name)
        except (TimeoutError, RayError) as error:
            raise HandleError(f"{node}: the host's agent sends no {name}: {cause(error)}") from error
        if not there and not reached(await self.status(node)):
            raise HandleError(f"{node}: its process {pid} is gone, {name} reaches nobody")
        end_s = time.monotonic() + _SIGNAL_S
        while not reached(await self.status(node)):
            if time.monotonic() > end_s:
                raise HandleError(f"{node}: its process {pid} has not acted on {name} within {_SIGNAL_S:g} s")
            await asyncio.sleep(_POLL_S)

    def incarnation(self, node: str) -> int:
        """Of the node's last process that has begun; 0 before there was one."""
        return self._incarnations.get(node, 0)

    async def _learn_incarnation(self, node: str) -> None:
        look: NodeLook = await self.call(node, "look")
        self._incarnations[node] = look.incarnation

    def pid(self, node: str) -> int:
        """Of the node's present process."""
        return self._pids[node]

    async def status(self, node: str) -> str | None:
        """What the system of the node's host says of its present process. Raises HandleError."""
        elsewhere = self.elsewhere(node)
        return status(self._pids[node]) if elsewhere is None else await elsewhere.status(self._pids[node])

    def took_away(self, node: str) -> None:
        """The node answers nobody until `came_back`."""
        self._away.add(node)

    def came_back(self, node: str) -> None:
        """See took_away."""
        self._away.discard(node)

    async def replace(self, node: str) -> None:
        """A new actor in place of the old one, which is stopped if it still answers. Raises HandleError."""
        old = self._actors[node]
        if node not in self._away:
            with contextlib.suppress(HandleError):
                await self.call(node, "stop", limit_s=_STOP_S)
        if await self.status(node) == psutil.STATUS_STOPPED:
            # Ray asks a process to end, and this one does not hear it.
            await self.signal(node, "SIGKILL", lambda said: said is None)
        ray.kill(old)
        self._actors[node] = self._make(node)
        # Imports take seconds on a busy host, and nothing of ours ends them.
        self._pids[node] = await self.call(node, "start", _LINK_S, limit_s=60.0)
        await self._learn_incarnation(node)
        self._away.discard(node)
        await self._watch()

    async def end(self, node: str) -> None:
        """Let a node stop in an orderly way, then end its process. Raises HandleError."""
        self.took_away(node)
        await self.call(node, "stop", limit_s=_STOP_S)
        ray.kill(self._actors[node])
        end_s = time.monotonic() + _STOP_S
        while await self.status(node) is not None:
            if time.monotonic() > end_s:
                raise HandleError(f"{node}: its process {self._pids[node]} has not ended within {_STOP_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Let every node end in an orderly way, at most `_STOP_S` seconds."""
        actors = [self._actors[node] for node in self.present(list(self._actors))]
        if self._agent is not None:
            actors.append(self._agent)
        stops = [actor.stop.remote() for actor in actors]
        if stops:
            with contextlib.suppress(RayError, TimeoutError):
                await asyncio.to_thread(ray.wait, stops, num_returns=len(stops), timeout=_STOP_S)
        self._actors.clear()

    async def _watch(self) -> None:
        pids: dict[Elsewhere | None, list[int]] = {}
        for node, pid in self._pids.items():
            pids.setdefault(self.elsewhere(node), []).append(pid)
        with contextlib.suppress(RayError, HandleError):
            for elsewhere, those in pids.items():
                await (self._agent.watch.remote(those) if elsewhere is None else elsewhere.watch(those))


class ActorProcess:
    """See chaos.worlds.world.Process."""

    def __init__(
        self,
        node: str,
        processes: Processes,
        undo: UndoLog,
        started: Callable[[], None],
        listed: Callable[[str], dict[int, int] | None],
    ) -> None:
        """started: told of every new process, so that it can be written down for its end. listed: see Servers."""
        self._listed = listed
        self._node = node
        self._processes = processes
        self._undo = undo
        self._started = started
        self._frozen: str | None = None

    async def kill(self) -> None:
        """See Process."""
        self._processes.took_away(self._node)
        await self._processes.signal(self._node, "SIGKILL", lambda said: said is None)

    async def freeze(self, ttl_s: float) -> None:
        """See Process. When the undo log cannot be written, nothing is frozen."""
        pid, elsewhere = self._processes.pid(self._node), self._processes.elsewhere(self._node)
        if elsewhere is not None:
            self._frozen = await elsewhere.note_frozen(pid, self._node, ttl_s)
        else:
            try:
                self._frozen = note_frozen(self._undo, pid, self._node, ttl_s)
            except (UndoError, psutil.Error) as error:
                raise HandleError(f"{self._node}: {error}") from error
        self._processes.took_away(self._node)
        await self._processes.signal(self._node, "SIGSTOP", lambda said: said == psutil.STATUS_STOPPED)

    async def thaw(self) -> None:
        """See Process."""
        await self._processes.signal(self._node, "SIGCONT", lambda said: said != psutil.STATUS_STOPPED)
        self._processes.came_back(self._node)
        await self._undone()

    async def drain(self, limit_s: float) -> bool:
        """See Process."""
        empty: bool = await self._processes.call(self._node, "drain", limit_s, limit_s=limit_s + CALL_S)
        return empty

    async def stop(self) -> None:
        """See Process."""
        await self._processes.end(self._node)

    async def restart(self) -> None:
        """See Process."""
        await self._processes.replace(self._node)
        await self._undone()
        await asyncio.to_thread(self._started)

    async def alive(self) -> bool:
        """See Process."""
        return await self._processes.status(self._node) not in (None, psutil.STATUS_STOPPED)

    async def inspect(self) -> ProcessState:
        """See Process."""
        pid = self._processes.pid(self._node)
        said = await self._processes.status(self._node)
        life = Life.IS_GONE if said is None else Life.STANDS_STILL if said == psutil.STATUS_STOPPED else Life.RUNS
        look: object = None
        link: object = None
        if life is not Life.IS_GONE:
            limit_s = _ANSWER_S if life is Life.RUNS else _FROZEN_ANSWER_S
            asked = (self._processes.call(self._node, method, limit_s=limit_s) for method in ("look", "link"))
            look, link = await asyncio.gather(*asked, return_exceptions=True)
        facts, answered = link if isinstance(link, tuple) else (None, False)
        return ProcessState(
            life=life,
            pid=pid,
            incarnation=look.incarnation if isinstance(look, NodeLook) else None,
            answers=isinstance(facts, LinkFacts) and answered,
            connections=await asyncio.to_thread(self._listed, self._node),
        )

    async def _undone(self) -> None:
        if self._frozen is None:
            return
        elsewhere = self._processes.elsewhere(self._node)
        if elsewhere is not None:
            await elsewhere.note_thawed(self._frozen)
        else:
            try:
                self._undo.done(self._frozen)
            except UndoError as error:
                raise HandleError(f"{self._node}: {error}") from error
        self._frozen = None


def note_frozen(undo: UndoLog, pid: int, node: str, ttl_s: float) -> str:
    """Write down that a process is about to be frozen, and return the entry's id. Raises UndoError and psutil.Error."""
    created_s = psutil.Process(pid).create_time()
    return undo.add(FrozenEntry(pid=pid, created_s=created_s, name=node, expires_unix_s=time.time() + ttl_s))


def status(pid: int) -> str | None:
    """What the system says of a process; None when it has ended."""
    try:
        said = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
    return None if said == psutil.STATUS_ZOMBIE else said


def cause(error: BaseException) -> str:
    """The last line of what Ray wraps around an actor's exception: the exception itself."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
