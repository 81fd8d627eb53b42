"""`python -m tests.serving_soak ...` is `chaos.run` on a live cluster whose processes are hurt, and counted afterwards.

It knows one more kind of fault, `process`, and after the load it counts what every collection of every node still
holds: `census.json` beside the results. Everything else is the real thing.
"""

import asyncio
import sys
from collections.abc import Sequence, Sized
from typing import Any, ClassVar

import msgspec

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults import Evidence
from chaos.run import main
from chaos.worlds import live
from chaos.worlds.world import HandleError, World
from cluster.errors import Code
from tests.serving_cases import CENSUS, Census
from workloads.capacity import ProbePlan

_MODES = ("kill", "freeze", "drain", "restart")
_DRAIN_S = 10.0
_POLL_S = 0.2
_LAST_S = 0.2
_QUIET_S = 12.0
"""Longer than a deadline: until then a node may remember a request, so as not to execute it twice."""
_DEPTH_MAX = 6
_OURS = ("cluster.", "workloads.")


class ProcessFault:
    """Kills, freezes, drains or restarts the process of each target, and brings it back."""

    KIND: ClassVar[str] = "process"
    COLOUR: ClassVar[str] = "#0072b2"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        if spec.mode not in _MODES:
            raise ValueError(f"mode: expected one of {', '.join(_MODES)}, got {spec.mode!r}")
        self._mode = spec.mode
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._emptied: dict[str, bool] = {}
        self._workers = sum(node.startswith("worker-") for node in nodes)

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        codes = [Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED, Code.STREAM_BROKEN, Code.DEADLINE_EXCEEDED]
        codes += [Code.WORKER_LOST, Code.WORKER_UNREACHABLE, Code.WORKER_DRAINING]
        if any(target.startswith("controller") for target in self._targets):
            codes.append(Code.CONTROLLER_UNREACHABLE)
        return tuple(codes)

    async def inject(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            process = world.process(target)
            match self._mode:
                case "kill":
                    await process.kill()
                case "freeze":
                    await process.freeze(self._ttl_s)
                case "drain":
                    self._emptied[target] = await process.drain(_DRAIN_S)
                case "restart":
                    await process.restart()

    async def verify(self, world: World) -> Evidence:
        """See Fault. A process that is gone or stopped does not run; one that drained still does, and is empty."""
        facts: dict[str, object] = {}
        proved = True
        for target in self._targets:
            alive = await world.process(target).alive()
            bites = not alive if self._mode in ("kill", "freeze") else alive and self._emptied.get(target, True)
            facts[target] = {"bites": bites, "because": f"alive: {alive}, emptied: {self._emptied.get(target)}"}
            proved = proved and bites
        return Evidence(proved, facts)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        await world.sleep(until_s - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self.verify(world)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            process = world.process(target)
            if self._mode == "freeze":
                await process.thaw()
            elif self._mode != "restart":
                await process.restart()

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Every process runs and a controller calls every worker ready."""
        end_s = world.now() + limit_s
        while True:
            workers = (await world.look()).workers
            alive = {target: await world.process(target).alive() for target in self._targets}
            ready = len(workers) == self._workers and set(workers.values()) == {"ready"}
            if (ready and all(alive.values())) or world.now() >= end_s:
                return Evidence(ready and all(alive.values()), {"workers": workers, "alive": alive})
            await world.sleep(_POLL_S)


class CountingWorld(live.LiveWorld):
    """The live world, with a count at the beginning and one at the end."""

    census = Census()

    async def start(self) -> None:
        """See World."""
        await super().start()
        self.census.before = await self._count()

    async def stop(self) -> None:
        """See World."""
        try:
            if not self.interrupted and self.census.before:
                await asyncio.sleep(_QUIET_S)
                # Whoever forgets only when something new arrives gets something new.
                prompts = [((1, 2, 3), 2)]
                await self.probe(ProbePlan(len(self._clients()), 0.0, _LAST_S), prompts)
                await asyncio.sleep(_QUIET_S)
                self.census.after = await self._count()
        except HandleError as error:
            self.census.problem = str(error)
        finally:
            await super().stop()
            (self._raw.parent / CENSUS).write_bytes(msgspec.json.format(msgspec.json.encode(self.census)))

    async def _count(self) -> dict[str, dict[str, int]]:
        actors = {node: self._processes.actor(node) for node in self._nodes}
        counts = await asyncio.gather(*(actor.__ray_call__.remote(count) for actor in actors.values()))
        return dict(zip(actors, counts, strict=True))


def count(actor: Any) -> dict[str, int]:
    """The length of every collection that hangs on the node of an actor, on its shell, its link or its engine.

    Runs in the actor, beside its loop.
    """
    shell = actor.host._shell
    found = {"link.subscriptions": shell.link.facts().subscriptions, "tasks": len(asyncio.all_tasks(shell._loop))}
    gauges = msgspec.structs.asdict(shell.node.gauges())
    found |= {f"gauge.{name}": gauges[name] for name in ("queue_depth", "active", "open_requests", "kv_bytes")}
    seen: set[int] = set()
    for name, part in (("node", shell.node), ("shell", shell), ("link", shell.link), ("engine", shell.engine)):
        _walk(name, part, found, seen)
    return found


def _walk(path: str, part: Any, found: dict[str, int], seen: set[int]) -> None:
    if id(part) in seen or path.count(".") > _DEPTH_MAX or not type(part).__module__.startswith(_OURS):
        return
    seen.add(id(part))
    names = list(getattr(part, "__dict__", ())) + [
        name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())
    ]
    for name in names:
        inner = getattr(part, name, None)
        where = f"{path}.{name}"
        if isinstance(inner, Sized) and not isinstance(inner, str | bytes | tuple | msgspec.Struct):
            found[where] = len(inner)
            if isinstance(inner, dict):
                lengths = [len(value) for value in list(inner.values()) if isinstance(value, list | dict | set)]
                found[f"{where}.inner"] = sum(lengths)
        elif isinstance(inner, asyncio.Queue):
            found[where] = inner.qsize()
        _walk(where, inner, found, seen)


def soak(arguments: Sequence[str]) -> int:
    """Run with process faults and a census; returns the exit code."""
    faults.KINDS[ProcessFault.KIND] = ProcessFault
    live.LiveWorld = CountingWorld  # type: ignore[misc]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(soak(sys.argv[1:]))
