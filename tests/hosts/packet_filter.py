"""`packet_filter`, a fault kind for tests alone: a host's packet filter drops whatever comes or goes.

Not even Ray reaches the host then, so nobody there can be asked. It is proved by the broker: what the host's nodes
send, and a worker sends heartbeats, arrives no more over the connections that it still lists. The filter belongs to the
tests' process outside of the hosts, which is asked through files in a folder, see `serve`.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence, Lasting
from chaos.run import main, prepare_ray
from chaos.worlds.world import HandleError, World
from cluster.errors import Code
from tests.hosts.harness import Host

FOLDER = "MLX_CHAOS_TEST_FILTERS"
_POLL_S = 0.05
_ANSWER_S = 5.0
_WATCH_S = 1.2
"""More than two heartbeats."""


class PacketFilter(Lasting):
    """See above."""

    KIND: ClassVar[str] = "packet_filter"
    COLOUR: ClassVar[str] = "#123456"
    explains: ClassVar[tuple[str, ...]] = (
        *(Code.DEADLINE_EXCEEDED, Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED, Code.STREAM_BROKEN),
        *(Code.WORKER_LOST, Code.WORKER_UNREACHABLE),
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._hosts = spec.targets
        self._folder = Path(os.environ[FOLDER])

    async def inject(self, world: World) -> None:
        """See Fault."""
        for host in self._hosts:
            await self._ask(world, f"cut.{host}")

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        # What was on its way may still arrive.
        await world.sleep(0.3)
        return await self._silent(world)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self._silent(world)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for host in self._hosts:
            await self._ask(world, f"join.{host}")

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        ends_s = world.now() + limit_s
        facts: dict[str, object] = {}
        for node in self._nodes(world):
            while node not in facts:
                with contextlib.suppress(HandleError):
                    if (await world.link(node).inspect()).answered:
                        facts[node] = round(world.now(), 3)
                        break
                if world.now() > ends_s:
                    return Evidence(False, facts)
                await world.sleep(0.1)
        return Evidence(True, facts)

    def _nodes(self, world: World) -> list[str]:
        return [node for host in self._hosts for node in world.host(host).nodes]

    async def _silent(self, world: World) -> Evidence:
        live: Any = world
        early = {node: live._servers.listed(node) for node in self._nodes(world)}
        await world.sleep(_WATCH_S)
        late = {node: live._servers.listed(node) for node in self._nodes(world)}
        silent = all(early[node] is not None and late[node] in ({}, early[node]) for node in early)
        return Evidence(silent and bool(early), {"early": str(early), "late": str(late)})

    async def _ask(self, world: World, what: str) -> None:
        asked = self._folder / what
        asked.touch()
        ends_s = world.now() + _ANSWER_S
        while asked.exists():
            if world.now() > ends_s:
                raise HandleError(f"{what}: nobody has done it")
            await world.sleep(_POLL_S)


@contextlib.contextmanager
def serve(made: Sequence[Host], folder: Path) -> Iterator[Mapping[str, str]]:
    """Do what a run asks for; the variables that it needs."""
    folder.mkdir()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for host in made:
                for name, act in (("cut", host.cut_off), ("join", host.let_in)):
                    asked = folder / f"{name}.{host.name}"
                    if asked.exists():
                        act()
                        asked.unlink()
            time.sleep(_POLL_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield {FOLDER: str(folder)}
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    faults.KINDS[PacketFilter.KIND] = PacketFilter
    prepare_ray("")
    sys.exit(main(sys.argv[1:]))
