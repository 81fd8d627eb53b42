"""What the kinds that hurt processes share: evidence from the system, the node, the broker and the controllers."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from chaos.faults.fault import Evidence
from chaos.faults.roles import is_worker
from chaos.worlds.world import HandleError, Life, Member, ProcessState, World

PROOF_S = 2.0
"""For how long the proof of a bite is waited for, seconds."""
DURATION_S_MIN = 2.5
"""A fault of processes is proved within this time, seconds."""
_POLL_S = 0.2

Members = Mapping[str, Mapping[str, Member]]
"""By controller: the workers that it knows."""

Judge = Callable[[str, ProcessState, Members], tuple[bool, str]]
"""Whether a target is as it should be now, and why one may say so."""


async def inspect(world: World, targets: Iterable[str]) -> dict[str, ProcessState]:
    """How the targets stand now, all asked at once: who stands still keeps us waiting. Raises HandleError."""
    states: dict[str, ProcessState] = {}

    async def look(target: str) -> None:
        states[target] = await world.process(target).inspect()

    wanted = list(targets)
    await side_by_side(world, [look(target) for target in wanted])
    return {target: states[target] for target in wanted}


async def side_by_side(world: World, work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it at once. Raises the first HandleError when the rest has ended; when cancelled, all is cancelled."""
    refused: list[HandleError] = []

    async def attempt(part: Coroutine[Any, Any, None]) -> None:
        try:
            await part
        except HandleError as error:
            refused.append(error)

    jobs = [world.spawn(attempt(part)) for part in work]
    try:
        for job in jobs:
            await job
    finally:
        for job in jobs:
            job.cancel()
    if refused:
        raise refused[0]


async def watch(world: World, targets: Sequence[str], judge: Judge, limit_s: float) -> Evidence:
    """Look at the targets until `judge` says yes of all of them, for at most `limit_s`; the last look is told."""
    end_s = world.now() + limit_s
    while True:
        states, members = await inspect(world, targets), await world.members()
        judged = {target: judge(target, state, members) for target, state in states.items()}
        proved = all(yes for yes, _ in judged.values())
        if proved or world.now() >= end_s:
            facts: dict[str, object] = {
                target: {"bites": yes, "because": why, "state": told(states[target])}
                for target, (yes, why) in judged.items()
            }
            return Evidence(proved, facts)
        await world.sleep(_POLL_S)


def worked(before: ProcessState | None) -> bool:
    """Whether a node did its part before it was hurt; one that did not proves nothing."""
    return before is not None and before.life is Life.RUNS and before.answers and bool(before.connections)


def is_gone(before: ProcessState | None, now: ProcessState, *, replaced: bool) -> tuple[bool, str]:
    """Whether the process of `before` has ended. replaced: another one may be there in its place."""
    if before is None or not worked(before):
        return False, "the node did not work before"
    if now.life is not Life.IS_GONE and now.pid == before.pid:
        return False, "its process is still there"
    if now.life is not Life.IS_GONE and not replaced:
        return False, "another process is in its place"
    if now.connections is None:
        return False, "the broker does not tell whether its connection is gone"
    if set(before.connections or ()) & set(now.connections):
        return False, "the broker still lists its connection"
    return True, "its process is gone, and the broker lists the connection no more"


def is_renewed(target: str, before: ProcessState | None, now: ProcessState, members: Members) -> tuple[bool, str]:
    """Whether another incarnation has taken the node's place, and whoever has to do with it has noticed."""
    gone, why = is_gone(before, now, replaced=True)
    if not gone:
        return False, why
    assert before is not None
    if now.life is not Life.RUNS or not now.answers or now.incarnation in (None, before.incarnation):
        return False, "no other incarnation answers"
    if is_worker(target) and not _known(target, now, members):
        return False, "the controllers have not heard of its new incarnation"
    return True, "a new incarnation answers, and the connection of before is gone"


def _known(worker: str, now: ProcessState, members: Members) -> bool:
    known = [of.get(worker) for of in members.values()]
    return bool(known) and all(member is not None and member.incarnation == now.incarnation for member in known)


class Return:
    """Whether nodes are back, in their own eyes, the broker's and the controllers'.

    before: how they were before they were hurt. renewed: those that must be another incarnation now; the others must
    be the same one.
    """

    def __init__(self, before: Mapping[str, ProcessState], members: Members, renewed: Sequence[str]) -> None:
        """members: whom the controllers knew before."""
        self._before = before
        self._members = members
        self._renewed = renewed

    async def proof(self, world: World, limit_s: float) -> Evidence:
        """Wait until all are back, for at most `limit_s`."""
        began_s = world.now()
        facts: dict[str, object] = {}
        missing = list(self._before)
        while True:
            states, members = await inspect(world, missing), await world.members()
            for target, state in states.items():
                back, why = self._is_back(target, state, members)
                after_s = round(world.now() - began_s, 3) if back else None
                facts[target] = {"back_after_s": after_s, "because": why, "state": told(state)}
                if back:
                    missing.remove(target)
            if not missing or world.now() - began_s > limit_s:
                return Evidence(not missing, facts)
            await world.sleep(_POLL_S)

    def _is_back(self, target: str, now: ProcessState, members: Members) -> tuple[bool, str]:
        if now.life is not Life.RUNS or not now.answers or not now.connections:
            return False, "it does not answer over its link"
        same = now.incarnation == self._before[target].incarnation
        if same is (target in self._renewed):
            return False, "it is another incarnation than it should be"
        if not is_worker(target):
            wanted = [worker for worker, member in self._members.get(target, {}).items() if member.liveness == "ready"]
            found = members.get(target, {})
            if any(worker not in found or found[worker].liveness != "ready" for worker in wanted):
                return False, "it does not call all workers ready that it did before"
            return True, "it answers, and calls all workers ready that it did before"
        if not _known(target, now, members) or any(of[target].liveness != "ready" for of in members.values()):
            return False, "a controller does not call it ready"
        return True, "it answers, and every controller calls it ready"


def told(state: msgspec.Struct) -> object:
    """A state as evidence."""
    return msgspec.to_builtins(state, str_keys=True)
