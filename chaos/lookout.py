"""The lookout: watches a run from beside it, from before its cluster starts until all is over, and ends it in time."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from analysis.schema import EventRow
from chaos.guard import Guard, Stopped
from chaos.progress import Snapshot
from chaos.worlds.world import Job, World

_HEED_S = 0.25
_LOOK_S = 0.5


class Lookout:
    """Whatever it finds ends the run at its present await, however long that would have taken."""

    def __init__(
        self, world: World, guard: Guard, checks: Sequence[Callable[[], None]], show: Callable[[Snapshot], None]
    ) -> None:
        """checks: each raises what has to end the run; they neither wait nor ask the cluster. show: told of each look.

        What they raise is recorded when it is a Stopped.
        """
        self._world = world
        self._guard = guard
        self._checks = (guard.heed, *checks)
        self._show = show
        self._jobs: list[Job] = []
        self._over = False
        self._found: Exception | KeyboardInterrupt | None = None
        self._told: list[Stopped] = []

    async def keep(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it under watch. Raises what was found, else what it raised."""
        self.check()
        body = self._world.spawn(run())
        self._jobs.append(body)
        self._watch(_HEED_S, self._heed)
        try:
            await body
        except BaseException:
            if self._found is None:
                raise
        finally:
            self._over = True
            for job in self._jobs:
                job.cancel()
        if self._found is not None:
            raise self._found

    def begin_to_look(self) -> None:
        """From now on there is a load whose standing says something."""
        self._watch(_LOOK_S, self._look)

    def check(self) -> None:
        """Raises what has to end the run, also where its end has been asked for and was lost on the way."""
        if self._found is not None:
            raise self._found
        for check in self._checks:
            self._recorded(check)

    def tell(self, stopped: Stopped) -> None:
        """Record why the run must end, once."""
        if stopped not in self._told:
            self._told.append(stopped)
            self._world.record(EventRow(self._world.clock(), "guard", stopped.by, detail=stopped.reason))

    def _recorded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Stopped as stopped:
            self.tell(stopped)
            raise

    def _watch(self, period_s: float, act: Callable[[], Awaitable[None]]) -> None:
        self._jobs.append(self._world.spawn(self._every(period_s, act)))

    async def _every(self, period_s: float, act: Callable[[], Awaitable[None]]) -> None:
        world = self._world
        try:
            while not self._over:
                due_s = world.clock() + period_s
                await act()
                await world.sleep(due_s - world.clock())
        except (Exception, KeyboardInterrupt) as error:
            # Nobody waits for this job, so `keep` raises it. On virtual time Ctrl-C may come in its turn.
            if self._found is None and not self._over:
                self._found = error
                self._jobs[0].cancel()

    async def _heed(self) -> None:
        self.check()

    async def _look(self) -> None:
        snapshot = await self._world.look()
        if self._over:
            return
        self._guard.heard(snapshot.workers, self._world.clock())
        self._show(snapshot)
        self._recorded(lambda: self._guard.check(snapshot))
