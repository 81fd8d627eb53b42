"""The director: brings a world up, offers the load, walks through the phases, injects and heals, and writes it down.

It awaits only the world, so the same coroutine runs on asyncio and on virtual time.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from analysis.schema import EventRow
from chaos.arms import Blocks
from chaos.experiment import Experiment
from chaos.guard import Guard
from chaos.injector import HouseRules, Injector
from chaos.lookout import Lookout
from chaos.progress import Snapshot
from chaos.worlds.world import World
from cluster.protocol import Token
from workloads.arms import ArmsTask, Offer, plan_arms
from workloads.capacity import (
    Capacity,
    CapacityUnknown,
    InfeasibleRate,
    ResolvedRate,
    estimate_capacity,
    plan_probe,
    resolve_rate,
)
from workloads.plan import LoadPlan
from workloads.planner import PlannedPhase, build_plan, statements
from workloads.schedule import first_requests
from workloads.vocabulary import PromptVocabulary

_TICK_S = 0.5
_MOMENT_S = 1e-6
"""Less is not worth sleeping for, and on a clock of large numbers would not move it."""
_PROBE_PROMPTS = 200
_PROBE_SEED = 1_000_003
"""Added to the run's: what the workers keep of the probe must be no beginning of a prompt of the run."""
_DRAIN_SLACK_S = 2.0
_SETTLE_S = 1.0
"""After the last request: nodes are sampled twice a second, and their clocks may differ by a quarter of one."""


class Watcher(Protocol):
    """Who is shown the progress; chaos.progress.Progress is one."""

    def phase(self, name: str, duration_s: float | None = None) -> None:
        """A phase begins."""

    def update(self, snapshot: Snapshot) -> None:
        """How things stand."""

    def note(self, text: str) -> None:
        """A remark."""


def of_the_owner(line: str) -> str:
    """What is said of a measured capacity, said of the rate that the owner of somebody else's cluster allows."""
    return line.replace("the measured capacity of", "what the owner allows,").replace("the capacity", "that")


class Director:
    """One run of an experiment in a world."""

    def __init__(
        self,
        world: World,
        experiment: Experiment,
        seed: int,
        watcher: Watcher,
        planned: Callable[[LoadPlan], None] = lambda plan: None,
        rules: HouseRules | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        """planned: told of the load before any of it is offered. rules: None where the cluster is ours.

        capacity: by which rates go, instead of what the probe measures here.
        """
        self._world = world
        self._experiment = experiment
        self._seed = seed
        self._watcher = watcher
        self._planned = planned
        self._rules = rules
        self._known = capacity
        self.measured: Capacity | None = None
        guard = Guard(experiment.guard, experiment.worker_names())
        self._injector = Injector(world, experiment, guard, seed, watcher, rules)
        self._offers: dict[str, str] = {}
        self._blocks = Blocks(world, experiment, ())
        self._lookout = Lookout(world, guard, (self._injector.check, lambda: self._blocks.check()), self._show)
        self._phase = ""
        self._phase_ends_s: float | None = None
        self._loaded = False
        self.plan = LoadPlan(())
        self.rate: ResolvedRate | None = None
        self.complete = False

    async def conduct(self) -> None:
        """Run everything. Whatever ends it, what was injected is healed before this returns or raises.

        Raises Stopped when the guard ends it, and what went wrong in whatever goes on beside it.
        """
        try:
            await self._lookout.keep(self._play)
            self.complete = True
        finally:
            self._blocks.end()
            healed = await self._injector.end()
            if self._injector.stopped is not None:
                self._lookout.tell(self._injector.stopped)
            if self._loaded and not self.complete:
                said = "everything injected is healed" if healed else "NOT EVERY heal is proved"
                self._watcher.note(f"stopping: {said}, closing down the cluster and writing what there is")

    async def _play(self) -> None:
        world = self._world
        self._watcher.phase("start")
        await world.start()
        self._lookout.check()
        await self._plan_load()
        self._lookout.check()
        self._planned(self.plan)
        await world.begin_load(self.plan)
        self._loaded = True
        await self._walk_through_phases()
        self._enter("drain")
        drained = await world.finish_load(self._experiment.policy.client.deadline_s + _DRAIN_SLACK_S)
        self._event("run_ended", detail="" if drained else "some requests had not ended")
        # Whether levels are back at their base is seen by what nodes say of themselves once nothing is left to do.
        await world.sleep(_SETTLE_S)
        self._lookout.check()

    async def probe(self) -> Capacity:
        """Start the cluster and measure what it can do, and no more."""
        await self._world.start()
        return await self._measure(await self._world.vocabulary())

    async def _plan_load(self) -> None:
        spec, policy = self._experiment.workload, self._experiment.policy
        vocabulary = await self._world.vocabulary()
        context = policy.worker.context_max_tokens
        capacity = await self._measure(vocabulary) if self._rules is None else self._rules.capacity
        compared = self._experiment.comparison.phase if self._experiment.comparison is not None else ""
        phases = [
            PlannedPhase(name, phase.duration_s, "none" if name == compared else phase.load)
            for name, phase in self._experiment.phases.items()
        ]
        self._state_offer(capacity, [phase for phase in phases if phase.name != compared])
        assert self.rate is not None
        try:
            self.plan = build_plan(
                spec, phases, self.rate.per_s, capacity, self._seed, vocabulary, context_max_tokens=context
            )
            self._plan_arms(phases, capacity, vocabulary)
        except ValueError as error:
            raise InfeasibleRate(f"workload: {error}") from error

    async def _measure(self, vocabulary: PromptVocabulary) -> Capacity:
        """Even for an absolute rate: an offer that cannot be served is said now, not discovered afterwards."""
        policy = self._experiment.policy
        self._watcher.phase("capacity probe")
        await self._warm_workers()
        context, seed = policy.worker.context_max_tokens, self._seed + _PROBE_SEED
        try:
            sample = first_requests(
                self._experiment.workload, _PROBE_PROMPTS, seed, vocabulary, context_max_tokens=context
            )
        except ValueError as error:
            raise InfeasibleRate(f"workload: {error}") from error
        prompts = [(request.prompt, request.max_tokens) for request in sample]
        self.measured = await self._probe(prompts)
        return self._known or self.measured

    async def _probe(self, prompts: list[tuple[tuple[Token, ...], int]]) -> Capacity:
        plan = plan_probe(self._experiment.cluster.workers, self._experiment.policy.worker.batch_max)
        while True:
            completions = await self._world.probe(plan, prompts)
            try:
                return estimate_capacity(completions, plan)
            except CapacityUnknown as error:
                # A large model on a small machine answers its first request after the end of a short probe.
                longer = plan.longer()
                if longer is None:
                    raise
                plan = longer
                self._watcher.note(f"{str(error).partition(';')[0]}: once more, for {plan.measure_s:g} s")

    async def _warm_workers(self) -> None:
        """A worker that loads nothing beforehand loads now, or the probe would measure its load."""
        experiment = self._experiment
        warm = experiment.prewarmed_names()
        for worker in [name for name in experiment.worker_names() if name not in warm]:
            await self._world.engine(worker).prewarm(experiment.cluster.model, experiment.cluster.start_limit_s)

    def _plan_arms(self, phases: list[PlannedPhase], capacity: Capacity, vocabulary: PromptVocabulary) -> None:
        """Put what the arms ask into the phase in which they are compared. Raises ValueError."""
        experiment, comparison = self._experiment, self._experiment.comparison
        if comparison is None:
            return
        assert self.rate is not None
        names = [phase.name for phase in phases]
        start_s = sum(phase.duration_s for phase in phases[: names.index(comparison.phase)])
        offer = Offer(
            start_s=start_s,
            stop_s=start_s + experiment.phases[comparison.phase].duration_s,
            rate_per_s=self.rate.per_s,
            capacity_per_s=capacity.requests_per_s,
            context_max_tokens=experiment.policy.worker.context_max_tokens,
            workers=experiment.worker_names(),
            generators=experiment.workload.generators,
        )
        task = ArmsTask(experiment.arms, comparison, experiment.workload, offer, self._seed, vocabulary)
        plan = plan_arms(task)
        merged = sorted([*self.plan.requests, *plan.load.requests], key=lambda request: request.intended_s)
        self.plan = LoadPlan(tuple(merged), (*self.plan.closed, *plan.load.closed))
        self._blocks = Blocks(self._world, experiment, plan.blocks)
        said = f"{', '.join(experiment.arms)} compared by {comparison.by}"
        self._offers[comparison.phase] = said
        self._watcher.note(f"in {comparison.phase}: {said}")

    def _state_offer(self, capacity: Capacity, phases: list[PlannedPhase]) -> None:
        """Say before the run what will be asked of the cluster, and how that stands to what it can do."""
        spec, deadline_s = self._experiment.workload, self._experiment.policy.client.deadline_s
        self.rate = resolve_rate(spec, capacity.requests_per_s, capacity.tokens_per_s)
        limits_s = self._experiment.latency_limits_s()
        self._offers = statements(phases, self.rate.per_s, capacity, deadline_s, limits_s)
        for offer in self.offers:
            self._watcher.note(offer)

    @property
    def offers(self) -> list[str]:
        """What is offered, a line for the workload and for each phase that does something else. Empty before."""
        if self.rate is None:
            return []
        lines = [f"offering {self.rate.statement}", *(f"in {name}: {said}" for name, said in self._offers.items())]
        return lines if self._rules is None else [of_the_owner(line) for line in lines]

    async def _walk_through_phases(self) -> None:
        world = self._world
        await world.sleep(-world.now())
        self._event("run_started", detail=next(iter(self.offers), "").removeprefix("offering "))
        start_s = 0.0
        self._blocks.begin()
        self._lookout.begin_to_look()
        for name, phase in self._experiment.phases.items():
            self._enter(name, start_s, phase.duration_s)
            if name in self._offers:
                self._watcher.note(f"{name}: {self._offers[name]}")
            self._boundary("phase_started", name, start_s, self._offers.get(name, ""))
            self._injector.begin(name, start_s)
            start_s += phase.duration_s
            while (left_s := start_s - world.now()) > _MOMENT_S:
                await world.sleep(min(_TICK_S, left_s))
                self._lookout.check()
            self._boundary("phase_ended", name, start_s)
        await self._injector.finish()
        await self._blocks.finish()
        self._lookout.check()

    def _enter(self, phase: str, start_s: float = 0.0, duration_s: float | None = None) -> None:
        self._phase, self._phase_ends_s = phase, None if duration_s is None else start_s + duration_s
        self._watcher.phase(phase, duration_s)

    def _show(self, snapshot: Snapshot) -> None:
        ends_s, faults = self._phase_ends_s, self._injector.in_force()
        left_s = None if ends_s is None else max(0.0, ends_s - self._world.now())
        self._watcher.update(replace(snapshot, phase=self._phase, left_s=left_s, faults=faults))

    def _boundary(self, kind: str, phase: str, at_s: float, detail: str = "") -> None:
        """A phase begins or ends when it was to, as its load does, and not when we came to say so.

        The moment less puts what is asked in the phase's first instant into it, whatever a clock of floats rounds to.
        """
        origin_s = self._world.clock() - self._world.now()
        self._world.record(EventRow(origin_s + at_s - _MOMENT_S, kind, phase, detail=detail))

    def _event(self, kind: str, subject: str = "", detail: str = "") -> None:
        self._world.record(EventRow(self._world.clock(), kind, subject, detail=detail))
