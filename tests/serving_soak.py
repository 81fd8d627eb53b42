"""`python -m tests.serving_soak ...` is `chaos.run` on a live cluster whose processes are hurt, and counted afterwards.

It knows one more kind of fault, `process`, and after the load it counts what every collection of every node still
holds: `census.json` beside the results. Everything else is the real thing.
"""

import sys
from collections.abc import Sequence
from typing import ClassVar

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults import Evidence
from chaos.run import main, prepare_ray
from chaos.worlds.world import World
from cluster.errors import Code

_MODES = ("kill", "freeze", "drain", "restart")
_DRAIN_S = 10.0
_POLL_S = 0.2


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


def soak(arguments: Sequence[str]) -> int:
    """Run with process faults and a census; returns the exit code."""
    faults.KINDS[ProcessFault.KIND] = ProcessFault
    prepare_ray(None)
    from chaos.worlds import live
    from tests.counting_world import CountingWorld

    live.LiveWorld = CountingWorld  # type: ignore[misc]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(soak(sys.argv[1:]))
