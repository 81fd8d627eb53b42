"""One run of an experiment in a world, from its start to its tables, whatever ends it."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from chaos.client_limits import limits_lines
from chaos.director import Director, Watcher
from chaos.experiment import Experiment
from chaos.guard import Stopped
from chaos.like import CAPACITY, Like, LikeWorld
from chaos.oracle import consult
from chaos.results import ResultsDirectory
from chaos.worlds.simulated import SimulatedWorld
from chaos.worlds.world import World

INTERRUPTED = "interrupted"


class RunnableWorld(World, Protocol):
    """A world whose rows can be merged."""

    @property
    def origin_s(self) -> float:
        """The world's time zero on the nodes' clocks, seconds."""


class Session:
    """One run from start to tables."""

    def __init__(
        self,
        world: RunnableWorld,
        director: Director,
        results: ResultsDirectory,
        watcher: Watcher,
        interrupted: Callable[[], bool] = lambda: False,
        clocks_ahead_s: Callable[[], dict[str, float]] = dict,
        world_notes: Callable[[], list[str]] = list,
    ) -> None:
        """interrupted: whether somebody has asked for the end; while the run is being ended, nothing else tells.

        clocks_ahead_s: of nodes that stamp their rows by other clocks than the world's, how far those are ahead.
        world_notes: what the world knows that a reader of the results must know too.
        """
        self._world_notes = world_notes
        self._clocks_ahead_s = clocks_ahead_s
        self._world = world
        self._director = director
        self._results = results
        self._watcher = watcher
        self._interrupted = interrupted
        self._finished = False
        self.ended_by = "the last phase"

    async def whole(self) -> None:
        """Conduct, stop, and write what is known, in every case; then raise what went wrong."""
        try:
            await self._director.conduct()
        except Stopped as stopped:
            self.ended_by = f"the guard: {stopped.reason}"
            self._watcher.note(f"STOPPED: {stopped.reason}")
        except BaseException as error:
            self.told(error)
            if self.ended_by != INTERRUPTED:
                raise
        finally:
            await self.finish()

    def told(self, error: BaseException) -> None:
        """Note what ended the run, if nothing has before."""
        if not self._finished:
            interrupted = isinstance(error, (KeyboardInterrupt, asyncio.CancelledError))
            self.ended_by = INTERRUPTED if interrupted else f"{type(error).__name__}: {error}"

    async def finish(self) -> None:
        """Stop, and write what is known; once, whoever asks for it."""
        if self._finished:
            return
        self._finished = True
        world, director, results = self._world, self._director, self._results
        self._watcher.phase("stop")
        left = await world.stop()
        for line in left or ():
            self._watcher.note(f"LEFT BEHIND: {line}")
        notes = results.merge(world.origin_s, self._clocks_ahead_s())
        capacity = {CAPACITY: msgspec.to_builtins(director.measured)} if director.measured is not None else {}
        environment = results.write_environment({**world.environment(), **capacity})
        if director.complete and not self._interrupted():
            self._watcher.phase("reference completions")
            await consult(world, results, director.plan.every_request())
        limits = limits_lines(environment, results.path)
        for line in limits:
            self._watcher.note(line)
        notes += [*director.offers, *limits, *self._world_notes()]
        complete = director.complete
        if self._interrupted():
            complete, self.ended_by = False, INTERRUPTED
        results.write_info(
            world.invariants,
            world.exact_tokens,
            world.token_gap_max_nats,
            complete=complete,
            ended_by=self.ended_by,
            notes=notes,
            left_behind=left,
        )


def play_simulated(
    experiment: Experiment,
    seed: int,
    results: ResultsDirectory,
    watcher: Watcher,
    like: Like | None = None,
    record_policy: bool = False,
) -> str:
    """Play it on the virtual clock and put all tables in place; returns what ended the run.

    like: a recorded run, of which these are the experiment and the seed, and whose load it is to be.
    record_policy: see SimulatedWorld.
    Raises what a node or our own code raises, once everything that is known has been written.
    """
    if like is None:
        world = SimulatedWorld(experiment, seed, results.raw, record_policy)
        director = Director(world, experiment, seed, watcher, results.write_plan)
    else:
        world = LikeWorld(like, results.raw, record_policy)
        director = Director(world, experiment, seed, watcher, like.checked(results.write_plan), capacity=like.capacity)
    session = Session(world, director, results, watcher)
    try:
        world.run(session.whole())
    except BaseException as error:
        # When it came from some node's turn, the session sleeps and was not told.
        session.told(error)
        world.run(session.finish())
        if session.ended_by != INTERRUPTED:
            raise
    return session.ended_by
