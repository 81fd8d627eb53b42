"""The live world with a count of what its nodes hold, before any load and after all of it; imports Ray."""

import asyncio
from collections.abc import Sized
from typing import Any

import msgspec

from chaos.worlds.live import LiveWorld
from chaos.worlds.world import HandleError
from tests.serving_cases import CENSUS, Census
from workloads.capacity import ProbePlan

_LAST_S = 0.2
_QUIET_S = 12.0
"""Longer than a deadline: until then a node may remember a request, so as not to execute it twice."""
_DEPTH_MAX = 6
_WALKED_MAX = 8
"""Into so many values of a dictionary it looks: models, workers and the like, not requests."""
_OURS = ("cluster.", "workloads.")


class CountingWorld(LiveWorld):
    """The live world, with a count at the beginning and one at the end."""

    census = Census()

    async def start(self) -> None:
        """See World."""
        await super().start()
        self.census.before = await self._count()

    async def stop(self) -> list[str]:
        """See World."""
        left = []
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
            left = await super().stop()
            (self._raw.parent / CENSUS).write_bytes(msgspec.json.format(msgspec.json.encode(self.census)))
        return left

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
    return found | count_collections(node=shell.node, shell=shell, link=shell.link, engine=shell.engine)


def count_collections(**parts: Any) -> dict[str, int]:
    """The length of every collection that hangs on objects of ours, by the way to it."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for name, part in parts.items():
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
                if len(inner) <= _WALKED_MAX:
                    for key, value in list(inner.items()):
                        _walk(f"{where}.{key}", value, found, seen)
        elif isinstance(inner, asyncio.Queue):
            found[where] = inner.qsize()
        _walk(where, inner, found, seen)
